package kms

import (
	"math/rand/v2"
	"sync"
	"time"

	"secretagent/upstream"
)

// health is what is known of something that is asked: of one endpoint, or of the service as a
// whole, where it is the breaker. After limit failures in a row it rests. When the rest is
// over one attempt at a time probes; the rest doubles with each probe that fails, and any
// answer ends it.
type health struct {
	limit   int           // failures in a row that begin a rest
	first   time.Duration // the first rest
	longest time.Duration

	mu          sync.Mutex
	failures    int           // in a row
	rest        time.Duration // the present one, before it is spread
	restsSince  time.Time     // when the first of the rests in a row began
	restsUntil  time.Time     // zero while it is ready
	probing     bool
	lastSuccess time.Time
	lastFailure string // code or class, never a text of the other side
}

// state is ready, resting, or due: the next attempt probes.
type state uint8

const (
	ready state = iota
	resting
	due
)

// permit is what health remembers of an attempt that began.
type permit struct {
	begun time.Time
	probe bool
}

// change is what a report has changed.
type change struct {
	rests     time.Duration // a rest has begun; zero: none has
	recovered bool          // the rests are over
	lasted    time.Duration // so long after the first began
	failures  int           // in a row until now
}

// admit reports whether an attempt may begin now. Every permit, also one that came with a
// refusal, may be reported; the permit of an admitted attempt must be.
func (h *health) admit(now time.Time) (permit, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := permit{begun: now}
	switch h.stateLocked(now) {
	case ready:
		return p, true
	case due:
		if !h.probing {
			h.probing, p.probe = true, true
			return p, true
		}
	}
	return p, false
}

// report notes how an attempt ended. One that neither was answered nor shows a fault, such as
// that of a caller who left, says nothing. Nor does a failure that began before the present
// rest: eight calls that fail together are one failure.
func (h *health) report(p permit, out outcome) change {
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	if p.probe {
		h.probing = false
	}
	rests := h.stateLocked(now) != ready
	switch {
	case out.answered:
		c := change{recovered: rests, lasted: now.Sub(h.restsSince), failures: h.failures}
		h.failures, h.restsUntil, h.lastSuccess = 0, time.Time{}, now
		return c
	case !out.fault:
		return change{}
	}
	h.lastFailure = upstream.Code(out.err)
	if rests && !p.probe && p.begun.Before(h.restsUntil) {
		return change{}
	}
	h.failures++
	switch {
	case rests:
		h.rest = min(2*h.rest, h.longest)
	case h.failures < h.limit:
		return change{}
	default:
		h.rest, h.restsSince = h.first, now
	}
	// Between half and all of the rest: a fleet must not probe in step.
	spread := h.rest/2 + rand.N(h.rest/2+1)
	h.restsUntil = now.Add(spread)
	return change{rests: spread, failures: h.failures}
}

// at returns the state and, unless it is ready, when the rest ends or ended.
func (h *health) at(now time.Time) (state, time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.stateLocked(now), h.restsUntil
}

func (h *health) stateLocked(now time.Time) state {
	switch {
	case h.restsUntil.IsZero():
		return ready
	case now.Before(h.restsUntil):
		return resting
	}
	return due
}
