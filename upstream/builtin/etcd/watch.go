package etcd

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"secretagent/upstream"
	"secretagent/upstream/builtin"
)

const (
	rewatch    = 200 * time.Millisecond // from the end of a watch to the next one, doubled up to
	rewatchMax = 500 * time.Millisecond
)

// watch is how far the notices of changes have come.
//
// Of each record the newest change that was told is known: it is in ahead, or else at most at rev. A change is told
// if it is newer. So a change of this store is told when it is committed, the watch does not tell it again, and
// nothing is told after something newer of the same record.
type watch struct {
	mu      sync.Mutex
	up      bool
	rev     int64                         // up to which everything is told, by a resync and by the watch
	ahead   map[upstream.SecretName]int64 // :: secret → revision of a change of this store that is told, beyond rev
	due     int64                         // up to which everything must be told before lists are up to date
	moved   chan struct{}                 // closed, and made anew, with each change of up, rev and due
	since   time.Time                     // of the last change of up
	alive   time.Time                     // when the watch gave the last sign of life
	resyncs uint64
	breaks  uint64
	cause   string // why it is not up
}

func newWatch() *watch {
	return &watch{ahead: map[upstream.SecretName]int64{}, moved: make(chan struct{}), since: time.Now(), alive: time.Now(), cause: "not connected yet"}
}

// set changes the state of the watch.
func (w *watch) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
	close(w.moved)
	w.moved = make(chan struct{})
}

func (w *watch) isUp() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.up
}

// told returns up to which revision everything is told.
func (w *watch) told() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rev
}

// CatchUp returns when the notices tell of all that there is, as far as is known, or why they do not.
func (d *db) CatchUp(ctx context.Context) error {
	w := d.watch
	timer := time.NewTimer(d.opts.Timeout)
	defer timer.Stop()
	for {
		w.mu.Lock()
		moved, up, cause := w.moved, w.up && w.rev >= w.due, cmp.Or(w.cause, "it lags behind")
		w.mu.Unlock()
		if up {
			return nil
		}
		select {
		case <-moved:
		case <-timer.C:
			return builtin.Errorf(upstream.ErrUnavailable, "the list of secrets is not up to date: %s", cause)
		case <-ctx.Done():
			return ctx.Err()
		case <-d.ctx.Done():
			return builtin.ErrClosed
		}
	}
}

// start begins to tell of changes.
func (d *db) start() { d.done.Go(d.follow) }

// follow tells of changes until Close. A watch that has ended goes on where it was; where etcd has
// compacted that, everything is told anew.
func (d *db) follow() {
	pause := rewatch
	for {
		began := time.Now()
		err := d.followOnce()
		if d.ctx.Err() != nil {
			return
		}
		if time.Since(began) > 2*d.opts.pulse {
			pause = rewatch
		}
		wasUp := false
		d.watch.set(func() {
			wasUp = d.watch.up
			if wasUp {
				d.watch.up, d.watch.since = false, time.Now()
				d.watch.breaks++
			}
			d.watch.cause = err.Error()
		})
		if wasUp {
			d.log.Warn("the watch of etcd is broken: changes are noticed when values are refreshed", "err", err, "hint", "it is made anew; check that a majority of the members is there")
		}
		select {
		case <-time.After(pause):
		case <-d.ctx.Done():
			return
		}
		pause = min(2*pause, rewatchMax)
	}
}

