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

// timing decides when variables are read again after a notice of change, and when a change
// may be acted upon. It belongs to one goroutine.
type timing struct {
	debounce, splay time.Duration
	limiter         *rate.Limiter
	retry           retry.Backoff // nil unless the last attempt failed

	due, cutoff time.Time // of the current burst; zero when there is none
}

func newTiming(opts Options) *timing {
	return &timing{
		debounce: opts.Debounce,
		splay:    opts.Splay,
		limiter:  rate.NewLimiter(rate.Every(opts.RestartWindow/time.Duration(opts.MaxRestarts)), opts.MaxRestarts),
	}
}

// noticed returns how long to wait after a notice of change that arrived now: until it has
// been quiet for debounce, but not for ever.
func (t *timing) noticed(now time.Time) time.Duration {
	quiet := now.Add(t.debounce)
	if t.due.IsZero() {
		t.due = quiet
		if t.splay > 0 {
			t.due = t.due.Add(rand.N(t.splay))
		}
		t.cutoff = t.due.Add((burstFactor - 1) * t.debounce)
	} else if quiet.After(t.due) {
		t.due = quiet
	}
	if t.due.After(t.cutoff) {
		t.due = t.cutoff
	}
	return max(0, t.due.Sub(now))
}

// endBurst makes the next notice start another burst.
func (t *timing) endBurst() { t.due, t.cutoff = time.Time{}, time.Time{} }

// failed returns how long to wait after a failed attempt.
func (t *timing) failed() time.Duration {
	if t.retry == nil {
		t.retry = newBackoff(retryBase, retryCap)
	}
	wait, _ := t.retry.Next() // it has no end
	return wait
}

// succeeded says that an attempt did not fail.
func (t *timing) succeeded() { t.retry = nil }

// mayAct returns how long to wait before a change may be acted upon; zero for now.
func (t *timing) mayAct(now time.Time) time.Duration {
	r := t.limiter.ReserveN(now, 1)
	wait := r.DelayFrom(now)
	r.CancelAt(now)
	return wait
}

// acted counts a change that was acted upon.
func (t *timing) acted(now time.Time) { t.limiter.AllowN(now, 1) }

// newBackoff doubles from base to limit, jittered, without end.
func newBackoff(base, limit time.Duration) retry.Backoff {
	return retry.WithJitterPercent(retryJitter, retry.WithCappedDuration(limit, retry.NewExponential(base)))
}
