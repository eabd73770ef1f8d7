package bolt

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestADatabaseThatMayNotBeOpenedSaysWhoseItIs(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "secrets.db")
	if err := errors.Join(os.WriteFile(path, nil, 0), os.Chmod(dir, 0o711), os.Chmod(filepath.Dir(dir), 0o711)); err != nil {
		t.Fatal(err)
	}
	if uid := os.Geteuid(); uid == 0 { // root may open any file: this thread does so as somebody else
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := unix.Setfsuid(65534); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = unix.Setfsuid(uid) }()
	}
	_, _, err := openDatabase(path, false, time.Second)
	if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), path+" belongs to ") || !strings.Contains(err.Error(), ", mode 0000, and this process is ") {
		t.Errorf("got %v", err)
	}
}
