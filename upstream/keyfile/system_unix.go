//go:build unix

package keyfile

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// leftoverAge is how old a temporary file is before it can be a leftover. Zero: with the lock of
// the folder in hand, any is one.
const leftoverAge time.Duration = 0

// nonBlock keeps an open from waiting for the writer of a pipe.
const nonBlock = unix.O_NONBLOCK

// LockFolder keeps other processes, and other calls of this one, from making files in the
// folder, until unlock. locked is false, and unlock does nothing, when the folder cannot be
// locked, or not within that time.
func LockFolder(folder string, patience time.Duration) (unlock func(), locked bool) {
	f, err := os.Open(folder)
	if err != nil {
		return func() {}, false
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return func() { _ = f.Close() }, true
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR), !time.Now().Before(deadline):
			_ = f.Close()
			return func() {}, false
		}
	}
}

// checkWritable returns an error when this process cannot make files in the folder.
func checkWritable(folder string) error {
	return unix.Faccessat(unix.AT_FDCWD, folder, unix.W_OK|unix.X_OK, unix.AT_EACCESS)
}

// likeFile gives the file temp the owner and the mode of the one at path. A group that this process
// cannot give gets no rights.
func likeFile(temp, path string) error {
	var of, have unix.Stat_t
	if err := errors.Join(unix.Stat(path, &of), unix.Stat(temp, &have)); err != nil {
		return err
	}
	mode := os.FileMode(of.Mode) & 0o777
	if of.Uid != have.Uid || of.Gid != have.Gid {
		err := os.Chown(temp, int(of.Uid), int(of.Gid))
		if err != nil && of.Uid != have.Uid {
			return err
		}
		if err != nil {
			mode &^= 0o070
		}
	}
	return os.Chmod(temp, mode)
}
