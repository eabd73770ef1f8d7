//go:build unix

package keyfile

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
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
	if os.Geteuid() != 0 {
		return nil
	}
	_, err := walk(path, func(s step) error {
		trusted := s.uid == 0 && s.closed(0)
		if s.last && s.mode.IsDir() {
			trusted = (s.uid == 0 || s.uid == uid || uid < 0 && !s.shared) && s.closed(mode)
		}
		return s.unless(trusted)
	})
	return err
}

// CheckOpen returns an error when somebody other than root and the owner of the file at path, which
// is open, could put another in its place: every folder and link on the way must belong to one of
// the two, and only they may write to the folders, a sticky one aside, where the file must be of
// root. A process that is not root gets nil, as from [CheckPath].
func CheckOpen(path string, open fs.FileInfo) error {
	if os.Geteuid() != 0 {
		return nil
	}
	return checkOpen(path, open, false)
}

// checkOwned returns why the file at path, which is open, is none of [Kind.OwnedBy] these users.
func checkOwned(path string, open fs.FileInfo, uids []int) error {
	uid, euid := Owner(open), os.Geteuid()
	if uid != 0 && uid != euid && !slices.Contains(uids, uid) {
		return fmt.Errorf("%w: it belongs to uid %d, not to the user of this process (uid %d), to root or to a user that it is for; run: chown %d %s", ErrStranger, uid, euid, euid, path)
	}
	return checkOpen(path, open, true)
}

// checkOpen looks at links and, as root, at folders on the way to a file. known says that the owner
// of the file is one that it may have, wherever it lies.
func checkOpen(path string, open fs.FileInfo, known bool) error {
	uid, euid := Owner(open), os.Geteuid()
	found, err := walk(path, func(s step) error {
		ours := s.uid == 0 || s.uid == uid && (known || !s.shared)
		switch {
		case s.mode&fs.ModeSymlink != 0 && !ours && s.uid != euid:
			return fmt.Errorf("is reached by the link %s of uid %d, who can lead it to a file of others; run: chown -h %d %s", s.path, s.uid, euid, s.path)
		case euid == 0 && (!ours || s.mode.IsDir() && !s.closed(0)):
			return s.unless(false)
		}
		return nil
	})
	if err == nil && !os.SameFile(found, open) {
		err = errExchanged
	}
	return err
}

// ReadOwned is [ReadFile] for a file that says what is to be done with the rights of its owner,
// whose number it returns. Root refuses one whose path leads there by the will of another user,
// and one of root that others can change.
func ReadOwned(path string, most int64) (content []byte, uid int, err error) {
	content, err = read(path, most, func(_ *os.File, info fs.FileInfo) error {
		uid = Owner(info)
		if os.Geteuid() != 0 {
			return nil
		}
		_, err := walk(path, func(s step) error {
			return s.unless(s.uid == 0 && (uid != 0 || s.closed(0)) || s.uid == uid && uid != 0)
		})
		return err
	})
	return content, uid, err
}

// closed reports whether nobody but the owner, and those that mode means, can change it.
func (s step) closed(mode fs.FileMode) bool {
	return s.mode&othersWrite&^mode == 0 || s.mode&fs.ModeSymlink != 0 || s.mode.IsDir() && s.mode&fs.ModeSticky != 0
}

// unless says why a step that is not trusted is not, and what to do.
func (s step) unless(trusted bool) error {
	if trusted {
		return nil
	}
	return foreign{fmt.Errorf("%s belongs to uid %d and has mode %04o: others than root could lead this process, which runs as root, elsewhere; chown it to root and chmod go-w, or run the process as another user",
		s.path, s.uid, s.mode.Perm())}
}

// foreign is an [ErrForeign].
type foreign struct{ error }

func (foreign) Is(target error) bool { return target == ErrForeign }

// walk calls check for the components of the path in the order in which the kernel meets them,
// and returns what the last one is, or the first error.
func walk(path string, check func(step) error) (fs.FileInfo, error) {
	if !filepath.IsAbs(path) {
		folder, err := os.Getwd()
		if err != nil {
			return nil, err
		}
		path = folder + "/" + path // filepath.Join would take a link and the ".." after it out
	}
	s, rest := step{path: "/"}, names(path)
	for links := 0; ; {
		info, err := os.Lstat(s.path)
		if err != nil {
			return nil, err
		}
		s.uid, s.mode, s.last = Owner(info), info.Mode(), len(rest) == 0
		if err := check(s); err != nil {
			return nil, err
		}
		if s.mode&fs.ModeSymlink != 0 {
			target, err := os.Readlink(s.path)
			if err != nil {
				return nil, err
			}
			if links++; links > maxLinks {
				return nil, &fs.PathError{Op: "open", Path: path, Err: syscall.ELOOP}
			}
			s.path = filepath.Dir(s.path)
			if filepath.IsAbs(target) {
				s.path = "/"
			}
			rest = append(names(target), rest...)
			continue
		}
		if s.last || !s.mode.IsDir() {
			return info, nil
		}
		s.shared = s.mode&othersWrite != 0
		s.path, rest = filepath.Join(s.path, rest[0]), rest[1:]
	}
}

// names returns the components of a path. It keeps "..", which means another folder after a link.
func names(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

// Owner returns the number of the user that a file belongs to; -1 where files have none.
func Owner(info fs.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid)
	}
	return -1
}

// group returns the number of the group that a file belongs to.
func group(info fs.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Gid)
	}
	return -1
}

// checkGroup returns why this process cannot give a file the group of the kind.
func (k Kind) checkGroup() error {
	if k.mode == 0 || k.gid < 0 || os.Geteuid() == 0 || k.gid == os.Getegid() {
		return nil
	}
	if groups, err := os.Getgroups(); err != nil || slices.Contains(groups, k.gid) {
		return err
	}
	return fmt.Errorf("this process is not in the group %d and so cannot give it the file: add its user to it", k.gid)
}
