package kms

import (
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"secretagent/upstream"
)

// unreachedRest is the longest rest of what no request got through to, which costs nobody
// anything to try. It ends before the cache asks again.
const unreachedRest = 500 * time.Millisecond

// health is what is known of something that is asked: of one endpoint, or of the service as a
// whole, where it is the breaker. After limit failures in a row it rests. When the rest is
// over one attempt at a time probes; the rest doubles with each probe that fails, but for one
// that nobody took, and any answer ends it.
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
	last        outcome // that was a failure; zero: there was none
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
	again     bool          // and it is not the first
	recovered bool          // the rests are over
	last      outcome       // the failure before that
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
		c := change{recovered: rests, last: h.last, lasted: now.Sub(h.restsSince), failures: h.failures}
		h.failures, h.restsUntil, h.lastSuccess = 0, time.Time{}, now
		return c
	case !out.fault:
		return change{}
	}
	h.last = out
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
	if upstream.Unreached(out.err) {
		h.rest = min(h.rest, unreachedRest)
	}
	// Between half and all of the rest: a fleet must not probe in step.
	spread := h.rest/2 + rand.N(h.rest/2+1)
	h.restsUntil = now.Add(spread)
	return change{rests: spread, again: rests, failures: h.failures}
}

// refusal returns the error of a call that is not made because h rests: that of the last
// failure, for this is what keeps the call from being answered.
func (h *health) refusal(wait time.Duration) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return heldBack(h.last.err, "it failed too often in a row and is left alone for a while", wait)
}

// heldBack returns the error of a call that we do not make because of cause: of the same kind
// and with the same code, but with our own words before what was said then. What only the call
// of cause can be told is left out. A cause that says something about a secret or a question says
// nothing about any other: then the error is that nothing is known.
func heldBack(cause error, why string, wait time.Duration) *upstream.Error {
	e := &upstream.Error{Err: upstream.ErrUnavailable, Message: why, RetryAfter: wait}
	if last, ok := errors.AsType[*upstream.Error](cause); ok && upstream.Down(last) {
		e.Err, e.Code, e.Endpoint, e.Unreached = last.Err, last.Code, last.Endpoint, last.Unreached
		e.Message = strings.TrimSuffix(why+"; "+last.Message, "; ")
	}
	return e
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
