package cache

import (
	"cmp"
	"slices"
	"strings"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"secretagent/upstream"
)

// shardCount is how many locks the cache has: enough that readers of different secrets rarely
// meet, few enough that an eviction, which looks at every shard, costs little beside the
// fetch that caused it.
const shardCount = 32

// maxRefusals bounds the remembered refusals of a shard.
const maxRefusals = 1024 / shardCount

type lru = simplelru.LRU[*entry, struct{}]

// shard holds the entries of the secrets whose names hash to it, so that all references to
// one secret are under one lock.
type shard struct {
	mu      sync.Mutex
	hits    uint64                         // lookups answered by a fresh value
	secrets map[upstream.SecretName]*entry // :: secret → chain of its references, each once
	changed []*entry                       // by who holds the lock
	c       *Cache
	recent  *lru // in order of use, once replayed

	touched  []*entry          // used since the last replay
	refusals *lru              // in order of arrival
	stale    map[string]uint64 // :: reason → lookups answered by a stale value

	_ [24]byte // fills two cache lines: what a hit needs is in the first, and neighbours stay out
}

// lockedShard is a shard whose lock the caller holds. All that needs the lock is a method of
// it, and there is no other way to an entry. What an entry holds is changed between
// [lockedShard.change] and [lockedShard.unlock].
type lockedShard struct{ *shard }

func newShard(c *Cache) *shard {
	return &shard{c: c, secrets: map[upstream.SecretName]*entry{}, recent: newLRU(), refusals: newLRU(), stale: map[string]uint64{}}
}

// newLRU returns an LRU that never evicts by itself: the bounds are those of the whole
// cache, and leaving the LRU has consequences.
func newLRU() *lru {
	l, err := simplelru.NewLRU[*entry, struct{}](int(^uint(0)>>1), nil)
	if err != nil {
		panic(err) // the size is positive
	}
	return l
}

func (sh *shard) lock() lockedShard {
	sh.mu.Lock()
	return lockedShard{sh}
}

// unlock moves what was changed to where it belongs now, and gives up the lock.
func (sh lockedShard) unlock() {
	if len(sh.changed) > 0 {
		for _, e := range sh.changed {
			sh.rehome(e)
		}
		clear(sh.changed)
		sh.shard.changed = sh.changed[:0]
	}
	sh.mu.Unlock()
}

// change announces that what e holds is going to be changed before unlock: its value, fail,
// pinned, subs or flight.
func (sh lockedShard) change(e *entry) {
	if !slices.Contains(sh.changed, e) {
		sh.shard.changed = append(sh.changed, e)
	}
}

// each calls fn with every entry.
func (sh lockedShard) each(fn func(e *entry)) {
	for _, e := range sh.secrets {
		for ; e != nil; e = e.next {
			fn(e)
		}
	}
}

// find returns the entry of ref, or nil.
func (sh lockedShard) find(ref upstream.SecretRef) *entry {
	e := sh.secrets[ref.SecretName]
	for e != nil && (e.ref.VersionStage != ref.VersionStage || e.ref.VersionID != ref.VersionID) {
		e = e.next
	}
	return e
}

