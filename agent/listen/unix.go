package listen

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/keyfile"
)

const (
	// maxSocketPath is what fits into a socket address on every system we run on.
	maxSocketPath = 103

	// privatePrefix and a number name the folder in which a socket is made, privateName is the
	// socket in it.
	privatePrefix = ".s"
	privateName   = "s"

	longestPrivate = len(privatePrefix) + len("4294967295/") + len(privateName)
)

// UnixOptions describe a unix socket.
type UnixOptions struct {
	// Path of the socket. What is there already is replaced when it is a socket that nobody
	// listens on; anything else is an error. Root refuses a folder that another user could
	// exchange, see [keyfile.CheckPath].
	Path string

	// FolderMode of folders that are missing on the way to Path. 0 means 0700.
	FolderMode fs.FileMode

	// Mode of the socket; only its permission bits. 0 means 0600. Everybody who may write to
	// the socket may connect.
	Mode fs.FileMode

	// User and Group of the socket, by name or number; empty leaves them as they are.
	User, Group string
}

// Validate checks the path, the mode, and that user and group exist. Whether another process
// listens at the path shows only when the socket is opened.
func (o UnixOptions) Validate() error {
	var problems upstream.OptionErrors
	if _, err := o.place(); err != nil {
		problems = append(problems, problem("socket", o.Path, err))
	}
	if o.mode()&0o600 != 0o600 {
		problems.Addf("socketMode", fmt.Sprintf("%04o", o.Mode), `must let the owner read and write, as "0600" does`)
	}
	if _, err := keyfile.UserID(o.User); err != nil {
		problems = append(problems, problem("socketUser", o.User, err))
	}
	if _, err := keyfile.GroupID(o.Group); err != nil {
		problems = append(problems, problem("socketGroup", o.Group, err))
	}
	return problems.Err()
}

func (o UnixOptions) mode() fs.FileMode {
	if o.Mode == 0 {
		return 0o600
	}
	return o.Mode.Perm()
}

// place returns the absolute path, since the listener outlives a change of folder. The error
// says why no socket can be there.
func (o UnixOptions) place() (string, error) {
	if o.Path == "" {
		return "", errors.New("the path is empty")
	}
	path, err := filepath.Abs(o.Path)
	if err != nil {
		return "", err
	}
	made := len(filepath.Join(filepath.Dir(path), "x")) - 1 + longestPrivate
	if longest := max(made, len(path)); longest > maxSocketPath {
		return "", fmt.Errorf("the path is %d characters too long for a socket", longest-maxSocketPath)
	}
	if err := keyfile.CheckPath(filepath.Dir(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return path, nil
	case err != nil:
		return "", err
	case info.Mode().Type() != fs.ModeSocket:
		return "", errors.New("something that is not a socket is there already")
	}
	return path, nil
}

func (o UnixOptions) open() (*Listener, error) {
	for attempts := 3; ; attempts-- {
		l, err := o.listen()
		switch {
		case err == nil:
			return l, nil
		case attempts == 1 || !errors.Is(err, fs.ErrNotExist): // without the lock, others may remove what we work on
			return nil, upstream.OptionErrors{problem("socket", o.Path, err)}
		}
	}
}

func (o UnixOptions) listen() (_ *Listener, err error) {
	path, err := o.place()
	if err != nil {
		return nil, err
	}
	folderMode := o.FolderMode
	if folderMode == 0 {
		folderMode = 0o700
	}
	folder := filepath.Dir(path)
	if err := keyfile.MakeFolder(folder, folderMode, false); err != nil {
		return nil, err
	}
	unlock, locked := keyfile.LockFolder(folder, lockPatience)
	defer unlock()
	if locked {
		removeLeftovers(folder)
	}
	if err := checkReplaceable(path); err != nil {
		return nil, err
	}
	private, err := os.MkdirTemp(folder, privatePrefix) // mode 0700
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(private) }()
	made := filepath.Join(private, privateName)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: made, Net: "unix"})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false)
	defer func() {
		if err != nil {
			_ = ln.Close()
		}
	}()
	if err := o.give(made); err != nil {
		return nil, err
	}
	info, err := os.Lstat(made)
	if err != nil {
		return nil, err
	}
	if err := os.Rename(made, path); err != nil {
		return nil, err
	}
	return &Listener{Listener: ln, addr: &net.UnixAddr{Name: path, Net: "unix"}, path: path, info: info}, nil
}

// give sets owner and mode of the socket at path.
func (o UnixOptions) give(path string) error {
	uid, err := keyfile.UserID(o.User)
	if err != nil {
		return err
	}
	gid, err := keyfile.GroupID(o.Group)
	if err != nil {
		return err
	}
	if uid >= 0 || gid >= 0 {
		if err := os.Chown(path, uid, gid); err != nil {
			return err
		}
	}
	return os.Chmod(path, o.mode())
}

// lockPatience is how long to wait for others that open a socket in the same folder.
const lockPatience = 2 * time.Second

// checkReplaceable returns an error unless path is free or a socket that nobody listens on.
func checkReplaceable(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	nc, err := new(net.Dialer).DialContext(ctx, "unix", path)
	owner := ownerOf(info)
	switch {
	case err == nil:
		_ = nc.Close()
		return fmt.Errorf("another process listens on it, on a socket of %s: stop that process, or choose another path", owner)
	case connectionRefused(err), errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("a process of %s may listen on it, and this one may not ask (%w): stop that process, or choose another path; remove the socket if it is no longer used", owner, err)
	}
	return fmt.Errorf("a process of %s may listen on it and does not take connections (%w): stop that process, or choose another path; remove the socket if it is no longer used", owner, err)
}

// removeLeftovers removes the folders in which processes were killed while they made a socket.
// The caller holds the lock of the folder, so that nobody is at work in them.
func removeLeftovers(folder string) {
	entries, _ := os.ReadDir(folder)
	for _, e := range entries {
		number, ok := strings.CutPrefix(e.Name(), privatePrefix)
		if !ok || !e.IsDir() || number == "" || strings.Trim(number, "0123456789") != "" {
			continue
		}
		private := filepath.Join(folder, e.Name())
		socket := filepath.Join(private, privateName)
		if info, err := os.Lstat(socket); err == nil && info.Mode().Type() == fs.ModeSocket {
			_ = os.Remove(socket)
		}
		_ = os.Remove(private) // fails when anything else is in it
	}
}
