package keyfile_test

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"secretagent/upstream/keyfile"
)

// Ensure that nothing is made for a file that cannot be replaced since it is a mount point.
func TestReplaceOfAMountPointMakesNoFile(t *testing.T) {
	const inside = "KEYFILE_TEST_MOUNT"
	if os.Getenv(inside) == "" {
		cmd := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
		if out, err := cmd.CombinedOutput(); os.IsPermission(err) {
			t.Skip("may not mount: ", err)
		} else if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	must(t, syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""))
	dir := t.TempDir()
	for _, name := range []string{"/host", "/file"} {
		must(t, os.WriteFile(dir+name, []byte("old"), 0o600))
	}
	must(t, syscall.Mount(dir+"/host", dir+"/file", "", syscall.MS_BIND, ""))
	t.Cleanup(func() { _ = syscall.Unmount(dir+"/file", syscall.MNT_DETACH) })
	must(t, os.Symlink("file", dir+"/link"))
	for _, name := range []string{"/file", "/link"} {
		replaced, err := keyfile.Database.Replace(dir+name, func(string) error {
			t.Errorf("%s is filled", name)
			return nil
		})
		if replaced || err == nil || !strings.HasPrefix(err.Error(), dir+"/file "+keyfile.IsMountPoint) {
			t.Errorf("%s: %t, %v", name, replaced, err)
		}
	}
}