// followOnce tells of everything, unless that was done, and of changes from then on. It returns why it
// has ended.
func (d *db) followOnce() error {
	client, err := d.client(d.ctx)
	if err != nil {
		return err
	}
	rev := d.watch.told()
	if rev == 0 {
		if rev, err = d.resync(); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(d.ctx))
	defer cancel()
	defer d.watching(client, cancel)()
	watcher := clientv3.NewWatcher(client) // with a stream of its own, which ends with it
	defer watcher.Close()
	space := d.key(builtin.Records, nil)
	changes := watcher.Watch(ctx, space, clientv3.WithPrefix(), clientv3.WithRev(rev+1), clientv3.WithCreatedNotify(), clientv3.WithFragment())
	alive, behind, tick := time.Now(), 0, time.NewTicker(d.opts.pulse)
	defer tick.Stop()
	for {
		select {
		case answer, ok := <-changes:
			if !ok {
				return errors.New("the watch has ended")
			}
			if answer.CompactRevision != 0 {
				d.watch.set(func() { d.watch.rev = 0 })
				return errors.New("etcd has compacted what the watch has missed")
			}
			if err := answer.Err(); err != nil {
				return d.failure(err, false)
			}
			alive = time.Now()
			d.tell(space, answer.Events)
			if behind++; len(answer.Events) > 0 || answer.Header.Revision >= d.watch.told() {
				behind = 0
			} else if behind == 3 { // a member that is only late is not that late
				d.memory.Purge()
				d.watch.set(func() { d.watch.rev = 0 })
				return errors.New("the revisions of etcd have gone back, as after it was restored")
			}
		case <-d.again:
			if _, err := d.resync(); err != nil {
				d.watch.set(func() { d.watch.rev = 0 })
				return err
			}
		case <-tick.C:
			if time.Since(alive) > 2*d.opts.pulse {
				return errors.New("etcd gives no sign of life")
			}
			limited, done := context.WithTimeout(ctx, d.opts.pulse)
			_ = watcher.RequestProgress(limited) // the answer is a sign of life
			done()
		}
	}
}

// tellOwn tells of records that this store has committed.
func (d *db) tellOwn(rev int64, records []builtin.SealedRecord) {
	w := d.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	records = slices.DeleteFunc(records, func(r builtin.SealedRecord) bool { return rev <= max(w.rev, w.ahead[r.Name]) })
	if len(records) == 0 {
		return
	}
	for _, r := range records {
		w.ahead[r.Name] = rev
	}
	d.observer([]builtin.Notice{{Records: records}})
}

// tell tells of events, which come in the order of their revisions, those of one revision together. A watch that
// has been made is up.
func (d *db) tell(space string, events []*clientv3.Event) {
	d.watch.set(func() {
		w := d.watch
		w.alive = time.Now()
		told := w.rev // a resync may be ahead of the watch
		var records []builtin.SealedRecord
		for _, e := range events {
			if d.memory.Contains(string(e.Kv.Key)) {
				d.memory.see(string(e.Kv.Key), e.Kv)
			}
			r := builtin.SealedRecord{Name: upstream.SecretName(strings.TrimPrefix(string(e.Kv.Key), space))}
			if e.Type == clientv3.EventTypePut {
				r.Sealed = e.Kv.Value
			}
			rev, ahead := e.Kv.ModRevision, w.ahead[r.Name]
			if rev > max(told, ahead) {
				records = append(records, r)
			}
			if rev >= ahead {
				delete(w.ahead, r.Name)
			}
			w.rev = max(w.rev, rev)
			d.known.set(rev)
		}
		if len(records) > 0 {
			d.observer([]builtin.Notice{{Records: records}})
		}
		if !w.up {
			w.up, w.since, w.cause = true, time.Now(), ""
		}
	})
}

// resync tells of everything there is, and returns the revision.
func (d *db) resync() (int64, error) {
	var (
		rev     int64
		records []builtin.SealedRecord
	)
	err := d.View(d.ctx, func(r builtin.Reader) error {
		records = records[:0]
		cursor := r.Scan(builtin.Records, nil)
		for {
			name, sealed, err := cursor.Next()
			if err != nil {
				return err
			}
			if name == nil {
				rev = r.(*tx).rev
				return nil
			}
			records = append(records, builtin.SealedRecord{Name: upstream.SecretName(name), Sealed: sealed})
		}
	})
	if err != nil {
		return 0, err
	}
	d.tellAll(rev, records)
	return rev, nil
}

// tellAll tells that there are these records and no others, as of a revision that no event was told beyond.
func (d *db) tellAll(rev int64, records []builtin.SealedRecord) {
	d.watch.set(func() {
		w := d.watch
		for _, ahead := range w.ahead { // the watch tells it again
			w.due = max(w.due, ahead)
		}
		clear(w.ahead)
		w.rev = rev
		w.resyncs++
		d.observer([]builtin.Notice{{Records: records, All: true}})
	})
}
