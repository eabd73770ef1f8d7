//go:build unix

package listen

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
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
