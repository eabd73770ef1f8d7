package agent

import (
	"strings"
	"testing"
	"unicode/utf8"

	"secretagent/agent/endpoint"
)

// TestStateIsOneLine: what systemd shows to everybody is bounded, tells it nothing else, quotes no
// program, and with callers, of whom each may know its own secrets only, names nothing.
func TestStateIsOneLine(t *testing.T) {
	r := endpoint.Readiness{Problems: []endpoint.Problem{
		{Subject: "secret app/db", Reason: "a\nMAINPID=1\r\x1b[31m"},
		{Subject: "file /x", Reason: strings.Repeat("é", maxState)},
	}}
	line := stateLine(r, false)
	if !strings.HasPrefix(line, "not ready; secret app/db: a MAINPID=1  [31m; file /x: é") || len(line) > maxState+3 || !utf8.ValidString(line) {
		t.Errorf("%q", line)
	}
	r.Problems[1] = endpoint.Problem{Subject: "file /x", Reason: "failed: check: exit status 1: hunter2", Printed: true}
	if line := stateLine(r, false); !strings.HasSuffix(line, "; file /x: secretagent status says why") {
		t.Errorf("what a program has printed: %q", line)
	}
	if line := stateLine(r, true); strings.Contains(line, "app/db") {
		t.Errorf("with callers: %q", line)
	}
}
