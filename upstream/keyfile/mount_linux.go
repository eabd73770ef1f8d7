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

// MountPoint reports whether something is mounted at path, as far as the kernel tells: those
// before 5.8 do not.
func MountPoint(path string) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, 0, &st)
	return err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// FreeSpace returns how many bytes this process may still write to the file system of the folder.
// known is false where the system does not tell.
func FreeSpace(folder string) (bytes uint64, known bool) {
	var st unix.Statfs_t
	if err := unix.Statfs(folder, &st); err != nil || st.Blocks == 0 {
		return 0, false
	}
	return st.Bavail * uint64(st.Frsize), true
}
