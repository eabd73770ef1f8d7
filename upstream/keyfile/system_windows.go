package keyfile

import (
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// leftoverAge is how old a temporary file is before it can be a leftover: far longer than it
// takes to make one.
const leftoverAge = time.Hour

// nonBlock is for systems whose pipes are files.
const nonBlock = 0

// LockFolder locks nothing: Windows cannot lock folders.
func LockFolder(string, time.Duration) (unlock func(), locked bool) { return func() {}, false }

// checkWritable checks nothing: access lists decide.
func checkWritable(string) error { return nil }

// CheckPath checks nothing: access lists decide.
func CheckPath(string) error { return nil }

// CheckPathTo checks nothing: access lists decide.
func CheckPathTo(string, int, fs.FileMode) error { return nil }

// ReadOwned is [ReadFile]: files have no number of an owner.
func ReadOwned(path string, most int64) (content []byte, uid int, err error) {
	content, err = ReadFile(path, most)
	return content, -1, err
}

// OpenLog opens the file at path to append to it. With create it makes what is missing.
func OpenLog(path string, create bool) (*os.File, error) {
	flags := os.O_APPEND | os.O_WRONLY
	if create {
		flags |= os.O_CREATE
		if err := MakeFolder(filepath.Dir(path), 0o700, true); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(path, flags, 0o600)
}

// likeFile does nothing: access lists come from the folder.
func likeFile(temp, path string) error { return nil }

// CheckOpen checks nothing: access lists decide.
func CheckOpen(string, fs.FileInfo) error { return nil }

// checkOwned checks nothing: access lists decide.
func checkOwned(string, fs.FileInfo, []int) error { return nil }

// checkGroup checks nothing: files have no group.
func (k Kind) checkGroup() error { return nil }

// Owner returns the number of the user that a file belongs to; -1 where files have none.
func Owner(fs.FileInfo) int { return -1 }

// group is as Owner.
func group(fs.FileInfo) int { return -1 }
