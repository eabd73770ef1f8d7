package etcd

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	retry "github.com/sethvargo/go-retry"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"secretagent/upstream"
	"secretagent/upstream/builtin"
)

const (
	maxOps       = 128     // of a transaction, as etcd has it by default
	maxBytes     = 1 << 20 // of what a transaction writes; etcd takes 1.5 MiB by default
	pageBytes    = 1 << 20 // of a scan that are read at once, about: etcd counts all keys that follow each time
	maxPage      = 1 << 14 // and keys
	maxAsked     = 5       // keys that a transaction has read that the next one, or its repetition, reads together
	exactCompare = 32      // keys of a scan that a write compares one by one
)

// tx is one attempt of a transaction: a snapshot, of the revision at which its first read was answered,
// and what it is to write.
type tx struct {
	ctx context.Context
	db  *db

	asked   []string                     // keys that were read, the first ones
	also    []string                     // keys to read with the first one
	rev     int64                        // of the snapshot; 0 before the first read
	known   map[string]*mvccpb.KeyValue  // that were read, nil where there is none, asked for or not
	hints   *lru.Cache[string, []string] // of a view :: its first key → the others that such a one read
	fetched int                          // times that keys were
	failed  bool                         // etcd did not answer

	// Of a write only.
	recalls  bool             // keys are taken from memory rather than read
	recalled bool             // some were: it counts if it is committed, and otherwise decides nothing
	read     map[string]int64 // :: key that was asked for → its revision; 0: there is none
	ranges   []clientv3.Cmp
	writes   map[string][]byte // nil: deleted
	size     int
}

var _ builtin.Writer = (*tx)(nil)

// key returns the key at etcd.
func (d *db) key(space builtin.Space, key []byte) string {
	return d.opts.Prefix + space.String() + "/" + string(key)
}

// Get returns the value of a key. With the first one that is read, what such a transaction read further the
// last time that it took more than one request is read too, in one transaction.
func (t *tx) Get(space builtin.Space, k []byte) ([]byte, error) {
	key := t.db.key(space, k)
	if value, ok := t.writes[key]; ok {
		return value, nil
	}
	kv, ok := t.known[key]
	if !ok && t.recalls {
		if kv, ok = t.db.memory.Get(key); ok {
			t.known[key], t.recalled = kv, true
		}
	}
	if !ok {
		keys := []string{key}
		if t.rev == 0 {
			also := t.also
			if t.hints != nil {
				also, _ = t.hints.Get(key)
			}
			keys = append(keys, also...)
		}
		if err := t.fetch(keys); err != nil {
			return nil, err
		}
		kv = t.known[key]
	}
	if len(t.asked) < maxAsked && !slices.Contains(t.asked, key) {
		t.asked = append(t.asked, key)
	}
	if t.read != nil {
		t.read[key] = kv.GetModRevision()
	}
	if kv == nil {
		return nil, nil
	}
	return present(kv.Value), nil
}

// present returns a value that is there, also where it is empty.
func present(value []byte) []byte {
	if value == nil {
		return []byte{}
	}
	return value
}

// Prefetch reads many keys at once.
func (t *tx) Prefetch(space builtin.Space, keys [][]byte) error {
	for some := range slices.Chunk(keys, maxOps) {
		names := make([]string, len(some))
		for i, key := range some {
			names[i] = t.db.key(space, key)
		}
		if err := t.fetch(names); err != nil {
			return err
		}
	}
	return nil
}

// fetch reads keys in one transaction, at the revision of the snapshot.
func (t *tx) fetch(keys []string) error {
	var options []clientv3.OpOption
	if t.rev != 0 {
		options = append(options, clientv3.WithRev(t.rev))
	}
	ops := make([]clientv3.Op, len(keys))
	for i, key := range keys {
		ops[i] = clientv3.OpGet(key, options...)
	}
	t.fetched++
	answer, err := t.do(ops...)
	if err != nil {
		return err
	}
	if t.rev == 0 {
		t.rev = answer.Header.Revision
	}
	for i, key := range keys {
		t.known[key] = nil
		if kvs := answer.Responses[i].GetResponseRange().GetKvs(); len(kvs) > 0 {
			t.known[key] = kvs[0]
			t.db.memory.see(key, kvs[0])
		}
	}
	return nil
}

