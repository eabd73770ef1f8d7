package cache

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/sethvargo/go-retry"

	"secretagent/upstream"
)

// home is where an entry lives. It follows from what the entry holds; see [entry.home].
type home uint8

const (
	homeless home = iota // nothing but a flight, if that
	held                 // pinned or subscribed to: never evicted
	recent               // a value, in the LRU
	negative             // a remembered refusal, in the LRU of refusals
)

// unproven is the since of a value that is not known to have been true at any moment.
const unproven = ^uint64(0)

// urgent is the due time of a refresh that an announcement asked for.
const urgent int64 = -1

// overhead is what an entry costs beside the bytes of its texts: the entry, its place in
// index and LRU, the SecretValue and its memo. TestOverheadPerSecret measures it.
const overhead = 640

// answerOverhead is what an encoded answer has beside the secret.
const answerOverhead = 512

// entry is what the cache knows about one reference. The lock of its shard guards it, but
// for the fields that say otherwise.
type entry struct {
	// What a hit needs comes first, to be in few cache lines.
	ref       upstream.SecretRef    // immutable
	expires   int64                 // end of freshness on the cache's clock; 0 when not fresh
	value     *upstream.SecretValue // nil when there is none
	memo      *upstream.Memo        // belongs to value
	fetchedAt time.Time             // when the call began that last confirmed value; outlives it
	used      int64                 // last use on the cache's clock
	home      home
	touched   bool // in the list of the shard
	asked     bool // since the last refresh
	idle      bool // not asked for when it was due: no refresh is scheduled
	pinned    bool
	next      *entry // another reference to the same secret

	// The state (value or refusal) was the same at every moment from tick since to tick
	// confirmed. since is unproven after an announced change and for a state that was
	// not yet seen.
	since, confirmed uint64

	fail     *failure      // the last call failed; nil after a success
	flight   *flight       // under way; nil when none
	subs     subscriptions // nil when none
	ttl      time.Duration // of the pin; zero for the common one
	took     time.Duration // by the call that last confirmed value
	reported int64         // last refresh caused by Report on the cache's clock; 0 for none
	history  *history      // what happened that is worth telling; nil for nothing

	size int // counted in the sums of the cache

	sealed   bool  // offered to the sealed file since the value was there, with
	sealedAt int64 // this fetchedAt, on the cache's clock

	// Guarded by the lock of the schedule.
	due  int64
	slot int32 // index in the heap plus one; 0 when not scheduled
}

// failure is why the last upstream call for an entry failed.
type failure struct {
	err     error
	at      time.Time
	until   int64 // no lookup tries again before, on the cache's clock; 0: try at once
	count   int   // in a row
	backoff retry.Backoff

	// lapsed is the last confirmation of a value that became too old to be served.
	lapsed time.Time
}

// subscriptions is a set of bells.
type subscriptions map[*subscription]struct{}

// bells copies the set, so that it can be rung without the lock.
func (s subscriptions) bells() []*subscription {
	if len(s) == 0 {
		return nil
	}
	bells := make([]*subscription, 0, len(s))
	for sub := range s {
		bells = append(bells, sub)
	}
	return bells
}

// shard holds the entries of the secrets whose names hash to it, so that all references to
// one secret are under one lock.
type shard struct {
	mu       sync.Mutex
	hits     uint64                           // lookups answered by a fresh value
	secrets  map[upstream.SecretName]*entry   // :: secret → chain of its references, each once
	touched  []*entry                         // used since the last replay
	recent   *simplelru.LRU[*entry, struct{}] // in order of use, once replayed
	negative *simplelru.LRU[*entry, struct{}] // in order of arrival
	maxNeg   int                              // bound of negative
	stale    map[string]uint64                // :: reason → lookups answered by a stale value

	_ [48]byte // fills two cache lines: what a hit needs is in the first, and neighbours stay out
}

func newShard(maxNegative int) *shard {
	return &shard{
		secrets:  map[upstream.SecretName]*entry{},
		recent:   newOrder(),
		negative: newOrder(),
		maxNeg:   maxNegative,
		stale:    map[string]uint64{},
	}
}

// newOrder returns an LRU that never evicts by itself: the bounds are those of the whole
// cache, and leaving the LRU has consequences.
func newOrder() *simplelru.LRU[*entry, struct{}] {
	lru, err := simplelru.NewLRU[*entry, struct{}](int(^uint(0)>>1), nil)
	if err != nil {
		panic(err) // the size is positive
	}
	return lru
}

