package kms

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"secretagent/upstream"
)

const (
	// minPerSecond is the slowest a budget becomes: at one call in 20 seconds, 9,000 agents
	// share 450 calls per second.
	minPerSecond = 0.05

	// A budget begins with so many calls at once and per second, or with its maximum when
	// that is less: where one agent starts, thousands may be starting.
	startRate = 5

	// The rate grows by steps with every answered call: quickly while nobody complains,
	// slowly once the service has throttled us.
	fastStep = 1.5
	slowStep = 1.2
	slowFor  = 2 * time.Minute

	// A throttled answer cuts the rate, a second one at the earliest cutAgain later, and more
	// when not one call was granted in between.
	cut      = 2
	deepCut  = 4
	cutAgain = time.Second

	restartRate = 0.2 // calls per second after a long outage
)

// budget bounds the rate of attempts and adapts it to what the service grants: it is cut when
// the service throttles and grows again while calls are granted.
type budget struct {
	max   float64
	burst int

	first chan struct{} // held by the first of those who wait

	mu          sync.Mutex
	limiter     *rate.Limiter
	current     float64       // its limit
	changed     chan struct{} // closed and replaced when current or pausedUntil changes
	waiting     int
	waits       uint64        // attempts that had to wait
	waited      time.Duration // how long they did, together
	refused     uint64        // attempts whose turn would have come too late
	cutAt       time.Time     // of the last throttled answer that counted
	granted     bool          // a call was, since then
	steppedAt   time.Time     // when the rate last changed
	pausedUntil time.Time     // as the service asked
	cause       error         // of the service, why the rate is below its maximum; nil: it has given none
}

func newBudget(b Budget) *budget {
	start := min(b.PerSecond, startRate)
	burst := b.Burst
	if start < b.PerSecond {
		burst = min(b.Burst, startRate)
	}
	return &budget{
		max: b.PerSecond, burst: b.Burst, current: start, granted: true,
		first: make(chan struct{}, 1), changed: make(chan struct{}),
		limiter: rate.NewLimiter(rate.Limit(start), burst),
	}
}

// wait blocks until one attempt may start. It returns the error of ctx when that is done
// first, and at once that of what has made the budget small, or [upstream.ErrThrottled], when the
// turn would come after the deadline: a cache that can serve an older value should not wait for
// a refusal.
//
// Waiters queue for b.first, and only the first watches the limiter: a place that was
// promised at one rate would be kept when the rate is cut.
func (b *budget) wait(ctx context.Context, deadline time.Time) error {
	begun := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	wait := b.nextLocked(begun, b.waiting)
	if begun.Add(wait).After(deadline) {
		return b.refuseLocked(wait)
	}
	b.waiting++
	waited := wait > 0
	defer func() {
		b.waiting--
		if waited {
			b.waits++
			b.waited += time.Since(begun)
		}
	}()

	b.mu.Unlock()
	select {
	case b.first <- struct{}{}:
		b.mu.Lock()
		defer func() { <-b.first }()
	case <-ctx.Done():
		b.mu.Lock()
		return ctx.Err()
	}
	for ctx.Err() == nil {
		now := time.Now()
		wait := b.nextLocked(now, 0)
		if wait <= 0 && b.limiter.AllowN(now, 1) {
			return nil
		}
		if now.Add(wait).After(deadline) {
			return b.refuseLocked(wait)
		}
		waited = true
		changed := b.changed
		b.mu.Unlock()
		select {
		case <-time.After(max(wait, time.Millisecond)):
		case <-changed:
		case <-ctx.Done():
		}
		b.mu.Lock()
	}
	return ctx.Err()
}

// nextLocked returns how long the next call has to wait with so many before it.
func (b *budget) nextLocked(now time.Time, before int) time.Duration {
	missing := float64(before+1) - b.limiter.TokensAt(now)
	wait := time.Duration(max(missing, 0) / b.current * float64(time.Second))
	return max(wait, b.pausedUntil.Sub(now))
}

func (b *budget) refuseLocked(wait time.Duration) error {
	b.refused++
	why := fmt.Sprintf("the call budget of this agent, now %.3g per second, is spent", b.current)
	if b.pausedUntil.After(time.Now()) {
		why = "the service asked for a pause"
	}
	return b.becauseLocked(why, wait)
}

// refusal returns the error of a call that did not get its turn.
func (b *budget) refusal(why string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.becauseLocked(why, 0)
}

// becauseLocked returns the error of a call for which there is no room in the budget: that of
// what has made it small.
func (b *budget) becauseLocked(why string, wait time.Duration) error {
	cause := b.cause
	if cause == nil { // of our own making: the configuration allows no more
		cause = &upstream.Error{Err: upstream.ErrThrottled, Code: "CallBudget"}
	}
	e := heldBack(cause, why, wait)
	e.Unreached = false
	return e
}

// report adapts the rate to the outcome of an attempt.
func (b *budget) report(out outcome, logger *slog.Logger) {
	if perSecond, reduced := b.adapt(out); reduced {
		logger.Warn("the service throttles; the call budget is cut", "per_second", perSecond, "hint", "raise cache.ttl or the quota when it stays")
	}
}

// adapt returns the new rate when it was cut.
func (b *budget) adapt(out outcome) (perSecond float64, reduced bool) {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case errors.Is(out.err, upstream.ErrThrottled):
		if hint := hintOf(out.err); hint > 0 && now.Add(hint).After(b.pausedUntil) {
			b.pausedUntil = now.Add(hint)
		}
		if now.Sub(b.cutAt) < cutAgain {
			return 0, false
		}
		factor := float64(deepCut)
		if b.granted {
			factor = cut
		}
		b.cutAt, b.granted, b.cause = now, false, out.err
		b.setLocked(now, b.current/factor)
		return b.current, true
	case out.answered:
		b.granted = true
		step := fastStep
		if now.Sub(b.cutAt) < slowFor {
			// One step up per interval, as there is one step down: else many granted calls
			// would outweigh the refusals between them.
			if now.Sub(b.steppedAt) < cutAgain {
				return 0, false
			}
			step = slowStep
		}
		if b.current < b.max {
			b.setLocked(now, b.current*step)
		}
	}
	return 0, false
}

// restart makes the rate begin small after an outage that ended with cause, the smaller the longer
// it was: the whole fleet has by then that much to ask at once. Where no request got through it
// is no smaller than at a start.
func (b *budget) restart(outage time.Duration, cause error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	least := restartRate
	if upstream.Unreached(cause) {
		least = startRate
	}
	b.cause = cause
	b.setLocked(time.Now(), min(b.current, max(least, b.current/(1+outage.Seconds()))))
}

func (b *budget) setLocked(now time.Time, perSecond float64) {
	b.current = min(max(perSecond, minPerSecond), b.max)
	if b.current == b.max {
		b.cause = nil
	}
	b.steppedAt = now
	burst := b.burst
	if b.current < b.max {
		burst = 1 // the rate is a guess: grow from one call at a time
		if now.Sub(b.cutAt) >= slowFor {
			burst = max(1, min(b.burst, int(b.current)))
		}
	}
	b.limiter.SetLimitAt(now, rate.Limit(b.current))
	b.limiter.SetBurstAt(now, burst)
	close(b.changed)
	b.changed = make(chan struct{})
}

// hintOf returns how long the service asked to wait.
func hintOf(err error) time.Duration {
	if e, ok := errors.AsType[*upstream.Error](err); ok {
		return e.RetryAfter
	}
	return 0
}
