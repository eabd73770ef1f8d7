package render

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

const (
	tempPrefix   = ".secretagent-"
	backupSuffix = ".bak"

	// createNew makes a file that was not there; O_EXCL does not follow a link either. A
	// regular file never blocks, and os spares four calls of fcntl when it is told so.
	createNew = os.O_WRONLY | os.O_CREATE | os.O_EXCL | nonBlock

	// stampAbsent is the stamp of a place where nothing is published.
	stampAbsent = "absent"
)

// place is where a unit publishes its outputs. It is used by one goroutine at a time.
type place interface {
	// prepare makes outs ready next to what is published now. It returns nil when that is
	// equal already; drifted mode and owner are then repaired.
	prepare(outs []*output) (staged, error)

	// current returns the content published as file i; an error that is fs.ErrNotExist when
	// there is none.
	current(i int) ([]byte, error)

	// stamp identifies what is published now.
	stamp() (string, error)

	// remove deletes what is published. It reports whether there was anything.
	remove() (bool, error)
}

// staged is content that is complete on disk under another name. One of commit and abort
// must be called.
type staged interface {
	// stamp is what place.stamp returns after commit.
	stamp() (string, error)

	// commit publishes. visible says whether readers see the new content, which they may do
	// even when commit fails late.
	commit() (visible bool, err error)

	// abort removes the prepared content.
	abort()

	// park gives up resources that commit can take again, for when many are prepared before
	// the first is committed.
	park()
}

// folder is a folder that may have to lie inside a root.
type folder struct {
	root string // empty: anywhere
	path string
	sync bool
}

// open opens the folder, creating what is missing of it.
//
// The returned root follows the folder itself, not its path: whoever swaps the path for a
// symbolic link meanwhile redirects nothing.
func (d folder) open(create bool) (*os.Root, error) {
	if d.root == "" {
		dir, err := os.OpenRoot(d.path)
		if err == nil || !create {
			return dir, err
		}
		if err := makeFolders(d.path, d.sync); err != nil {
			return nil, err
		}
		return os.OpenRoot(d.path)
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
		if err := root.MkdirAll(rel, DefaultFolderMode); err != nil {
			return nil, err
		}
	}
	return root.OpenRoot(rel) // fails when a link leads out of root
}

// makeFolders is MkdirAll with mode 0700 that makes every new name durable.
func makeFolders(path string, sync bool) error {
	if fi, err := os.Stat(path); err == nil && fi.IsDir() {
		return nil
	}
	parent := filepath.Dir(path)
	if parent != path {
		if err := makeFolders(parent, sync); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, DefaultFolderMode); err != nil {
		fi, statErr := os.Stat(path)
		switch {
		case statErr != nil:
			return err
		case fi.IsDir():
			return nil // somebody else was faster
		default:
			return fmt.Errorf("%s is a file, but a folder is needed there", path)
		}
	}
	if !sync {
		return nil
	}
	dir, err := os.OpenRoot(parent)
	if err != nil {
		return err
	}
	defer dir.Close()
	return syncFolder(dir)
}

// filePlace is a single file.
type filePlace struct {
	folder folder
	base   string
	mode   fs.FileMode
	owner  owner
	backup bool

	// seed and held are a hash of what was published last; held is 0 before that. Other
	// content need not be compared with the file. The hash never leaves the process.
	seed maphash.Seed
	held uint64
}

