package render

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"secretagent/upstream/keyfile"
)

// The names a set uses inside its folder. All begin with two dots, which is what readers that
// list the folder skip.
const (
	dataLink    = "..data"
	dataLinkNew = "..data_new"
)

// generationName recognises the folders that a set makes, and no others.
var generationName = regexp.MustCompile(`^\.\.\d{4}(_\d\d){5}\.[0-9a-f]{16}$`)

// fileSet is the layout of files that are published together:
//
//  1. Open the folder, which must not be a symbolic link; create it where missing.
//  2. Refuse a set whose names are taken by something that is no link of ours.
//  3. Equal content: repair modes, owners and links, done.
//  4. Make a folder for the new generation, 0700, with a random name.
//  5. Write every file into it, with its final mode and owner; sync; then give the folder
//     its final mode and owner.
//  6. Make the links to files that are new in the set, and a new link to the generation,
//     beside ..data.
//  7. Rename that to ..data. Nothing is visible before, everything after.
//  8. Sync the folder.
//  9. Remove the links to files that are no longer in the set, and every other generation.
//
// A kill before 7 leaves the old generation published, a folder that step 9 of the next
// publish, or removeLeftovers, deletes, and perhaps links to files that are not there yet. A
// kill after 7 leaves something to remove: the next step 3 or 9 does it.
type fileSet struct {
	folder folder // the set's own
	mode   fs.FileMode
	owner  owner
	files  []file
}

// check is that of the folder, which may belong to the set's user and have its mode.
func (l *fileSet) check() error {
	if l.folder.root != "" {
		return nil
	}
	return exists(keyfile.CheckPathTo(l.folder.path, max(l.owner.uid, 0), l.mode))
}

// open implements layout: 1.
func (l *fileSet) open(create bool) (_ *os.Root, err error) {
	parent, err := folder{root: l.folder.root, path: filepath.Dir(l.folder.path), mode: l.folder.mode, sync: l.folder.sync}.open(create)
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	base := filepath.Base(l.folder.path)
	made := false
	if create {
		err := parent.Mkdir(base, defaultFolderMode)
		if made = err == nil; !made && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
	fi, err := parent.Lstat(base)
	if err != nil {
		return nil, err
	}
	switch {
	case fi.Mode()&fs.ModeSymlink != 0:
		return nil, fmt.Errorf("%s is not a folder but a symbolic link; remove it or name another", l.folder.path)
	case !fi.IsDir():
		return nil, fmt.Errorf("%s is not a folder but a file; remove it or name another", l.folder.path)
	}
	if err := l.check(); err != nil {
		return nil, err
	}
	dir, err := parent.OpenRoot(base)
	if err != nil {
		return nil, err
	}
	// A link put there meanwhile was followed: it leads to another folder.
	if opened, statErr := dir.Stat("."); statErr != nil || !os.SameFile(fi, opened) {
		err = fmt.Errorf("%s was replaced while it was opened", l.folder.path)
	} else if made {
		if err = l.giveFolder(dir, "."); err == nil {
			err = l.folder.synced(parent)
		}
	}
	if err != nil {
		dir.Close()
		return nil, err
	}
	return dir, nil
}

// giveFolder gives a folder the mode and owner of the set.
func (l *fileSet) giveFolder(dir *os.Root, name string) error {
	f, err := dir.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || l.owner.right(fi, l.mode) {
		return err
	}
	return l.owner.give(f, l.mode)
}

// ourLink reports whether name is a link that a set made; an error says that something else
// has the name.
func ourLink(dir *os.Root, name string) (bool, error) {
	to, err := dir.Readlink(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err == nil && to == dataLink+"/"+name:
		return true, nil
	}
	return false, fmt.Errorf("%s is there already and was not made by this set; remove it", filepath.Join(dir.Name(), name))
}

// generation returns the name of the published generation, "" when there is none.
func generation(dir *os.Root) (string, error) {
	to, err := dir.Readlink(dataLink)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil || !generationName.MatchString(to) {
		return "", fmt.Errorf("%s was not made by this set; remove it", filepath.Join(dir.Name(), dataLink))
	}
	return to, nil
}

// current implements layout: 2 and 3.
func (l *fileSet) current(dir *os.Root, outs []*output) (bool, error) {
	for _, f := range l.files {
		if _, err := ourLink(dir, f.name); err != nil {
			return false, err
		}
	}
	published, err := generation(dir)
	if err != nil || published == "" {
		return false, err
	}
	sub, err := dir.OpenRoot(published)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // a link to nothing: publish anew
	}
	if err != nil {
		return false, err
	}
	defer sub.Close()
	names, err := list(sub)
	if err != nil || len(names) != len(l.files) {
		return false, err
	}
	for i, f := range l.files {
		if equal, err := f.isCurrent(sub, outs[i].bytes); err != nil || !equal {
			return false, err
		}
	}
	if err := l.giveFolder(dir, published); err != nil {
		return true, err
	}
	if err := l.link(dir); err != nil {
		return true, err
	}
	return true, tidy(dir, published, l.has)
}

