package cache

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sethvargo/go-retry"

	"secretagent/upstream"
)

// outageRefs is how many different secrets must fail in a row, none succeeding in between,
// before the upstream as a whole is taken to be down. One secret that fails alone has only
// its own setback.
const outageRefs = 3

// setback is a row of failed calls with no good one in between: of one secret, or of the
// upstream as a whole. The zero value is ready to use.
type setback struct {
	err     error // of the last call
	count   int
	until   int64 // on the cache's clock; what it holds up is decided by those who set it
	backoff retry.Backoff
}

// add notes one more failed call.
func (s *setback) add(err error) {
	s.err = err
	s.count++
}

// wait returns how long to wait this time: 1s doubling to 30s, give or take a quarter.
func (s *setback) wait() time.Duration {
	if s.backoff == nil {
		s.backoff = retry.WithJitterPercent(25, retry.WithCappedDuration(30*time.Second, retry.NewExponential(time.Second)))
	}
	wait, _ := s.backoff.Next()
	return wait
}

// outage knows whether the upstream as a whole is down. While it is, refreshes wait, expired
// values are served stale at once, and one call per back-off interval probes.
type outage struct {
	down atomic.Bool

	mu      sync.Mutex
	setback                      // until: no probe before
	failed  []upstream.SecretRef // different ones since the last success, at most outageRefs
	stepped int64                // when until was last set by a failure
}

// state returns why the upstream is down and until when refreshes wait; down is false while
// it is well.
func (o *outage) state() (reason string, until int64, down bool) {
	if !o.down.Load() {
		return "", 0, false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.down.Load() {
		return "", 0, false // meanwhile
	}
	return upstream.Reason(o.err), o.until, true
}

// begin notes that a call starts now, which serves as the probe while the upstream is down:
// the next one waits for its outcome, at most for timeout.
func (o *outage) begin(now int64, timeout time.Duration) {
	if !o.down.Load() {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if now >= o.until {
		o.until = now + int64(timeout)
	}
}

// failure notes that the call for ref, which began at began, failed with err, and reports
// whether the upstream is taken to be down from now on.
func (o *outage) failure(ref upstream.SecretRef, err error, began, now int64) (opened bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.add(err)
	if o.down.Load() {
		if began < o.stepped {
			return false // of the same volley as the failure that set the interval
		}
	} else {
		if !slices.Contains(o.failed, ref) {
			o.failed = append(o.failed, ref)
		}
		if len(o.failed) < outageRefs {
			return false
		}
		opened = true
		o.down.Store(true)
	}
	o.until, o.stepped = now+int64(o.wait()), now
	return opened
}

// success notes that the upstream answered, and reports how many calls had failed before, and
// whether that ended an outage.
func (o *outage) success() (failures int, ended bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	failures, o.setback, o.failed = o.count, setback{}, o.failed[:0]
	return failures, o.down.Swap(false)
}
