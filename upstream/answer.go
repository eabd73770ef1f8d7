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

	// Memo belongs to Value and lives as long: a reader keeps there what it derived from
	// the value, so that the next reader of the same value need not derive it again.
	Memo *atomic.Value

	// FetchedAt is when the upstream last confirmed Value.
	FetchedAt time.Time

	Freshness Freshness

	// Reason is the KMS code of the failure that makes the answer stale; empty otherwise.
	Reason string
}
