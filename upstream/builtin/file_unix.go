//go:build !windows

package builtin

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// createFile writes a new file of mode 0600, whole or not at all. It fails with fs.ErrExist
// when path exists. It returns after file and folder are on disk.
func createFile(path string, content []byte) error {
	t, err := pendingFile(path, content)
	if err != nil {
		return err
	}
	defer t.Cleanup()
	if err := t.Sync(); err != nil {
		return err
	}
	if err := os.Link(t.Name(), path); err != nil { // unlike rename, never replaces
		return err
	}
	return syncFolder(filepath.Dir(path))
}

// replaceFile replaces the file at path, or what a symbolic link there points to, whole or
// not at all. It returns after file and folder are on disk.
func replaceFile(path string, content []byte) error {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	t, err := pendingFile(path, content)
	if err != nil {
		return err
	}
	defer t.Cleanup()
	if err := t.CloseAtomicallyReplace(); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
}

func pendingFile(path string, content []byte) (*renameio.PendingFile, error) {
	// The folder is given because renameio prefers the system's temporary folder.
	t, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithStaticPermissions(0o600))
	if err != nil {
		return nil, err
	}
	if _, err := t.Write(content); err != nil {
		return nil, errors.Join(err, t.Cleanup())
	}
	return t, nil
}

// syncFolder puts the folder's entries on disk.
func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// lockRetry is how often a lock held by another process is tried again.
const lockRetry = 10 * time.Millisecond

// lockFile takes the lock that bbolt takes, so that the file can be looked at before bbolt
// maps it. bbolt then finds the lock in its own hands: it belongs to the open file.
func lockFile(f *os.File, timeout time.Duration) (release func(), err error) {
	for deadline := time.Now().Add(timeout); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return func() {}, nil
		case err == unix.EINTR:
			continue
		case err != unix.EWOULDBLOCK:
			return nil, fmt.Errorf("lock: %w", err)
		case !time.Now().Before(deadline):
			return nil, ErrLocked
		}
		time.Sleep(min(lockRetry, time.Until(deadline)))
	}
}

// unlockFile gives the lock back that lockFile took.
func unlockFile(f *os.File) { _ = unix.Flock(int(f.Fd()), unix.LOCK_UN) }
