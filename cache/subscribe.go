package cache

import (
	"maps"
	"slices"
	"sync"

	"secretagent/upstream"
)

// maxSubscriptions bounds live subscriptions.
const maxSubscriptions = 10_000

// bell is a channel that says "something changed". One ring is remembered until it is heard,
// more are the same.
type bell chan struct{}

func newBell() bell { return make(bell, 1) }

// ring never blocks.
func (b bell) ring() {
	select {
	case b <- struct{}{}:
	default:
	}
}

// subscriptions is the set of bells of one entry.
type subscriptions map[bell]struct{}

// bells copies the set, so that it can be rung without the lock.
func (s subscriptions) bells() []bell { return slices.Collect(maps.Keys(s)) }

// Subscribe returns a channel that gets a value whenever the value of one of refs changes,
// vanishes upstream or first appears: "ask again". It says neither which nor what, several
// changes may ring once, and a ring may be for nothing. The channel is never closed.
//
// Secrets with a subscription are kept fresh by [Cache.Run] and not evicted until cancel is
// called, which may happen more than once. References that are not valid never ring. When
// 10,000 are live, changed is nil, which never rings either: callers that can wait otherwise
// check for it.
func (c *Cache) Subscribe(refs ...upstream.SecretRef) (changed <-chan struct{}, cancel func()) {
	if c.subscriptions.Add(1) > maxSubscriptions {
		c.subscriptions.Add(-1)
		c.subsRefused.Add(1)
		return nil, func() {}
	}
	b := newBell()
	var entries []*entry
	for _, ref := range refs {
		ref = ref.WithDefaults()
		if ref.Validate() == nil {
			sh := c.lock(ref.SecretName)
			entries = append(entries, sh.subscribe(b, ref))
			sh.unlock()
		}
	}
	return b, sync.OnceFunc(func() {
		c.subscriptions.Add(-1)
		for _, e := range entries {
			sh := c.lock(e.ref.SecretName)
			sh.change(e)
			delete(e.subs, b)
			sh.unlock()
		}
		c.evict() // what may be evicted again counts again
	})
}

func (sh lockedShard) subscribe(b bell, ref upstream.SecretRef) *entry {
	e := sh.obtain(ref)
	if e.subs == nil {
		e.subs = subscriptions{}
	}
	e.subs[b] = struct{}{}
	e.idle = false
	// A subscriber asks for the value itself. Only if it does not, or was refused, is there
	// something to do for the background.
	wait := int64(max(sh.c.limits.Load().NegativeTTL, 0))
	if e.value != nil {
		wait = 0
	}
	sh.c.due.ensure(e, sh.c.now()+wait)
	return e
}
