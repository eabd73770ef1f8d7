package cache

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"secretagent/upstream"
)

// maxReasons is more than the service has codes.
const maxReasons = 60

// reasons are the codes that stale answers are counted by. They come from elsewhere, so that
// there are so many and no more.
type reasons struct {
	mu   sync.Mutex
	seen []string
}

// bound returns reason, or "other" when it would be one too many.
func (r *reasons) bound(reason string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case slices.Contains(r.seen, reason):
	case len(r.seen) >= maxReasons:
		return "other"
	default:
		r.seen = append(r.seen, reason)
	}
	return reason
}

// Outcome is what an upstream call found.
type Outcome uint8

// The values of Outcome.
const (
	First     Outcome = iota // a value where none was held
	Changed                  // another value than the one held
	Unchanged                // the value that is held
	Gone                     // there is no value for us: not found, being deleted, denied
	Refused                  // the call was refused for another reason
	Failed                   // no answer about the secret: an outage
	outcomes                 // how many there are
)

// String returns the name as a metric spells it.
func (o Outcome) String() string {
	return [...]string{"first", "changed", "unchanged", "gone", "refused", "failed"}[o]
}

// outcomeOf returns the outcome of a call that failed with err; First for nil.
func outcomeOf(err error) Outcome {
	switch {
	case err == nil:
		return First
	case upstream.Gone(err):
		return Gone
	case upstream.Outage(err):
		return Failed
	default:
		return Refused
	}
}

// Fetch is one upstream call, for [Options.Observe].
type Fetch struct {
	Ref        upstream.SecretRef
	Outcome    Outcome
	Background bool // begun by Run, not for a caller
	News       bool // readers of what was held see something else now: another value, or none
	Duration   time.Duration
}

// Stats are counts since [New] and sizes now. They are read one after the other, not at one
// moment.
type Stats struct {
	// Lookups by how they ended. Negative were refused with what the upstream said about
	// the secret, Errors with an outage or a bound of the cache.
	Hits, Misses, Negative, Errors uint64
	Stale                          map[string]uint64 // :: reason → lookups

	Fetches   map[Outcome]uint64 // upstream calls
	Evictions uint64             // values pushed out by newer ones
	Oversized uint64             // values too big to be kept
	Throttled uint64             // forced refreshes over the limit

	Entries, Pinned    int   // values in the LRU; entries outside it: pinned or subscribed to
	Bytes, PinnedBytes int64 // what they cost
	Remembered         int   // refusals
	Flights            int   // upstream calls under way or waiting for a slot
	Waiting            int   // callers that wait for one
	Scheduled          int   // refreshes that are planned
	Events             int   // remembered in the histories of all entries

	Subscriptions        int
	SubscriptionsRefused uint64

	Outage      string // reason while the upstream as a whole is taken to be down
	OutageCause string // the same in words

	// ClockBehind is by how much the clock of this host is behind the newest time that the
	// sealed file or the upstream has told; 0 for less than a minute, and once the upstream has answered.
	ClockBehind time.Duration

	Sealed SealedStats
}

// SealedStats are the counts of the sealed file.
type SealedStats struct {
	Open    bool  // false: off, in use by another process, or given up
	Records int   // in the file
	Bytes   int64 // of the records
	Pending int   // changes not yet written
	Loaded  int   // values found at start
	TooOld  int   // values found at start that may not be served any more
	Refused int   // records found at start that were damaged, exchanged or foreign
	Skipped int   // values not written because the file is full
	Errors  int   // failed writes
	Rebuilt int   // 1 when the file found at start was damaged as a whole or has no end
}

// Stats returns the counts of the cache.
func (c *Cache) Stats() Stats {
	reason, _, _ := c.outage.state()
	s := Stats{
		Misses:               c.misses.Load(),
		Negative:             c.negatives.Load(),
		Errors:               c.errors.Load(),
		Stale:                map[string]uint64{},
		Fetches:              map[Outcome]uint64{},
		Evictions:            c.evictions.Load(),
		Oversized:            c.oversized.Load(),
		Throttled:            c.throttled.Load(),
		Entries:              int(c.entries[keptInLRU].Load()),
		Pinned:               int(c.entries[keptAlways].Load()),
		Bytes:                c.bytes[keptInLRU].Load(),
		PinnedBytes:          c.bytes[keptAlways].Load(),
		Remembered:           int(c.entries[keptAsRefusal].Load()),
		Flights:              c.calls.count(),
		Waiting:              int(c.waiting.Load()),
		Subscriptions:        int(c.subscriptions.Load()),
		SubscriptionsRefused: c.subsRefused.Load(),
		Outage:               reason,
		OutageCause:          c.outage.cause(),
		ClockBehind:          c.clock.skew(),
		Scheduled:            c.due.count(),
		Events:               int(c.events.Load()),
		Sealed:               c.sealed.stats(),
	}
	for o := range c.fetches {
		s.Fetches[Outcome(o)] = c.fetches[o].Load()
	}
	for _, each := range c.shards {
		sh := each.lock()
		s.Hits += sh.hits
		for reason, n := range sh.stale {
			s.Stale[reason] += n
		}
		sh.unlock()
	}
	return s
}

