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
	// minPerSecond is the slowest a budget becomes: one call in about half a minute, which
	// lets 13,000 agents share 450 calls per second.
	minPerSecond = 0.03

	// After trouble the rate grows by steps with every answered call: quickly while nobody
	// complains, slowly once the service has throttled us.
	fastStep    = 1.5
	slowStep    = 1.1
	slowFor     = 2 * time.Minute
	cutAgain    = time.Second // a burst of refusals counts once
	restartRate = 0.2         // calls per second after an outage
)

// budget bounds the rate of attempts and adapts it to what the service grants: it halves
// when the service throttles and grows again while calls are answered.
type budget struct {
	max    float64
	burst  int
	logger *slog.Logger

	limiter *rate.Limiter // its limit is changed under mu only

	mu        sync.Mutex
	current   float64
	cutAt     time.Time // of the last throttled answer that counted
	pauseTill time.Time // as the service asked
}

func newBudget(b Budget, logger *slog.Logger) *budget {
	return &budget{
		max: b.PerSecond, burst: b.Burst, current: b.PerSecond, logger: logger,
		limiter: rate.NewLimiter(rate.Limit(b.PerSecond), b.Burst),
	}
}

// wait blocks until one attempt may start. It returns the error of ctx when that is done
// first, and [upstream.ErrThrottled] at once when the turn would come after the deadline:
// whoever can serve an older value should not wait for a refusal.
func (b *budget) wait(ctx context.Context, deadline time.Time) error {
	now := time.Now()
	b.mu.Lock()
	pause := b.pauseTill.Sub(now)
	b.mu.Unlock()
	if pause > 0 {
		if now.Add(pause).After(deadline) {
			return b.refuse("the service asked for a pause", pause)
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
		now = time.Now()
	}
	r := b.limiter.ReserveN(now, 1)
	delay := r.DelayFrom(now)
	if now.Add(delay).After(deadline) {
		r.CancelAt(now)
		return b.refuse(fmt.Sprintf("the call budget of this agent, now %.3g per second, is spent", float64(b.limiter.Limit())), delay)
	}
	if err := sleep(ctx, delay); err != nil {
		r.Cancel()
		return err
	}
	return nil
}

func (b *budget) refuse(why string, wait time.Duration) error {
	return &upstream.Error{Err: upstream.ErrThrottled, Message: why, RetryAfter: wait}
}

// report adapts the rate to the outcome of an attempt.
func (b *budget) report(out outcome) {
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
		b.cutAt = now
		b.setLocked(now, b.current/2)
		b.logger.Warn("the service throttles, the call budget is cut", "perSecond", b.current)
	case out.answered && b.current < b.max:
		step := fastStep
		if now.Sub(b.cutAt) < slowFor {
			step = slowStep
		}
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
		burst = max(1, min(b.burst, int(b.current)))
	}
	b.limiter.SetLimitAt(now, rate.Limit(b.current))
	b.limiter.SetBurstAt(now, burst)
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
		b.logger.Warn("breaker open: the service fails, calls are refused until a probe succeeds", "pause", wait.Round(time.Millisecond))
	case gobreaker.StateClosed:
		outage := time.Since(b.openSince)
		b.openSince, b.openUntil = time.Time{}, time.Time{}
		b.logger.Info("breaker closed: the service answers again", "outage", outage.Round(time.Millisecond))
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