// do makes one request that reads. A first one whose answer is older than what this store knew before it asked is
// asked again.
func (t *tx) do(ops ...clientv3.Op) (*clientv3.TxnResponse, error) {
	known := t.db.known.get()
	answer, err := t.db.txn(t.ctx, nil, ops)
	t.failed = t.failed || err != nil
	if err == nil && t.rev == 0 && answer.Header.Revision < known {
		t.db.log.Warn("a member of etcd answers with what was there before", "hint", "nothing: it is asked again; releases of etcd from before March 2026 do that when a member was stopped for a while")
		return nil, errBehind
	}
	return answer, err
}

// Scan returns the keys of a space from one on, as they were when the transaction began.
func (t *tx) Scan(space builtin.Space, from []byte) builtin.Cursor {
	return &cursor{tx: t, space: t.db.key(space, nil), next: t.db.key(space, from), limit: 2}
}

// cursor walks over the keys of a space.
type cursor struct {
	tx    *tx
	space string // what all keys begin with
	next  string // first key that was not read yet
	limit int64  // of the next page
	page  []*mvccpb.KeyValue
	size  int  // of the last page, in bytes of values
	end   bool // page is the last one
	guard int  // place in tx.ranges of what guards this scan, from 1
	count int
	start string
}

func (c *cursor) Next() (key, value []byte, err error) {
	if len(c.page) == 0 && !c.end {
		if c.start == "" {
			c.start = c.next
		}
		end := clientv3.GetPrefixRangeEnd(c.space)
		switch {
		case c.size < pageBytes:
			c.limit = min(2*c.limit, maxPage)
		case c.size > 2*pageBytes:
			c.limit = max(c.limit/2, 2)
		}
		answer, err := c.tx.do(clientv3.OpGet(c.next, clientv3.WithRange(end), clientv3.WithLimit(c.limit), clientv3.WithRev(c.tx.rev)))
		if err != nil {
			return nil, nil, err
		}
		if c.tx.rev == 0 {
			c.tx.rev = answer.Header.Revision
		}
		pageOf := answer.Responses[0].GetResponseRange()
		c.page, c.end, c.size = pageOf.Kvs, !pageOf.More, 0
		for _, kv := range c.page {
			c.size += len(kv.Value)
		}
		if n := len(c.page); n > 0 {
			c.next = string(c.page[n-1].Key) + "\x00"
		}
	}
	if len(c.page) == 0 {
		c.compare(clientv3.GetPrefixRangeEnd(c.space), nil)
		return nil, nil, nil
	}
	kv := c.page[0]
	c.page = c.page[1:]
	c.compare(string(kv.Key)+"\x00", kv)
	return kv.Key[len(c.space):], kv.Value, nil
}

// compare guards what a write has read of the range up to end: no key in it is new or has changed.
// That none is gone is compared for the first keys only, and for those that are written; nothing that
// walks further depends on it.
func (c *cursor) compare(end string, kv *mvccpb.KeyValue) {
	t := c.tx
	if t.read == nil {
		return
	}
	cmp := clientv3.Compare(clientv3.ModRevision(c.start), "<", t.rev+1).WithRange(end)
	if c.guard == 0 {
		t.ranges = append(t.ranges, cmp)
		c.guard = len(t.ranges)
	}
	t.ranges[c.guard-1] = cmp
	if kv == nil {
		return
	}
	t.known[string(kv.Key)] = kv
	if c.count++; c.count <= exactCompare {
		t.read[string(kv.Key)] = kv.ModRevision
	}
}

// Put sets the value of a key.
func (t *tx) Put(space builtin.Space, key, value []byte) error {
	t.set(t.db.key(space, key), present(value))
	return nil
}

// Delete removes a key, if it is there.
func (t *tx) Delete(space builtin.Space, key []byte) error {
	t.set(t.db.key(space, key), nil)
	return nil
}

