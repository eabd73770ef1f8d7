package render

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// The names a set uses inside its folder. All begin with two dots, which is what readers that
// list the folder skip.
const (
	dataLink    = "..data"
	dataLinkNew = "..data_new"
)

// generationName recognises the folders that setPlace makes, and no others.
var generationName = regexp.MustCompile(`^\.\.\d{4}(_\d\d){5}\.[0-9a-f]{16}$`)

// setPlace is a folder of files that are published together.
type setPlace struct {
	folder folder // the set's own
	mode   fs.FileMode
	owner  owner
	files  []setFile
}

// setFile is one file of a set, its options resolved.
type setFile struct {
	name  string
	mode  fs.FileMode
	owner owner
}

// checkSetName refuses what is no plain file name or clashes with the names of the set itself.
func checkSetName(name string) error {
	switch {
	case name == "" || name == ".":
		return errors.New("a file name is needed")
	case strings.HasPrefix(name, ".."):
		return fmt.Errorf("%q begins with \"..\", which is reserved for the folders of the set", name)
	case strings.ContainsAny(name, "/\\\x00"):
		return fmt.Errorf("%q must be a name without folders", name)
	case len(name) > 255:
		return fmt.Errorf("a file name has at most 255 bytes, this one has %d", len(name))
	}
	return nil
}

// prepare implements place:
//
//  1. Open the folder, which must not be a symbolic link; create it where missing.
//  2. Refuse a set whose names are taken by something that is no link of ours.
//  3. Equal content: repair modes, owners and links, done.
//  4. Make a folder for the new generation, 0700, with a random name.
//  5. Write every file into it, with its final mode and owner; sync; then give the folder
//     its final mode and owner.
//
// and commit:
//
//  6. Make the links to files that are new in the set, and a new link to the generation,
//     beside ..data.
//  7. Rename that to ..data. Nothing is visible before, everything after.
//  8. Sync the folder.
//  9. Remove the links to files that are no longer in the set, and every other generation.
//
// A kill before 7 leaves the old generation published, a folder that step 9 of the next
// commit, or removeLeftovers, deletes, and perhaps links to files that are not there yet. A
// kill after 7 leaves something to remove: step 3 of the next prepare, or step 9 of the next
// commit, does it.
func (p *setPlace) prepare(outs []*output) (_ staged, err error) {
	// 1.
	dir, err := p.open(true)
	if err != nil {
		return nil, err
	}
	s := &stagedSet{place: p, dir: dir}
	defer func() {
		if err != nil {
			s.abort()
		}
	}()
	// 2.
	for _, f := range p.files {
		if _, err := ourLink(dir, f.name); err != nil {
			return nil, err
		}
	}
	current, err := readDataLink(dir)
	if err != nil {
		return nil, err
	}
	// 3.
	if current != "" {
		equal, err := p.equal(dir, current, outs)
		if err != nil {
			return nil, err
		}
		if equal {
			defer s.park()
			if err := p.link(dir); err != nil {
				return nil, err
			}
			return nil, p.tidy(dir, current)
		}
	}
	// 4.
	s.generation = ".." + time.Now().UTC().Format("2006_01_02_15_04_05.") + randomHex()
	if err := dir.Mkdir(s.generation, DefaultFolderMode); err != nil {
		s.generation = ""
		return nil, err
	}
	// 5.
	return s, p.write(dir, s.generation, outs)
}

// open opens the folder of the set.
func (p *setPlace) open(create bool) (*os.Root, error) {
	parent, err := folder{root: p.folder.root, path: filepath.Dir(p.folder.path), sync: p.folder.sync}.open(create)
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	base := filepath.Base(p.folder.path)
	made := false
	if create {
		switch err := parent.Mkdir(base, DefaultFolderMode); {
		case err == nil:
			made = true
		case !errors.Is(err, fs.ErrExist):
			return nil, err
		}
	}
	fi, err := parent.Lstat(base)
	if err != nil {
		return nil, err
	}
	if !fi.IsDir() {
		return nil, fmt.Errorf("%s is not a folder but %s; remove it or name another", p.folder.path, kind(fi.Mode()))
	}
	dir, err := parent.OpenRoot(base)
	if err != nil {
		return nil, err
	}
	// A link put there meanwhile was followed: it leads to another folder.
	if opened, err := dir.Stat("."); err != nil || !os.SameFile(fi, opened) {
		dir.Close()
		return nil, fmt.Errorf("%s was replaced while it was opened", p.folder.path)
	}
	if made {
		err := p.giveFolder(dir, ".")
		if err == nil && p.folder.sync {
			err = syncFolder(parent)
		}
		if err != nil {
			dir.Close()
			return nil, err
		}
	}
	return dir, nil
}

