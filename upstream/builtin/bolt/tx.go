package bolt

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"secretagent/upstream/builtin"
)

// tx is one transaction. It is the [builtin.Reader] of a view and the [builtin.Writer] of writes.
type tx struct {
	bolt    *bbolt.Tx
	buckets [builtin.Spaces]*bbolt.Bucket // that were asked for

	// What the operations of a write transaction did.
	writes  int // changes of the database so far
	notices []builtin.Notice
	owed    bool   // ask Run to compact the file
	compact *error // not nil: compact the file next; where the outcome goes
}

// transact runs fn in one transaction; begin is View or Update of the database. A memory
// fault or panic in it, which is how bbolt meets damage, becomes an error.
func (d *db) transact(begin func(func(*bbolt.Tx) error) error, fn func(*tx) error) (err error) {
	if broken := d.broken.Load(); broken != nil {
		return *broken
	}
	began, writable := false, false
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			d.log.Error("a transaction met a damaged page", "err", fmt.Sprint(p), "stack", string(debug.Stack()), "hint", "restore the database and its keyring from a backup")
			failure := damaged("a page of it cannot be read")
			// A read that had begun has been undone. Otherwise bbolt may be left with its
			// locks held or its list of free pages wrong.
			if !began || writable {
				d.breakDown(failure)
			}
			err = failure
		}
	}()
	err = begin(func(b *bbolt.Tx) error {
		began, writable = true, b.Writable()
		return fn(&tx{bolt: b})
	})
	if errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
		return builtin.ErrClosed
	}
	return err
}

// View runs fn on a snapshot of the database. It never waits for a write.
func (d *db) View(_ context.Context, fn func(builtin.Reader) error) error {
	d.reads.Add(1)
	return d.transact(d.viewFile, func(t *tx) error { return fn(t) })
}

// viewFile is View of the file that is the database now.
func (d *db) viewFile(fn func(*bbolt.Tx) error) error {
	d.swap.RLock()
	defer d.swap.RUnlock()
	return d.bolt.View(fn)
}

// bucket returns the bucket of a space; nil when there is none.
func (t *tx) bucket(space builtin.Space) *bbolt.Bucket {
	if t.buckets[space] == nil {
		t.buckets[space] = t.bolt.Bucket(buckets[space])
	}
	return t.buckets[space]
}

// Get returns the value of a key.
func (t *tx) Get(space builtin.Space, key []byte) ([]byte, error) {
	b := t.bucket(space)
	if b == nil {
		return nil, nil
	}
	return b.Get(key), nil
}

// Scan returns the keys of a space from one on.
func (t *tx) Scan(space builtin.Space, from []byte) builtin.Cursor {
	b := t.bucket(space)
	if b == nil {
		return &cursor{}
	}
	return &cursor{bolt: b.Cursor(), from: from}
}

// cursor walks over the keys of a bucket.
type cursor struct {
	bolt  *bbolt.Cursor // nil: there is no bucket
	from  []byte
	began bool
}

func (c *cursor) Next() (key, value []byte, err error) {
	switch {
	case c.bolt == nil:
	case c.began:
		key, value = c.bolt.Next()
	default:
		c.began = true
		key, value = c.bolt.Seek(c.from)
	}
	return key, value, nil
}

// Put sets the value of a key.
func (t *tx) Put(space builtin.Space, key, value []byte) (err error) {
	t.writes++
	b := t.bucket(space)
	if b == nil {
		if b, err = t.bolt.CreateBucketIfNotExists(buckets[space]); err != nil {
			return err
		}
	}
	return b.Put(key, value)
}

// Delete removes a key, if it is there.
func (t *tx) Delete(space builtin.Space, key []byte) error {
	t.writes++
	b := t.bucket(space)
	if b == nil {
		return nil
	}
	return b.Delete(key)
}

// Announce keeps a notice until the transaction is committed.
func (t *tx) Announce(n builtin.Notice) { t.notices = append(t.notices, n) }

// Wipe notes that the file is to be compacted.
func (t *tx) Wipe() error {
	t.owed = true
	b := t.bolt.Bucket(bucketFormat)
	if b.Get(compactKey) != nil {
		return nil
	}
	t.writes++
	return b.Put(compactKey, []byte{1})
}
