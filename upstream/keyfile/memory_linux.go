package keyfile

import (
	"errors"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// InMemory reports whether a file at path is lost at the next boot, because its file system, or
// that of the first folder above it that exists, is kept in memory.
func InMemory(path string) bool {
	var st unix.Statfs_t
	err := unix.Statfs(path, &st)
	for parent := filepath.Dir(path); errors.Is(err, fs.ErrNotExist) && parent != path; parent = filepath.Dir(path) {
		path = parent
		err = unix.Statfs(path, &st)
	}
	return err == nil && (st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC)
}
