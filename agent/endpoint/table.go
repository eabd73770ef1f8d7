package endpoint

import (
	"cmp"
	"container/list"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// healthConnections is how many clients are let in beyond the limit, for health alone.
const healthConnections = 16

// table knows every connection and decides who gets in and who has to leave.
type table struct {
	maxOpen, maxParked int
	maxTotal           int           // of both
	evicted            atomic.Uint64 // closed to make room

	mu        sync.Mutex
	conns     map[*conn]struct{}
	untrusted *list.List // of *conn, oldest first: those that never presented a valid token
	open      int        // counted connections that are not parked and not health-only
	health    int
	parked    int
	stopped   bool
}

func newTable(o Options) *table {
	return &table{
		maxOpen: o.MaxConnections, maxParked: o.MaxWaiters, maxTotal: cmp.Or(o.MaxClients, o.MaxConnections+o.MaxWaiters),
		conns: map[*conn]struct{}{}, untrusted: list.New(),
	}
}

// add lets c in. When all slots are taken it closes a connection in return, or lets c in for
// health only; ok is false when neither is possible.
func (t *table) add(c *conn, now time.Time) (ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stopped {
		return false
	}
	if t.open >= t.maxOpen || t.open+t.parked >= t.maxTotal {
		if c.healthOnly = !t.evictLocked(); c.healthOnly && t.health >= healthConnections {
			return false
		}
	}
	t.conns[c] = struct{}{}
	c.counted, c.seenAt = true, now
	c.element = t.untrusted.PushBack(c)
	*t.counterLocked(c)++
	return true
}

// evict closes a connection when the process, rather than this server, has run out of
// descriptors; false when all are needed.
func (t *table) evict() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.evictLocked()
}

// evictLocked closes the connection that is missed least, if there is one.
func (t *table) evictLocked() bool {
	victim := t.victimLocked()
	if victim == nil {
		return false
	}
	t.discountLocked(victim)
	t.evicted.Add(1)
	victim.cut()
	return true
}

// victimLocked returns the oldest connection that never presented a valid token, else, of those
// that are idle, the one that was used least since the sweep before the last, so that a client at
// work outlives a crowd that came a moment ago. Health-only connections do not help.
func (t *table) victimLocked() (victim *conn) {
	for e := t.untrusted.Front(); e != nil; e = e.Next() {
		if c := e.Value.(*conn); !c.healthOnly && c.phase() != parked {
			return c
		}
	}
	var fewest uint32
	for c := range t.conns {
		state := c.state.Load()
		if !c.counted || c.healthOnly || phase(state&7) != idle {
			continue
		}
		// Of those that were used as much, the one that has rested for longer goes, or the older one.
		changes := c.moves + c.movesSince(state)
		if victim == nil || cmp.Or(cmp.Compare(changes, fewest), c.seenAt.Compare(victim.seenAt), cmp.Compare(c.number, victim.number)) < 0 {
			victim, fewest = c, changes
		}
	}
	return victim
}

// movesSince returns how often the phase has changed between the last sweep and state.
func (c *conn) movesSince(state uint32) uint32 { return (state - c.seenState&^7) >> 3 }

// counterLocked returns the counter that c is part of.
func (t *table) counterLocked(c *conn) *int {
	switch {
	case c.healthOnly:
		return &t.health
	case c.phase() == parked:
		return &t.parked
	}
	return &t.open
}

// discountLocked stops counting c; its goroutine removes it when it is done.
func (t *table) discountLocked(c *conn) {
	if c.counted {
		c.counted = false
		t.takeOffListLocked(c)
		*t.counterLocked(c)--
	}
}

func (t *table) takeOffListLocked(c *conn) {
	if c.element != nil {
		t.untrusted.Remove(c.element)
		c.element = nil
	}
}

// trust takes c off the list of those that go first, and notes whose it is.
func (t *table) trust(c *conn, a *account) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.takeOffListLocked(c)
	c.trusted, c.account = true, a
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
	t.discountLocked(c)
	delete(t.conns, c)
}

// stop lets nobody in any more.
func (t *table) stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopped = true
}

// closeWhere closes the sockets of all connections in one of the phases.
func (t *table) closeWhere(phases ...phase) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for c := range t.conns {
		if slices.Contains(phases, c.phase()) {
			c.cut()
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
func (t *table) sweep(now time.Time, requestTimeout, idleTimeout time.Duration) (ended int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for c := range t.conns {
		state := c.state.Load()
		if c.moves = c.movesSince(state); c.moves > 0 {
			c.seenState, c.seenAt, c.warned = state, now, false
			continue
		}
		limit := requestTimeout
		switch phase(state & 7) {
		case idle:
			limit = idleTimeout
		case busy, parked: // bounded by the lookup's context, and by the waiter's own deadline
			continue
		}
		switch {
		case now.Sub(c.seenAt) < limit:
		case phase(state&7) == active && !c.warned:
			// A reader that is stuck gets to say 408; a writer that is stuck stays so.
			c.warned = true
			c.stopReading()
			ended++
		default:
			c.cut()
			if !c.warned {
				ended++
			}
		}
	}
	return ended
}
