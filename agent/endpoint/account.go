package endpoint

import (
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"secretagent/upstream"
)

// sampleHits is how many hits of a connection one is timed of. Reading the clock twice costs
// about as much as a quarter of the rest of a hit. Connections begin to count at different
// requests, so that first requests, which are slower, have the weight that they have among all.
const sampleHits = 64

// account is what the caller of one name did since the server was made. It outlives the
// replacement of callers.
type account struct {
	name     string
	lookups  atomic.Uint64
	refusals atomic.Uint64
	denials  limiter             // audit lines about denied names
	batches  *semaphore.Weighted // the part of Server.batches that it may take beside others
	seen     atomic.Int64        // when it last asked for anything, by the coarse clock; 0: never
}

// CallerStats is what one caller has done and is doing.
type CallerStats struct {
	Name        string
	LastSeen    time.Time `json:",omitzero"` // to about a second; zero: never
	Lookups     uint64    // values answered, and answers that a value is still the same
	Refusals    uint64    // of requests with a token, uid or gid of this caller
	Connections int       // open ones, waiting ones included, that last asked as this caller

	// ShutOut is why nobody is taken for this caller; empty: it may ask.
	ShutOut string `json:",omitzero"`

	// OldTokenUntil is when the last of its replaced tokens ends; zero when none counts.
	OldTokenUntil time.Time `json:",omitzero"`
}

// Callers returns what the callers did, in the order in which they were set. A caller that
// comes back after it was left out by [Server.PrepareCallers] starts anew.
func (s *Server) Callers() []CallerStats {
	set := s.callers.Load()
	connections := s.table.Owned()
	oldUntil := map[*caller]time.Time{}
	for _, t := range set.tokens {
		if until := t.notAfter; !t.expiredNow() && until.After(oldUntil[t.caller]) {
			oldUntil[t.caller] = until
		}
	}
	list := make([]CallerStats, len(set.callers))
	for i, c := range set.callers {
		a := c.account
		list[i] = CallerStats{Name: c.Name, Lookups: a.lookups.Load(), Refusals: a.refusals.Load(),
			Connections: connections[c.Name], ShutOut: c.ShutOut, OldTokenUntil: oldUntil[c]}
		if at := a.seen.Load(); at != 0 {
			list[i].LastSeen = time.Unix(0, at)
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
		if c.account = s.accounts[c.Name]; c.account == nil {
			c.account = &account{name: c.Name, denials: newAuditLimiter(), batches: semaphore.NewWeighted(max(s.opts.MaxBatchBytes/2, 1))}
		}
		accounts[c.Name] = c.account
	}
	s.accounts = accounts
}

// page is who owns the connections of browsers that see the status page, which are no caller's.
const page = "status page"

// claim notes whose the connection is.
func (s *Server) claim(c *conn, a *account) {
	owner := page
	if a != nil {
		owner = a.name
	}
	c.trusted, c.account = true, a
	s.table.Claim(&c.Slot, owner)
}

// see notes that the caller was here. What is there already is not written again.
func (a *account) see(now int64) {
	if a.seen.Load() != now {
		a.seen.Store(now)
	}
}

// countValue counts a value that was answered, for all and for its caller, and as the last
// question for the secret.
func (s *Server) countValue(c *conn, a *upstream.Answer) {
	switch a.Freshness {
	case upstream.Hit:
		s.stats.hits.Add(1)
		if !c.began.IsZero() {
			s.opts.Observe(a.Freshness.String(), time.Since(c.began))
		}
	case upstream.Miss:
		s.stats.misses.Add(1)
	default:
		s.stats.stale.Add(1)
	}
	s.countAnswer(c, a)
}

// countAnswer counts an answer about a value, whether the value is part of it or not.
func (s *Server) countAnswer(c *conn, a *upstream.Answer) {
	c.caller.account.lookups.Add(1)
	if a.Derived != nil {
		a.Derived.Asked(&c.caller.account.name, s.clock.Load())
	}
}

// countRefusal counts a refusal, also for the caller where it is known.
func (s *Server) countRefusal(c *conn, r *refusal) {
	s.stats.refused.add(r.code)
	if c.caller != nil {
		c.caller.account.refusals.Add(1)
	}
}
