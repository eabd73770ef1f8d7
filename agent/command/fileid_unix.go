//go:build unix

package command

import (
	"fmt"
	"os"
	"syscall"
)

// fileID returns device and inode of f, as systemd writes them; "" when they are not known.
func fileID(f *os.File) string {
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}
