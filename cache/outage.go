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
// before the upstream as a whole is taken to be down; see [upstream.Down]. One secret that fails
// alone has only its own setback, and so has each of those that are refused.
const outageRefs = 3

// reachEvery is how often an upstream that no call gets through to is tried, give or take a
// quarter. That costs it nothing, and it is to be in use again within two seconds of its return.
const reachEvery = 750 * time.Millisecond

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

// wait returns how long to wait this time, give or take a quarter: 1s doubling to 30s, but for a
// call that did not get through.
func (s *setback) wait() time.Duration {
	if upstream.Unreached(s.err) {
		s.backoff = nil
		wait, _ := retry.WithJitterPercent(25, retry.NewConstant(reachEvery)).Next()
		return wait
	}
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
	past    string               // why the upstream was down the last time
	ended   int64                // when that ended
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

// cause says in words why the upstream is down; empty while it is not, or where that is not known.
func (o *outage) cause() string {
	if !o.down.Load() {
		return ""
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return upstream.Explain(o.err)
}

// failing reports whether the last call failed.
func (o *outage) failing() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.count > 0
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
	if !o.down.Load() && !upstream.Down(err) {
		return false
	}
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

// success notes that the upstream answered. It returns the row of failures before that, and
// whether that was an outage.
func (o *outage) success(now int64) (before setback, ended bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	before, o.setback, o.failed = o.setback, setback{}, o.failed[:0]
	if ended = o.down.Swap(false); ended {
		o.past, o.ended = upstream.Reason(before.err), now
	}
	return before, ended
}

// aftermath is how long after an outage the calls that it has held up may fill the upstream, or
// what bounds our calls to it.
const aftermath = time.Minute

// lately returns why the upstream was down, when a value that was confirmed then last is late
// because of that; empty otherwise.
func (o *outage) lately(confirmed int64) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended != 0 && confirmed < o.ended+int64(aftermath) {
		return o.past
	}
	return ""
}
