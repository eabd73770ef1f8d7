// Package quickstart holds the README's quick start as a script; this test runs it.
package quickstart

import (
	"net"
	"strconv"
	"strings"
	"testing"

	"secretagent/examples/internal/example"
)

func TestQuickStart(t *testing.T) {
	sh := example.Tool(t, "sh")
	example.Tool(t, "curl")
	out, code := example.Output(t, "", []string{"SECRETAGENT=" + example.Build(t), "PORT=" + freePort(t)}, sh, "run.sh")
	if code != 0 {
		t.Fatalf("exit code %d\n%s", code, out)
	}
	for _, want := range []string{
		`"VersionId":"v1"`, `-rw-------`, `DB_PASSWORD="first"`,
		`"VersionId":"v2"`, `{"VersionStage":["ACSPrevious"]}`, `DB_PASSWORD="second"`,
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in the output:\n%s", want, out)
		}
	}
}

// freePort returns a port that was free a moment ago: the script takes a number, so that
// nothing can be handed over.
func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	example.Must(t, err)
	defer ln.Close()
	return strconv.Itoa(ln.Addr().(*net.TCPAddr).Port)
}