func (t *tx) set(key string, value []byte) {
	if kv, ok := t.known[key]; ok {
		t.read[key] = kv.GetModRevision()
	}
	t.writes[key] = value
	t.size += len(key) + len(value)
}

// Wipe does nothing: etcd keeps what was replaced until it is compacted and defragmented, which is
// for those who run it.
func (t *tx) Wipe() error { return nil }

// Announce does nothing: what is told are the records that were committed.
func (t *tx) Announce(builtin.Notice) {}

// View runs fn on a snapshot.
func (d *db) View(ctx context.Context, fn func(builtin.Reader) error) error {
	return d.attempt(ctx, func() error {
		t := &tx{ctx: ctx, db: d, hints: d.hints, known: map[string]*mvccpb.KeyValue{}}
		defer func() {
			if t.fetched > 1 && len(t.asked) > 1 {
				d.hints.Add(t.asked[0], t.asked[1:])
			}
		}()
		return fn(t)
	})
}

// attempt runs a transaction until it meets neither a conflict nor a snapshot that etcd has dropped, the second
// time at once.
func (d *db) attempt(ctx context.Context, fn func() error) error {
	again := func(err error) bool { return err == errConflict || err == errCompacted || err == errBehind }
	err := fn()
	if !again(err) {
		return err
	}
	pause := retry.WithMaxDuration(2*d.opts.Timeout, retry.WithCappedDuration(100*time.Millisecond, retry.WithJitterPercent(50, retry.NewExponential(time.Millisecond))))
	return retry.Do(ctx, pause, func(context.Context) error {
		err := fn()
		if again(err) {
			return retry.RetryableError(err)
		}
		return err
	})
}

var (
	errConflict  error = &upstream.Error{Message: "others change the same all the time; try again", Err: upstream.ErrUnavailable}
	errBehind    error = &upstream.Error{Message: "etcd answers with what was there before; try again", Err: upstream.ErrUnavailable}
	errCompacted error = &upstream.Error{Message: "etcd has compacted what was read; try again", Err: upstream.ErrUnavailable}
)

// Update runs fn in a transaction: everything that it writes is written if all that it has read is still so.
func (d *db) Update(ctx context.Context, fn func(builtin.Writer) error) error {
	d.writes.Add(1)
	recalls := d.watch.isUp()
	var asked []string // by the attempt before
	return d.attempt(ctx, func() error {
		t := &tx{
			ctx: ctx, db: d, also: asked, known: map[string]*mvccpb.KeyValue{},
			recalls: recalls, read: map[string]int64{}, writes: map[string][]byte{},
		}
		err := t.run(fn)
		asked, recalls = t.asked, false
		return err
	})
}

// run returns the outcome of an attempt, errConflict where it does not count.
func (t *tx) run(fn func(builtin.Writer) error) error {
	err := fn(t)
	switch {
	case err == nil && len(t.writes) > 0:
		return t.commit()
	case t.recalled && !t.failed:
		return errConflict
	}
	return err
}

// commit writes.
func (t *tx) commit() error {
	cmps := t.ranges
	for key, rev := range t.read {
		cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(key), "=", rev))
	}
	ops := make([]clientv3.Op, 0, len(t.writes))
	for key, value := range t.writes {
		if value == nil {
			ops = append(ops, clientv3.OpDelete(key))
			continue
		}
		op := clientv3.OpPut(key, "")
		op.WithValueBytes(value)
		ops = append(ops, op)
	}
	if len(cmps) > maxOps || len(ops) > maxOps || t.size > maxBytes+maxBytes/4 {
		return builtin.Errorf(upstream.ErrLimitExceeded, "the change is too large for one transaction of etcd (%d keys, %d bytes); change fewer secrets at once", len(ops), t.size)
	}
	answer, err := t.db.txn(t.ctx, cmps, ops)
	switch {
	case err != nil:
		return err
	case !answer.Succeeded:
		t.db.conflicts.Add(1)
		return errConflict
	}
	t.db.commits.Add(1)
	t.committed(answer.Header.Revision)
	return nil
}

