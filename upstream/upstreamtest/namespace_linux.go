package upstreamtest

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// InMountNamespace runs the test t once more, in a process that has the mounts for itself. It
// returns true there, where the test goes on, and false in the first process, which reports how
// that ended. It skips where this user may not mount.
func InMountNamespace(t *testing.T) bool {
	t.Helper()
	const inside = "TEST_MOUNT_NAMESPACE"
	if os.Getenv(inside) != "" {
		if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); os.IsPermission(err) {
		t.Skip("may not mount: ", err)
	} else if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("%v\n%s", err, out)
	}
	return false
}
