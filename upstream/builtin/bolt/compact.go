package bolt

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"go.etcd.io/bbolt"

	"secretagent/upstream"
	"secretagent/upstream/builtin"
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

// compact is [Store.Compact].
func (d *db) compact(ctx context.Context) error {
	for {
		release, err := d.lockCopying(ctx) // not on the goroutine of the writer, which would hold up all writes
		if err != nil {
			return err
		}
		release()
		var outcome *error
		err = d.Update(ctx, func(w builtin.Writer) error {
			t := w.(*tx)
			if t.compact == nil { // once for all that ask at the same time
				t.compact = new(error)
			}
			outcome = t.compact
			return nil
		})
		if err != nil || *outcome != errCopying {
			return cmp.Or(err, *outcome)
		}
	}
}

// errCopying is why a compaction has not begun: a backup was faster.
var errCopying = errors.New("the file is being copied")

// lockCopying waits until nobody copies the file.
func (d *db) lockCopying(ctx context.Context) (release func(), err error) {
	select {
	case d.copying <- struct{}{}:
		return func() { <-d.copying }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-d.quit:
		return nil, builtin.ErrClosed
	}
}

// ring tells [Store.Run] that the file is to be compacted.
func (d *db) ring() {
	select {
	case d.bell <- struct{}{}:
	default: // it has yet to hear the last one
	}
}

// compactWhenOwed is the part of [Store.Run] that compacts the file.
func (d *db) compactWhenOwed(ctx context.Context) {
	d.ring() // an earlier process may have left the task
	for retry := compactRetry; ; {
		select {
		case <-d.bell:
		case <-ctx.Done():
			return
		case <-d.quit:
			return
		}
		if !d.sleep(ctx, compactDelay) {
			return
		}
		began := time.Now()
		err := d.compactOwed(ctx)
		pause := max(compactAtLeast, compactShare*time.Since(began))
		if err != nil && ctx.Err() == nil && !errors.Is(err, builtin.ErrClosed) {
			pause = max(pause, retry)
			retry = min(2*retry, compactAtMost)
			d.log.Warn("old ciphertext is not removed from the database yet", "retry_in", pause, "err", err, "hint", "check the disk and its free space")
			d.ring()
		} else {
			retry = compactRetry
		}
		if !d.sleep(ctx, pause) {
			return
		}
	}
}

// sleep reports whether neither ctx nor the database ended meanwhile.
func (d *db) sleep(ctx context.Context, pause time.Duration) bool {
	select {
	case <-time.After(pause):
		return true
	case <-ctx.Done():
	case <-d.quit:
	}
	return false
}

// compactOwed compacts the file if a change asked for it.
func (d *db) compactOwed(ctx context.Context) error {
	owed := false
	err := d.transact(d.viewFile, func(t *tx) error {
		owed = t.bolt.Bucket(bucketFormat).Get(compactKey) != nil
		return nil
	})
	if err != nil || !owed {
		return err
	}
	return d.compact(ctx)
}

// compactFile is Compact on the goroutine of the writer. The steps, each of which may be the last
// one of this process:
//
//  1. Copy what can be read into a temporary file, without the note of the task, and sync it.
//  2. Open and lock the copy, so that no other process gets it between the next steps.
//  3. Rename it to the name of the database, and sync the folder.
//  4. Let reads and writes go on with it, and close the old file.
func (d *db) compactFile() error {
	if runtime.GOOS == "windows" {
		return nil
	}
	select {
	case d.copying <- struct{}{}:
		defer func() { <-d.copying }()
	default:
		return errCopying
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
	replaced, err := keyfile.Database.Replace(d.opts.Database, func(temp string) (err error) {
		discard() // of an earlier attempt
		if err = d.roomFor(temp); err != nil {
			return err
		}
		if err = d.copyTo(context.Background(), temp); err == nil {
			next, file, err = openDatabase(temp, false, d.opts.lockTimeout)
		}
		return err
	})
	if !replaced {
		discard()
		return builtin.Errorf(upstream.ErrUnavailable, "the database %s could not be compacted, and still holds old ciphertext: %v", d.opts.Database, err)
	}
	next.NoSync = d.bolt.NoSync
	d.swap.Lock() // waits for the reads that run
	old := d.bolt
	d.bolt, d.file, d.update = next, file, next.Update
	d.swap.Unlock()
	if err != nil { // a crash could bring the old file back, without the writes that follow
		err = builtin.Errorf(upstream.ErrInternal, "the disk did not confirm that the database was replaced (%v); check the disk, then restart the agent", err)
		d.breakDown(err)
	}
	return errors.Join(err, old.Close())
}

// roomFor returns an error when a copy of what can be read surely finds no room beside path.
func (d *db) roomFor(path string) error {
	free, known := d.opts.freeSpace(filepath.Dir(path))
	if !known {
		return nil
	}
	needed := 0
	err := d.transact(d.bolt.View, func(t *tx) error {
		for _, space := range []builtin.Space{builtin.Records, builtin.Values} {
			st := t.bucket(space).Stats()
			needed += st.BranchInuse + st.LeafInuse
		}
		return nil
	})
	if err == nil && uint64(needed) > free {
		err = fmt.Errorf("its copy needs %d bytes, and the disk has %d", needed, free)
	}
	return err
}

// copyTo writes what can be read into the empty file at path, and puts it on disk. The caller holds copying. To the
// database this is one more read: where it meets a damaged page, the copy is worthless, and everything goes on.
func (d *db) copyTo(ctx context.Context, path string) error {
	to, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second, NoSync: true, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		return err
	}
	err = d.transact(d.bolt.View, func(t *tx) error {
		if err := copyBuckets(ctx, to, t.bolt); err != nil {
			return err
		}
		return to.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketFormat).Delete(compactKey) })
	})
	if err == nil {
		err = to.Sync()
	}
	return errors.Join(err, to.Close())
}

// copyBuckets copies everything, in a few transactions. bbolt's own Compact begins another read within that of the
// caller, which bbolt forbids while others write.
func copyBuckets(ctx context.Context, to *bbolt.DB, from *bbolt.Tx) error {
	const perTransaction = 4 << 20 // bytes
	return from.ForEach(func(name []byte, bucket *bbolt.Bucket) error {
		cursor := bucket.Cursor()
		for key, value := cursor.First(); ; {
			err := to.Update(func(tx *bbolt.Tx) error {
				into, err := tx.CreateBucketIfNotExists(name)
				if err != nil {
					return err
				}
				into.FillPercent = 1 // they come in order
				for size := 0; key != nil && size < perTransaction; key, value = cursor.Next() {
					if err := into.Put(key, value); err != nil {
						return err
					}
					size += len(key) + len(value)
				}
				return nil
			})
			if err = cmp.Or(err, ctx.Err()); err != nil || key == nil {
				return err
			}
		}
	})
}
