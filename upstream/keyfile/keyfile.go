// Package keyfile keeps the files that secrets depend on: tokens, secrets of access keys,
// keyrings, and the first file of a database.
//
//	text, created, err := keyfile.Token.Load("var/run/token", newToken)
//	ring, created, err := keyfile.OpenKeyring("var/keys/keyring.json", false)
//
// What all of them have in common:
//
//   - A file is made once, with mode 0600 or that of [Kind.Shared], in a folder of mode 0700 (0711
//     for one that others may read) where that is missing. It appears with its whole content or
//     not at all, and is on disk, with its name, when the call returns.
//   - Making a file never replaces one. Only [Keyring.Extend], [Keyring.Remove] and
//     [Kind.Replace] replace, whole or not at all.
//   - A file that others can read or change is refused, a token only when others can change it,
//     or could put another in its place. [Kind] says what exactly is refused of which; on Windows
//     access lists decide, and nothing is checked.
//   - What a killed process left behind while it made a file is removed by the next one that
//     loads or makes that file.
//   - Root makes no file where another user could lead it elsewhere, see [CheckPath], and reads
//     none that another than its owner could have put there, see [CheckOpen].
//   - Errors never quote content.
//
// Sockets, rendered files and sealed caches share what lies around a file: [CheckPath],
// [MakeFolder], [CheckFolder], [OpenLog], [LockFolder], [SyncFolder], and [UserID] and [GroupID] for its owner. Other
// small files that a configuration names are read with [ReadFile].
//
// # Design notes
//
// A file is made under a temporary name beside it, "." + name + ".new-" + number, and linked to
// its name: unlike a rename, a link never replaces what another process put there meanwhile.
//
// The folder is locked (flock) while a temporary file is in it. So to the holder of the lock all
// other temporary files are leftovers, and the kernel gives up the lock of a process that dies.
// A lock on the temporary file itself would leave a gap between making and locking it. Another
// user who may read the folder could hold the lock for ever; so after a short while a file is
// made without it, and made again should somebody take it for a leftover. Windows cannot lock a
// folder: there a leftover is a file that has not changed for a while.
package keyfile

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Kind is a kind of secret file and what is asked of it.
type Kind struct {
	maxBytes int64
	refused  fs.FileMode // permission bits that others than the owner must not have
	owned    bool        // by root, the user of this process or one of owners
	owners   []int
	mode     fs.FileMode // of a file that is made, whatever the umask; zero: 0600
	gid      int         // its group, with mode; -1: that of the folder or the process
	old      []string    // how earlier versions began the names of temporary files
}

// The kinds of files. A service manager gives a credential the mode 0440, where the bit of the
// group is the mask of an access list that names one user.
//
// Who may read a token is decided by those who own it: volumes of Kubernetes give theirs the mode
// 0644, and an application of another user reads its own by its group. Who may change it decides
// who is taken for its caller; see [Kind.OwnedBy].
var (
	Token             = Kind{maxBytes: MaxToken, refused: 0o022, owned: true, old: []string{".token-"}}
	AccessKeySecret   = Kind{maxBytes: 4 << 10, refused: 0o077, old: []string{".new-secret-"}}
	KeyringFile       = Kind{maxBytes: 1 << 20, refused: 0o077}
	KeyringCredential = Kind{maxBytes: 1 << 20, refused: 0o037}
	Database          = Kind{}
	ClearText         = Kind{maxBytes: 1 << 30, refused: 0o077} // secrets that were taken out, for people
	PEM               = Kind{maxBytes: 1 << 20}                 // certificates and keys; all public authorities have 250 KiB
	CloudKey          = Kind{maxBytes: 64 << 10}                // one part of a credential of the cloud; tokens have a few KiB
	CloudProfile      = Kind{maxBytes: 1 << 20}                 // the configuration of the aliyun CLI
)

// OwnedBy returns the kind for files that may also belong to these users, beside root and the
// user of this process. A symbolic link on the way to such a file must belong to root, the user
// of this process or the owner of the file: another could lead it to the token of somebody else.
func (k Kind) OwnedBy(uids ...int) Kind {
	k.owned, k.owners = true, uids
	return k
}

// Shared returns the kind for files that have this mode and belong to this group, -1 for none in
// particular. A file that is made is made so, and [Kind.Load] mends one of this user that is there;
// see [CheckShared].
func (k Kind) Shared(mode fs.FileMode, gid int) Kind {
	k.mode, k.gid = mode, gid
	return k
}

