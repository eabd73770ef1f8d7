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
// by user and group, and not by number. In a user namespace where the client has no number it knows
// nobody: whoever else has none would be taken for the same.
func TestAPeerOfAnotherNamespace(t *testing.T) {
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
		t.Skip("only root makes namespaces")
	}
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	file, err := ln.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	other := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 1000, Size: 1}}
	for want, attr := range map[string]*syscall.SysProcAttr{
		fmt.Sprintf("peer uid=0 gid=%d pid=0 true", os.Getgid()): {Cloneflags: syscall.CLONE_NEWPID},
		"peer uid=0 gid=0 pid=0 false":                           {Cloneflags: syscall.CLONE_NEWUSER, UidMappings: other, GidMappings: other},
	} {
		nc, err := net.Dial("unix", ln.Addr().String()) // who connected is fixed here
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		server := exec.Command(os.Args[0], "-test.run", "^TestAPeerOfAnotherNamespace$", "-test.v")
		server.Env, server.ExtraFiles, server.SysProcAttr = append(os.Environ(), helper+"=1"), []*os.File{file}, attr
		out, err := server.CombinedOutput()
		if os.IsPermission(err) {
			t.Skipf("no namespaces here: %v", err)
		}
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%v\n%s\nwant %s", err, out, want)
		}
	}
}
