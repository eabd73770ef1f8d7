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

	// Where in events is what goes on at present, plus one; 0 for nothing.
	failed, stale int
}

// note adds one happening, or counts it to the one at open of its kind that goes on.
func (h *history) note(total *atomic.Int64, ev Event, open *int) {
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
		*open = len(h.events)
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

// endRuns ends what went on: the upstream has answered about the secret.
func (h *history) endRuns() { h.failed, h.stale = 0, 0 }

// historyOf returns the history of e, made when it is missing.
func (sh lockedShard) historyOf(e *entry) *history {
	if e.history == nil {
		e.history = &history{}
	}
	return e.history
}

// noteVersion records that the value of e is in use since at. The version before, nil for
// none, is recorded as well when nothing is known of it: it was in use when it was confirmed
// last. First values of references that nobody declared or subscribed to are not worth
// telling.
func (sh lockedShard) noteVersion(e *entry, before *upstream.SecretValue, confirmed, at time.Time) {
	if e.history == nil && (before == nil && e.keep() != keptAlways || before != nil && before.VersionID == e.value.VersionID) {
		return
	}
	h := sh.historyOf(e)
	h.endRuns()
	if h.inUse() == e.value.VersionID {
		return // its labels changed, not the version
	}
	if before != nil && len(h.events) == 0 {
		h.note(&sh.c.events, Event{Kind: EventVersion, VersionID: before.VersionID, First: confirmed.Round(0)}, nil)
	}
	h.note(&sh.c.events, Event{Kind: EventVersion, VersionID: e.value.VersionID, First: at.Round(0)}, nil)
}

// noteFailed records a call that failed for e. References without a value that are neither
// declared nor subscribed to are left out: clients may ask for any name.
func (sh lockedShard) noteFailed(e *entry, err error, at time.Time) {
	if e.history == nil && e.value == nil && e.keep() != keptAlways {
		return
	}
	h := sh.historyOf(e)
	h.note(&sh.c.events, Event{Kind: EventFailed, Code: upstream.Code(err), First: at.Round(0)}, &h.failed)
}

// noteGone records that there is no value for e, once until there is one again. The value
// has not been dropped yet.
func (sh lockedShard) noteGone(e *entry, err error, at time.Time) {
	if e.history == nil && e.value == nil && e.keep() != keptAlways {
		return
	}
	h := sh.historyOf(e)
	h.endRuns()
	if n := len(h.events); n > 0 && h.events[n-1].Kind == EventGone {
		open := n
		h.note(&sh.c.events, Event{Code: upstream.Code(err), First: at.Round(0)}, &open)
		return
	}
	h.note(&sh.c.events, Event{Kind: EventGone, Code: upstream.Code(err), First: at.Round(0)}, nil)
}

// noteStale records that the value of e was given out as stale.
func (sh lockedShard) noteStale(e *entry, reason string) {
	h := sh.historyOf(e)
	h.note(&sh.c.events, Event{Kind: EventStale, Code: reason, First: time.Now().Round(0)}, &h.stale)
}

// noteLapsed records that the value of e is too old to be served.
func (sh lockedShard) noteLapsed(e *entry) {
	sh.historyOf(e).note(&sh.c.events, Event{Kind: EventLapsed, First: time.Now().Round(0)}, nil)
}

// forgetHistory takes what is remembered of e out of the sum; e is being forgotten.
func (sh lockedShard) forgetHistory(e *entry) {
	if e.history != nil {
		sh.c.events.Add(int64(-len(e.history.events)))
		e.history = nil
	}
}
