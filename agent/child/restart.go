package child

import (
	"math/rand/v2"
	"time"

	"github.com/sethvargo/go-retry"
	"golang.org/x/time/rate"
)

const (
	retryBase   = time.Second // between attempts to read the variables
	retryCap    = time.Minute
	retryJitter = 20 // percent

	// burstFactor bounds a burst: changes that never stop are acted upon after so many
	// times Options.Debounce.
	burstFactor = 5
)

// pace decides when a change is looked at and when it may be acted upon. It belongs to one
// goroutine.
type pace struct {
	debounce, splay time.Duration
	limiter         *rate.Limiter
	retry           retry.Backoff // nil unless the last attempt failed

	due, cutoff time.Time // of the current burst; zero when there is none
}

func newPace(opts Options) *pace {
	return &pace{
		debounce: opts.Debounce,
		splay:    opts.Splay,
		limiter:  rate.NewLimiter(rate.Every(opts.RestartWindow/time.Duration(opts.MaxRestarts)), opts.MaxRestarts),
	}
}

// notice returns how long to wait after a notice of change that arrived now: until it has
// been quiet for debounce, but not for ever.
func (p *pace) notice(now time.Time) time.Duration {
	quiet := now.Add(p.debounce)
	if p.due.IsZero() {
		p.due = quiet
		if p.splay > 0 {
			p.due = p.due.Add(rand.N(p.splay))
		}
		p.cutoff = p.due.Add((burstFactor - 1) * p.debounce)
	} else if quiet.After(p.due) {
		p.due = quiet
		if p.due.After(p.cutoff) {
			p.due = p.cutoff
		}
	}
	return max(0, p.due.Sub(now))
}

// settled ends the burst: the next notice starts another one.
func (p *pace) settled() { p.due, p.cutoff = time.Time{}, time.Time{} }

// failed returns how long to wait after a failed attempt.
func (p *pace) failed() time.Duration {
	if p.retry == nil {
		p.retry = newBackoff(retryBase, retryCap)
	}
	wait, _ := p.retry.Next() // has no end
	return wait
}

// worked says that an attempt did not fail.
func (p *pace) worked() { p.retry = nil }

// mayAct returns how long to wait before a change may be acted upon; zero for now.
func (p *pace) mayAct(now time.Time) time.Duration {
	r := p.limiter.ReserveN(now, 1)
	wait := r.DelayFrom(now)
	r.CancelAt(now)
	return wait
}

// acted counts a change that was acted upon.
func (p *pace) acted(now time.Time) { p.limiter.AllowN(now, 1) }

// newBackoff doubles from base to limit, jittered, without end.
func newBackoff(base, limit time.Duration) retry.Backoff {
	return retry.WithJitterPercent(retryJitter, retry.WithCappedDuration(limit, retry.NewExponential(base)))
}
