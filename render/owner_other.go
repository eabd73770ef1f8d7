//go:build !unix

package render

import (
	"fmt"
	"io/fs"
	"os"
)

// owner is who a file shall belong to. Only Unix knows one; elsewhere files belong to the
// agent and take the rights of their folder.
type owner struct{ uid, gid int }

func (o owner) give(f *os.File, _ fs.FileMode) error { return nil }

func (o owner) right(fs.FileInfo, fs.FileMode) bool { return true }

// identity names a file by what changes when it is replaced.
func identity(fi fs.FileInfo) string {
	return fmt.Sprintf("%d:%d", fi.ModTime().UnixNano(), fi.Size())
}

const noFollow = 0

// syncFolder does nothing: a folder cannot be synced here.
func syncFolder(*os.Root) error { return nil }
