//go:build unix

package render

import (
	"io/fs"
	"os"
	"strconv"
	"syscall"
)

// owner is who a file shall belong to; -1 leaves it as it is.
type owner struct{ uid, gid int }

// give sets group, mode and user of f, in this order: the group while we surely own the file,
// the mode before ownership is lost, so that neither needs more than CAP_CHOWN. Nobody else
// can open f meanwhile: no bit that the final mode lacks is ever set.
func (o owner) give(f *os.File, mode fs.FileMode) error {
	if o.gid >= 0 {
		if err := f.Chown(-1, o.gid); err != nil {
			return err
		}
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if o.uid >= 0 {
		return f.Chown(o.uid, -1)
	}
	return nil
}

// right reports whether fi has this owner and mode.
func (o owner) right(fi fs.FileInfo, mode fs.FileMode) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && fi.Mode().Perm() == mode &&
		(o.uid < 0 || int(st.Uid) == o.uid) && (o.gid < 0 || int(st.Gid) == o.gid)
}

// identity names a file for as long as it exists, under whatever name.
func identity(fi fs.FileInfo) string {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return strconv.FormatUint(uint64(st.Dev), 10) + ":" + strconv.FormatUint(st.Ino, 10)
}

// noFollow makes an open fail on a symbolic link, and not wait for the writer of a pipe.
const noFollow = syscall.O_NOFOLLOW | syscall.O_NONBLOCK

// syncFolder makes the names in the folder durable.
func syncFolder(dir *os.Root) error {
	f, err := dir.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
