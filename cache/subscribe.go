package cache

import (
	"sync"

	"secretagent/upstream"
)

// maxSubscriptions bounds live subscriptions.
const maxSubscriptions = 10_000

// subscription is one bell. One ring is remembered until it is heard, more are the same.
type subscription struct {
	bell chan struct{}
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

// Subscribe returns a channel that gets a value whenever the value of one of refs changes,
// vanishes upstream or first appears: "ask again". It says neither which nor what, several
// changes may ring once, and a ring may be for nothing. The channel is never closed.
//
// Secrets with a subscription are kept fresh by [Cache.Run] and not evicted until cancel is
// called, which may happen more than once. References that are not valid never ring. When
// 10,000 are live, changed is nil, which never rings either: callers
// that can wait otherwise check for it.
func (c *Cache) Subscribe(refs ...upstream.SecretRef) (changed <-chan struct{}, cancel func()) {
	if c.subscriptions.Add(1) > maxSubscriptions {
		c.subscriptions.Add(-1)
		c.subsRefused.Add(1)
		return nil, func() {}
	}
	sub := &subscription{bell: make(chan struct{}, 1)}
	var entries []*entry
	for _, ref := range refs {
		ref = ref.WithDefaults()
		if ref.Validate() == nil {
			entries = append(entries, c.subscribe(sub, ref))
		}
	}
	return sub.bell, sync.OnceFunc(func() {
		c.subscriptions.Add(-1)
		for _, e := range entries {
			c.unsubscribe(sub, e)
		}
		c.evict() // what is not held any more counts again
	})
}

func (c *Cache) subscribe(sub *subscription, ref upstream.SecretRef) *entry {
	sh := c.lock(ref.SecretName)
	defer sh.unlock()
	e := sh.obtain(ref)
	if e.subs == nil {
		e.subs = subscriptions{}
	}
	e.subs[sub] = struct{}{}
	e.idle = false
	// A subscriber asks for the value itself. Only if it does not, or was refused, is there
	// something to do for the background.
	wait := int64(max(c.limits.Load().NegativeTTL, 0))
	if e.value != nil {
		wait = 0
	}
	c.due.ensure(e, c.now()+wait)
	return e
}

func (c *Cache) unsubscribe(sub *subscription, e *entry) {
	sh := c.lock(e.ref.SecretName)
	defer sh.unlock()
	sh.change(e)
	delete(e.subs, sub)
	if len(e.subs) == 0 {
		e.subs = nil
	}
}

// ring rings bells. It never blocks.
func ring(bells []*subscription) {
	for _, sub := range bells {
		select {
		case sub.bell <- struct{}{}:
		default:
		}
	}
}
