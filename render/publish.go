package render

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"secretagent/upstream/keyfile"
)

const (
	tempPrefix   = ".secretagent-"
	backupSuffix = ".bak"

	// createNew makes a file that was not there; O_EXCL does not follow a link either. A
	// regular file never blocks, and os spares four calls of fcntl when it is told so.
	createNew = os.O_WRONLY | os.O_CREATE | os.O_EXCL | nonBlock

	// stampAbsent is the stamp of a target of which nothing is published.
	stampAbsent = "absent"
)

// publisher puts the content of a target on disk. One goroutine uses it at a time.
type publisher struct {
	layout
	folder string // where layout works, for messages
}

// layout is what differs between a single file and a set. The folder that its methods get is
// the one that open returned.
type layout interface {
	// open opens the folder that the layout works in. With create it makes what is missing.
	open(create bool) (*os.Root, error)

	// current reports whether outs are what is published, and repairs what drifted if so.
	current(dir *os.Root, outs []*output) (bool, error)

	// write completes outs on disk under the other names that it notes in p.
	write(p *prepared, outs []*output) error

	// swap publishes p by one rename. visible says whether readers see the new content, which
	// they may do even when swap fails late.
	swap(p *prepared) (visible bool, err error)

	// stamp identifies what is published.
	stamp(dir *os.Root) (string, error)

	// read returns what is published as file i, or fs.ErrNotExist.
	read(dir *os.Root, i int) ([]byte, error)

	// remove deletes what is published. It reports whether there was anything.
	remove(dir *os.Root) (bool, error)
}

// prepare makes outs ready under other names next to what is published. It returns nil when
// that is equal already; drifted mode and owner are then repaired.
func (p publisher) prepare(outs []*output) (*prepared, error) {
	dir, err := p.open(true)
	if err != nil {
		return nil, keyfile.Denied(p.folder, err)
	}
	ready := &prepared{layout: p.layout, dir: dir}
	equal, err := p.current(dir, outs)
	if err == nil && !equal {
		err = p.write(ready, outs)
	}
	if err != nil || equal {
		ready.abort()
		return nil, keyfile.Denied(p.folder, err)
	}
	return ready, nil
}

// readFile returns what is published as file i, or fs.ErrNotExist.
func (p publisher) readFile(i int) ([]byte, error) {
	dir, err := p.open(false)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return p.read(dir, i)
}

// published returns the stamp of what is published.
func (p publisher) published() (stamp string, err error) {
	stamp = stampAbsent
	err = inFolder(p.open, func(dir *os.Root) error {
		stamp, err = p.stamp(dir)
		return err
	})
	return stamp, err
}

// delete removes what is published. It reports whether there was anything.
func (p publisher) delete() (removed bool, err error) {
	err = inFolder(p.open, func(dir *os.Root) error {
		removed, err = p.remove(dir)
		return err
	})
	return removed, err
}

