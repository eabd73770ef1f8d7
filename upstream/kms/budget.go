package kms

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"
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

	turn chan struct{} // held by the first of the line

	mu        sync.Mutex
	limiter   *rate.Limiter
	current   float64       // its limit
	changed   chan struct{} // closed and replaced when current or pauseTill changes
	waiting   int
	waits     uint64        // attempts that had to wait
	waited    time.Duration // how long they did, together
	refused   uint64        // attempts whose turn would have come too late
	cutAt     time.Time     // of the last throttled answer that counted
	granted   bool          // a call was, since then
	steppedAt time.Time     // when the rate last changed
	pauseTill time.Time     // as the service asked
}

func newBudget(b Budget) *budget {
	start := min(b.PerSecond, startRate)
	burst := b.Burst
	if start < b.PerSecond {
		burst = min(b.Burst, startRate)
	}
	return &budget{
		max: b.PerSecond, burst: b.Burst, current: start, granted: true,
		turn: make(chan struct{}, 1), changed: make(chan struct{}),
		limiter: rate.NewLimiter(rate.Limit(start), burst),
	}
}

// wait blocks until one attempt may start. It returns the error of ctx when that is done
// first, and [upstream.ErrThrottled] at once when the turn would come after the deadline:
// whoever can serve an older value should not wait for a refusal.
//
// Waiters stand in line for b.turn, and only the first watches the limiter: a place that was
// promised at one rate would be kept when the rate is cut.
func (b *budget) wait(ctx context.Context, deadline time.Time) error {
	b.mu.Lock()
	begun := time.Now()
	expected := b.nextLocked(begun, b.waiting)
	if begun.Add(expected).After(deadline) {
		defer b.mu.Unlock()
		return b.refuseLocked(expected)
	}
	b.waiting++
	b.mu.Unlock()
	waited := expected > 0
	defer func() {
		b.mu.Lock()
		b.waiting--
		if waited {
			b.waits++
			b.waited += time.Since(begun)
		}
		b.mu.Unlock()
	}()

	select {
	case b.turn <- struct{}{}:
		defer func() { <-b.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	for {
		now := time.Now()
		b.mu.Lock()
		wait, changed := b.nextLocked(now, 0), b.changed
		if wait <= 0 && b.limiter.AllowN(now, 1) {
			b.mu.Unlock()
			return nil
		}
		if now.Add(wait).After(deadline) {
			defer b.mu.Unlock()
			return b.refuseLocked(wait)
		}
		b.mu.Unlock()
		waited = true
		t := time.NewTimer(max(wait, time.Millisecond))
		select {
		case <-t.C:
		case <-changed:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
		t.Stop()
	}
}

// nextLocked returns how long the next call has to wait with so many before it.
func (b *budget) nextLocked(now time.Time, before int) time.Duration {
	missing := float64(before+1) - b.limiter.TokensAt(now)
	wait := time.Duration(max(missing, 0) / b.current * float64(time.Second))
	return max(wait, b.pauseTill.Sub(now))
}

func (b *budget) refuseLocked(wait time.Duration) error {
	b.refused++
	why := fmt.Sprintf("the call budget of this agent, now %.3g per second, is spent", b.current)
	if b.pauseTill.After(time.Now()) {
		why = "the service asked for a pause"
	}
	return &upstream.Error{Err: upstream.ErrThrottled, Message: why, RetryAfter: wait}
}

// report adapts the rate to the outcome of an attempt, whose cause logger adds to its lines.
func (b *budget) report(out outcome, logger *slog.Logger) {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case errors.Is(out.err, upstream.ErrThrottled):
		if hint := hintOf(out.err); hint > 0 {
			b.pauseTill = laterOf(b.pauseTill, now.Add(hint))
		}
		if now.Sub(b.cutAt) < cutAgain {
			return
		}
		factor := float64(deepCut)
		if b.granted {
			factor = cut
		}
		b.cutAt, b.steppedAt, b.granted = now, now, false
		b.setLocked(now, b.current/factor)
		logger.Warn("the service throttles; the call budget is cut", "per_second", b.current, "hint", "raise cache.ttl or the quota when it stays")
	case out.answered:
		b.granted = true
		if b.current >= b.max {
			return
		}
		step := fastStep
		if now.Sub(b.cutAt) < slowFor {
			// One step up per interval, as there is one step down: else many granted calls
			// would outweigh the refusals between them.
			if now.Sub(b.steppedAt) < cutAgain {
				return
			}
			step = slowStep
		}
		b.steppedAt = now
		b.setLocked(now, b.current*step)
	}
}

// restart makes the rate begin small after an outage, the smaller the longer it was: the
// whole fleet has by then that much to ask at once.
func (b *budget) restart(outage time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.setLocked(time.Now(), min(b.current, max(restartRate, b.current/(1+outage.Seconds()))))
}

func (b *budget) setLocked(now time.Time, perSecond float64) {
	b.current = min(max(perSecond, minPerSecond), b.max)
	burst := b.burst
	if b.current < b.max {
		burst = 1 // the rate is a guess: feel the way
		if now.Sub(b.cutAt) >= slowFor {
			burst = max(1, min(b.burst, int(b.current)))
		}
	}
	b.limiter.SetLimitAt(now, rate.Limit(b.current))
	b.limiter.SetBurstAt(now, burst)
	close(b.changed)
	b.changed = make(chan struct{})
}

// breaker stops attempts after many failures in a row. When its pause is over one attempt
// probes; while probes fail the pause doubles.
type breaker struct {
	cb       *gobreaker.CircuitBreaker[outcome]
	first    time.Duration
	max      time.Duration
	onClosed func(outage time.Duration)
	logger   *slog.Logger

	mu        sync.Mutex
	pause     time.Duration
	openSince time.Time // zero while closed
	openUntil time.Time
}

func newBreaker(b Breaker, logger *slog.Logger, onClosed func(outage time.Duration)) *breaker {
	br := &breaker{first: b.Pause, max: b.MaxPause, onClosed: onClosed, logger: logger}
	br.cb = gobreaker.NewCircuitBreaker[outcome](gobreaker.Settings{
		// The growing pause is kept here, by openUntil; gobreaker's own only must not be longer.
		Timeout:       b.Pause / 2,
		ReadyToTrip:   func(c gobreaker.Counts) bool { return int(c.ConsecutiveFailures) >= b.Failures },
		IsSuccessful:  func(err error) bool { return err == nil },
		IsExcluded:    func(err error) bool { return errors.Is(err, errUndecided) },
		OnStateChange: br.changed,
	})
	return br
}

// Verdicts for gobreaker, which knows only errors.
var (
	errFault     = errors.New("the service failed")
	errUndecided = errors.New("the attempt says nothing about the service")
)

// changed runs under gobreaker's lock.
func (b *breaker) changed(_ string, from, to gobreaker.State) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch to {
	case gobreaker.StateOpen:
		if from == gobreaker.StateHalfOpen {
			b.pause = min(b.pause*2, b.max)
		} else {
			b.pause, b.openSince = b.first, time.Now()
		}
		// Between half and all of the pause: a fleet must not probe in step.
		wait := b.pause/2 + rand.N(b.pause/2+1)
		b.openUntil = time.Now().Add(wait)
		b.logger.Warn("breaker open: the service fails, and is left alone until a probe succeeds", "retry_in", wait.Round(time.Millisecond),
			"hint", "check the endpoints and the way to them: secretagent check --probe")
	case gobreaker.StateClosed:
		outage := time.Since(b.openSince)
		b.openSince, b.openUntil = time.Time{}, time.Time{}
		b.logger.Info("breaker closed: the service answers again", "during", outage.Round(time.Millisecond))
		b.onClosed(outage)
	}
}

// refusal returns an error while no attempt may start.
func (b *breaker) refusal() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if wait := time.Until(b.openUntil); wait > 0 {
		return b.refuse(wait)
	}
	return nil
}

