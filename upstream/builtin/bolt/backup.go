package bolt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/builtin"
	"secretagent/upstream/keyfile"
)

// Create is [Open] for a file that is there and empty. What is written is on disk after [Store.Sync] and not
// before: a database that is being made is worth nothing until it is whole.
func Create(opts Options) (*Store, error) {
	if err := makeEmpty(opts.Database); err != nil {
		return nil, fmt.Errorf("database %s: %w", opts.Database, err)
	}
	s, err := Open(opts)
	if err == nil {
		s.db.bolt.NoSync = true
	}
	return s, err
}

// Sync puts a database on disk that [Create] has made.
func (s *Store) Sync() error { return s.db.bolt.Sync() }

// CopyTo writes a copy of the database as it is at one moment into the empty file at path, and syncs it: all that can
// be read, and no older ciphertext. It is a database itself. Reads and writes go on meanwhile, and compactions wait.
func (s *Store) CopyTo(ctx context.Context, path string) error {
	release, err := s.db.lockCopying(ctx)
	if err == nil {
		defer release()
		err = s.db.roomFor(path)
	}
	if err == nil {
		err = s.db.copyTo(ctx, path)
	}
	return notCopied(err)
}

// notCopied gives a place in the error table to what has none: the disk is full, say.
func notCopied(err error) error {
	if _, known := errors.AsType[*upstream.Error](err); err == nil || known || upstream.IsContextError(err) || errors.Is(err, builtin.ErrClosed) {
		return err
	}
	return builtin.Errorf(upstream.ErrUnavailable, "the database could not be copied: %v", err)
}

// Backup returns what [Store.CopyTo] writes, and its size, in a file that has no name and goes when the caller closes
// it. It is made beside the database.
func (s *Store) Backup(ctx context.Context) (file *os.File, size int64, err error) {
	path, err := filepath.EvalSymlinks(s.opts.Database)
	if err != nil {
		return nil, 0, notCopied(err)
	}
	err = keyfile.Database.Temp(path, func(temp string) error {
		if file != nil {
			_ = file.Close() // of an earlier attempt
		}
		err := s.CopyTo(ctx, temp)
		if err == nil {
			file, err = os.Open(temp)
		}
		return err
	})
	var info fs.FileInfo
	if err == nil {
		info, err = file.Stat()
	}
	if err != nil {
		if file != nil {
			_ = file.Close()
		}
		return nil, 0, notCopied(err)
	}
	return file, info.Size(), nil
}

// Restore puts a copy of the database at path, where check finds it right. It is in place when it is whole and on
// disk; until then, and after an error, everything is as it was. With replace, the database that is there is kept, under
// the name that is returned; otherwise the error then matches [fs.ErrExist]. While another process has it open, Restore
// fails with [ErrLocked].
func (s *Store) Restore(ctx context.Context, path string, replace bool, check func(copied string) error) (kept string, err error) {
	fill := func(temp string) error {
		err := s.CopyTo(ctx, temp)
		if err == nil {
			err = check(temp)
		}
		return err
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) || err == nil && !replace {
		return "", keyfile.Database.Make(path, fill)
	}
	// The lock keeps others from opening what is about to be replaced.
	old, err := openLocked(path, os.O_RDWR, 0, true, s.opts.lockTimeout)
	if err != nil {
		return "", err
	}
	defer old.Close()
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return "", err
	}
	keep := path + ".replaced-" + time.Now().UTC().Format("20060102T150405.000Z")
	replaced, err := keyfile.Database.Replace(path, func(temp string) error {
		err := fill(temp)
		if err == nil {
			err = os.Link(path, keep)
		}
		return err
	})
	if !replaced {
		if linked, e := os.Stat(keep); e == nil && sameAs(old, linked) {
			_ = os.Remove(keep)
		}
		return "", err
	}
	return keep, err
}

// sameAs reports whether the open file is the one that info is of.
func sameAs(f *os.File, info fs.FileInfo) bool {
	st, err := f.Stat()
	return err == nil && os.SameFile(st, info)
}
