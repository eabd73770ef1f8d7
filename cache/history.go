package cache

import (
	"slices"
	"sync/atomic"
	"time"

	"secretagent/upstream"
)

// How much is remembered of what happened: per reference, and of all together.
const (
	maxEvents    = 48
	maxAllEvents = 1 << 16
)

// EventKind says what happened to a reference.
type EventKind string

// The values of EventKind.
const (
	EventVersion EventKind = "version" // the value of a version came into use
	EventGone    EventKind = "gone"    // the upstream said that there is none; what was held was dropped
	EventLapsed  EventKind = "lapsed"  // what was held became too old to be served, and was dropped
	EventFailed  EventKind = "failed"  // refreshes failed, one after the other
	EventStale   EventKind = "stale"   // answers were stale
)

// Event is something that happened, or the same thing several times with no good news from
// the upstream in between.
type Event struct {
	Kind      EventKind
	VersionID upstream.VersionID // of EventVersion
	Code      string             // why, last; a KMS code
	First     time.Time
	Last      time.Time
	Count     int
}

// history is what is worth telling about an entry since the start. It is made when the first
// such thing happens, which is never on the way of a fresh hit. The lock of the shard guards
// it.
type history struct {
	events  []Event // oldest first
	dropped int     // older ones that had to go
	failed  run
	stale   run
}

// run is the place in events of what goes on at present, plus one; 0 for nothing.
type run int

// note adds one happening, or counts it to the run of its kind that goes on.
func (h *history) note(total *atomic.Int64, ev Event, open *run) {
	if open != nil && *open > 0 {
		e := &h.events[*open-1]
		e.Last, e.Code = ev.First, ev.Code
		e.Count++
		return
	}
	if len(h.events) >= maxEvents || total.Load() >= maxAllEvents {
		h.dropped++
		if len(h.events) == 0 {
			return
		}
		h.events = slices.Delete(h.events, 0, 1)
		h.failed, h.stale = max(h.failed-1, 0), max(h.stale-1, 0)
		total.Add(-1)
	}
	ev.Last, ev.Count = ev.First, 1
	h.events = append(h.events, ev)
	total.Add(1)
	if open != nil {
		*open = run(len(h.events))
	}
}

// inUse returns the version that is in use as far as the history tells; empty for none.
func (h *history) inUse() upstream.VersionID {
	for _, ev := range slices.Backward(h.events) {
		switch ev.Kind {
		case EventVersion:
			return ev.VersionID
		case EventGone, EventLapsed:
			return ""
		}
	}
	return ""
}

// settled ends what went on: the upstream has answered about the secret.
func (h *history) settled() { h.failed, h.stale = 0, 0 }

// chronicle returns the history of e, made when it is missing.
func (e *entry) chronicle() *history {
	if e.history == nil {
		e.history = &history{}
	}
	return e.history
}

// noteVersion records that the value of e is in use since at. The version before, nil for
// none, is recorded as well when nothing is known of it: it was in use when it was confirmed
// last. First values of references that nobody declared or subscribed to are not worth
// telling. The caller holds the shard.
func (c *Cache) noteVersion(e *entry, before *upstream.SecretValue, confirmed, at time.Time) {
	if e.history == nil && (before == nil && e.wanted() != held || before != nil && before.VersionID == e.value.VersionID) {
		return
	}
	h := e.chronicle()
	h.settled()
	if h.inUse() == e.value.VersionID {
		return // its labels changed, not the version
	}
	if before != nil && len(h.events) == 0 {
		h.note(&c.events, Event{Kind: EventVersion, VersionID: before.VersionID, First: confirmed.Round(0)}, nil)
	}
	h.note(&c.events, Event{Kind: EventVersion, VersionID: e.value.VersionID, First: at.Round(0)}, nil)
}

// noteFailed records a call that failed for e. References that nobody has a stake in are left
// out: clients may ask for any name. The caller holds the shard.
func (c *Cache) noteFailed(e *entry, err error, at time.Time) {
	if e.history == nil && e.value == nil && e.wanted() != held {
		return
	}
	h := e.chronicle()
	h.note(&c.events, Event{Kind: EventFailed, Code: upstream.Code(err), First: at.Round(0)}, &h.failed)
}

// noteGone records that there is no value for e, once until there is one again. The caller
// holds the shard and has not yet dropped the value.
func (c *Cache) noteGone(e *entry, err error, at time.Time) {
	if e.history == nil && e.value == nil && e.wanted() != held {
		return
	}
	h := e.chronicle()
	h.settled()
	if n := len(h.events); n > 0 && h.events[n-1].Kind == EventGone {
		open := run(n)
		h.note(&c.events, Event{Code: upstream.Code(err), First: at.Round(0)}, &open)
		return
	}
	h.note(&c.events, Event{Kind: EventGone, Code: upstream.Code(err), First: at.Round(0)}, nil)
}

// noteStale records that the value of e was given out as stale. The caller holds the shard.
func (c *Cache) noteStale(e *entry, reason string) {
	h := e.chronicle()
	h.note(&c.events, Event{Kind: EventStale, Code: reason, First: time.Now().Round(0)}, &h.stale)
}

// noteLapsed records that the value of e is too old to be served. The caller holds the shard.
func (c *Cache) noteLapsed(e *entry) {
	e.chronicle().note(&c.events, Event{Kind: EventLapsed, First: time.Now().Round(0)}, nil)
}

// forgetHistory takes what is remembered of e out of the sum. The caller forgets e.
func (c *Cache) forgetHistory(e *entry) {
	if e.history != nil {
		c.events.Add(int64(-len(e.history.events)))
		e.history = nil
	}
}