func (b *breaker) refuse(wait time.Duration) error {
	return &upstream.Error{Err: upstream.ErrUnavailable, RetryAfter: wait,
		Message: "the service failed too often in a row and is left alone for a while"}
}

// run lets one attempt through, or refuses.
func (b *breaker) run(attempt func() outcome) outcome {
	if err := b.refusal(); err != nil {
		return outcome{err: err, quit: true}
	}
	out, err := b.cb.Execute(func() (outcome, error) {
		out := attempt()
		switch {
		case out.fault:
			return out, errFault
		case out.answered:
			return out, nil
		default:
			return out, errUndecided
		}
	})
	if errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests) {
		return outcome{err: b.refuse(b.first), quit: true}
	}
	return out
}

// state returns closed, open or half-open, and until when an open breaker refuses.
func (b *breaker) state() (string, time.Time) {
	b.mu.Lock()
	until := b.openUntil
	b.mu.Unlock()
	if time.Now().Before(until) {
		return gobreaker.StateOpen.String(), until
	}
	if s := b.cb.State(); s != gobreaker.StateClosed {
		return gobreaker.StateHalfOpen.String(), time.Time{}
	}
	return gobreaker.StateClosed.String(), time.Time{}
}

// sleep waits for d or until ctx is done.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

func laterOf(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// hintOf returns how long the service asked to wait.
func hintOf(err error) time.Duration {
	var e *upstream.Error
	if errors.As(err, &e) {
		return e.RetryAfter
	}
	return 0
}