// find returns the entry of ref, or nil.
func (sh *shard) find(ref upstream.SecretRef) *entry {
	e := sh.secrets[ref.SecretName]
	for e != nil && (e.ref.VersionStage != ref.VersionStage || e.ref.VersionID != ref.VersionID) {
		e = e.next
	}
	return e
}

// obtain returns the entry of ref, made when it is missing. The caller settles it before it
// gives up the lock.
func (sh *shard) obtain(ref upstream.SecretRef) *entry {
	if e := sh.find(ref); e != nil {
		return e
	}
	first := sh.secrets[ref.SecretName]
	e := &entry{since: unproven, next: first, ref: upstream.SecretRef{
		VersionID:    upstream.VersionID(strings.Clone(string(ref.VersionID))),
		VersionStage: ownStage(ref.VersionStage),
	}}
	if first != nil {
		e.ref.SecretName = first.ref.SecretName
	} else {
		e.ref.SecretName = upstream.SecretName(strings.Clone(string(ref.SecretName)))
	}
	sh.secrets[e.ref.SecretName] = e
	return e
}

// ownStage returns s without the caller's memory behind it.
func ownStage(s upstream.VersionStage) upstream.VersionStage {
	switch s {
	case upstream.ACSCurrent:
		return upstream.ACSCurrent
	case upstream.ACSPrevious:
		return upstream.ACSPrevious
	}
	return upstream.VersionStage(strings.Clone(string(s)))
}

// forget takes e out of the index.
func (sh *shard) forget(e *entry) {
	first := sh.secrets[e.ref.SecretName]
	if first == e {
		if e.next == nil {
			delete(sh.secrets, e.ref.SecretName)
		} else {
			sh.secrets[e.ref.SecretName] = e.next
		}
		return
	}
	for s := first; s != nil; s = s.next {
		if s.next == e {
			s.next = e.next
			return
		}
	}
}

// noteUse remembers that the place of e in the order of use has changed.
func (sh *shard) noteUse(e *entry) {
	if !e.touched {
		e.touched = true
		sh.touched = append(sh.touched, e)
	}
}

// replay brings the order of use up to date. Uses are only stamped when they happen, and
// put in order when someone needs the oldest entry: a hit touches one entry and not its
// neighbours in a list, and a cache that is not full never pays for order.
func (sh *shard) replay() {
	slices.SortStableFunc(sh.touched, func(a, b *entry) int { return cmp.Compare(a.used, b.used) })
	for _, e := range sh.touched {
		e.touched = false
		if e.home == recent {
			sh.recent.Get(e)
		}
	}
	clear(sh.touched)
	sh.touched = sh.touched[:0]
}

// oldest returns the least recently used entry, or nil.
func (sh *shard) oldest() *entry {
	sh.replay()
	e, _, _ := sh.recent.GetOldest()
	return e
}

// wanted returns the home that follows from what e holds.
func (e *entry) wanted() home {
	switch {
	case e.pinned || len(e.subs) > 0:
		return held
	case e.value != nil:
		return recent
	case e.fail != nil:
		return negative
	default:
		return homeless
	}
}

// settle moves e to the home that follows from what it holds, keeps the sums, and forgets
// an entry that holds nothing. Every change of value, fail, pin or subs ends with it.
func (c *Cache) settle(sh *shard, e *entry) {
	want := e.wanted()
	size := 0
	if e.value != nil {
		size = e.cost()
	}
	if e.home == recent {
		c.bytes.Add(int64(-e.size))
	} else {
		c.heldBytes.Add(int64(-e.size))
	}
	if want == recent {
		c.bytes.Add(int64(size))
	} else {
		c.heldBytes.Add(int64(size))
	}
	e.size = size
	if want != e.home {
		c.move(sh, e, want)
	}
	if e.home == homeless && e.flight == nil {
		c.due.remove(e)
		c.forgetHistory(e)
		sh.forget(e)
	}
}

