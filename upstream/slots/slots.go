// Package slots decides which connections of a server stay when there are more than it has room
// for. The endpoint and the KMS API ask it.
//
// A connection that has not shown yet whose it is belongs to a stranger. Strangers are told apart
// by their origin: the uid at the other end of a socket, or an address. A connection that has
// shown it belongs to an owner, and within the owner to its origin.
//
// When all slots are taken, a newcomer takes the place of
//
//  1. the oldest stranger, of the origin that has most of them, where strangers have more than
//     their share, a sixteenth of all;
//  2. a connection of the owner that has most, of its origin that has most: one that is stuck
//     in a request or an answer, else the idle one that was used least lately;
//  3. the oldest stranger.
//
// Where there is none of these, all others are at work. The newcomer is then let in as a spare,
// for one request. When that shows an owner who has less than others, it takes a slot of the
// owner that has most, at work or not. So no owner can keep another out, an owner that has
// no more than the rest loses nothing to them, and one that is alone may have everything.
//
// # Design notes
//
// Deadlines come from a sweep, not from a timer per request: a connection notes its phase in one
// atomic word and the sweep closes what has not moved for too long. In return a timeout fires up
// to two sweeps late. What the sweep finds unmoved counts as stuck before it has timed out.
//
// Shares follow from who is there, not from the configuration: slots that were kept for somebody
// who never comes would be slots that nobody has. Strangers have a share of their own, so that a
// newcomer who is about to show whose he is has the time for it, also when somebody who holds all
// other slots opens new connections as fast as he can.
package slots

