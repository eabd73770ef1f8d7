//go:build !windows

package bolt

import (
	"os"

	"golang.org/x/sys/unix"
)

// tryLock takes the lock that bbolt takes, unless another process holds it; not alone, only unless one writes.
func tryLock(f *os.File, alone bool) (locked bool, err error) {
	how := unix.LOCK_SH
	if alone {
		how = unix.LOCK_EX
	}
	err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
	if err == unix.EWOULDBLOCK || err == unix.EINTR {
		return false, nil
	}
	return err == nil, err
}

// handOver does nothing: bbolt finds the lock in its own hands, since it belongs to the open file.
func handOver(*os.File) {}

// unlockFile gives the lock back.
func unlockFile(f *os.File) { _ = unix.Flock(int(f.Fd()), unix.LOCK_UN) }