func (c *Cache) move(sh *shard, e *entry, want home) {
	switch e.home {
	case held:
		c.held.Add(-1)
	case recent:
		sh.recent.Remove(e)
		c.entries.Add(-1)
	case negative:
		sh.negative.Remove(e)
	}
	e.home = want
	switch want {
	case held:
		c.held.Add(1)
	case recent:
		e.used = c.now()
		sh.recent.Add(e, struct{}{})
		c.entries.Add(1)
		if len(sh.touched) > 2*sh.recent.Len()+64 {
			sh.replay() // entries come and go although nothing is evicted
		}
		sh.noteUse(e)
		sh.touched = slices.Grow(sh.touched, max(0, sh.recent.Len()-len(sh.touched))) // so that hits need not
	case negative:
		sh.negative.Add(e, struct{}{})
		for sh.negative.Len() > sh.maxNeg {
			oldest, _, _ := sh.negative.GetOldest()
			oldest.fail = nil
			c.settle(sh, oldest)
		}
	}
}

// touch records a use of e.
func (c *Cache) touch(sh *shard, e *entry, now int64) {
	e.used = now
	e.asked = true
	if e.home == recent {
		sh.noteUse(e)
	}
	if e.idle {
		// It was due when nobody had asked for it. Refresh it now, before it expires.
		e.idle = false
		if e.fail != nil {
			now = max(now, e.fail.until)
		}
		c.due.set(e, now)
	}
}

// clear takes the value out of e.
func (e *entry) clear() {
	e.value, e.memo, e.expires = nil, nil, 0
	e.since = unproven
}

// evict drops least recently used values until the cache is within its bounds. The oldest
// of the whole cache is the one with the earliest last use among the oldest of each shard.
func (c *Cache) evict() {
	limits := c.limits.Load()
	over := func() bool {
		return c.entries.Load() > int64(limits.MaxEntries) || c.bytes.Load() > limits.MaxBytes
	}
	if !over() {
		return
	}
	c.evicting.Lock()
	defer c.evicting.Unlock()
	for over() {
		var victims *shard
		var oldest int64
		for _, sh := range c.shards {
			sh.mu.Lock()
			if e := sh.oldest(); e != nil && (victims == nil || e.used < oldest) {
				victims, oldest = sh, e.used
			}
			sh.mu.Unlock()
		}
		if victims == nil {
			return
		}
		victims.mu.Lock()
		if e := victims.oldest(); e != nil {
			e.clear()
			e.fail = nil
			c.unseal(e, false)
			c.settle(victims, e)
			c.evictions.Add(1)
		}
		victims.mu.Unlock()
	}
}

// cost returns what the value of e and what readers keep with it cost in memory. Room for one
// encoded answer is counted before it is there: a value is kept in order to be asked for.
func (e *entry) cost() int {
	return sizeOf(e.value) + max(e.memo.Size(), answerOverhead+e.value.SecretData.Len())
}

// oversize reports, and counts, that the value of e is not to be kept: it would push everything
// else out and then go itself.
func (c *Cache) oversize(e *entry, limits *Limits) bool {
	if int64(e.cost()) <= limits.MaxBytes || e.wanted() == held {
		return false
	}
	c.oversized.Add(1)
	return true
}

// sizeOf returns what v costs in memory.
func sizeOf(v *upstream.SecretValue) int {
	n := overhead + v.SecretData.Len() + len(v.SecretName) + len(v.VersionID) + len(v.RequestID) +
		len(v.SecretDataType) + len(v.SecretType)
	for _, s := range v.VersionStages {
		n += 16 + len(s)
	}
	if m := v.Managed; m != nil {
		n += 80 + len(m.AutomaticRotation) + len(m.RotationInterval) + len(m.NextRotationDate) +
			len(m.LastRotationDate) + len(m.ExtendedConfig)
	}
	return n
}

// sameValue reports whether two reads found the same: everything but the request's own id.
func sameValue(a, b *upstream.SecretValue) bool {
	if a == nil || b == nil {
		return a == b
	}
	sameManaged := a.Managed == b.Managed || a.Managed != nil && b.Managed != nil && *a.Managed == *b.Managed
	return a.SecretName == b.SecretName && a.VersionID == b.VersionID &&
		slices.Equal(a.VersionStages, b.VersionStages) && a.SecretData.Equal(b.SecretData) &&
		a.SecretDataType == b.SecretDataType && a.SecretType == b.SecretType &&
		a.CreateTime.Equal(b.CreateTime) && sameManaged
}

// contradict reports whether two values of one secret cannot have been true together: the
// same version with other labels, or the same label on two versions.
func contradict(a, b *upstream.SecretValue) bool {
	if a.VersionID == b.VersionID {
		return !slices.Equal(a.VersionStages, b.VersionStages)
	}
	for _, s := range a.VersionStages {
		if slices.Contains(b.VersionStages, s) {
			return true
		}
	}
	return false
}
