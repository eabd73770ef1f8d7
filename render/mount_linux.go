package render

import "golang.org/x/sys/unix"

// mountPoint reports whether something is mounted at path, as far as the kernel tells: those
// before 5.8 do not.
func mountPoint(path string) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, 0, &st)
	return err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}
