//go:build unix

package keyfile

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// maxLinks is how many symbolic links a path may lead over, as on Linux.
const maxLinks = 40

// othersWrite are the permission bits that let others than the owner change a file or folder.
const othersWrite fs.FileMode = 0o022

// step is a component of a path, once links are followed.
type step struct {
	path   string
	uid    int
	mode   fs.FileMode
	shared bool // the folder it is in lets everybody add names, and keeps those of others (sticky)
	last   bool
}

// CheckPath returns an error when somebody other than root could lead a process that runs as
// root elsewhere by the path: every component of it, and what links on it lead to, must belong
// to root and be writable by root alone. A sticky folder such as /tmp may be open to all. The
// error names the component; it matches [fs.ErrNotExist] when nothing is wrong with what there
// is and the rest is missing. A process that is not root gets nil: wherever a path is made to
// lead, it does nothing there that its user could not do.
func CheckPath(path string) error { return CheckPathTo(path, 0, 0) }

// CheckPathTo is CheckPath for a folder that the process holds open and never leaves: it may
// belong to the user of that number, and be writable as far as mode says. -1 and 0777 are for a
// folder that belongs to anybody, which only must not be exchanged for another.
func CheckPathTo(path string, uid int, mode fs.FileMode) error {
	return walk(path, func(s step) bool {
		if !s.last || !s.mode.IsDir() {
			return s.uid == 0 && s.closed(0)
		}
		return (s.uid == 0 || s.uid == uid || uid < 0 && !s.shared) && s.closed(mode)
	})
}

// ReadOwned is [ReadFile] for a file that says what is to be done with the rights of its owner,
// whose number it returns. Root refuses one whose path leads there by the will of another user,
// and one of root that others can change.
func ReadOwned(path string, most int64) (content []byte, uid int, err error) {
	content, err = read(path, most, func(info fs.FileInfo) error {
		uid = owner(info)
		return walk(path, func(s step) bool { return s.uid == 0 && (uid != 0 || s.closed(0)) || s.uid == uid && uid != 0 })
	})
	return content, uid, err
}

// closed reports whether nobody but the owner, and those that mode means, can change it.
func (s step) closed(mode fs.FileMode) bool {
	return s.mode&othersWrite&^mode == 0 || s.mode&fs.ModeSymlink != 0 || s.mode.IsDir() && s.mode&fs.ModeSticky != 0
}

// fault says why a step cannot be trusted, and what to do.
func (s step) fault() error {
	return fmt.Errorf("%s belongs to uid %d and has mode %04o: others than root could lead this process, which runs as root, elsewhere; chown it to root and chmod go-w, or run the process as another user",
		s.path, s.uid, s.mode.Perm())
}

// walk calls trusted for the components of the path in the order in which the kernel meets them,
// and returns the fault of the first that is not. It looks at nothing unless the process is root.
func walk(path string, trusted func(step) bool) error {
	if os.Geteuid() != 0 {
		return nil
	}
	if !filepath.IsAbs(path) {
		folder, err := os.Getwd()
		if err != nil {
			return err
		}
		path = folder + "/" + path // filepath.Join would take a link and the ".." after it out
	}
	s, rest := step{path: "/"}, names(path)
	for links := 0; ; {
		info, err := os.Lstat(s.path)
		if err != nil {
			return err
		}
		s.uid, s.mode, s.last = owner(info), info.Mode(), len(rest) == 0
		if !trusted(s) {
			return s.fault()
		}
		if s.mode&fs.ModeSymlink != 0 {
			target, err := os.Readlink(s.path)
			if err != nil {
				return err
			}
			if links++; links > maxLinks {
				return &fs.PathError{Op: "open", Path: path, Err: syscall.ELOOP}
			}
			s.path = filepath.Dir(s.path)
			if filepath.IsAbs(target) {
				s.path = "/"
			}
			rest = append(names(target), rest...)
			continue
		}
		if s.last || !s.mode.IsDir() {
			return nil
		}
		s.shared = s.mode&othersWrite != 0
		s.path, rest = filepath.Join(s.path, rest[0]), rest[1:]
	}
}

// names returns the components of a path. It keeps "..", which means another folder after a link.
func names(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

// owner returns the number of the user that a file belongs to.
func owner(info fs.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid)
	}
	return -1
}
