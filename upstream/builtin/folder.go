package builtin

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// makeFolder makes a folder that only its owner can enter, and its parents likewise, where
// they do not exist. It returns after they are on disk: a file that is synced into a folder
// that is lost in a crash is lost too.
func makeFolder(path string) error {
	if st, err := os.Stat(path); err == nil && st.IsDir() {
		return nil
	}
	parent := filepath.Dir(path)
	if parent != path {
		if err := makeFolder(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		if st, statErr := os.Stat(path); errors.Is(err, fs.ErrExist) && statErr == nil && st.IsDir() {
			return nil // another process was faster
		}
		return err
	}
	return syncFolder(parent)
}
