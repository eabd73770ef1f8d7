package builtin

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/windows"
)

// lockRetry is how often a lock held by another process is tried again.
const lockRetry = 10 * time.Millisecond

// lockFile takes the lock that bbolt takes, so that the file can be looked at before bbolt
// maps it. release hands it over to bbolt, which cannot take it while it is held.
func lockFile(f *os.File, timeout time.Duration) (release func(), err error) {
	at := windows.Overlapped{Offset: 1<<32 - 1, OffsetHigh: 1<<32 - 1}
	for deadline := time.Now().Add(timeout); ; {
		err := windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_FAIL_IMMEDIATELY|windows.LOCKFILE_EXCLUSIVE_LOCK, 0, 1, 0, &at)
		switch {
		case err == nil:
			return func() { unlockFile(f) }, nil
		case err != windows.ERROR_LOCK_VIOLATION:
			return nil, fmt.Errorf("lock: %w", err)
		case !time.Now().Before(deadline):
			return nil, ErrLocked
		}
		time.Sleep(min(lockRetry, time.Until(deadline)))
	}
}

// unlockFile gives the lock back that lockFile or bbolt took.
func unlockFile(f *os.File) {
	at := windows.Overlapped{Offset: 1<<32 - 1, OffsetHigh: 1<<32 - 1}
	_ = windows.UnlockFileEx(windows.Handle(f.Fd()), 0, 1, 0, &at)
}