// has reports whether the set has a file called name.
func (l *fileSet) has(name string) bool {
	return slices.ContainsFunc(l.files, func(f file) bool { return f.name == name })
}

// write implements layout: 4 and 5.
func (l *fileSet) write(p *prepared, outs []*output) error {
	name := ".." + time.Now().UTC().Format("2006_01_02_15_04_05.") + randomHex()
	if err := p.dir.Mkdir(name, defaultFolderMode); err != nil {
		return err
	}
	p.name, p.path, p.stamp = name, filepath.Join(l.folder.path, name), name
	sub, err := p.dir.OpenRoot(name)
	if err != nil {
		return err
	}
	defer sub.Close()
	for i, f := range l.files {
		if _, err := f.create(sub, outs[i].bytes, l.folder.sync); err != nil {
			return err
		}
	}
	if err := l.folder.synced(sub); err != nil {
		return err
	}
	return l.giveFolder(p.dir, name)
}

// link makes the links of the set that are missing.
func (l *fileSet) link(dir *os.Root) error {
	for _, f := range l.files {
		ours, err := ourLink(dir, f.name)
		if err == nil && !ours {
			err = dir.Symlink(dataLink+"/"+f.name, f.name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// swap implements layout: 6 to 9.
func (l *fileSet) swap(p *prepared) (bool, error) {
	if err := l.link(p.dir); err != nil {
		return false, err
	}
	if err := p.dir.RemoveAll(dataLinkNew); err != nil {
		return false, err
	}
	if err := p.dir.Symlink(p.name, dataLinkNew); err != nil {
		return false, err
	}
	if err := p.dir.Rename(dataLinkNew, dataLink); err != nil {
		_ = p.dir.Remove(dataLinkNew)
		return false, err
	}
	published := p.name
	p.name = ""
	if err := l.folder.synced(p.dir); err != nil {
		return true, err
	}
	return true, tidy(p.dir, published, l.has)
}

// tidy removes every generation but the published one, and of the links to files those that
// keep does not want. What others put into the folder stays.
func tidy(dir *os.Root, published string, keep func(name string) bool) error {
	names, err := list(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if name == published || name == dataLink {
			continue
		}
		old := name == dataLinkNew || generationName.MatchString(name)
		if !old && !keep(name) {
			old, _ = ourLink(dir, name)
		}
		if old {
			if err := dir.RemoveAll(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeLeftovers deletes generations that a killed agent did not publish or did not remove.
func (l *fileSet) removeLeftovers() error {
	return inFolder(l.open, func(dir *os.Root) error {
		published, err := generation(dir)
		if err != nil {
			return err
		}
		return tidy(dir, published, func(string) bool { return true })
	})
}

// read implements layout.
func (l *fileSet) read(dir *os.Root, i int) ([]byte, error) {
	published, err := generation(dir)
	if err != nil {
		return nil, err
	}
	if published == "" {
		return nil, fs.ErrNotExist
	}
	sub, err := dir.OpenRoot(published)
	if err != nil {
		return nil, err
	}
	defer sub.Close()
	return readRegular(sub, l.files[i].name)
}

// stamp implements layout.
func (l *fileSet) stamp(dir *os.Root) (string, error) {
	published, err := generation(dir)
	if err == nil && published == "" {
		return stampAbsent, nil
	}
	return published, err
}

// remove implements layout. The link ..data goes first, so that no reader finds half a set.
func (l *fileSet) remove(dir *os.Root) (bool, error) {
	published, err := generation(dir)
	if err != nil || published == "" {
		return false, err
	}
	if err := dir.Remove(dataLink); err != nil {
		return false, err
	}
	if err := tidy(dir, "", func(string) bool { return false }); err != nil {
		return true, err
	}
	return true, l.folder.synced(dir)
}
