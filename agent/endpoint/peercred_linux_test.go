package endpoint_test

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"secretagent/agent/endpoint"
	"secretagent/agent/listen"
	"secretagent/upstream"
)

// TestAConnectionThatIsPassedOnKeepsItsPeer holds what the documentation says about it: who
// connected counts, not who asks.
func TestAConnectionThatIsPassedOnKeepsItsPeer(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can start a process of another user")
	}
	r := start(t, endpoint.Options{Callers: []endpoint.Caller{{Name: "root", UIDs: []uint32{0}, Secrets: []string{"*"}}}})
	path := socketPath(t)
	ln, err := listen.Open(listen.UnixOptions{Path: path})
	must(t, err)
	r.serve(t, ln)
	r.put(value("a", "v1", "of root", upstream.ACSCurrent))
	nc, err := net.Dial("unix", path)
	must(t, err)
	defer nc.Close()
	file, err := nc.(*net.UnixConn).File()
	must(t, err)
	defer file.Close()
	heir := exec.Command("/bin/sh", "-c", `printf 'GET /v1/a?format=raw HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3; cat <&3`)
	heir.Dir, heir.ExtraFiles = "/", []*os.File{file}
	heir.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := heir.Output(); err != nil || !strings.Contains(string(out), "of root") {
		t.Errorf("%v: %s", err, out)
	}
}