// CheckShared returns why a mode is none for [Kind.Shared].
func CheckShared(mode fs.FileMode) error {
	if mode&0o600 != 0o600 || mode&^0o644 != 0 {
		return errors.New(`must let the owner read and write, and others read at most, as "0640" does`)
	}
	return nil
}

// Read returns the content of the file at path. The error matches [fs.ErrNotExist] when there
// is none.
func (k Kind) Read(path string) ([]byte, error) {
	return read(path, k.maxBytes, func(_ *os.File, info fs.FileInfo) error { return k.checkFile(path, info) })
}

// readShared is Read of a file that gets the mode and the group of the kind where it can. That it
// cannot is no error: it may lie on a volume that only others write to.
func (k Kind) readShared(path string) ([]byte, error) {
	return read(path, k.maxBytes, func(f *os.File, info fs.FileInfo) error {
		err := k.checkFile(path, info)
		if err == nil && k.mode != 0 && k.unlike(info) != nil && Owner(info) == os.Geteuid() {
			_ = k.share(f)
		}
		return err
	})
}

// IsShared reports whether the kind is one of [Kind.Shared].
func (k Kind) IsShared() bool { return k.mode != 0 }

// Unlike returns what mode or group of the file at path is not that of [Kind.Shared].
func (k Kind) Unlike(path string) error {
	info, err := os.Stat(path)
	if err != nil || k.mode == 0 || runtime.GOOS == "windows" {
		return err
	}
	return k.unlike(info)
}

func (k Kind) unlike(info fs.FileInfo) error {
	if perm := info.Mode().Perm(); perm != k.mode {
		return fmt.Errorf("has mode %04o, not %04o", perm, k.mode)
	}
	if gid := group(info); k.gid >= 0 && gid != k.gid {
		return fmt.Errorf("belongs to gid %d, not %d", gid, k.gid)
	}
	return nil
}

// share gives an open file the mode and the group of the kind.
func (k Kind) share(f *os.File) error {
	if runtime.GOOS == "windows" || k.mode == 0 {
		return nil
	}
	if k.gid >= 0 {
		if err := f.Chown(-1, k.gid); err != nil {
			return fmt.Errorf("cannot get the group %d: %w", k.gid, err)
		}
	}
	return f.Chmod(k.mode)
}

// checkFile returns why the file at path, which is open, is refused.
func (k Kind) checkFile(path string, info fs.FileInfo) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	if perm := info.Mode().Perm(); perm&k.refused != 0 {
		can, mend := "read or change", "600"
		if k.refused&0o044 == 0 {
			can, mend = "change", "go-w"
		}
		return fmt.Errorf("has mode %04o, so others than its owner can %s it; run: chmod %s %s", perm, can, mend, path)
	}
	if k.owned {
		return checkOwned(path, info, k.owners)
	}
	return CheckOpen(path, info)
}

// ErrStranger is in the error about a file that belongs to nobody who may own it, see [Kind.OwnedBy].
var ErrStranger = errors.New("can be changed by another user")

// ErrForeign is matched by the error about a folder or link on the way to a file that another user
// than root could change: root does not follow it, see [CheckPath].
var ErrForeign = errors.New("can be led elsewhere by another user")

// MaxToken bounds the file of a token.
const MaxToken = 4 << 10

// ReadFile returns the content of the file at path, which must not hold more than most bytes.
// What is no regular file is refused: to open a pipe waits for its writer, and a device may
// have no end. The error matches [fs.ErrNotExist] when there is nothing.
func ReadFile(path string, most int64) ([]byte, error) {
	return read(path, most, func(*os.File, fs.FileInfo) error { return nil })
}

// errExchanged is found when a file is replaced, as writers do with a rename, between its opening
// and the look at the way to it.
var errExchanged = errors.New("was exchanged while it was read")

// exchanges is how often in a row a file may be found exchanged.
const exchanges = 100

// CheckThere is [CheckOpen] of a file that is not to be read now: it opens nothing, and what is
// missing is no error.
func CheckThere(path string) (err error) {
	for range exchanges {
		info, missing := os.Stat(path)
		if missing != nil {
			return nil
		}
		if err = CheckOpen(path, info); !errors.Is(err, errExchanged) {
			return err
		}
	}
	return err
}

// read is ReadFile of a file that check accepts. Its errors wrap [*fs.PathError].
func read(path string, most int64, check func(*os.File, fs.FileInfo) error) (content []byte, err error) {
	for range exchanges {
		if content, err = readOnce(path, most, check); !errors.Is(err, errExchanged) {
			break
		}
	}
	return content, err
}

