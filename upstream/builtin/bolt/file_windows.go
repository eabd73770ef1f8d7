package bolt

import (
	"os"

	"golang.org/x/sys/windows"
)

// place returns where the lock of bbolt lies.
func place() *windows.Overlapped {
	return &windows.Overlapped{Offset: 1<<32 - 1, OffsetHigh: 1<<32 - 1}
}

// tryLock takes the lock that bbolt takes, unless another process holds it; not alone, only unless one writes.
func tryLock(f *os.File, alone bool) (locked bool, err error) {
	how := uint32(windows.LOCKFILE_FAIL_IMMEDIATELY)
	if alone {
		how |= windows.LOCKFILE_EXCLUSIVE_LOCK
	}
	err = windows.LockFileEx(windows.Handle(f.Fd()), how, 0, 1, 0, place())
	if err == windows.ERROR_LOCK_VIOLATION {
		return false, nil
	}
	return err == nil, err
}

// handOver lets bbolt take the lock, which it cannot while it is held here.
func handOver(f *os.File) { unlockFile(f) }

// unlockFile gives the lock back that tryLock or bbolt took.
func unlockFile(f *os.File) { _ = windows.UnlockFileEx(windows.Handle(f.Fd()), 0, 1, 0, place()) }
