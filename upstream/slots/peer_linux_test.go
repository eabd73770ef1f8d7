package slots

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A server in another pid namespace than its client, as in the containers of a pod, knows the client
// by user and group, and not by number.
func TestAPeerOfAnotherPIDNamespace(t *testing.T) {
	const helper = "SLOTS_TEST_SERVER"
	if os.Getenv(helper) != "" {
		ln, err := net.FileListener(os.NewFile(3, "listener"))
		if err == nil {
			var nc net.Conn
			if nc, err = ln.Accept(); err == nil {
				p, known := PeerOf(nc)
				fmt.Println("peer", p, known)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	if os.Getuid() != 0 {
		t.Skip("only root makes a pid namespace")
	}
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	file, err := ln.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	nc, err := net.Dial("unix", path) // who connected is fixed here
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	server := exec.Command(os.Args[0], "-test.run", "^TestAPeerOfAnotherPIDNamespace$", "-test.v")
	server.Env, server.ExtraFiles = append(os.Environ(), helper+"=1"), []*os.File{file}
	server.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	out, err := server.CombinedOutput()
	if os.IsPermission(err) {
		t.Skipf("no pid namespace here: %v", err)
	}
	if want := fmt.Sprintf("peer uid=0 gid=%d pid=0 true", os.Getgid()); err != nil || !strings.Contains(string(out), want) {
		t.Errorf("%v\n%s\nwant %s", err, out, want)
	}
}