// prepare implements place:
//
//  1. Open the folder; create what is missing of it.
//  2. Refuse a destination that is not a regular file.
//  3. Equal content: repair mode and owner, done. What is known to differ is not read.
//  4. Write a temporary file, 0600, with a random name, in the same folder.
//  5. Set group, mode and owner; sync.
//  6. With backup: write the old content to a second temporary file.
//
// and commit:
//
//  7. Rename the backup, then the file, to their names. Nothing is visible before, everything
//     after.
//  8. Sync the folder.
func (p *filePlace) prepare(outs []*output) (_ staged, err error) {
	content := outs[0].bytes
	// 1.
	dir, err := p.folder.open(true)
	if err != nil {
		return nil, err
	}
	s := &stagedFile{place: p, dir: dir}
	defer func() {
		if err != nil {
			s.abort()
		}
	}()
	// 2.
	fi, err := dir.Lstat(p.base)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		fi = nil
	case err != nil:
		return nil, err
	default:
		if err := mustBeRegular(dir, p.base, fi); err != nil {
			return nil, err
		}
	}
	// 3.
	hash := maphash.Bytes(p.seed, content)
	if fi != nil && fi.Size() == int64(len(content)) && (p.held == 0 || p.held == hash) {
		equal, err := p.repairEqual(dir, content)
		if err != nil {
			return nil, err
		}
		if equal {
			p.held = hash
			s.abort()
			return nil, nil
		}
	}
	s.hash = hash
	// 4 and 5.
	if s.temp, err = writeTemp(dir, p.base, content, p.mode, p.owner, p.folder.sync); err != nil {
		return nil, err
	}
	// 6.
	if p.backup && fi != nil {
		held, err := readRegular(dir, p.base)
		if err != nil {
			return nil, err
		}
		if s.backup, err = writeTemp(dir, p.base, held, DefaultMode, owner{-1, -1}, p.folder.sync); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// repairEqual reports whether the file holds content, and repairs its mode and owner if so.
func (p *filePlace) repairEqual(dir *os.Root, content []byte) (bool, error) {
	f, err := openRegular(dir, p.base)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // gone meanwhile
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	held := make([]byte, len(content)+1) // one more byte would be seen
	n, err := io.ReadFull(f, held)
	if err != io.ErrUnexpectedEOF && err != io.EOF {
		return false, err
	}
	if !bytes.Equal(held[:n], content) {
		return false, nil
	}
	fi, err := f.Stat()
	if err == nil && !p.owner.right(fi, p.mode) {
		err = p.owner.give(f, p.mode)
	}
	return true, err
}

// current implements place.
func (p *filePlace) current(int) ([]byte, error) {
	dir, err := p.folder.open(false)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return readRegular(dir, p.base)
}

// stamp implements place.
func (p *filePlace) stamp() (string, error) {
	dir, err := p.folder.open(false)
	if errors.Is(err, fs.ErrNotExist) {
		return stampAbsent, nil
	}
	if err != nil {
		return "", err
	}
	defer dir.Close()
	fi, err := dir.Lstat(p.base)
	if errors.Is(err, fs.ErrNotExist) {
		return stampAbsent, nil
	}
	if err != nil {
		return "", err
	}
	return identity(fi), nil
}

// remove implements place. The backup goes too: it holds a secret that was deleted.
func (p *filePlace) remove() (bool, error) {
	dir, err := p.folder.open(false)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer dir.Close()
	if p.backup {
		if err := removeRegular(dir, p.base+backupSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
	}
	switch err := removeRegular(dir, p.base); {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, err
	}
	if p.folder.sync {
		return true, syncFolder(dir)
	}
	return true, nil
}

// stagedFile implements staged.
type stagedFile struct {
	place  *filePlace
	dir    *os.Root // nil while parked
	temp   string
	backup string // empty: none to make
	hash   uint64
}

func (s *stagedFile) stamp() (string, error) {
	if err := s.open(); err != nil {
		return "", err
	}
	fi, err := s.dir.Lstat(s.temp)
	if err != nil {
		return "", err
	}
	return identity(fi), nil
}

func (s *stagedFile) park() {
	if s.dir != nil {
		s.dir.Close()
		s.dir = nil
	}
}

func (s *stagedFile) open() (err error) {
	if s.dir == nil {
		s.dir, err = s.place.folder.open(false)
	}
	return err
}

func (s *stagedFile) abort() {
	if s.open() != nil {
		return
	}
	for _, name := range []string{s.temp, s.backup} {
		if name != "" {
			_ = s.dir.Remove(name)
		}
	}
	s.park()
}

func (s *stagedFile) commit() (bool, error) {
	defer s.abort() // removes what was not renamed
	if err := s.open(); err != nil {
		return false, err
	}
	// 7.
	if s.backup != "" {
		if err := s.dir.Rename(s.backup, s.place.base+backupSuffix); err != nil {
			return false, err
		}
		s.backup = ""
	}
	if err := s.dir.Rename(s.temp, s.place.base); err != nil {
		return false, err
	}
	s.temp, s.place.held = "", s.hash
	// 8.
	if s.place.folder.sync {
		return true, syncFolder(s.dir)
	}
	return true, nil
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
		return nil, fmt.Errorf("%s is larger than %d bytes", filepath.Join(dir.Name(), name), maxOutput)
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

func removeRegular(dir *os.Root, name string) error {
	fi, err := dir.Lstat(name)
	if err != nil {
		return err
	}
	if err := mustBeRegular(dir, name, fi); err != nil {
		return err
	}
	return dir.Remove(name)
}

// writeTemp writes content to a new file for base in dir and returns its name. On failure
// nothing is left behind.
func writeTemp(dir *os.Root, base string, content []byte, mode fs.FileMode, own owner, sync bool) (string, error) {
	name := tempName(base)
	f, err := dir.OpenFile(name, createNew, 0o600)
	if err != nil {
		return "", err
	}
	err = fill(f, content, mode, own, sync)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		_ = dir.Remove(name)
		return "", err
	}
	return name, nil
}

// fill writes content to f and gives it mode and owner, in the order that keeps others out.
func fill(f *os.File, content []byte, mode fs.FileMode, own owner, sync bool) error {
	if _, err := f.Write(content); err != nil {
		return err
	}
	if err := own.give(f, mode); err != nil {
		return err
	}
	if sync {
		return f.Sync()
	}
	return nil
}

// tempName returns a name that nobody can guess and that tempOwner recognises.
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

// tempOwner returns the tempKey in a name made by tempName.
func tempOwner(name string) (key string, ok bool) {
	rest, ok := strings.CutPrefix(name, tempPrefix)
	if !ok {
		return "", false
	}
	rest, ok = strings.CutSuffix(rest, ".tmp")
	key, random, cut := strings.Cut(rest, "-")
	return key, ok && cut && len(key) == 8 && len(random) == 16
}

// removeLeftovers deletes the temporary files that a killed agent left for the given names.
// Those of other files in the folder, and of other programs, stay.
func (d folder) removeLeftovers(bases []string) error {
	dir, err := d.open(false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	ours := make(map[string]bool, len(bases))
	for _, base := range bases {
		ours[tempKey(base)] = true
	}
	f, err := dir.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		entries, err := f.ReadDir(256)
		for _, e := range entries {
			if key, ok := tempOwner(e.Name()); ok && ours[key] && e.Type().IsRegular() {
				if err := dir.Remove(e.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// lookupOwner resolves names or numbers; empty ones mean "leave it".
func lookupOwner(userName, groupName string) (owner, error) {
	own := owner{-1, -1}
	if userName == "" && groupName == "" {
		return own, nil
	}
	if runtime.GOOS == "windows" {
		return own, errors.New("user and group cannot be set on Windows; leave them out")
	}
	if userName != "" {
		id, err := lookupID(userName, func() (string, error) {
			u, err := user.Lookup(userName)
			if err != nil {
				return "", fmt.Errorf("user %q is not known here; name an existing one or give its number", userName)
			}
			return u.Uid, nil
		})
		if err != nil {
			return own, err
		}
		own.uid = id
	}
	if groupName != "" {
		id, err := lookupID(groupName, func() (string, error) {
			g, err := user.LookupGroup(groupName)
			if err != nil {
				return "", fmt.Errorf("group %q is not known here; name an existing one or give its number", groupName)
			}
			return g.Gid, nil
		})
		if err != nil {
			return own, err
		}
		own.gid = id
	}
	return own, nil
}

func lookupID(name string, byName func() (string, error)) (int, error) {
	if id, err := strconv.ParseUint(name, 10, 31); err == nil {
		return int(id), nil
	}
	text, err := byName()
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(text)
}
