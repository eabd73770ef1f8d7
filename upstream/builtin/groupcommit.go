package builtin

import (
	"context"
	"errors"
	"runtime"
	"slices"

	"secretagent/upstream"
)

const (
	maxQueued = 1024 // writes in line; further writers wait for a place
	maxBatch  = 128  // writes in one transaction, so at most 4 MiB of values
)

// write is one operation on its way through the writer.
type write struct {
	ctx   context.Context // of the caller, who leaves when it ends
	apply func(*tx) error // validates before it changes anything
	done  chan error      // has room for the outcome

	err error // outcome of apply in the latest transaction
}

// errPartial makes a transaction roll back because one of its operations failed after it had
// changed something.
var errPartial = errors.New("an operation failed half-way")

// write hands an operation to the writer and returns its outcome after it is on disk.
//
// When ctx ends first, the context's error is returned. The operation is then not executed if
// it has not begun; if it has, its outcome is not reported.
func (s *Store) write(ctx context.Context, c call, apply func(*tx) error) error {
	if err := c.begin(ctx); err != nil {
		return err
	}
	w := &write{ctx: ctx, apply: apply, done: make(chan error, 1)}
	select {
	case s.queue <- w:
	case <-ctx.Done():
		return ctx.Err()
	case <-s.quit:
		return c.refer(ErrClosed)
	}
	select {
	case err := <-w.done:
		return c.refer(err)
	case <-ctx.Done():
		return ctx.Err()
	case <-s.writerDone:
		select {
		case err := <-w.done:
			return c.refer(err)
		default: // came into line as the writer left
			return c.refer(ErrClosed)
		}
	}
}

// writeLoop is the writer: the only goroutine that opens write transactions.
func (s *Store) writeLoop() {
	defer close(s.writerDone)
	batch := make([]*write, 0, maxBatch)
	for {
		select {
		case <-s.quit:
			for {
				select {
				case w := <-s.queue:
					w.done <- ErrClosed
				default:
					return
				}
			}
		case w := <-s.queue:
			batch = append(batch, w)
		}
		// Writers that were answered a moment ago are about to come back. Yielding once
		// lets them get in line; a lone writer does not notice.
		runtime.Gosched()
		batch = s.collect(batch)
		s.commit(batch)
		clear(batch)
		batch = batch[:0]
	}
}

// collect fills batch with what is in line now, without waiting, and leaves out the writes
// whose callers have left.
func (s *Store) collect(batch []*write) []*write {
	for len(batch) < maxBatch && len(s.queue) > 0 { // nobody else takes from it
		batch = append(batch, <-s.queue)
	}
	return slices.DeleteFunc(batch, func(w *write) bool { return w.ctx.Err() != nil })
}

// commit executes a batch in one transaction, and one by one if that fails, and answers every
// writer.
func (s *Store) commit(batch []*write) {
	if len(batch) == 0 {
		return
	}
	s.counters.writes.Add(uint64(len(batch)))
	err := s.execute(batch)
	switch {
	case err == nil:
	case s.broken.Load() != nil || len(batch) == 1 && !errors.Is(err, errPartial):
		for _, w := range batch {
			w.err = err
		}
	case len(batch) == 1: // failed half-way and was rolled back: w.err says why
	default:
		s.counters.replays.Add(1)
		for i, w := range batch {
			if err := s.execute(batch[i : i+1]); err != nil && !errors.Is(err, errPartial) {
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
func (s *Store) execute(batch []*write) error {
	var (
		t         *tx
		rollBack  error
		commitsAs int
	)
	err := s.transact(s.update, func(current *tx) error {
		t = current
		commitsAs = t.bolt.ID()
		for _, w := range batch {
			before := t.writes
			t.now = s.now()
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
		s.counters.commits.Add(1)
		s.index.apply(t.listed)
		s.listeners.call(t.changed)
		if t.owed {
			s.ring()
		}
		s.compactAfter(t)
		return nil
	case errors.Is(err, errNothing):
		s.compactAfter(t)
		return nil
	case errors.Is(err, errPartial), s.broken.Load() != nil, t == nil:
		return err
	}
	err = errorf(upstream.ErrUnavailable, "the change could not be written to disk: %v", err)
	if s.visible(commitsAs) {
		// Its header page was written and only the last sync failed: readers see the
		// change, but it may not survive a crash, and a failed sync is not tried again
		// with success. Accepting more writes on top would acknowledge what may be lost.
		s.listeners.call(t.changed)
		err = errorf(upstream.ErrInternal,
			"the disk did not confirm the change, which may or may not survive a restart (%v); check the disk, then restart the agent", err)
		s.breakDown(err)
	}
	s.log.Error("write failed", "count", len(batch), "err", err, "hint", "check the disk and its free space")
	return err
}

// compactAfter compacts the file if the transaction, which has ended, asks for it.
func (s *Store) compactAfter(t *tx) {
	if t.compact != nil {
		*t.compact = s.compactFile()
	}
}

// visible reports whether the transaction of that id is what readers see, or later ones are.
func (s *Store) visible(id int) bool {
	latest := 0
	err := s.transact(s.viewFile, func(t *tx) error {
		latest = t.bolt.ID()
		return nil
	})
	return err == nil && latest >= id
}
