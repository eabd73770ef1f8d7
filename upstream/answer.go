package upstream

import (
	"sync/atomic"
	"time"
)

// Freshness says how a cache came by an [Answer].
type Freshness uint8

// The values of Freshness.
const (
	Hit   Freshness = iota // held, within its lifetime
	Miss                   // fetched for this request
	Stale                  // held beyond its lifetime because the upstream cannot answer
)

// String returns hit, miss or stale.
func (f Freshness) String() string {
	switch f {
	case Hit:
		return "hit"
	case Miss:
		return "miss"
	default:
		return "stale"
	}
}

// Answer is a [SecretValue] as a cache gives it out. Copies share the value.
type Answer struct {
	Value *SecretValue // read-only

	// Derived belongs to Value and lives as long.
	Derived *Derived

	// Age is for how long the upstream had not confirmed Value when the answer was given.
	Age time.Duration

	Freshness Freshness

	// Reason is the KMS code of the failure that makes the answer stale; empty otherwise.
	Reason string
}

// Derived is what readers keep with a value: what they derived from it, so that the next reader
// of the same value need not derive it again, and who asked for it last.
type Derived struct {
	atomic.Value // what was derived
	size         atomic.Int64

	asker   atomic.Pointer[string]
	askedAt atomic.Int64
}

// Asked notes that by asked for the value at a time in nanoseconds of Unix time. What is there
// already is not written again: with a clock that stands still for a while, readers that are
// called the same leave the memory of each other's processors alone. The string must not change.
func (d *Derived) Asked(by *string, at int64) {
	if d.asker.Load() != by {
		d.asker.Store(by)
	}
	if d.askedAt.Load() != at {
		d.askedAt.Store(at)
	}
}

// LastAsked returns who asked for the value last and when; an empty name when it was not asked for.
func (d *Derived) LastAsked() (by string, at time.Time) {
	name := d.asker.Load()
	if name == nil {
		return "", time.Time{}
	}
	return *name, time.Unix(0, d.askedAt.Load())
}

// Grow says that what readers keep takes n bytes more.
func (d *Derived) Grow(n int) { d.size.Add(int64(n)) }

// Size returns how many bytes readers keep, as they said.
func (d *Derived) Size() int { return int(d.size.Load()) }

// Follow makes d go on with who asked for the value that old belongs to: the one before, or the
// same, of which nothing derived is to be kept.
func (d *Derived) Follow(old *Derived) {
	d.asker.Store(old.asker.Load())
	d.askedAt.Store(old.askedAt.Load())
}