func readOnce(path string, most int64, check func(*os.File, fs.FileInfo) error) (content []byte, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|nonBlock, 0)
	if err != nil {
		return nil, Denied(path, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		err = errors.New("is not a regular file")
	} else if err = check(f, info); err == nil {
		content, err = io.ReadAll(io.LimitReader(f, most+1))
	}
	if err == nil && int64(len(content)) > most {
		err = fmt.Errorf("is larger than %d bytes, more than it can need", most)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: path, Err: err}
	}
	return content, nil
}

// Check returns why [Kind.Load] would fail, as far as that shows without changing anything. A
// file that is missing is right when it could be made.
func (k Kind) Check(path string) error {
	if _, err := k.Read(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	err := CheckFolder(Folder(path))
	if err == nil {
		err = k.checkGroup()
	}
	if err != nil {
		return fmt.Errorf("%s: cannot be made: %w", path, err)
	}
	return nil
}

// CheckFolder returns why this process cannot make files in the folder, or cannot make the
// folder where it is missing, or must not; see [CheckPath].
func CheckFolder(path string) error {
	if err := CheckPath(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return CheckWritable(path)
}

// CheckWritable is [CheckFolder] for a folder that is reached through one that is held open.
func CheckWritable(path string) error {
	info, err := os.Stat(path)
	switch parent := Folder(path); {
	case errors.Is(err, fs.ErrNotExist) && parent != path:
		return CheckWritable(parent)
	case err == nil && !info.IsDir():
		err = errors.New("is not a folder")
	case err == nil:
		err = checkWritable(path)
	}
	if err != nil {
		return Denied(path, fmt.Errorf("%s: %w", path, err))
	}
	return nil
}

// Folder is [filepath.Dir] where links are followed: in "link/../file" the ".." stays, which leads
// to where the folder is that the link leads to. Windows takes it out itself.
func Folder(path string) string {
	if runtime.GOOS == "windows" {
		return filepath.Dir(path)
	}
	folder, _ := filepath.Split(path)
	if trimmed := strings.TrimRight(folder, "/"); trimmed != "" {
		return trimmed
	}
	return cmp.Or(folder, ".")
}

// Load returns the content of the file at path, which it makes with content where it is
// missing. created says that it did.
func (k Kind) Load(path string, content func() []byte) (text []byte, created bool, err error) {
	k.Clean(path)
	text, err = k.readShared(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return text, false, err
	}
	err = k.Create(path, content())
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, false, err
	}
	created = err == nil
	text, err = k.Read(path) // ours, or that of a process that was faster
	return text, created, err
}

// Create makes the file at path. The error matches [fs.ErrExist] when something is there.
func (k Kind) Create(path string, content []byte) error {
	return k.Make(path, func(temp string) error { return write(temp, content, k.share) })
}

// Make is Create for content that something else writes: fill gets the path of an empty file,
// and leaves it complete and on disk.
func (k Kind) Make(path string, fill func(temp string) error) error {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s: %w", path, fs.ErrExist)
	}
	folderMode := fs.FileMode(0o700)
	if k.mode&0o044 != 0 {
		folderMode = 0o711 // others can get to a file whose name they know
	}
	if err := MakeFolder(Folder(path), folderMode, true); err != nil {
		return err
	}
	return k.withTemp(path, fill, os.Link)
}

// replace puts content at path, or where a symbolic link there points to, in place of the file
// that is there.
func (k Kind) replace(path string, content []byte) error {
	_, err := k.Replace(path, func(temp string) error {
		return write(temp, content, func(*os.File) error { return nil }) // Replace keeps what it has
	})
	return err
}

// Replace is Make in place of the file at path, or of what a symbolic link there points to, whose
// owner and mode the new one gets. replaced says whether the new file is in place: with an error,
// its name may not be on disk. A mount point is refused before fill is called.
func (k Kind) Replace(path string, fill func(temp string) error) (replaced bool, err error) {
	path, err = filepath.EvalSymlinks(path)
	if err != nil {
		return false, err
	}
	if MountPoint(path) { // before fill does in vain what can be a lot
		return false, fmt.Errorf("%s %s", path, IsMountPoint)
	}
	err = k.withTemp(path, fill, func(temp, path string) error {
		err := likeFile(temp, path)
		if err == nil {
			err = os.Rename(temp, path)
		}
		replaced = err == nil
		return err
	})
	return replaced, RenameError(path, err)
}

