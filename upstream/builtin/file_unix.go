//go:build !windows

package builtin

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

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
