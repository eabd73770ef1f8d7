package config

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

// FuzzParse holds that any input gives either a configuration or problems that name a key or
// a position, and that no report drives a terminal.
func FuzzParse(f *testing.F) {
	seeds, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(seeds) == 0 {
		f.Fatalf("no files in testdata: %v", err)
	}
	for _, file := range seeds {
		src, err := os.ReadFile(file)
		must(f, err)
		f.Add(string(src))
	}
	f.Add(valid)
	f.Fuzz(func(t *testing.T, src string) {
		here := Source{File: "/etc/secretagent/agent.yaml"}
		cfg, err := here.Parse([]byte(src))
		if err == nil {
			if cfg == nil || (cfg.Upstream.Local == nil) == (cfg.Upstream.Alibaba == nil) {
				t.Fatalf("a configuration without upstream: %+v", cfg)
			}
			if r := here.parseReach([]byte(src)); r.Err != nil || !r.Said || !reflect.DeepEqual(r.Endpoint, cfg.Endpoint) {
				t.Errorf("a client reads %+v, the agent %+v", r, cfg.Endpoint)
			}
			return
		}
		here.parseReach([]byte(src)) // does not panic
		problems, ok := errors.AsType[Problems](err)
		if cfg != nil || !ok || len(problems) == 0 {
			t.Fatalf("config %v, error %T", cfg, err)
		}
		for _, p := range problems {
			if p.Key == "" && p.Line == 0 || p.Reason == "" {
				t.Errorf("a problem of nothing: %+v", p)
			}
			for line := range strings.Lines(p.Excerpt) {
				if strings.TrimSuffix(line, "\n") != strings.Map(printable, strings.TrimSuffix(line, "\n")) {
					t.Errorf("an excerpt drives the terminal: %q", line)
				}
			}
		}
	})
}

// FuzzSeedDataIsNotShown holds that no report shows what stands in the data of a seed,
// however it is written and whatever else is wrong around it.
func FuzzSeedDataIsNotShown(f *testing.F) {
	const marker = "hunter2"
	for style := range uint8(5) {
		for _, around := range []string{"", "x", "'", `"`, "{", "[a, ", "&a ", "!!str ", "*", "? ", "|", "# ", "a: ", "\n\n", "\t", "\\", "é", "%", "@", "---\n", "\r\n", "0,"} {
			f.Add(around, around, style)
		}
	}
	f.Fuzz(func(t *testing.T, before, after string, style uint8) {
		data := before + marker + after
		flat := strings.Map(func(r rune) rune {
			if r == '\n' || r == '\r' || r == '\u0085' || r == '\u2028' || r == '\u2029' {
				return ' '
			}
			return r
		}, data)
		switch style % 5 {
		case 0:
			data = strconv.Quote(data)
		case 1:
			data = "'" + strings.ReplaceAll(flat, "'", "''") + "'"
		case 2:
			data = "|\n          " + flat + "\n          " + flat
		case 3:
			data = flat // plain, which may be anything in YAML
		case 4:
			data = "'" + strings.ReplaceAll(strings.ReplaceAll(data, "'", "''"), "\n", "\n          ") // not closed
		}
		if style%5 == 3 && strings.ContainsAny(data, "]}") {
			return // it ends the section and is no longer the data of a seed
		}
		for _, src := range []string{
			"upstream:\n  local:\n    seed:\n      - name: a b\n        data: " + data + "\n        versionId: 7\ncache: {ttl: 0s}\n",
			"cache: {ttl: 0s}\nupstream:\n  local:\n    seed:\n      - versionId: v 1\n        data: " + data + "\n",
			"upstream: {local: {seed: [{versionId: v 1, data: " + data + ", name: a b}, {nmae: x}]}}\n",
			"upstream:\n  local:\n    seed:\n      - name: a\n        dtaa: " + data + "\n",
		} {
			_, err := Parse("/etc/secretagent/agent.yaml", []byte(src))
			if problems, ok := errors.AsType[Problems](err); ok && strings.Contains(problems.Report(), marker) {
				t.Errorf("a secret is shown:\n%s\nof\n%s", problems.Report(), src)
			}
		}
	})
}
