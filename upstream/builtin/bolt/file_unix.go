//go:build !windows

package bolt

import (
	"os"

	"golang.org/x/sys/unix"
)

// tryLock takes the lock that bbolt takes, unless another process holds it.
func tryLock(f *os.File) (locked bool, err error) {
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == unix.EWOULDBLOCK || err == unix.EINTR {
		return false, nil
	}
	return err == nil, err
}

// handOver does nothing: bbolt finds the lock in its own hands, since it belongs to the open file.
func handOver(*os.File) {}

// unlockFile gives the lock back.
func unlockFile(f *os.File) { _ = unix.Flock(int(f.Fd()), unix.LOCK_UN) }
