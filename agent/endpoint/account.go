package endpoint

import (
	"sync/atomic"
	"time"

	"secretagent/upstream"
)

// sampleHits is how many hits of a connection one is timed of. Reading the clock twice costs
// about as much as a quarter of the rest of a hit.
const sampleHits = 64

// account is what the caller of one name did since the server was made. It outlives the
// replacement of callers.
type account struct {
	name     string
	lookups  atomic.Uint64 // hits of open connections are added when these are settled
	refusals atomic.Uint64
	denials  limiter      // audit lines about denied names
	seen     atomic.Int64 // when it last asked for anything, by the coarse clock; 0: never
}

// CallerStats is what one caller has done and is doing.
type CallerStats struct {
	Name        string
	LastSeen    time.Time // to about a second; zero: never
	Lookups     uint64    // values answered, and answers that a value is still the same
	Refusals    uint64    // of requests with a token, uid or gid of this caller
	Connections int       // open ones, waiting ones included, that last asked as this caller

	// OldTokenUntil is when the last of its replaced tokens ends; zero when none counts.
	OldTokenUntil time.Time
}

// Callers returns what the callers did, in the order in which they were set. A caller that
// comes back after it was left out by [Server.SetCallers] starts anew.
func (s *Server) Callers() []CallerStats {
	set := s.callers.Load()
	now := s.clock.Load()
	open := map[*account]*CallerStats{}
	list := make([]CallerStats, len(set.callers))
	for i, c := range set.callers {
		list[i].Name = c.name
		open[c.account] = &list[i]
	}
	for _, t := range set.tokens {
		if until := t.notAfter; !t.expiredNow() && until.After(list[t.caller].OldTokenUntil) {
			list[t.caller].OldTokenUntil = until
		}
	}
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	for c := range s.table.conns {
		if of := open[c.account]; of != nil {
			of.Connections++
			of.Lookups += c.creditLocked(now)
		}
	}
	for _, c := range set.callers {
		of, a := open[c.account], c.account
		of.Lookups += a.lookups.Load()
		of.Refusals = a.refusals.Load()
		if at := a.seen.Load(); at != 0 {
			of.LastSeen = time.Unix(0, at)
		}
	}
	return list
}

// adopt gives every caller of set the account of its name.
func (s *Server) adopt(set *callerSet) {
	s.mu.Lock()
	defer s.mu.Unlock()
	accounts := make(map[string]*account, len(set.callers))
	for _, c := range set.callers {
		if c.account = s.accounts[c.name]; c.account == nil {
			c.account = &account{name: c.name, denials: newAuditLimiter()}
		}
		accounts[c.name] = c.account
	}
	s.accounts = accounts
}

// settle adds the hits of c to those of its caller and of all. The next ones are those of
// another caller.
func (s *Server) settle(c *conn, next *account) {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	hits := c.creditLocked(s.clock.Load())
	c.hits.Store(0)
	c.credited = 0
	s.stats.hits.Add(hits)
	if c.account != nil {
		c.account.lookups.Add(hits)
	}
	c.account = next
}

// hitCount returns the hits of all connections, those that are closed included.
func (s *Server) hitCount() uint64 {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	n := s.stats.hits.Load()
	for c := range s.table.conns {
		n += c.hits.Load()
	}
	return n
}

// creditLocked returns the hits of c that are not settled. When there are more than the last
// time, the caller was here: that is how it is known without a trace of it on the hit path.
// The caller holds the table.
func (c *conn) creditLocked(now int64) uint64 {
	hits := c.hits.Load()
	if hits != c.credited && c.account != nil {
		c.credited = hits
		c.account.seen.Store(now)
	}
	return hits
}

// see notes that the caller of the current request, if there is one, was here.
func (s *Server) see(c *conn) {
	if c.caller != nil {
		c.caller.account.seen.Store(s.clock.Load())
	}
}

// countHit counts a value that was answered from memory: for the connection, and with it for
// the caller, and as the last question for the secret. It is the whole price of being seen on
// that path. c.account is whoever the guard let through last.
func (s *Server) countHit(c *conn, a *upstream.Answer) {
	c.hits.Add(1)
	if a.Derived != nil {
		a.Derived.Asked(&c.account.name, s.clock.Load())
	}
	if c.timed {
		s.opts.Observe(a.Freshness.String(), time.Since(c.began))
	}
}

// countValue counts a value that was answered.
func (s *Server) countValue(c *conn, a *upstream.Answer) {
	switch a.Freshness {
	case upstream.Hit:
		s.countHit(c, a)
		return
	case upstream.Miss:
		s.stats.misses.Add(1)
	default:
		s.stats.stale.Add(1)
	}
	s.countSlow(c, a)
}

// countSlow notes who was answered, off the hit path.
func (s *Server) countSlow(c *conn, a *upstream.Answer) {
	c.caller.account.lookups.Add(1)
	s.see(c)
	if a.Derived != nil {
		a.Derived.Asked(&c.caller.account.name, s.clock.Load())
	}
}

// startClock decides whether the current request is timed should it be a hit. Connections
// begin to count at different requests, so that first requests, which are slower, have the
// weight that they have among all.
func (c *conn) startClock() {
	c.timed = (c.requests+c.number)%sampleHits == 0 && c.srv.opts.Observe != nil
	if c.timed {
		c.began = time.Now()
	}
}

// timeLookup reports how long a lookup took that was no hit.
func (s *Server) timeLookup(a *upstream.Answer, err error, began time.Time) {
	switch {
	case s.opts.Observe == nil:
	case err != nil:
		s.opts.Observe("error", time.Since(began))
	case a.Freshness != upstream.Hit: // another caller was faster: those are counted by sample
		s.opts.Observe(a.Freshness.String(), time.Since(began))
	}
}

// countRefusal counts a refusal, also for the caller where it is known.
func (s *Server) countRefusal(c *conn, r refusal) {
	s.stats.refused[r].Add(1)
	if c.caller != nil {
		c.caller.account.refusals.Add(1)
		s.see(c)
	}
}
