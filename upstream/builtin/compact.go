package builtin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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

const (
	compactDelay   = time.Second      // from the first of many deletions to the compaction for all of them
	compactAtLeast = 10 * time.Second // from one compaction to the next, and
	compactShare   = 10               // how many times as long as it took: writes wait for it
	compactRetry   = time.Minute      // after a failure, and twice as long after each one that follows
	compactAtMost  = time.Hour        // from a failure to the next attempt
)

// owe notes that the file is to be compacted.
func (t *tx) owe() error {
	t.owed = true
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
		if t.compact == nil { // once for all that ask at the same time
			t.compact = new(error)
		}
		return t.compact, nil
	})
	if err != nil {
		return err
	}
	return refer(*outcome, op, upstream.SecretRef{})
}

// ring tells [Store.Run] that the file is to be compacted.
func (s *Store) ring() {
	select {
	case s.bell <- struct{}{}:
	default: // it has yet to hear the last one
	}
}

// compactWhenOwed is the part of [Store.Run] that compacts the file.
func (s *Store) compactWhenOwed(ctx context.Context) {
	s.ring() // an earlier process may have left the task
	for retry := compactRetry; ; {
		select {
		case <-s.bell:
		case <-ctx.Done():
			return
		case <-s.quit:
			return
		}
		if !s.sleep(ctx, compactDelay) {
			return
		}
		began := time.Now()
		err := s.compactOwed(ctx)
		pause := max(compactAtLeast, compactShare*time.Since(began))
		if err != nil && ctx.Err() == nil && !errors.Is(err, ErrClosed) {
			pause = max(pause, retry)
			retry = min(2*retry, compactAtMost)
			s.log.Warn("old ciphertext is not removed from the database yet", "retry_in", pause, "err", err, "hint", "check the disk and its free space")
			s.ring()
		} else {
			retry = compactRetry
		}
		if !s.sleep(ctx, pause) {
			return
		}
	}
}

// sleep reports whether neither ctx nor the [Store] ended meanwhile.
func (s *Store) sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
	case <-s.quit:
	}
	return false
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
		if err = s.roomFor(temp); err != nil {
			return err
		}
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

// roomFor returns an error when a copy of what can be read surely finds no room beside path.
func (s *Store) roomFor(path string) error {
	free, known := s.opts.freeSpace(filepath.Dir(path))
	if !known {
		return nil
	}
	needed := 0
	err := s.transact(s.db.View, func(t *tx) error {
		for _, b := range []*bbolt.Bucket{t.secrets, t.values} {
			st := b.Stats()
			needed += st.BranchInuse + st.LeafInuse
		}
		return nil
	})
	if err == nil && uint64(needed) > free {
		err = fmt.Errorf("its copy needs %d bytes, and the disk has %d", needed, free)
	}
	return err
}

// copyTo writes what can be read into the empty file at path, and puts it on disk.
func (s *Store) copyTo(path string) error {
	const perTransaction = 4 << 20 // bytes
	to, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second, NoSync: true, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		return err
	}
	// To the database this is one more read: where it meets a damaged page, the copy is discarded,
	// and everything goes on. The writer, on whose goroutine this is, changes nothing meanwhile.
	err = s.transact(s.db.View, func(*tx) error {
		if err := bbolt.Compact(to, s.db, perTransaction); err != nil {
			return err
		}
		return to.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketFormat).Delete(compactKey) })
	})
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