// obtain returns the entry of ref, made when it is missing, to be changed.
func (sh lockedShard) obtain(ref upstream.SecretRef) *entry {
	e := sh.find(ref)
	if e == nil {
		// Without the caller's memory behind the texts.
		first := sh.secrets[ref.SecretName]
		e = &entry{since: unproven, next: first, ref: upstream.SecretRef{
			VersionID:    upstream.VersionID(strings.Clone(string(ref.VersionID))),
			VersionStage: ownStage(ref.VersionStage),
			Computed:     ref.Computed,
		}}
		if first != nil {
			e.ref.SecretName = first.ref.SecretName
		} else {
			e.ref.SecretName = upstream.SecretName(strings.Clone(string(ref.SecretName)))
		}
		sh.secrets[e.ref.SecretName] = e
	}
	e.ref.Computed = e.ref.Computed && ref.Computed
	sh.change(e)
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
func (sh lockedShard) forget(e *entry) {
	first := sh.secrets[e.ref.SecretName]
	switch {
	case first != e:
		for s := first; s != nil; s = s.next {
			if s.next == e {
				s.next = e.next
			}
		}
	case e.next == nil:
		delete(sh.secrets, e.ref.SecretName)
	default:
		sh.secrets[e.ref.SecretName] = e.next
	}
}

// fresh returns the value of e, which may be nil, when it is fresh, and counts the hit.
func (sh lockedShard) fresh(e *entry, now int64) (answer upstream.Answer, ok bool) {
	if e == nil || now >= e.expires {
		return answer, false
	}
	sh.touch(e, now)
	sh.hits++
	return e.answer(now), true
}

// wanted reports whether the value of e is to be kept fresh: somebody has asked for it since it was
// confirmed, or wants to hear of changes.
func (sh lockedShard) wanted(e *entry) bool {
	return e.asked || sh.c.wanted != nil && sh.c.wanted(e.ref.SecretName)
}

// touch records a use of e.
func (sh lockedShard) touch(e *entry, now int64) {
	e.used = now
	e.asked = true
	if e.kept == keptInLRU {
		sh.noteUse(e)
	}
	if e.idle {
		// It was due when nobody had asked for it. Refresh it now, before it expires.
		e.idle = false
		if e.fail != nil {
			now = max(now, e.fail.until)
		}
		sh.c.due.set(e, now)
	}
}

// noteUse remembers that the place of e in the order of use has changed.
func (sh lockedShard) noteUse(e *entry) {
	if !e.touched {
		e.touched = true
		sh.shard.touched = append(sh.touched, e)
	}
}

// replay brings the order of use up to date. Uses are only stamped when they happen, and
// put in order when someone needs the oldest entry: a hit touches one entry and not its
// neighbours in a list, and a cache that is not full never pays for order.
func (sh lockedShard) replay() {
	slices.SortStableFunc(sh.touched, func(a, b *entry) int { return cmp.Compare(a.used, b.used) })
	for _, e := range sh.touched {
		e.touched = false
		if e.kept == keptInLRU {
			sh.recent.Get(e)
		}
	}
	clear(sh.touched)
	sh.shard.touched = sh.touched[:0]
}

// oldest returns the least recently used entry, or nil.
func (sh lockedShard) oldest() *entry {
	sh.replay()
	e, _, _ := sh.recent.GetOldest()
	return e
}

// rehome moves e to where it belongs by what it holds, keeps the sums, and forgets an entry
// that holds nothing.
func (sh lockedShard) rehome(e *entry) {
	c, keep, size := sh.c, e.keep(), 0
	if e.value != nil {
		size = e.cost()
	}
	c.bytes[e.kept].Add(int64(-e.size))
	c.bytes[keep].Add(int64(size))
	e.size = size
	if keep != e.kept {
		c.entries[e.kept].Add(-1)
		c.entries[keep].Add(1)
		sh.move(e, keep)
	}
	if keep == keptNot && e.flight == nil {
		c.due.remove(e)
		sh.forgetHistory(e)
		sh.forget(e)
	}
}

func (sh lockedShard) move(e *entry, keep kept) {
	switch e.kept {
	case keptInLRU:
		sh.recent.Remove(e)
	case keptAsRefusal:
		sh.refusals.Remove(e)
	}
	e.kept = keep
	switch keep {
	case keptInLRU:
		e.used = sh.c.now()
		sh.recent.Add(e, struct{}{})
		if len(sh.touched) > 2*sh.recent.Len()+64 {
			sh.replay() // entries come and go although nothing is evicted
		}
		sh.noteUse(e)
		sh.shard.touched = slices.Grow(sh.touched, max(0, sh.recent.Len()-len(sh.touched))) // so that hits need not
	case keptAsRefusal:
		sh.refusals.Add(e, struct{}{})
		for sh.refusals.Len() > maxRefusals {
			oldest, _, _ := sh.refusals.GetOldest()
			oldest.fail = nil
			sh.rehome(oldest)
		}
	}
}

// evict drops least recently used values until the cache is within its bounds. The oldest
// of the whole cache is the one with the earliest last use among the oldest of each shard.
func (c *Cache) evict() {
	limits := c.limits.Load()
	over := func() bool {
		return c.entries[keptInLRU].Load() > int64(limits.MaxEntries) || c.bytes[keptInLRU].Load() > limits.MaxBytes
	}
	if !over() {
		return
	}
	c.evicting.Lock()
	defer c.evicting.Unlock()
	for over() {
		var victims *shard
		var oldest int64
		for _, s := range c.shards {
			sh := s.lock()
			if e := sh.oldest(); e != nil && (victims == nil || e.used < oldest) {
				victims, oldest = s, e.used
			}
			sh.unlock()
		}
		if victims == nil {
			return
		}
		sh := victims.lock()
		if e := sh.oldest(); e != nil {
			sh.change(e)
			e.clear()
			e.fail = nil
			sh.unseal(e, false)
			c.evictions.Add(1)
		}
		sh.unlock()
	}
}