// inFolder calls do with the folder that open opens, unless there is none.
func inFolder(open func(create bool) (*os.Root, error), do func(*os.Root) error) error {
	dir, err := open(false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	return do(dir)
}

// prepared is content that is complete on disk under another name. One of commit and abort
// must be called.
type prepared struct {
	layout layout
	dir    *os.Root // nil after release
	name   string   // the file or folder to rename; empty: there is none any more
	path   string   // where that is
	backup string   // the file to rename to the backup; empty: none
	stamp  string   // identifies it once it is published
}

// commit publishes. visible says whether readers see the new content, which they may do even
// when commit fails late.
func (p *prepared) commit() (visible bool, err error) {
	defer p.abort() // removes what was not renamed
	if err := p.reopen(); err != nil {
		return false, err
	}
	return p.layout.swap(p)
}

// abort removes what commit did not publish.
func (p *prepared) abort() {
	for _, name := range []string{p.name, p.backup} {
		if name != "" && p.reopen() == nil {
			_ = p.dir.RemoveAll(name)
		}
	}
	p.name, p.backup = "", ""
	p.release()
}

// release closes the folder, which commit opens again: when many are prepared before the first
// is committed, they must not hold a descriptor each.
func (p *prepared) release() {
	if p.dir != nil {
		p.dir.Close()
		p.dir = nil
	}
}

func (p *prepared) reopen() (err error) {
	if p.dir == nil {
		p.dir, err = p.layout.open(false)
	}
	return err
}

// folder is a folder that may have to lie inside a root.
type folder struct {
	root string // empty: anywhere
	path string
	mode fs.FileMode // of what is missing of it
	sync bool
}

// check returns why root must not write into the folder, when it must not. What is missing of it
// is no fault, nor is anything below the root: nothing leads out of that.
func (d folder) check() error {
	if d.root != "" {
		return nil
	}
	return exists(keyfile.CheckPath(d.path))
}

// checkRoot is check of the root itself, which may belong to anybody: it is opened first.
func checkRoot(root string) error { return keyfile.CheckPathTo(root, -1, fs.ModePerm) }

// exists returns err unless that says that something is missing.
func exists(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// open opens the folder, creating what is missing of it.
//
// The returned root follows the folder itself, not its path: a path that is swapped for a
// symbolic link meanwhile redirects nothing.
func (d folder) open(create bool) (*os.Root, error) {
	if d.root == "" {
		var err error
		if create {
			err = keyfile.MakeFolder(d.path, d.mode, d.sync)
		} else {
			err = keyfile.CheckPath(d.path)
		}
		if err != nil {
			return nil, err
		}
		return os.OpenRoot(d.path)
	}
	if err := checkRoot(d.root); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(d.root)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	rel, err := filepath.Rel(d.root, d.path)
	if err != nil {
		return nil, err
	}
	if create {
		if err := root.MkdirAll(rel, d.mode); err != nil {
			return nil, err
		}
	}
	return root.OpenRoot(rel) // fails when a link leads out of root
}

// file is one file to publish, its options resolved.
type file struct {
	name  string
	mode  fs.FileMode
	owner owner
}

// singleFile is the layout of one file:
//
//  1. Open the folder; create what is missing of it.
//  2. Refuse a destination that is not a regular file. (A mount point is refused by Validate.)
//  3. Equal content: repair mode and owner, done.
//  4. Write a temporary file, 0600, with a random name, in the same folder.
//  5. Set group, mode and owner; sync.
//  6. With backup: write the old content, if it can be read, to a second temporary file.
//  7. Rename the backup, then the file, to their names. Nothing is visible before, everything
//     after.
//  8. Sync the folder.
type singleFile struct {
	folder
	file
	backup bool
}

// current implements layout: 2 and 3.
func (l *singleFile) current(dir *os.Root, outs []*output) (bool, error) {
	return l.file.isCurrent(dir, outs[0].bytes)
}

// isCurrent reports whether the file in dir holds content, and repairs its mode and owner if
// so.
func (f file) isCurrent(dir *os.Root, content []byte) (bool, error) {
	held, err := openRegular(dir, f.name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return false, nil // what cannot be read, as it was given to another user, is replaced
	}
	if err != nil {
		return false, err
	}
	defer held.Close()
	fi, err := held.Stat()
	if err != nil || fi.Size() != int64(len(content)) {
		return false, err
	}
	old, err := io.ReadAll(io.LimitReader(held, fi.Size()+1)) // one more byte would be seen
	if err != nil || !bytes.Equal(old, content) {
		return false, err
	}
	if !f.owner.right(fi, f.mode) {
		return true, f.owner.give(held, f.mode)
	}
	return true, nil
}

// write implements layout: 4 to 6.
func (l *singleFile) write(p *prepared, outs []*output) error {
	temp := l.file
	temp.name = tempName(l.name)
	fi, err := temp.create(p.dir, outs[0].bytes, l.sync)
	if err != nil {
		return err
	}
	p.name, p.path, p.stamp = temp.name, filepath.Join(l.path, temp.name), identity(fi)
	if !l.backup {
		return nil
	}
	old, err := readRegular(p.dir, l.name)
	if err != nil {
		return nil // there is none, or none that can be kept: the new content goes out all the same
	}
	bak := file{name: tempName(l.name), mode: defaultMode, owner: owner{-1, -1}}
	if _, err := bak.create(p.dir, old, l.sync); err != nil {
		return err
	}
	p.backup = bak.name
	return nil
}

// swap implements layout: 7 and 8.
func (l *singleFile) swap(p *prepared) (bool, error) {
	if p.backup != "" {
		if err := p.rename(p.backup, l.name+backupSuffix); err != nil {
			return false, err
		}
		p.backup = ""
	}
	if err := p.rename(p.name, l.name); err != nil {
		return false, err
	}
	p.name = ""
	return true, l.synced(p.dir)
}

// rename gives a file its final name.
func (p *prepared) rename(from, to string) error {
	return keyfile.RenameError(filepath.Join(filepath.Dir(p.path), to), p.dir.Rename(from, to))
}

// synced makes the names in dir durable, unless the folder asks for no sync.
func (d folder) synced(dir *os.Root) error {
	if !d.sync {
		return nil
	}
	return syncFolder(dir)
}

// stamp implements layout.
func (l *singleFile) stamp(dir *os.Root) (string, error) {
	fi, err := dir.Lstat(l.name)
	if errors.Is(err, fs.ErrNotExist) {
		return stampAbsent, nil
	}
	if err != nil {
		return "", err
	}
	return identity(fi), nil
}

// read implements layout.
func (l *singleFile) read(dir *os.Root, _ int) ([]byte, error) { return readRegular(dir, l.name) }

// remove implements layout. The backup goes too: it holds a secret that was deleted.
func (l *singleFile) remove(dir *os.Root) (bool, error) {
	if l.backup {
		if _, err := removeRegular(dir, l.name+backupSuffix); err != nil {
			return false, err
		}
	}
	removed, err := removeRegular(dir, l.name)
	if !removed {
		return false, err
	}
	return true, l.synced(dir)
}

// openRegular opens name for reading and refuses everything that is no regular file.
func openRegular(dir *os.Root, name string) (*os.File, error) {
	fi, err := dir.Lstat(name)
	if err != nil {
		return nil, err
	}
	if err := mustBeRegular(dir, name, fi); err != nil {
		return nil, err
	}
	// The name may be another file by now: look again at what was opened.
	f, err := dir.OpenFile(name, os.O_RDONLY|noFollow, 0)
	if err != nil {
		return nil, err
	}
	if fi, err = f.Stat(); err == nil {
		err = mustBeRegular(dir, name, fi)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// readRegular reads the file name, up to a bound.
func readRegular(dir *os.Root, name string) ([]byte, error) {
	f, err := openRegular(dir, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxOutput+1))
	if err == nil && len(b) > maxOutput {
		return nil, fmt.Errorf("%s is larger than %d bytes", f.Name(), maxOutput)
	}
	return b, err
}

func mustBeRegular(dir *os.Root, name string, fi fs.FileInfo) error {
	mode := fi.Mode()
	if mode.IsRegular() {
		return nil
	}
	path := filepath.Join(dir.Name(), name)
	switch {
	case mode&fs.ModeSymlink != 0:
		return fmt.Errorf("%s is a symbolic link; name the file it leads to, or remove the link", path)
	case mode.IsDir():
		return fmt.Errorf("%s is a folder; name a file inside it", path)
	default:
		return fmt.Errorf("%s is not a regular file; remove it or name another", path)
	}
}

// removeRegular removes the file name, if there is one, and refuses everything else.
func removeRegular(dir *os.Root, name string) (bool, error) {
	fi, err := dir.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = mustBeRegular(dir, name, fi)
	}
	if err == nil {
		err = dir.Remove(name)
	}
	return err == nil, err
}

// create writes content to a new file f in dir, which gets mode and owner in the order that
// keeps others out. On failure nothing is left behind.
func (f file) create(dir *os.Root, content []byte, sync bool) (fs.FileInfo, error) {
	opened, err := dir.OpenFile(f.name, createNew, 0o600)
	if err != nil {
		return nil, err
	}
	var fi fs.FileInfo
	if _, err = opened.Write(content); err == nil {
		err = f.owner.give(opened, f.mode)
	}
	if err == nil && sync {
		err = opened.Sync()
	}
	if err == nil {
		fi, err = opened.Stat()
	}
	if closeErr := opened.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		_ = dir.Remove(f.name)
	}
	return fi, err
}

// tempNames recognises what tempName returns, and picks the tempKey in it.
var tempNames = regexp.MustCompile(`^` + regexp.QuoteMeta(tempPrefix) + `([0-9a-f]{8})-[0-9a-f]{16}\.tmp$`)

// tempName returns a name that nobody can guess.
func tempName(base string) string {
	return tempPrefix + tempKey(base) + "-" + randomHex() + ".tmp"
}

// tempKey is short whatever the length of base, and differs between the files of a folder.
func tempKey(base string) string {
	sum := sha256.Sum256([]byte(base))
	return hex.EncodeToString(sum[:4])
}

func randomHex() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// removeLeftovers deletes the temporary files that a killed agent left for the given names.
// Those of other files in the folder, and of other programs, stay.
func (d folder) removeLeftovers(bases []string) error {
	ours := make(map[string]bool, len(bases))
	for _, base := range bases {
		ours[tempKey(base)] = true
	}
	return inFolder(d.open, func(dir *os.Root) error {
		names, err := list(dir)
		for _, name := range names {
			if m := tempNames.FindStringSubmatch(name); m != nil && ours[m[1]] {
				if _, err := removeRegular(dir, name); err != nil {
					return err
				}
			}
		}
		return err
	})
}

// list returns the names in dir.
func list(dir *os.Root) ([]string, error) {
	f, err := dir.Open(".")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}