// EntryStatus is what is known about one reference, without its value.
type EntryStatus struct {
	Ref           upstream.SecretRef
	VersionID     upstream.VersionID // empty: no value is held
	VersionStages []upstream.VersionStage
	Size          int // bytes it costs

	Fresh       bool
	FetchedAt   time.Time // last confirmation by the upstream, by the wall clock; zero: never
	Age         time.Duration
	FreshUntil  time.Time // zero when not fresh
	ServedUntil time.Time // if the upstream does not answer before; zero while nothing is wrong with it
	NextRefresh time.Time // zero when none is planned

	AskedBy string    // who asked a reader for the value last, see [upstream.Derived]; empty: nobody
	AskedAt time.Time // zero: never

	LastError   string    // KMS code of the last call, if it failed
	LastCause   string    // the same in words
	LastErrorAt time.Time // zero when the last call succeeded
	Failures    int       // in a row

	Pinned      bool
	Subscribers int

	// History is what happened since the start, oldest first, at most 48 events; only
	// [Cache.Entries] fills it. HistoryDropped are older ones that had to make room.
	History        []Event
	HistoryDropped int
}

// Entries returns the status of everything held, ordered by reference. It is for people and
// dashboards: it visits every entry.
func (c *Cache) Entries() []EntryStatus {
	var all []EntryStatus
	failing := c.outage.failing()
	for _, each := range c.shards {
		sh := each.lock()
		sh.each(func(e *entry) {
			s := sh.status(e, failing)
			if h := e.history; h != nil {
				s.History, s.HistoryDropped = slices.Clone(h.events), h.dropped
			}
			all = append(all, s)
		})
		sh.unlock()
	}
	slices.SortFunc(all, func(a, b EntryStatus) int {
		return cmp.Or(
			cmp.Compare(a.Ref.SecretName, b.Ref.SecretName),
			cmp.Compare(a.Ref.VersionStage, b.Ref.VersionStage),
			cmp.Compare(a.Ref.VersionID, b.Ref.VersionID))
	})
	return all
}

// Pinned returns the status of the declared secrets, in order of declaration. Unlike
// [Cache.Entries] it costs nothing that grows with the cache.
func (c *Cache) Pinned() []EntryStatus {
	pins := c.limits.Load().Pins
	all := make([]EntryStatus, 0, len(pins))
	failing := c.outage.failing()
	for _, p := range pins {
		sh := c.lock(p.Ref.SecretName)
		if e := sh.find(p.Ref); e != nil {
			all = append(all, sh.status(e, failing))
		}
		sh.unlock()
	}
	return all
}

func (sh lockedShard) status(e *entry, failing bool) EntryStatus {
	now := sh.c.now()
	s := EntryStatus{Ref: e.ref, Size: e.size, Fresh: now < e.expires, Pinned: e.pinned, Subscribers: len(e.subs)}
	wall := func(at int64) time.Time { return sh.c.clock.wall(at) }
	if e.fetchedAt != 0 {
		s.FetchedAt, s.Age = wall(e.fetchedAt), time.Duration(now-e.fetchedAt)
	}
	if e.value != nil {
		s.VersionID = e.value.VersionID
		s.VersionStages = slices.Clone(e.value.VersionStages)
		s.AskedBy, s.AskedAt = e.derived.LastAsked()
		if end := sh.end(e); (failing || e.fail != nil) && now <= end {
			s.ServedUntil = wall(end)
		}
	}
	if s.Fresh {
		s.FreshUntil = wall(e.expires)
	}
	if due, ok := sh.c.due.dueOf(e); ok {
		s.NextRefresh = wall(max(due, now))
	}
	if e.fail != nil {
		s.LastError, s.LastErrorAt, s.Failures = upstream.Reason(e.fail.err), wall(e.fail.at), e.fail.count
		s.LastCause = upstream.Explain(e.fail.err)
	}
	return s
}
