package keyfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"runtime"
	"strconv"
)

// Denied adds to an error of permission whose the file or folder at path is, and who this process is. Other
// errors, nil among them, it returns as they are.
func Denied(path string, err error) error {
	if !errors.Is(err, fs.ErrPermission) || errors.Is(err, errDescribed) {
		return err
	}
	if whose := Whose(path); whose != "" {
		return describedError{fmt.Errorf("%w: %s", err, whose)}
	}
	return err
}

// errDescribed is matched by what [Denied] has described already.
var errDescribed = errors.New("described")

type describedError struct{ error }

func (e describedError) Unwrap() error        { return e.error }
func (e describedError) Is(target error) bool { return target == errDescribed }

// Whose says, for messages, to whom the file or folder at path belongs, with which mode, and as whom this process
// asks. Where a folder on the way hides it, or it is missing, it speaks of that folder. It is empty where the
// system does not tell.
func Whose(path string) string {
	if runtime.GOOS == "windows" {
		return ""
	}
	info, err := os.Stat(path)
	for (errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist)) && path != Folder(path) {
		path = Folder(path)
		info, err = os.Stat(path)
	}
	if err != nil || Owner(info) < 0 {
		return ""
	}
	return fmt.Sprintf("%s belongs to %s, mode %04o, and this process is %s", path, account(Owner(info)), info.Mode().Perm(), account(os.Geteuid()))
}

// account names a user, where it has a name.
func account(uid int) string {
	id := strconv.Itoa(uid)
	if u, err := user.LookupId(id); err == nil && u.Username != id {
		return u.Username + " (uid " + id + ")"
	}
	return "uid " + id
}