// committed remembers, and tells, what was written.
func (t *tx) committed(rev int64) {
	var records []builtin.SealedRecord
	space := t.db.key(builtin.Records, nil)
	for key, value := range t.writes {
		t.db.memory.see(key, &mvccpb.KeyValue{Value: value, ModRevision: rev})
		if name, ok := strings.CutPrefix(key, space); ok {
			records = append(records, builtin.SealedRecord{Name: upstream.SecretName(name), Sealed: value})
		}
	}
	t.db.tellOwn(rev, records)
}

// txn makes one request with its time limit. Without comparisons it is a read.
func (d *db) txn(ctx context.Context, cmps []clientv3.Cmp, ops []clientv3.Op) (*clientv3.TxnResponse, error) {
	limited, cancel := context.WithTimeout(ctx, d.opts.Timeout)
	defer cancel()
	limited, sent := noteSent(limited)
	for try := 1; ; try++ {
		client, err := d.client(limited)
		if err != nil && ctx.Err() == nil && limited.Err() != nil {
			err = d.failure(err, false)
		}
		if err != nil {
			return nil, err
		}
		answer, err := d.once(limited, client, cmps, ops)
		switch {
		case err == nil:
			d.known.set(answer.Header.Revision)
			return answer, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case isExpired(err) && try < maxTries: // the next one is made on another connection
		case len(cmps) == 0 && isTimeOver(err) && limited.Err() == nil:
		default:
			return nil, d.failure(err, len(cmps) > 0 && sent.Load())
		}
	}
}

// maxTries is how often a request may be made within its time limit: the members take turns, and of three one may
// hang.
const maxTries = 3

// once makes one request. A read leaves time to ask another member.
func (d *db) once(ctx context.Context, client *clientv3.Client, cmps []clientv3.Cmp, ops []clientv3.Op) (*clientv3.TxnResponse, error) {
	if len(cmps) == 0 && len(d.opts.Endpoints) > 1 {
		limited, cancel := context.WithTimeout(ctx, d.opts.Timeout/maxTries)
		defer cancel()
		ctx = limited
	}
	return client.Txn(ctx).If(cmps...).Then(ops...).Commit()
}

func isTimeOver(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || status.Code(err) == codes.DeadlineExceeded
}

// failure says what an error of etcd means. Of a write that was sent nobody may know the outcome.
func (d *db) failure(err error, sent bool) error {
	select {
	case <-d.ctx.Done():
		return builtin.ErrClosed
	default:
	}
	d.renew()
	text := strings.TrimPrefix(err.Error(), "etcdserver: ")
	if why := d.trouble.Load(); why != nil && errors.Is(err, context.DeadlineExceeded) {
		text = *why
	}
	if e, ok := err.(rpctypes.EtcdError); ok {
		switch e {
		case rpctypes.ErrCompacted, rpctypes.ErrFutureRev:
			return errCompacted
		case rpctypes.ErrNoSpace:
			// It says so of the write that has used the quota up, too.
			return &upstream.Error{Err: upstream.ErrUnavailable, Unknown: sent, Message: "etcd takes no more writes (NOSPACE): its quota is used up; compact and defragment it or raise its quota, then disarm the alarm"}
		case rpctypes.ErrPermissionDenied:
			return builtin.Errorf(upstream.ErrUnauthenticated, "etcd denies its user access to %s; grant its role readwrite on that prefix", d.opts.Prefix)
		case rpctypes.ErrAuthFailed, rpctypes.ErrInvalidAuthToken, rpctypes.ErrUserEmpty, rpctypes.ErrUserNotFound:
			return builtin.Errorf(upstream.ErrUnauthenticated, "etcd does not accept the user: %s", text)
		case rpctypes.ErrTooManyOps, rpctypes.ErrRequestTooLarge:
			return builtin.Errorf(upstream.ErrLimitExceeded, "etcd refuses the change: %s", text)
		case rpctypes.ErrTooManyRequests:
			return builtin.Errorf(upstream.ErrThrottled, "etcd has too much to do: %s", text)
		}
	}
	return &upstream.Error{Err: upstream.ErrUnavailable, Unknown: sent, Message: "etcd does not answer: " + text}
}
