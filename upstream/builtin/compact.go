package builtin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"go.etcd.io/bbolt"

	"secretagent/upstream"
	"secretagent/upstream/keyfile"
)

// compactKey is in the bucket of the format while free pages may hold ciphertext that was replaced
// or deleted. A process that is killed before it has compacted the file so leaves the task to
// [Store.Run] of a later one.
var compactKey = []byte("compact")

// owe notes that the file is to be compacted.
func (t *tx) owe() error {
	b := t.bolt.Bucket(bucketFormat)
	if b.Get(compactKey) != nil {
		return nil
	}
	t.writes++
	return b.Put(compactKey, []byte{1})
}

// Compact replaces the file of the database by one that holds what can be read now and nothing
// older: no ciphertext that was deleted, or rewritten under another key. Reads go on meanwhile, and
// writes wait. Windows cannot replace a file that is open: there Compact does nothing.
func (s *Store) Compact(ctx context.Context) error {
	const op = "Compact"
	outcome, err := answer(ctx, s.write, call{op: op}, func(t *tx) (*error, error) {
		t.compact = new(error)
		return t.compact, nil
	})
	if err != nil {
		return err
	}
	return refer(*outcome, op, upstream.SecretRef{})
}

// compactOwed compacts the file if a change asked for it.
func (s *Store) compactOwed(ctx context.Context) error {
	owed, err := answer(ctx, s.view, call{op: "Compact"}, func(t *tx) (bool, error) {
		return t.bolt.Bucket(bucketFormat).Get(compactKey) != nil, nil
	})
	if err != nil || !owed {
		return err
	}
	return s.Compact(ctx)
}

// compactFile is Compact on the goroutine of the writer. The steps, each of which may be the last
// one of this process:
//
//  1. Copy what can be read into a temporary file, without the note of the task, and sync it.
//  2. Open and lock the copy, so that no other process gets it between the next steps.
//  3. Rename it to the name of the database, and sync the folder.
//  4. Let reads and writes go on with it, and close the old file.
func (s *Store) compactFile() error {
	if runtime.GOOS == "windows" {
		return nil
	}
	var (
		next *bbolt.DB
		file *os.File
	)
	discard := func() {
		if next != nil {
			_ = next.Close()
		}
		next = nil
	}
	replaced, err := keyfile.Database.Replace(s.opts.Database, func(temp string) (err error) {
		discard() // of an earlier attempt
		if err = s.copyTo(temp); err == nil {
			next, file, err = openDatabase(temp, s.opts.lockTimeout)
		}
		return err
	})
	if !replaced {
		discard()
		return errorf(upstream.ErrUnavailable, "the database %s could not be compacted, and still holds old ciphertext: %v", s.opts.Database, err)
	}
	next.NoSync = s.db.NoSync
	s.swap.Lock() // waits for the reads that run
	old := s.db
	s.db, s.file, s.update = next, file, next.Update
	s.swap.Unlock()
	if err != nil { // a crash could bring the old file back, without the writes that follow
		err = errorf(upstream.ErrInternal, "the disk did not confirm that the database was replaced (%v); check the disk, then restart the agent", err)
		s.breakDown(err)
	}
	return errors.Join(err, old.Close())
}

// copyTo writes what can be read into the empty file at path, and puts it on disk.
func (s *Store) copyTo(path string) error {
	const perTransaction = 4 << 20 // bytes
	to, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second, NoSync: true, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		return err
	}
	err = s.transact(func(func(*bbolt.Tx) error) error { return bbolt.Compact(to, s.db, perTransaction) }, nil)
	if s.broken.Load() != nil {
		return err // to may be left with its locks held
	}
	if err == nil {
		err = to.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketFormat).Delete(compactKey) })
	}
	if err == nil {
		err = to.Sync()
	}
	if err = errors.Join(err, to.Close()); err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	return nil
}

// viewFile is View of the file that is the database now.
func (s *Store) viewFile(fn func(*bbolt.Tx) error) error {
	s.swap.RLock()
	defer s.swap.RUnlock()
	return s.db.View(fn)
}
