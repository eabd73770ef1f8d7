package cache

import (
	"errors"
	"log/slog"
	"math"
	"sync/atomic"
	"time"

	"secretagent/upstream"
)

// codeClockSkew is why a value is stale whose age the wall clock cannot tell.
var codeClockSkew = upstream.Code(upstream.ErrClockSkew)

// leastLapse is the least time between two looks for values that have become too old.
const leastLapse = time.Second

// end returns until when the value of e is served if the upstream does not confirm it.
func (sh lockedShard) end(e *entry) int64 {
	maxStale := sh.c.limits.Load().MaxStale
	if maxStale == Never {
		return e.expires
	}
	return max(e.expires, e.fetchedAt+int64(min(maxStale, longest)))
}

// servable reports whether e has a value that is young enough to be served during an outage.
func (sh lockedShard) servable(e *entry, now int64) bool {
	return e.value != nil && now <= sh.end(e) && sh.c.limits.Load().MaxStale != Never
}

// ended reports whether e has a value that is neither fresh nor servable.
func (sh lockedShard) ended(e *entry, now int64) bool {
	return e.value != nil && now >= e.expires && !sh.servable(e, now)
}

// lapse drops a value that became too old to be served, and notes it for the log. What may be too
// old only because the wall clock was set wrongly stays in the sealed file.
func (sh lockedShard) lapse(e *entry, f *flight) {
	sh.change(e)
	sh.tell(e, Event{Kind: EventLapsed}, time.Now())
	if doubt := sh.c.clock.doubted(); doubt > 0 && !sh.ended(e, sh.c.now()-int64(doubt)) {
		sh.c.sealed.hold()
	}
	sh.unseal(e, false)
	e.clear()
	since := sh.c.clock.wall(e.fetchedAt)
	if e.fail != nil {
		e.fail.lapsed = since
	}
	f.note(slog.LevelError, "a last good value is too old to be served", "secret", e.ref.String(), "since", since, "hint", "bring the upstream back, or raise cache.maxStale")
}

// ends knows when the next value becomes too old to be served, at the earliest. While the
// upstream answers, there is none.
type ends struct{ at atomic.Int64 }

// soon says that one may at at. Whoever watches is woken when that is earlier than known.
func (n *ends) soon(k *clock, at int64) {
	for known := n.at.Load(); at < known; known = n.at.Load() {
		if n.at.CompareAndSwap(known, at) {
			k.jumped.ring()
			return
		}
	}
}

// watchTime sees to what comes with time alone, until end is closed: that the machine has slept,
// and that values become too old to be served.
func (c *Cache) watchTime(end <-chan struct{}) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-end:
			return
		case <-c.clock.jumped:
			c.due.wake.ring()
		case <-timer.C:
			c.clock.look(0, true)
		}
		now := c.now()
		if now >= c.ends.at.Load() {
			c.lapseEnded(now)
		}
		timer.Reset(min(watchEvery, time.Duration(max(c.ends.at.Load()-now, 0))))
	}
}

// lapseEnded drops the values that the upstream could not confirm in time.
func (c *Cache) lapseEnded(now int64) {
	c.ends.at.Store(math.MaxInt64) // what is said from here on stays
	_, _, down := c.outage.state()
	next := int64(math.MaxInt64)
	var f flight // of nobody, for its notes
	for _, s := range c.shards {
		sh := s.lock()
		sh.each(func(e *entry) {
			switch {
			case e.value == nil || e.fail == nil && !down:
			case sh.ended(e, now):
				sh.lapse(e, &f)
			default:
				next = min(next, sh.end(e)+1)
			}
		})
		sh.unlock()
	}
	f.log(c.log)
	if next < math.MaxInt64 {
		c.ends.soon(c.clock, max(next, now+int64(leastLapse)))
	}
}

// judgeClock learns from what a call has found. An upstream that answers about the secret would
// not do so were the clock far off, and what it has confirmed does not depend on the clock; but a
// clock that is behind the making of a value is still wrong. One that refuses us because of the
// clock tells its own time.
func (c *Cache) judgeClock(f *flight) {
	if upstream.Outage(f.err) {
		if detail, ok := errors.AsType[*upstream.Error](f.err); ok && errors.Is(detail, upstream.ErrClockSkew) {
			c.clock.told(detail.Date)
		}
		return
	}
	if value := f.answer.Value; value != nil && time.Until(value.CreateTime) > clockSkew {
		return
	}
	if was := c.clock.trust(); was > 0 {
		c.log.Info("the upstream answers; the age of values is counted by the clock of this host again", "behind", was.Round(time.Second))
	}
}
