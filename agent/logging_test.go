package agent_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"secretagent/agent"
	"secretagent/agent/config"
	"secretagent/upstream"
)

// logOf returns what a logger writes when use is done with it.
func logOf(format string, out agent.LogOutput, use func(*slog.Logger)) string {
	var b bytes.Buffer
	out.Writer = &b
	logger, _, flush := agent.NewLogger(config.Log{Level: "debug", Format: format}, out)
	use(logger)
	flush()
	return b.String()
}

func TestTextLogIsInColumns(t *testing.T) {
	use := func(l *slog.Logger) {
		l.With("part", "cache").Info("a secret changed", "secret", "app/db")
		l.With("part", "kms").Error("it failed", "err", errors.New("no route to host"), upstream.Cause{}.Attr())
	}
	lines := strings.Split(strings.TrimSpace(logOf("text", agent.LogOutput{}, use)), "\n")
	if len(lines) != 2 || strings.Index(lines[0], "part=cache secret=app/db") != strings.Index(lines[1], `part=kms err="no route to host"`) {
		t.Errorf("%q", lines)
	}
	for i, want := range []string{"INF a secret changed ", "ERR it failed "} {
		if !strings.Contains(lines[i], want) || strings.Contains(lines[i], "\x1b") || !strings.HasPrefix(lines[i], "20") {
			t.Errorf("%q", lines[i])
		}
	}
	if got := logOf("text", agent.LogOutput{Color: true}, use); strings.Count(got, "\n") != 2 || !strings.Contains(got, "\x1b[") {
		t.Errorf("coloured: %q", got)
	}
	journal := strings.Split(strings.TrimSpace(logOf("text", agent.LogOutput{Journal: true}, use)), "\n")
	if !strings.HasPrefix(journal[0], "<6>INF a secret changed ") || !strings.HasPrefix(journal[1], "<3>ERR it failed ") {
		t.Errorf("in the journal: %q", journal)
	}
	// JSON is for programs: no output changes it.
	for _, out := range []agent.LogOutput{{}, {Color: true}, {Journal: true}} {
		for line := range strings.Lines(logOf("json", out, use)) {
			var m map[string]any
			if err := json.Unmarshal([]byte(line), &m); err != nil || m["time"] == nil || m["level"] == nil || m["msg"] == nil || m["part"] == nil {
				t.Errorf("%q: %v", line, err)
			}
		}
	}
}

// TestNoValueForgesALine logs what would end a line, begin another or drive a terminal, in
// every place where a text of somebody else could stand.
func TestNoValueForgesALine(t *testing.T) {
	evil := "x\U000e0001\u009b31m\n2026-01-01T00:00:00.000Z ERR forged\r\x1b[2J\x00\u0085\u2028\u202e\x7f\xff\"}\n{\"level\":\"ERROR\"}"
	for _, format := range []string{"text", "json"} {
		for _, out := range []agent.LogOutput{{}, {Journal: true}} {
			got := logOf(format, out, func(l *slog.Logger) {
				l.With("caller", evil).Warn(evil, "secret", evil, "err", errors.New(evil), "any", []string{evil}, evil, 1, "bytes", []byte(evil))
			})
			if strings.Count(got, "\n") != 1 || !strings.HasSuffix(got, "\n") {
				t.Errorf("%s: %d lines: %q", format, strings.Count(got, "\n"), got)
			}
			if strings.ContainsAny(strings.TrimSuffix(got, "\n"), "\r\x1b\x00\x7f\u0085\u009b\u2028\u202e\U000e0001") {
				t.Errorf("%s: control characters in %q", format, got)
			}
			if format == "json" {
				var m struct{ Secret string }
				if err := json.Unmarshal([]byte(got), &m); err != nil || m.Secret != strings.ToValidUTF8(evil, "\ufffd") {
					t.Errorf("%v: %q is read back from %q", err, m.Secret, got)
				}
			}
		}
	}
}
