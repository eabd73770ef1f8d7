package cache

import (
	"slices"
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
// the upstream in between. It is also a part of the status in JSON.
type Event struct {
	Kind      EventKind          // version, gone, lapsed, failed or stale
	VersionID upstream.VersionID `json:"VersionId,omitzero"` // of EventVersion
	Code      string             `json:",omitzero"`          // why, last; a KMS code
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
	open    int     // events from here on go on until the upstream has answered about the secret
}

// endRuns ends what goes on: the upstream has answered about the secret.
func (h *history) endRuns() { h.open = len(h.events) }

// last returns the kind of the last event.
func (h *history) last() EventKind {
	if len(h.events) == 0 {
		return ""
	}
	return h.events[len(h.events)-1].Kind
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

// historyOf returns the history of e, made when it is missing.
func (sh lockedShard) historyOf(e *entry) *history {
	if e.history == nil {
		e.history = &history{}
	}
	return e.history
}

// tell adds ev to the history of e, or counts it to the one of its kind that goes on.
func (sh lockedShard) tell(e *entry, ev Event, at time.Time) {
	h := sh.historyOf(e)
	ev.First = at.Round(0)
	ev.Last, ev.Count = ev.First, 1
	for i := h.open; i < len(h.events); i++ {
		if known := &h.events[i]; known.Kind == ev.Kind {
			known.Last, known.Code = ev.Last, ev.Code
			known.Count++
			return
		}
	}
	if len(h.events) >= maxEvents || sh.c.events.Load() >= maxAllEvents {
		h.dropped++
		if len(h.events) == 0 {
			return
		}
		h.events = slices.Delete(h.events, 0, 1)
		h.open = max(h.open-1, 0)
		sh.c.events.Add(-1)
	}
	h.events = append(h.events, ev)
	sh.c.events.Add(1)
}

// tellVersion records that the value of e is in use since at. The version before, nil for
// none, is recorded as well when nothing is known of it: it was in use when it was confirmed
// last. First values of references that nobody declared or subscribed to are not worth
// telling.
func (sh lockedShard) tellVersion(e *entry, before *upstream.SecretValue, confirmed, at int64) {
	if e.history == nil && (before == nil && e.keep() != keptAlways || before != nil && before.VersionID == e.value.VersionID) {
		return
	}
	h := sh.historyOf(e)
	if before != nil && len(h.events) == 0 && before.VersionID != e.value.VersionID {
		sh.tell(e, Event{Kind: EventVersion, VersionID: before.VersionID}, sh.c.clock.wall(confirmed))
	}
	h.endRuns()
	if h.inUse() != e.value.VersionID { // or its labels changed, not the version
		sh.tell(e, Event{Kind: EventVersion, VersionID: e.value.VersionID}, sh.c.clock.wall(at))
	}
}

// tellFailure records a call that failed for e, or that there is no value for it, once until
// there is one again; the value has not been dropped yet. References without a value that are
// neither declared nor subscribed to are left out: clients may ask for any name.
func (sh lockedShard) tellFailure(e *entry, kind EventKind, err error, at int64) {
	if e.history == nil && e.value == nil && e.keep() != keptAlways {
		return
	}
	if h := sh.historyOf(e); kind == EventGone && h.last() != EventGone {
		h.endRuns()
	}
	sh.tell(e, Event{Kind: kind, Code: upstream.Reason(err)}, sh.c.clock.wall(at))
}

// forgetHistory takes what is remembered of e out of the sum; e is being forgotten.
func (sh lockedShard) forgetHistory(e *entry) {
	if e.history != nil {
		sh.c.events.Add(int64(-len(e.history.events)))
		e.history = nil
	}
}
