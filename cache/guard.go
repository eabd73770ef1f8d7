package cache

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sethvargo/go-retry"

	"secretagent/upstream"
)

// guardRefs is how many different secrets must fail in a row, none succeeding in between,
// before the upstream as a whole is taken to be down. One secret that fails alone has only
// its own back-off.
const guardRefs = 3

// guard keeps an outage from being hammered: while it is open, refreshes wait, expired
// values are served stale at once, and one call per back-off interval probes.
type guard struct {
	open atomic.Bool

	mu       sync.Mutex
	failed   []upstream.SecretRef // different ones since the last success, at most guardRefs
	failures int                  // calls since the last success
	reason   string               // code of the last failure
	backoff  retry.Backoff
	until    int64 // no probe before, on the cache's clock
	stepped  int64 // when the back-off last advanced
}

// newBackoff returns the back-off of failing calls: 1s doubling to 30s, give or take a
// quarter.
func newBackoff() retry.Backoff {
	return retry.WithJitterPercent(25, retry.WithCappedDuration(30*time.Second, retry.NewExponential(time.Second)))
}

// blocked returns until when refreshes wait; ok is false while the upstream is well.
func (g *guard) blocked() (until int64, ok bool) {
	if !g.open.Load() {
		return 0, false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.until, g.open.Load()
}

// outage returns the reason while the guard is open.
func (g *guard) outage() (reason string, open bool) {
	if !g.open.Load() {
		return "", false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.reason, g.open.Load()
}

// begin notes that a call starts now, which serves as the probe while the guard is open:
// the next one waits for its outcome, at most for timeout.
func (g *guard) begin(now int64, timeout time.Duration) {
	if !g.open.Load() {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if now >= g.until {
		g.until = now + int64(timeout)
	}
}

// failure notes an outage of the call for ref that began at began, and reports whether that
// opened the guard.
func (g *guard) failure(ref upstream.SecretRef, code string, began, now int64) (opened bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.reason = code
	g.failures++
	if !g.open.Load() {
		if !slices.Contains(g.failed, ref) {
			g.failed = append(g.failed, ref)
		}
		if len(g.failed) < guardRefs {
			return false
		}
		g.backoff = newBackoff()
		g.open.Store(true)
		opened = true
	} else if began < g.stepped {
		return false // of the same volley as the failure that set the interval
	}
	wait, _ := g.backoff.Next()
	g.until, g.stepped = now+int64(wait), now
	return opened
}

// success notes that the upstream answered, and reports how many calls had failed before, and
// whether that closed the guard.
func (g *guard) success() (failures int, closed bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	failures, g.failures, g.failed = g.failures, 0, g.failed[:0]
	return failures, g.open.Swap(false)
}
