//go:build unix

package listen

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"
)

// connectionRefused reports whether nobody listens at the other end.
func connectionRefused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// ownerOf says to whom a file belongs.
func ownerOf(info fs.FileInfo) string {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return fmt.Sprintf("uid %d", st.Uid)
	}
	return "another user"
}

// lockFolder keeps other processes from opening a socket in the folder, until unlock. It
// returns nil when the folder cannot be locked within that time, or not at all.
func lockFolder(folder string, patience time.Duration) (unlock func()) {
	f, err := os.Open(folder)
	if err != nil {
		return nil
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return func() { _ = f.Close() }
		case !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR), time.Now().After(deadline):
			_ = f.Close()
			return nil
		}
	}
}
