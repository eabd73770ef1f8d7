package endpoint

import (
	"maps"
	"sync"
	"sync/atomic"
)

// Stats is a snapshot of what a [Server] has done and is doing.
type Stats struct {
	// Values answered, those of batches included, by how the cache came by them.
	Hits, Misses, Stale uint64

	NotModified uint64 // 304 answers
	Batches     uint64
	Reports     uint64
	Waits       uint64 // times a client was parked

	// Refused counts the endpoint's own refusals and Failed what the cache answered with, each
	// by the code the client got.
	Refused map[string]uint64
	Failed  map[string]uint64

	Connections       int    // open, not waiting
	HealthConnections int    // open beyond the limit, for one request each
	Waiting           int    // clients that wait for a change
	Evicted           uint64 // connections closed to make room
	TimedOut          uint64 // connections ended because they did not move
	Panics            uint64
	Sessions          int    // of browsers that see the status page
	AuditDropped      uint64 // refusals that were not audited because there were too many
}

// counters are those of them that grow.
type counters struct {
	hits, misses, stale, notModified atomic.Uint64
	batches, reports, waits          atomic.Uint64
	panics                           atomic.Uint64
	auditDropped                     atomic.Uint64
	refused, failed                  tally
}

// tally counts by code. Codes come from the tables of upstream and this package: a few dozen.
type tally struct {
	mu     sync.Mutex
	counts map[string]uint64
}

func (t *tally) add(code string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.counts == nil {
		t.counts = map[string]uint64{}
	}
	t.counts[code]++
}

func (t *tally) copy() map[string]uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.counts)
}

// Stats returns a snapshot.
func (s *Server) Stats() Stats {
	n, c := &s.stats, s.table.Counts()
	out := Stats{
		Hits: n.hits.Load(), Misses: n.misses.Load(), Stale: n.stale.Load(), NotModified: n.notModified.Load(),
		Batches: n.batches.Load(), Reports: n.reports.Load(), Waits: n.waits.Load(),
		Connections: c.Open, HealthConnections: c.Spare, Waiting: c.Parked, Evicted: c.Evicted, TimedOut: c.TimedOut,
		Panics: n.panics.Load(), AuditDropped: n.auditDropped.Load(),
		Refused: n.refused.copy(), Failed: n.failed.copy(),
	}
	out.Sessions, _ = s.sessions.counts()
	return out
}