func kind(mode fs.FileMode) string {
	if mode&fs.ModeSymlink != 0 {
		return "a symbolic link"
	}
	return "a file"
}

// giveFolder gives a folder the mode and owner of the set.
func (p *setPlace) giveFolder(dir *os.Root, name string) error {
	f, err := dir.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || p.owner.right(fi, p.mode) {
		return err
	}
	return p.owner.give(f, p.mode)
}

// ourLink reports whether name is a link that a set made; an error says that something else
// has the name.
func ourLink(dir *os.Root, name string) (bool, error) {
	fi, err := dir.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if fi.Mode()&fs.ModeSymlink != 0 {
		target, err := dir.Readlink(name)
		if err != nil {
			return false, err
		}
		if target == dataLink+"/"+name {
			return true, nil
		}
	}
	return false, fmt.Errorf("%s is there already and was not made by this set; remove it", filepath.Join(dir.Name(), name))
}

// readDataLink returns the published generation, "" when there is none.
func readDataLink(dir *os.Root) (string, error) {
	target, err := dir.Readlink(dataLink)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil || !generationName.MatchString(target) {
		return "", fmt.Errorf("%s was not made by this set; remove it", filepath.Join(dir.Name(), dataLink))
	}
	return target, nil
}

// equal reports whether generation holds exactly outs, and repairs modes and owners if so.
func (p *setPlace) equal(dir *os.Root, generation string, outs []*output) (bool, error) {
	sub, err := dir.OpenRoot(generation)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // a link to nothing: publish anew
	}
	if err != nil {
		return false, err
	}
	defer sub.Close()
	names, err := list(sub)
	if err != nil || len(names) != len(p.files) {
		return false, err
	}
	var drifted []func() error
	for i, f := range p.files {
		held, err := openRegular(sub, f.name)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		defer held.Close()
		fi, err := held.Stat()
		if err != nil {
			return false, err
		}
		content, err := io.ReadAll(io.LimitReader(held, maxOutput+1))
		if err != nil {
			return false, err
		}
		if !bytes.Equal(content, outs[i].bytes) {
			return false, nil
		}
		if !f.owner.right(fi, f.mode) {
			drifted = append(drifted, func() error { return f.owner.give(held, f.mode) })
		}
	}
	for _, repair := range drifted {
		if err := repair(); err != nil {
			return false, err
		}
	}
	return true, p.giveFolder(dir, generation)
}

// write fills the folder of a generation.
func (p *setPlace) write(dir *os.Root, generation string, outs []*output) error {
	sub, err := dir.OpenRoot(generation)
	if err != nil {
		return err
	}
	defer sub.Close()
	for i, f := range p.files {
		file, err := sub.OpenFile(f.name, createNew, 0o600)
		if err != nil {
			return err
		}
		err = fill(file, outs[i].bytes, f.mode, f.owner, p.folder.sync)
		if closeErr := file.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			return err
		}
	}
	if p.folder.sync {
		if err := syncFolder(sub); err != nil {
			return err
		}
	}
	return p.giveFolder(dir, generation)
}

// link makes the links of the set that are missing.
func (p *setPlace) link(dir *os.Root) error {
	for _, f := range p.files {
		ours, err := ourLink(dir, f.name)
		if err != nil {
			return err
		}
		if ours {
			continue
		}
		if err := dir.Symlink(dataLink+"/"+f.name, f.name); err != nil {
			return err
		}
	}
	return nil
}

