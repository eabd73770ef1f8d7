package config

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// reachable is a configuration of which no line but those of its endpoint matters to a client.
const reachable = `# the agent
upstream:
  local:
    seed:
      - {name: demo/db, data: "a"}
      - name: demo/text
        data: |
          endpoint: {listen: 127.0.0.1:1}
endpoint:
  listen: 127.0.0.1:9999
  socket: ./agent.sock
  tokenFile: ./token
secrets:
- {name: demo/db}
templates:
  - contents: '{{ secret "demo/db" }}'
    destination: ./out
`

// mistakes are lines that spoil a configuration, each in a way of its own.
var mistakes = []string{
	"secrts: []", "cache: {ttl: 0s}", "cache: {ttl: soon}", "cache: {", "cache: [x", "log: }", "log: ]", `log: "x`, "log: 'x", "\tlog: {}", "log:\n\tlevel: info",
	"---", "---\nlog: {}", "...", "<<<<<<< HEAD", "=======", ">>>>>>> theirs", "{{ .Values.agent }}", "%", "@x", "*x", "&x", "? x", "!x", ": x", "- x", "x",
	"\xff\xfe", "a\x00b", "  log: {}", " x: y", "log: |", "secrets: {}", "upstream: {local: {}}", strings.Repeat("[", 40), "log: " + strings.Repeat("{a: ", 40),
}

// Ensure that a mistake on any line around the endpoint of a configuration, and on any line below what
// it says first, keeps no client from the agent.
func TestReachOfAFileWithMistakes(t *testing.T) {
	lines := strings.SplitAfter(reachable, "\n")
	endpoint := slices.Index(lines, "endpoint:\n")
	for _, mistake := range mistakes {
		for at := range len(lines) {
			if at > endpoint && at < endpoint+4 {
				continue
			}
			src := strings.Join(slices.Insert(slices.Clone(lines), at, mistake+"\n"), "")
			r := Source{File: "/etc/agent.yaml"}.parseReach([]byte(src))
			if !r.Said || r.Listen != "127.0.0.1:9999" || r.Socket != "/etc/agent.sock" || r.TokenFile != "/etc/token" {
				t.Errorf("with %q on line %d: listen %s, socket %s, token %s, said %v", mistake, at+1, r.Listen, r.Socket, r.TokenFile, r.Said)
			}
		}
	}
}

// Ensure that a section with a mistake gives what stands around it, and that a client learns when
// its address is a guess.
func TestReachOfAnEndpointWithMistakes(t *testing.T) {
	for _, c := range []struct {
		name, src, listen, socket string
		said, whole               bool
	}{
		{"nothing wrong", "upstream: {local: {}}", "127.0.0.1:2025", "", true, true},
		{"an unknown key", "upstream: {local: {}}\nendpoint: {lsten: '127.0.0.1:1', socket: /s}", "127.0.0.1:2025", "/s", true, false},
		{"a section that does not end", "endpoint:\n  listen: 127.0.0.1:1\n  callers: [{name: a\n  socket: /s\n", "127.0.0.1:1", "/s", true, false},
		{"a value that is none", "endpoint: {listen: [x], headers: {}}", "127.0.0.1:2025", "", false, false},
		{"a section that is none", "endpoint: 127.0.0.1:1", "127.0.0.1:2025", "", false, false},
		{"a section of another name", "endpont: {listen: '127.0.0.1:1'}", "127.0.0.1:2025", "", false, false},
		{"no upstream", "endpoint: {listen: off, socket: /s}", "", "/s", true, false},
		{"an empty file", "", "127.0.0.1:2025", "", false, false},
		{"another language", "endpoint {\n  listen = 1\n}", "127.0.0.1:2025", "", false, false},
	} {
		r := Source{File: "/etc/agent.yaml"}.parseReach([]byte(c.src))
		if r.Listen != c.listen || string(r.Socket) != c.socket || r.Said != c.said || (r.Err == nil) != c.whole {
			t.Errorf("%s: listen %s, socket %s, said %v: %v", c.name, r.Listen, r.Socket, r.Said, r.Err)
		}
	}
	missing := filepath.Join(t.TempDir(), "agent.yaml")
	if r := (Source{File: missing}).ReadReach(); r.Listen != "127.0.0.1:2025" || r.Said || r.Err == nil || !strings.HasPrefix(r.Err.Error(), missing+": ") {
		t.Errorf("no file: %+v", r)
	}
	if r := (Source{File: ""}).ReadReach(); r.Listen != "127.0.0.1:2025" || r.Err != nil {
		t.Errorf("no path: %+v", r)
	}
}
