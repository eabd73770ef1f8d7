// Package quickstart holds the README's quick start as a script; this test runs it.
package quickstart

import (
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

func TestQuickStart(t *testing.T) {
	for _, tool := range []string{"sh", "curl", "go"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("the script needs %s: %v", tool, err)
		}
	}
	cmd := exec.Command("sh", "run.sh")
	cmd.Env = append(os.Environ(), "PORT="+strconv.Itoa(freePort(t)))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	got := string(out)
	for _, want := range []string{
		`"VersionId":"v1"`, `-rw-------`, `DB_PASSWORD="first"`,
		`"VersionId":"v2"`, `{"VersionStage":["ACSPrevious"]}`, `DB_PASSWORD="second"`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in the output:\n%s", want, got)
		}
	}
}

// freePort returns a port that was free a moment ago: the script takes a number, so that
// nothing can be handed over.
func freePort(t *testing.T) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}