// Temp calls fill with the path of an empty file beside path, which is removed when Temp returns.
func (k Kind) Temp(path string, fill func(temp string) error) error {
	return k.withTemp(path, fill, func(string, string) error { return nil })
}

// IsMountPoint is what is wrong with a file that is to be replaced when a container was given it
// by itself.
const IsMountPoint = "is a mount point, which no rename can replace: mount the folder, not the file"

// RenameError returns the error of a rename to path, which says when that is a mount point.
func RenameError(path string, err error) error {
	if errors.Is(err, syscall.EBUSY) || errors.Is(err, syscall.EXDEV) {
		return fmt.Errorf("%s %s (%w)", path, IsMountPoint, err)
	}
	return err
}

// lockPatience is how long to wait for others that make something in the same folder.
const lockPatience = 2 * time.Second

// withTemp fills a temporary file and publishes it at path.
func (k Kind) withTemp(path string, fill func(temp string) error, publish func(temp, path string) error) error {
	for attempts := 3; ; attempts-- {
		err := k.tryTemp(path, fill, publish)
		if attempts == 1 || !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
}

func (k Kind) tryTemp(path string, fill func(temp string) error, publish func(temp, path string) error) error {
	folder := Folder(path)
	unlock, locked := LockFolder(folder, lockPatience)
	defer unlock()
	if locked || leftoverAge > 0 {
		k.removeLeftovers(path)
	}
	f, err := os.CreateTemp(folder, tempPrefix(path)) // mode 0600
	if err != nil {
		return err
	}
	temp := f.Name()
	defer os.Remove(temp)
	if err := errors.Join(f.Close(), fill(temp)); err != nil {
		return err
	}
	if err := publish(temp, path); err != nil {
		return err
	}
	if err := SyncFolder(folder); err != nil {
		return fmt.Errorf("%s: is in place, but its folder could not be put on disk: %w", path, err)
	}
	return nil
}

// write fills the temporary file, which share prepares for its readers.
func write(temp string, content []byte, share func(*os.File) error) error {
	f, err := os.OpenFile(temp, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	err = share(f)
	if err == nil {
		_, err = f.Write(content)
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// Clean removes what a killed process left behind while it made the file at path.
func (k Kind) Clean(path string) {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	unlock, locked := LockFolder(Folder(path), 0)
	defer unlock()
	if locked || leftoverAge > 0 {
		k.removeLeftovers(path)
	}
}

func tempPrefix(path string) string { return "." + filepath.Base(path) + ".new-" }

// removeLeftovers removes temporary files. The caller holds the lock of the folder, so that no
// process is at work on one.
func (k Kind) removeLeftovers(path string) {
	folder, name := Folder(path), filepath.Base(path)
	prefixes := append([]string{tempPrefix(path), "." + name, name + ".new-"}, k.old...)
	entries, _ := os.ReadDir(folder)
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() || leftoverAge > 0 && time.Since(info.ModTime()) < leftoverAge {
			continue
		}
		for _, prefix := range prefixes {
			// The numbers are random ones of 32 or 63 bits. Short ones may be somebody's names.
			number, ok := strings.CutPrefix(e.Name(), prefix)
			if ok && (len(number) >= 6 || prefix == prefixes[0]) && strings.Trim(number, "0123456789") == "" {
				_ = os.Remove(folder + "/" + e.Name())
			}
		}
	}
}

// MakeFolder makes a folder of that mode, and its parents likewise, where they do not exist, and
// refuses one that [CheckPath] refuses: it looks after each step, as others may be faster in a
// folder that is open to all. With sync it returns after they are on disk: a file that is synced
// into a folder that is lost in a crash is lost too.
func MakeFolder(path string, mode fs.FileMode, sync bool) error {
	if err := CheckPath(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return CheckPath(path) // it may be new
	} else if err == nil {
		return fmt.Errorf("%s is a file, but a folder is needed there", path)
	}
	parent := Folder(path)
	if parent != path {
		if err := MakeFolder(parent, mode, sync); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, mode); err != nil {
		if info, statErr := os.Stat(path); errors.Is(err, fs.ErrExist) && statErr == nil && info.IsDir() {
			return CheckPath(path) // another process was faster
		}
		return err
	}
	if !sync {
		return nil
	}
	return SyncFolder(parent)
}

// SyncFolder puts the entries of a folder on disk. Windows cannot, and need not.
func SyncFolder(path string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
