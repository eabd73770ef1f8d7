//go:build unix

package cache_test

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"secretagent/cache"
)

// unusable returns what can be in the place of the sealed file, and how to make it.
func unusable(path string) map[string]func() error {
	return map[string]func() error{
		"a pipe":   func() error { return syscall.Mkfifo(path, 0o600) },
		"a device": func() error { return os.Symlink(os.DevNull, path) },
	}
}

// Ensure that root keeps no sealed cache where another user could lead it elsewhere.
func TestSealedFolderOfAnotherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give files away")
	}
	dir := t.TempDir()
	o := cache.Options{Sealed: &cache.Sealed{Path: dir + "/app/sealed/cache", Keyring: dir + "/keyring"}}
	if err := os.Mkdir(dir+"/app", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := o.Validate(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir+"/app", 65533, 65533); err != nil {
		t.Fatal(err)
	}
	if err := o.Validate(); err == nil || !strings.Contains(err.Error(), "sealed.path: "+dir+"/app/sealed/cache: "+dir+"/app belongs to uid 65533") {
		t.Error(err)
	}
	if err := errors.Join(os.Mkdir(dir+"/app/sub", 0o755), os.Symlink(dir+"/app/sub", dir+"/link")); err != nil {
		t.Fatal(err)
	}
	o.Sealed.Path = dir + "/link/../cache" // in app, as the kernel follows the link
	if err := o.Validate(); err == nil || !strings.Contains(err.Error(), dir+"/app belongs to uid 65533") {
		t.Error(err)
	}
}
