//go:build unix

package keyfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// OpenLog opens the file at path to append to it. With create it makes what is missing, the file
// with mode 0600.
//
// Root takes any file in a folder that [CheckPath] accepts. Where only the group of a folder on the
// way stands against that, as of /var/log on many hosts, a path without links will do on which every
// folder belongs to root and is closed to all others, to a regular file of root with one name:
// there the group can at most put another folder or file of root in the place.
//
// A pipe that nobody reads is refused: to open it would wait for its reader.
func OpenLog(path string, create bool) (*os.File, error) {
	flags := os.O_APPEND | os.O_WRONLY | nonBlock
	if create {
		flags |= os.O_CREATE
	}
	folder := filepath.Dir(path)
	if err := CheckPath(folder); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return openShared(path, flags, err)
	}
	if create {
		if err := MakeFolder(folder, 0o700, true); err != nil {
			return nil, err
		}
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if errors.Is(err, unix.ENXIO) {
		if info, statErr := os.Stat(path); statErr == nil && info.Mode()&fs.ModeNamedPipe != 0 {
			err = &fs.PathError{Op: "open", Path: path, Err: errors.New("must not be a pipe that nobody reads")}
		}
	}
	return f, err
}

// openShared opens the file at path where a group may write to folders on the way. Each is opened
// in the one before, so that nothing can be exchanged after it was looked at. fault is returned
// when others than a group are in the way.
func openShared(path string, flags int, fault error) (*os.File, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	at, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: "/", Err: err}
	}
	defer func() { _ = unix.Close(at) }()
	var st unix.Stat_t
	for _, name := range names(filepath.Dir(path)) {
		if flags&os.O_CREATE != 0 {
			_ = unix.Mkdirat(at, name, 0o700) // whether it is there now is seen next
		}
		next, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		switch {
		case errors.Is(err, unix.ENOENT):
			return nil, &fs.PathError{Op: "open", Path: path, Err: err}
		case err != nil: // a link
			return nil, fault
		}
		_ = unix.Close(at)
		at = next
		if err := unix.Fstat(at, &st); err != nil || st.Uid != 0 || st.Mode&0o002 != 0 && st.Mode&unix.S_ISVTX == 0 {
			return nil, fault
		}
	}
	fd, err := unix.Openat(at, filepath.Base(path), flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err == nil {
		err = unix.Fstat(fd, &st)
		if err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Uid == 0 && st.Nlink == 1 {
			return os.NewFile(uintptr(fd), path), nil
		}
		_ = unix.Close(fd)
	}
	if errors.Is(err, unix.ENOENT) {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return nil, fmt.Errorf("%s must be a regular file of root with one name, and no link: %w", path, fault)
}