import (
	"cmp"
	"container/list"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Spares is how many connections are let in beyond the limit.
const Spares = 16

// noticeEvery bounds how often the table tells that it has closed connections to make room.
const noticeEvery = 10 * time.Second

// Phase is what a connection is doing, as far as the table must know.
type Phase uint32

// The phases.
const (
	Fresh  Phase = iota // accepted, nothing read yet (a TLS handshake counts as nothing)
	Active              // between the first byte of a request and the last byte of its answer
	Busy                // in a call that has a timeout of its own
	Idle                // between requests
	Parked              // waiting, see [Table.Park]
)

// Slot is a connection as the table knows it. It must not be copied.
type Slot struct {
	// state is the phase in the low 3 bits and a count of changes above, so that the sweep sees
	// that something happened without a clock in the request path.
	state atomic.Uint32

	conn  net.Conn
	spare bool // written by the goroutine that serves the connection, under Table.mu

	// Guarded by Table.mu.
	group     *group // nil: neither in the table yet nor any more
	element   *list.Element
	seenState uint32
	seenAt    time.Time
	moves     uint32 // changes of phase between the last two sweeps
	warned    bool
}

// Peer is what the kernel says about the other end of a unix socket.
type Peer struct {
	UID, GID uint32
	PID      int32
}

// String describes the peer for log and audit.
func (p Peer) String() string { return fmt.Sprintf("uid=%d gid=%d pid=%d", p.UID, p.GID, p.PID) }

// Origin returns the origin of a connection from an address: its host. Whoever is on this host
// has all addresses of loopback, so that they are one, and a host has a /64 of IPv6.
func Origin(a net.Addr) string {
	tcp, ok := a.(*net.TCPAddr)
	switch {
	case !ok:
		return a.Network()
	case tcp.IP.IsLoopback():
		return "loopback"
	}
	if tcp.IP.To4() == nil {
		return tcp.IP.Mask(net.CIDRMask(64, 128)).String()
	}
	return tcp.IP.String()
}

// SetPhase is called by the goroutine that serves the connection.
func (s *Slot) SetPhase(p Phase) { s.state.Store((s.state.Load()>>3+1)<<3 | uint32(p)) }

// Phase returns what the connection is doing.
func (s *Slot) Phase() Phase { return Phase(s.state.Load() & 7) }

// Spare reports whether the connection came when all slots were taken. It is called by the
// goroutine that serves the connection, whose next answer is then the last.
func (s *Slot) Spare() bool { return s.spare }

// Cut closes the connection while it is served. Unlike Close it says no farewell to a client of
// TLS, which waits for seconds when the client does not read.
func (s *Slot) Cut() {
	nc := s.conn
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	_ = nc.Close()
}

// StopReading makes a read fail that waits now, or the next one. What is answered goes on.
func (s *Slot) StopReading() { _ = s.conn.SetReadDeadline(time.Unix(1, 0)) }

// movesSince returns how often the phase has changed between the last sweep and state.
func (s *Slot) movesSince(state uint32) uint32 { return (state - s.seenState&^7) >> 3 }

// rest says how little the connection is missed: less is less.
func (s *Slot) rest() (rank int, changes uint32) {
	state := s.state.Load()
	changes = s.moves + s.movesSince(state)
	switch Phase(state & 7) {
	case Fresh, Active:
		if changes == 0 {
			return rankStuck, 0
		}
		return rankActive, changes
	case Idle:
		return rankIdle, changes
	case Busy:
		return rankBusy, changes
	}
	return rankParked, changes
}

// The ranks of connections, the one first that is missed least.
const (
	rankStuck = iota
	rankIdle
	rankActive
	rankBusy
	rankParked
)

// group is the connections of one owner from one origin.
type group struct {
	owner, origin string    // no owner: strangers
	slots         list.List // of *Slot, in the order in which they came to it

	open, parked, spare int
}

// Limits of a [Table].
type Limits struct {
	Open   int // connections that are not parked
	Parked int
	Total  int // of both
}

// Notice tells that connections were closed to make room.
type Notice struct {
	Owner, Origin string // of the last of them; no owner: it had not shown whose it is
	Closed        uint64 // since the last notice
}

// Table knows every connection of a server.
type Table struct {
	limits  Limits
	notice  func(Notice)
	evicted atomic.Uint64
	timeout atomic.Uint64

	mu                  sync.Mutex
	groups              map[[2]string]*group // by owner and origin
	open, parked, spare int
	stopped             bool
	victim              *group // of the last that was closed; nil: told
	told                time.Time
	toldCount           uint64
}

// New returns an empty table. notice hears at most every ten seconds that connections were
// closed to make room.
func New(limits Limits, notice func(Notice)) *Table {
	return &Table{limits: limits, notice: notice, groups: map[[2]string]*group{}}
}

// unlock gives up t.mu and then tells what there is to tell.
func (t *Table) unlock() {
	var n Notice
	if t.victim != nil && time.Since(t.told) >= noticeEvery {
		count := t.evicted.Load()
		n = Notice{Owner: t.victim.owner, Origin: t.victim.origin, Closed: count - t.toldCount}
		t.victim, t.told, t.toldCount = nil, time.Now(), count
	}
	t.mu.Unlock()
	if n.Closed > 0 {
		t.notice(n)
	}
}

// Add lets a connection in, as a spare when all others are needed; false once the table is
// stopped. origin says who is on the other side, as far as that is known.
func (t *Table) Add(s *Slot, nc net.Conn, origin string) bool {
	t.mu.Lock()
	defer t.unlock()
	if t.stopped {
		return false
	}
	s.conn, s.seenAt = nc, time.Now()
	if t.fullLocked() && !t.evictLocked(t.dispensableLocked()) {
		if s.spare = true; t.spare >= Spares {
			t.evictLocked(t.oldestSpareLocked())
		}
	}
	t.joinLocked(s, "", origin)
	return true
}

// Claim notes whose the connection is. When it is a spare that its owner is entitled to, it becomes
// one like others.
func (t *Table) Claim(s *Slot, owner string) {
	t.mu.Lock()
	defer t.unlock()
	if s.group == nil {
		return
	}
	origin := s.group.origin
	t.leaveLocked(s)
	t.joinLocked(s, owner, origin)
	if s.spare && (!t.fullLocked() || t.evictLocked(t.owedLocked(s.group))) {
		t.countLocked(s, -1)
		s.spare = false
		t.countLocked(s, 1)
	}
}

// Park makes a waiter of a connection; false when there are too many, and its owner has as many as
// others, or when it was chosen to leave.
func (t *Table) Park(s *Slot) bool {
	t.mu.Lock()
	defer t.unlock()
	if t.stopped || s.group == nil || s.spare {
		return false
	}
	waiters := func(g *group) int { return g.parked }
	if t.parked >= t.limits.Parked && !t.evictLocked(t.fromLargerLocked(s.group, waiters, rankParked, rankParked)) {
		return false
	}
	t.countLocked(s, -1)
	s.SetPhase(Parked)
	t.countLocked(s, 1)
	return true
}

// Unpark makes a connection of a waiter again. That may exceed the limit for as long as its answer
// takes: it held a slot before.
func (t *Table) Unpark(s *Slot) {
	t.mu.Lock()
	defer t.unlock()
	if s.group == nil {
		s.SetPhase(Active)
		return
	}
	t.countLocked(s, -1)
	s.SetPhase(Active)
	t.countLocked(s, 1)
}

// Remove takes a connection out.
func (t *Table) Remove(s *Slot) {
	t.mu.Lock()
	defer t.unlock()
	if s.group != nil {
		t.leaveLocked(s)
	}
}

// MakeRoom closes the connection that is missed least, because the process, rather than this
// server, has run out of descriptors; false when all are needed.
func (t *Table) MakeRoom() bool {
	t.mu.Lock()
	defer t.unlock()
	return t.evictLocked(t.dispensableLocked())
}

// Stop lets nobody in any more.
func (t *Table) Stop() {
	t.mu.Lock()
	defer t.unlock()
	t.stopped = true
}

// Drain closes what is idle, again and again, until ended is closed: a connection that answered
// just before it could learn of the end becomes idle afterwards. When ctx ends first, it closes
// all others and returns false.
func Drain(ctx context.Context, ended <-chan struct{}, tables ...*Table) bool {
	ticker := time.NewTicker(2 * time.Millisecond)
	defer ticker.Stop()
	for {
		for _, t := range tables {
			t.cutWhere(Idle, Fresh)
		}
		select {
		case <-ended:
			return true
		case <-ctx.Done():
			for _, t := range tables {
				t.cutWhere(Fresh, Active, Busy, Idle, Parked)
			}
			return false
		case <-ticker.C:
		}
	}
}

func (t *Table) cutWhere(phases ...Phase) {
	t.mu.Lock()
	defer t.unlock()
	for _, g := range t.groups {
		for s := range g.all {
			if slices.Contains(phases, s.Phase()) {
				s.Cut()
			}
		}
	}
}

// Counts are how many connections there are, and were.
type Counts struct {
	Open, Parked, Spare int
	Evicted             uint64 // closed to make room
	TimedOut            uint64 // ended because they did not move
}

// Counts returns how many there are.
func (t *Table) Counts() Counts {
	t.mu.Lock()
	defer t.unlock()
	return Counts{Open: t.open, Parked: t.parked, Spare: t.spare, Evicted: t.evicted.Load(), TimedOut: t.timeout.Load()}
}

// Owned returns how many connections each owner has, waiting ones included.
func (t *Table) Owned() map[string]int {
	t.mu.Lock()
	defer t.unlock()
	owned := map[string]int{}
	for _, g := range t.groups {
		owned[g.owner] += g.slots.Len()
	}
	return owned
}

// Sweep ends connections that have not moved for too long: a request and its answer have the
// first time, an idle connection the second.
func (t *Table) Sweep(now time.Time, request, idle time.Duration) {
	t.mu.Lock()
	defer t.unlock()
	for _, g := range t.groups {
		for s := range g.all {
			t.sweepLocked(s, now, request, idle)
		}
	}
}

func (t *Table) sweepLocked(s *Slot, now time.Time, request, idle time.Duration) {
	state := s.state.Load()
	if s.moves = s.movesSince(state); s.moves > 0 {
		s.seenState, s.seenAt, s.warned = state, now, false
		return
	}
	limit := request
	switch Phase(state & 7) {
	case Idle:
		limit = idle
	case Busy, Parked: // bounded by the call's context, and by the waiter's own deadline
		return
	}
	switch {
	case now.Sub(s.seenAt) < limit:
	case Phase(state&7) == Active && !s.warned:
		// A reader that is stuck gets to say that it timed out; a writer that is stuck stays so.
		s.warned = true
		s.StopReading()
		t.timeout.Add(1)
	default:
		s.Cut()
		if !s.warned {
			s.warned = true
			t.timeout.Add(1)
		}
	}
}

// fullLocked reports whether a newcomer needs the slot of another.
func (t *Table) fullLocked() bool { return t.open >= t.limits.Open || t.shortOfAllLocked() }

// shortOfAllLocked reports whether waiters, too, stand in the way of a newcomer.
func (t *Table) shortOfAllLocked() bool { return t.open+t.parked >= t.limits.Total }

// connectionsLocked returns what is counted of a group when it is compared with others.
func (t *Table) connectionsLocked() func(*group) int {
	if t.shortOfAllLocked() {
		return func(g *group) int { return g.open + g.parked }
	}
	return func(g *group) int { return g.open }
}

// dispensableLocked returns who makes room for a newcomer, of whom nothing is known; nil when all
// others are at work.
func (t *Table) dispensableLocked() *Slot {
	oldest, strangers := t.oldestStrangerLocked()
	if strangers > t.limits.Open/16 {
		return oldest
	}
	most := largest(t.groups, t.connectionsLocked(), func(g *group) bool { return g.owner != "" })
	if s := leastMissed(most, rankStuck, rankIdle); s != nil {
		return s
	}
	return oldest
}

// owedLocked returns who makes room for a spare of g; nil when there is none that has more.
func (t *Table) owedLocked(g *group) *Slot {
	oldest, strangers := t.oldestStrangerLocked()
	if strangers > t.limits.Open/16 {
		return oldest
	}
	last := rankBusy
	if t.shortOfAllLocked() {
		last = rankParked
	}
	return cmp.Or(t.fromLargerLocked(g, t.connectionsLocked(), rankStuck, last), leastMissed([]*group{g}, rankStuck, rankIdle), oldest)
}

// fromLargerLocked returns a connection of an owner that has more than that of g, else of an
// origin within the owner that has more than g, so that they differ by less afterwards.
func (t *Table) fromLargerLocked(g *group, size func(*group) int, first, last int) *Slot {
	owned := totals(t.groups, size)
	s := leastMissed(largest(t.groups, size, func(o *group) bool {
		return o.owner != "" && owned[o.owner] > owned[g.owner]+1
	}), first, last)
	return cmp.Or(s, leastMissed(largest(t.groups, size, func(o *group) bool {
		return o.owner == g.owner && size(o) > size(g)+1
	}), first, last))
}

// totals returns the sizes of owners.
func totals(groups map[[2]string]*group, size func(*group) int) map[string]int {
	owned := map[string]int{}
	for _, g := range groups {
		owned[g.owner] += size(g)
	}
	return owned
}

// largest returns, of the groups that count, those of the owners that have most, and of these
// the ones that have most: several when they have as many.
func largest(groups map[[2]string]*group, size func(*group) int, counts func(*group) bool) (most []*group) {
	owned := totals(groups, size)
	for _, g := range groups {
		if !counts(g) || size(g) == 0 {
			continue
		}
		order := 1
		if len(most) > 0 {
			order = cmp.Or(cmp.Compare(owned[g.owner], owned[most[0].owner]), cmp.Compare(size(g), size(most[0])))
		}
		if order > 0 {
			most = most[:0]
		}
		if order >= 0 {
			most = append(most, g)
		}
	}
	return most
}

// leastMissed returns, of the connections in groups whose rank is between first and last, the
// one that is missed least: by rank, by how much it was used since the sweep before the last,
// so that a client at work outlives a crowd that came a moment ago, and by how long it has
// rested.
func leastMissed(groups []*group, first, last int) (victim *Slot) {
	var lowest int
	var fewest uint32
	for _, g := range groups {
		for s := range g.all {
			rank, changes := s.rest()
			if s.spare || rank < first || rank > last {
				continue
			}
			if victim == nil || cmp.Or(cmp.Compare(rank, lowest), cmp.Compare(changes, fewest), s.seenAt.Compare(victim.seenAt)) < 0 {
				victim, lowest, fewest = s, rank, changes
			}
		}
	}
	return victim
}

// oldestStrangerLocked returns the oldest of the origin that has most strangers, and how many
// there are of all origins.
func (t *Table) oldestStrangerLocked() (oldest *Slot, all int) {
	var most *group
	for _, g := range t.groups {
		if g.owner == "" {
			all += g.open
			if g.open > 0 && (most == nil || g.open > most.open) {
				most = g
			}
		}
	}
	if most == nil {
		return nil, 0
	}
	return most.first(func(s *Slot) bool { return !s.spare }), all
}

// oldestSpareLocked returns the oldest spare of the origin that has most.
func (t *Table) oldestSpareLocked() *Slot {
	var most *group
	for _, g := range t.groups {
		if most == nil || g.spare > most.spare {
			most = g
		}
	}
	return most.first(func(s *Slot) bool { return s.spare })
}

// evictLocked closes a connection, if there is one; its goroutine notices.
func (t *Table) evictLocked(s *Slot) bool {
	if s == nil {
		return false
	}
	t.victim = s.group
	t.leaveLocked(s)
	t.evicted.Add(1)
	s.Cut()
	return true
}

func (t *Table) joinLocked(s *Slot, owner, origin string) {
	key := [2]string{owner, origin}
	g := t.groups[key]
	if g == nil {
		g = &group{owner: owner, origin: origin}
		t.groups[key] = g
	}
	s.group, s.element = g, g.slots.PushBack(s)
	t.countLocked(s, 1)
}

func (t *Table) leaveLocked(s *Slot) {
	t.countLocked(s, -1)
	g := s.group
	g.slots.Remove(s.element)
	s.group, s.element = nil, nil
	if g.slots.Len() == 0 {
		delete(t.groups, [2]string{g.owner, g.origin})
	}
}

// countLocked adds n to the counts that s is part of.
func (t *Table) countLocked(s *Slot, n int) {
	switch {
	case s.spare:
		t.spare += n
		s.group.spare += n
	case s.Phase() == Parked:
		t.parked += n
		s.group.parked += n
	default:
		t.open += n
		s.group.open += n
	}
}

// all yields the connections of the group.
func (g *group) all(yield func(*Slot) bool) {
	for e := g.slots.Front(); e != nil; e = e.Next() {
		if !yield(e.Value.(*Slot)) {
			return
		}
	}
}

// first returns the one that came first, of those that count.
func (g *group) first(counts func(*Slot) bool) *Slot {
	for s := range g.all {
		if counts(s) {
			return s
		}
	}
	return nil
}
