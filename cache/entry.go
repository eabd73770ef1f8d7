package cache

import (
	"slices"
	"time"

	"secretagent/upstream"
)

// kept says why an entry is kept. It follows from what the entry holds; see [entry.keep].
type kept uint8

const (
	keptNot       kept = iota // there is only a flight, if that
	keptAlways                // declared or subscribed to: never evicted
	keptInLRU                 // for its value
	keptAsRefusal             // for what the upstream said, in the LRU of refusals
	kinds                     // how many there are
)

// unproven is the since of a value that is not known to have been true at any moment.
const unproven = ^uint64(0)

// urgent is the due time of a refresh that an announcement asked for.
const urgent int64 = -1

// overhead is what an entry costs beside the bytes of its texts: the entry, its place in
// index and LRU, the SecretValue and what is derived. TestOverheadPerSecret measures it.
const overhead = 640

// answerOverhead is what an encoded answer has beside the secret.
const answerOverhead = 512

// entry is what the cache knows about one reference. The lock of its shard guards it, but
// for the fields that say otherwise.
type entry struct {
	// What a hit needs comes first, to be in few cache lines.
	ref       upstream.SecretRef    // immutable, but for Computed: nobody but a template that computes it has asked for it
	expires   int64                 // end of freshness on the cache's clock; 0 when not fresh
	value     *upstream.SecretValue // nil when there is none
	derived   *upstream.Derived     // belongs to value
	fetchedAt int64                 // when the call began that last confirmed value; outlives it; 0: never
	used      int64                 // last use on the cache's clock
	kept      kept                  // as of the last rehome
	touched   bool                  // in the list of the shard
	asked     bool                  // since the last refresh
	idle      bool                  // not asked for when it was due: no refresh is scheduled
	pinned    bool
	restored  bool   // from the sealed file, and not confirmed since
	sealed    bool   // offered to the sealed file since the value was there
	next      *entry // another reference to the same secret

	// The state (value or refusal) was the same at every moment from tick since to tick
	// confirmed. since is unproven after an announced change and for a state that was
	// not yet seen.
	since, confirmed uint64

	fail     *failure      // the last call failed; nil after a success
	flight   *flight       // under way; nil when none
	subs     subscriptions // nil when none
	ttl      time.Duration // of the pin; zero for the common one
	took     time.Duration // by the call that last confirmed value
	reported int64         // last refresh caused by Report on the cache's clock; 0 for none
	history  *history      // what happened that is worth telling; nil for nothing

	size int // counted in the sums of the cache

	// Guarded by the lock of the schedule.
	due    int64
	slot   int32 // index in the heap plus one; 0 when not scheduled
	heldUp bool  // by an outage
}

// failure is why the last upstream call for an entry failed.
type failure struct {
	setback       // until: no lookup asks again before; 0: ask at once
	at      int64 // on the cache's clock

	// lapsed is the last confirmation of a value that became too old to be served.
	lapsed time.Time
}

// keep returns why e is to be kept.
func (e *entry) keep() kept {
	switch {
	case e.pinned || len(e.subs) > 0:
		return keptAlways
	case e.value != nil:
		return keptInLRU
	case e.fail != nil:
		return keptAsRefusal
	default:
		return keptNot
	}
}

// answer returns the value of e as a hit at now.
func (e *entry) answer(now int64) upstream.Answer {
	return upstream.Answer{Value: e.value, Derived: e.derived, Age: time.Duration(now - e.fetchedAt)}
}

// clear takes the value out of e.
func (e *entry) clear() {
	e.value, e.derived, e.expires = nil, nil, 0
	e.since = unproven
}

// forgetDerived drops what readers derived from the value of e, but for who asked last.
func (e *entry) forgetDerived() {
	fresh := new(upstream.Derived)
	fresh.Follow(e.derived)
	e.derived = fresh
}

// cost returns what the value of e and what readers keep with it cost in memory. Room for one
// encoded answer is counted before it is there: a value is kept in order to be asked for.
func (e *entry) cost() int {
	return sizeOf(e.value) + max(e.derived.Size(), answerOverhead+e.value.SecretData.Size())
}

// sizeOf returns what v costs in memory.
func sizeOf(v *upstream.SecretValue) int {
	n := overhead + v.SecretData.Size() + len(v.SecretName) + len(v.VersionID) + len(v.RequestID) +
		len(v.SecretDataType) + len(v.SecretType)
	for _, s := range v.VersionStages {
		n += 16 + len(s)
	}
	if m := v.Managed; m != nil {
		n += 80 + len(m.AutomaticRotation) + len(m.RotationInterval) + len(m.NextRotationDate) +
			len(m.LastRotationDate) + len(m.ExtendedConfig)
	}
	return n
}

// sameValue reports whether two reads found the same: everything but the request's own id.
func sameValue(a, b *upstream.SecretValue) bool {
	if a == nil || b == nil {
		return a == b
	}
	sameManaged := a.Managed == b.Managed || a.Managed != nil && b.Managed != nil && *a.Managed == *b.Managed
	return a.SecretName == b.SecretName && a.VersionID == b.VersionID &&
		slices.Equal(a.VersionStages, b.VersionStages) && a.SecretData.Equal(b.SecretData) &&
		a.SecretDataType == b.SecretDataType && a.SecretType == b.SecretType &&
		a.CreateTime.Equal(b.CreateTime) && sameManaged
}

// contradict reports whether two values of one secret cannot have been true together: the
// same version with other labels, or the same label on two versions.
func contradict(a, b *upstream.SecretValue) bool {
	if a.VersionID == b.VersionID {
		return !slices.Equal(a.VersionStages, b.VersionStages)
	}
	for _, s := range a.VersionStages {
		if slices.Contains(b.VersionStages, s) {
			return true
		}
	}
	return false
}
