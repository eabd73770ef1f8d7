package endpoint

import (
	"container/list"
	"os"
	"sync"
	"time"
)

// table knows every connection and decides who gets in and who has to leave.
type table struct {
	maxOpen, maxHealth, maxParked int

	mu        sync.Mutex
	conns     map[*conn]struct{}
	untrusted *list.List // of *conn, oldest first: those that never presented a valid token
	open      int        // counted connections that are not parked and not health-only
	health    int
	parked    int
	empty     chan struct{} // closed when the last connection leaves after stop
	stopped   bool
}

func newTable(o Options) *table {
	return &table{
		maxOpen: o.MaxConnections, maxHealth: o.HealthConnections, maxParked: o.MaxWaiters,
		conns: map[*conn]struct{}{}, untrusted: list.New(), empty: make(chan struct{}),
	}
}

// add lets c in. When all slots are taken it names a connection to close in return, or lets c
// in for health only; ok is false when neither is possible.
func (t *table) add(c *conn, now time.Time) (victim *conn, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stopped {
		return nil, false
	}
	if t.open >= t.maxOpen {
		if victim = t.victimLocked(); victim != nil {
			t.forgetLocked(victim)
		} else if t.health < t.maxHealth {
			c.healthOnly = true
		} else {
			return nil, false
		}
	}
	t.conns[c] = struct{}{}
	c.counted, c.seenAt = true, now
	c.element = t.untrusted.PushBack(c)
	if c.healthOnly {
		t.health++
	} else {
		t.open++
	}
	return victim, true
}

// victimLocked returns the connection that is missed least: the oldest that never presented a
// valid token, else, of those that are idle, the one that was used least since the sweep before
// the last, so that a client at work outlives a crowd that came a moment ago. Health-only
// connections do not help.
func (t *table) victimLocked() *conn {
	for e := t.untrusted.Front(); e != nil; e = e.Next() {
		if c := e.Value.(*conn); !c.healthOnly && c.phase() != parked {
			return c
		}
	}
	var victim *conn
	var fewest uint32
	for c := range t.conns {
		state := c.state.Load()
		if !c.counted || c.healthOnly || phase(state&7) != idle {
			continue
		}
		changes := c.moves + (state-c.seenState)>>3
		if victim == nil || changes < fewest || changes == fewest && longerIdle(c, victim) {
			victim, fewest = c, changes
		}
	}
	return victim
}

// longerIdle decides between connections that were used as much: the one that rested when
// the sweep saw it goes first, or the older one.
func longerIdle(a, b *conn) bool {
	if !a.seenAt.Equal(b.seenAt) {
		return a.seenAt.Before(b.seenAt)
	}
	return a.number < b.number
}

// evict returns a connection to close when the process, rather than this server, has run out
// of descriptors; nil when none can be missed.
func (t *table) evict() *conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	victim := t.victimLocked()
	if victim != nil {
		t.forgetLocked(victim)
	}
	return victim
}

// forgetLocked stops counting c; its goroutine removes it when it is done.
func (t *table) forgetLocked(c *conn) {
	if !c.counted {
		return
	}
	c.counted = false
	if c.element != nil {
		t.untrusted.Remove(c.element)
		c.element = nil
	}
	switch {
	case c.healthOnly:
		t.health--
	case c.phase() == parked:
		t.parked--
	default:
		t.open--
	}
}

// trust takes c off the list of those that go first.
func (t *table) trust(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c.element != nil {
		t.untrusted.Remove(c.element)
		c.element = nil
	}
	c.trusted.Store(true)
}

// park moves c from the connections to the waiters; false when there are too many, or when c
// was chosen to leave.
func (t *table) park(c *conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stopped || !c.counted || c.healthOnly || t.parked >= t.maxParked {
		return false
	}
	t.open--
	t.parked++
	c.setPhase(parked)
	return true
}

// unpark moves c back. It may exceed maxOpen for as long as c's answer takes: c held a slot
// before, and there are at most maxParked of its kind.
func (t *table) unpark(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c.counted {
		t.parked--
		t.open++
	}
	c.setPhase(active)
}

// remove takes c out.
func (t *table) remove(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.forgetLocked(c)
	delete(t.conns, c)
	if t.stopped && len(t.conns) == 0 {
		t.closeEmptyLocked()
	}
}

// stop lets nobody in any more. empty is closed once all have left.
func (t *table) stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopped = true
	if len(t.conns) == 0 {
		t.closeEmptyLocked()
	}
}

func (t *table) closeEmptyLocked() {
	select {
	case <-t.empty:
	default:
		close(t.empty)
	}
}

// closeWhere closes the sockets of all connections in one of the phases.
func (t *table) closeWhere(phases ...phase) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for c := range t.conns {
		for _, p := range phases {
			if c.phase() == p {
				c.cut()
			}
		}
	}
}

// counts returns open, health-only and parked connections.
func (t *table) counts() (open, health, waiting int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.open, t.health, t.parked
}

// sweep ends connections that have not moved for too long and returns how many.
func (t *table) sweep(now time.Time, requestTimeout, idleTimeout time.Duration) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	ended := 0
	for c := range t.conns {
		c.creditLocked(now.UnixNano())
		state := c.state.Load()
		if state != c.seenState {
			c.moves = (state - c.seenState) >> 3
			c.seenState, c.seenAt, c.warned, c.looked = state, now, false, false
			continue
		}
		c.moves = 0
		for_ := now.Sub(c.seenAt)
		switch phase(state & 7) {
		case fresh:
			if for_ >= requestTimeout {
				c.cut()
				ended++
			}
		case idle:
			if for_ >= idleTimeout {
				c.cut()
				ended++
			} else if !c.looked && c.repeats != nil && c.trusted.Load() { // others repeat nothing
				if c.looked = true; c.repeats.ended() {
					c.stopReading() // not cut: the last request may have come a moment ago
				}
			}
		case active:
			switch {
			case for_ < requestTimeout:
			case !c.warned:
				// A reader that is stuck gets to say 408; a writer that is stuck stays so.
				c.warned = true
				c.stopReading()
				ended++
			default:
				c.cut()
			}
		case busy, parked: // bounded by the lookup's context, and by the waiter's own deadline
		}
	}
	return ended
}

// isTimeout reports whether err is an expired deadline.
func isTimeout(err error) bool {
	return os.IsTimeout(err)
}
