package bolt

import (
	"context"
	"errors"
	"runtime"
	"slices"

	"secretagent/upstream"
	"secretagent/upstream/builtin"
)

const (
	maxQueued = 1024 // writes in line; further writers wait for a place
	maxBatch  = 128  // writes in one transaction, so at most 4 MiB of values
)

// write is one operation on its way through the writer.
type write struct {
	ctx   context.Context            // of the caller, who leaves when it ends
	apply func(builtin.Writer) error // validates before it changes anything
	done  chan error                 // has room for the outcome

	err error // outcome of apply in the latest transaction
}

// errPartial makes a transaction roll back because one of its operations failed after it had
// changed something.
var errPartial = errors.New("an operation failed half-way")

// Update hands an operation to the writer and returns its outcome after it is on disk.
//
// When ctx ends first, the context's error is returned. The operation is then not executed if
// it has not begun; if it has, its outcome is not reported.
func (d *db) Update(ctx context.Context, fn func(builtin.Writer) error) error {
	w := &write{ctx: ctx, apply: fn, done: make(chan error, 1)}
	select {
	case d.queue <- w:
	case <-ctx.Done():
		return ctx.Err()
	case <-d.quit:
		return builtin.ErrClosed
	}
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-d.writerDone:
		select {
		case err := <-w.done:
			return err
		default: // came into line as the writer left
			return builtin.ErrClosed
		}
	}
}

// writeLoop is the writer: the only goroutine that opens write transactions.
func (d *db) writeLoop() {
	defer close(d.writerDone)
	batch := make([]*write, 0, maxBatch)
	for {
		select {
		case <-d.quit:
			for {
				select {
				case w := <-d.queue:
					w.done <- builtin.ErrClosed
				default:
					return
				}
			}
		case w := <-d.queue:
			batch = append(batch, w)
		}
		// Writers that were answered a moment ago are about to come back. Yielding once
		// lets them get in line; a lone writer does not notice.
		runtime.Gosched()
		batch = d.collect(batch)
		d.commit(batch)
		clear(batch)
		batch = batch[:0]
	}
}

// collect fills batch with what is in line now, without waiting, and leaves out the writes
// whose callers have left.
func (d *db) collect(batch []*write) []*write {
	for len(batch) < maxBatch && len(d.queue) > 0 { // nobody else takes from it
		batch = append(batch, <-d.queue)
	}
	return slices.DeleteFunc(batch, func(w *write) bool { return w.ctx.Err() != nil })
}

// commit executes a batch in one transaction, and one by one if that fails, and answers every
// writer.
func (d *db) commit(batch []*write) {
	if len(batch) == 0 {
		return
	}
	d.writes.Add(uint64(len(batch)))
	err := d.execute(batch)
	switch {
	case err == nil:
	case d.broken.Load() != nil || len(batch) == 1 && !errors.Is(err, errPartial):
		for _, w := range batch {
			w.err = err
		}
	case len(batch) == 1: // failed half-way and was rolled back: w.err says why
	default:
		d.replays.Add(1)
		for i, w := range batch {
			if err := d.execute(batch[i : i+1]); err != nil && !errors.Is(err, errPartial) {
				w.err = err
			}
		}
	}
	for _, w := range batch {
		w.done <- w.err
	}
}

// errNothing rolls a transaction back that has nothing to commit, which saves the sync.
var errNothing = errors.New("nothing to commit")

// execute runs operations in one transaction. Each operation's outcome is in its err; an error
// of the transaction itself is returned, and then nothing was stored.
func (d *db) execute(batch []*write) error {
	var (
		t         *tx
		rollBack  error
		commitsAs int
	)
	err := d.transact(d.update, func(current *tx) error {
		t = current
		commitsAs = t.bolt.ID()
		for _, w := range batch {
			before := t.writes
			if w.err = w.apply(t); w.err != nil && t.writes != before {
				rollBack = errPartial
				return rollBack
			}
		}
		if t.writes == 0 {
			rollBack = errNothing
		}
		return rollBack
	})
	switch {
	case err == nil:
		d.commits.Add(1)
		d.observer(t.notices)
		if t.owed {
			d.ring()
		}
		d.compactAfter(t)
		return nil
	case errors.Is(err, errNothing):
		d.compactAfter(t)
		return nil
	case errors.Is(err, errPartial), d.broken.Load() != nil, t == nil:
		return err
	}
	err = builtin.Errorf(upstream.ErrUnavailable, "the change could not be written to disk: %v", err)
	if d.visible(commitsAs) {
		// Its header page was written and only the last sync failed: readers see the
		// change, but it may not survive a crash, and a failed sync is not tried again
		// with success. Accepting more writes on top would acknowledge what may be lost.
		d.observer(t.notices)
		err = builtin.Errorf(upstream.ErrInternal,
			"the disk did not confirm the change, which may or may not survive a restart (%v); check the disk, then restart the agent", err)
		d.breakDown(err)
	}
	d.log.Error("write failed", "count", len(batch), "err", err, "hint", "check the disk and its free space")
	return err
}

// compactAfter compacts the file if the transaction, which has ended, asks for it.
func (d *db) compactAfter(t *tx) {
	if t.compact != nil {
		*t.compact = d.compactFile()
	}
}

// visible reports whether the transaction of that id is what readers see, or later ones are.
func (d *db) visible(id int) bool {
	latest := 0
	err := d.transact(d.viewFile, func(t *tx) error {
		latest = t.bolt.ID()
		return nil
	})
	return err == nil && latest >= id
}