// tidy removes what does not belong to the published generation.
func (p *setPlace) tidy(dir *os.Root, current string) error {
	names, err := list(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		switch {
		case name == current || name == dataLink:
		case name == dataLinkNew, generationName.MatchString(name):
			if err := dir.RemoveAll(name); err != nil {
				return err
			}
		case slices.ContainsFunc(p.files, func(f setFile) bool { return f.name == name }):
		default:
			// A file that left the set, unless it is somebody else's.
			if ours, _ := ourLink(dir, name); ours {
				if err := dir.Remove(name); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func list(dir *os.Root) ([]string, error) {
	f, err := dir.Open(".")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// removeLeftovers deletes generations that a killed agent did not publish or did not remove.
func (p *setPlace) removeLeftovers() error {
	dir, err := p.open(false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	current, err := readDataLink(dir)
	if err != nil {
		return err
	}
	names, err := list(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if name == dataLinkNew || generationName.MatchString(name) && name != current {
			if err := dir.RemoveAll(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// current implements place.
func (p *setPlace) current(i int) ([]byte, error) {
	dir, err := p.open(false)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	generation, err := readDataLink(dir)
	if err != nil {
		return nil, err
	}
	if generation == "" {
		return nil, fs.ErrNotExist
	}
	sub, err := dir.OpenRoot(generation)
	if err != nil {
		return nil, err
	}
	defer sub.Close()
	return readRegular(sub, p.files[i].name)
}

// stamp implements place.
func (p *setPlace) stamp() (string, error) {
	dir, err := p.open(false)
	if errors.Is(err, fs.ErrNotExist) {
		return stampAbsent, nil
	}
	if err != nil {
		return "", err
	}
	defer dir.Close()
	generation, err := readDataLink(dir)
	if err == nil && generation == "" {
		return stampAbsent, nil
	}
	return generation, err
}

// remove implements place. The link goes first, so that no reader finds half a set.
func (p *setPlace) remove() (bool, error) {
	dir, err := p.open(false)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer dir.Close()
	generation, err := readDataLink(dir)
	if err != nil || generation == "" {
		return false, err
	}
	if err := dir.Remove(dataLink); err != nil {
		return false, err
	}
	for _, f := range p.files {
		if ours, _ := ourLink(dir, f.name); ours {
			if err := dir.Remove(f.name); err != nil {
				return true, err
			}
		}
	}
	if err := dir.RemoveAll(generation); err != nil {
		return true, err
	}
	if p.folder.sync {
		return true, syncFolder(dir)
	}
	return true, nil
}

// stagedSet implements staged.
type stagedSet struct {
	place      *setPlace
	dir        *os.Root // nil while parked
	generation string   // empty: nothing to abort
}

func (s *stagedSet) stamp() (string, error) { return s.generation, nil }

func (s *stagedSet) park() {
	if s.dir != nil {
		s.dir.Close()
		s.dir = nil
	}
}

func (s *stagedSet) open() (err error) {
	if s.dir == nil {
		s.dir, err = s.place.open(false)
	}
	return err
}

func (s *stagedSet) abort() {
	if s.open() != nil {
		return
	}
	if s.generation != "" {
		_ = s.dir.RemoveAll(s.generation)
	}
	s.park()
}

func (s *stagedSet) commit() (bool, error) {
	defer s.abort() // removes a generation that was not published
	if err := s.open(); err != nil {
		return false, err
	}
	// 6.
	if err := s.place.link(s.dir); err != nil {
		return false, err
	}
	if err := s.dir.RemoveAll(dataLinkNew); err != nil {
		return false, err
	}
	if err := s.dir.Symlink(s.generation, dataLinkNew); err != nil {
		return false, err
	}
	// 7.
	if err := s.dir.Rename(dataLinkNew, dataLink); err != nil {
		_ = s.dir.Remove(dataLinkNew)
		return false, err
	}
	published := s.generation
	s.generation = ""
	// 8.
	if s.place.folder.sync {
		if err := syncFolder(s.dir); err != nil {
			return true, err
		}
	}
	// 9.
	return true, s.place.tidy(s.dir, published)
}
