package keyfile_test

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"secretagent/upstream/keyfile"
	"secretagent/upstream/upstreamtest"
)

// Ensure that nothing is made for a file that cannot be replaced since it is a mount point.
func TestReplaceOfAMountPointMakesNoFile(t *testing.T) {
	if !upstreamtest.InMountNamespace(t) {
		return
	}
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
