package cache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"secretagent/upstream"
)

const opGet = "GetSecretValue"

// maxFlights bounds flights that are under way or wait for a slot.
const maxFlights = 4096

// maxRetryAfter bounds how long an upstream can ask to be left alone.
const maxRetryAfter = 5 * time.Minute

// flight is one upstream call for one entry and everyone who waits for it. An entry has at
// most one that is under way and one that follows it.
type flight struct {
	done chan struct{} // closed when the rest is known

	cause upstream.Cause // the request of whoever made it; none in the background

	// Guarded by the shard.
	started  bool    // the upstream may have looked already
	outdated bool    // a change was announced after it started
	reported bool    // caused by Report
	next     *flight // for those who need a call that starts later

	// Written before done is closed, never after.
	background bool // nobody waited when it was made; guarded by the shard until then
	answer     upstream.Answer
	err        error
	begin, end uint64    // ticks around the call
	beganAt    time.Time // of the call

	events []event // to be logged once the shard is free
}

// event is a log line that waits for a lock to be given up.
type event struct {
	level slog.Level
	text  string
	args  []any
}

func (f *flight) note(level slog.Level, text string, args ...any) {
	f.events = append(f.events, event{level, text, args})
}

// airspace counts flights, so that there is a bound and that [Cache.Close] can wait.
type airspace struct {
	mu     sync.Mutex
	flying int
	closed bool
	empty  chan struct{} // closed when the last one landed after close
}

func (a *airspace) enter() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return errStopped()
	}
	if a.flying >= maxFlights {
		return &upstream.Error{Message: "too many fetches are waiting for the upstream", Err: upstream.ErrUnavailable}
	}
	a.flying++
	return nil
}

func (a *airspace) leave() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.flying--
	if a.closed && a.flying == 0 {
		close(a.empty)
	}
}

// close lets no flight in any more and returns what is closed when the last one has left.
func (a *airspace) close() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.closed {
		a.closed = true
		if a.flying == 0 {
			close(a.empty)
		}
	}
	return a.empty
}

func (a *airspace) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.flying
}

func errStopped() error {
	return &upstream.Error{Message: "the cache has been stopped", Err: upstream.ErrUnavailable}
}

// joinable returns the flight that a caller who comes now may wait for, or nil when it takes
// a new one. A strict caller needs an upstream call that starts after it came; everyone
// needs one that started after the last announced change. The caller holds the shard.
func (e *entry) joinable(strict bool) *flight {
	f := e.flight
	switch {
	case f == nil:
		return nil
	case !f.started, !strict && !f.outdated:
		return f
	default:
		return f.next
	}
}

// join returns a joinable flight, started or queued behind the one under way when there is
// none. A flight has one cause, that of the caller who made it necessary; those who join it
// later leave it so. The caller holds the shard.
func (c *Cache) join(sh *shard, e *entry, strict bool, cause upstream.Cause) (*flight, error) {
	if f := e.joinable(strict); f != nil {
		return f, nil
	}
	f := &flight{done: make(chan struct{}), cause: cause}
	if e.flight != nil {
		e.flight.next = f // flown by the same goroutine
		return f, nil
	}
	if err := c.air.enter(); err != nil {
		return nil, upstream.Wrap(err, opGet, e.ref)
	}
	e.flight = f
	go c.fly(sh, e, f)
	return f, nil
}

// fly makes the call of f and of those that were queued behind it meanwhile.
func (c *Cache) fly(sh *shard, e *entry, f *flight) {
	defer c.air.leave()
	for f != nil {
		value, err := c.call(sh, e, f)
		f = c.land(sh, e, f, value, err)
	}
}

// call asks the upstream under the flight's own deadline; of the callers' contexts only the
// cause reaches it.
func (c *Cache) call(sh *shard, e *entry, f *flight) (upstream.SecretValue, error) {
	ctx, cancel := context.WithTimeout(upstream.WithCause(c.life, f.cause), c.fetchTimeout)
	defer cancel()
	f.begin, f.beganAt = c.tick.Add(1), time.Now()
	defer func() { f.end = c.tick.Add(1) }()
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return upstream.SecretValue{}, c.lateError(ctx, e.ref, "no slot for a fetch became free")
	}

	sh.mu.Lock()
	f.started = true
	sh.mu.Unlock()
	f.begin, f.beganAt = c.tick.Add(1), time.Now()
	c.guard.begin(c.now(), c.fetchTimeout)
	value, err := c.up.GetSecretValue(ctx, e.ref)
	if isContextError(err) {
		// The waiters did not give up: the upstream was late.
		err = c.lateError(ctx, e.ref, "the upstream did not answer")
	}
	return value, err
}

func isContextError(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

func (c *Cache) lateError(ctx context.Context, ref upstream.SecretRef, what string) error {
	if c.life.Err() != nil {
		return upstream.Wrap(errStopped(), opGet, ref)
	}
	if ctx.Err() != nil {
		what = fmt.Sprintf("%s within %s", what, c.fetchTimeout)
	}
	return &upstream.Error{Op: opGet, Ref: ref, Message: what, Err: upstream.ErrUnavailable}
}

// gone reports whether err is the upstream's answer that there is no value for us.
func gone(err error) bool {
	return errors.Is(err, upstream.ErrNotFound) || errors.Is(err, upstream.ErrPendingDeletion) ||
		errors.Is(err, upstream.ErrAccessDenied)
}

// land stores what the call of f found, wakes who waited, and returns the flight to fly next.
func (c *Cache) land(sh *shard, e *entry, f *flight, value upstream.SecretValue, err error) *flight {
	limits := c.limits.Load()
	var bells []*subscription
	var suspects []*entry

	// 1. Store the finding, unless it may predate an announced change: then it is good for
	// those who asked before the change, and for nothing else.
	sh.mu.Lock()
	outcome := outcomeOf(err)
	f.err = err
	switch {
	case err == nil:
		value.SecretName = sharedName(value.SecretName, e.ref.SecretName)
		changed, known := !sameValue(e.value, &value), e.value != nil
		if !changed {
			outcome = Unchanged
		} else if known {
			outcome = Changed
		}
		f.answer = upstream.Answer{Value: e.value, Memo: e.memo, FetchedAt: f.beganAt, Freshness: upstream.Miss}
		if changed {
			f.answer.Value, f.answer.Memo = &value, new(upstream.Memo)
			if e.memo != nil {
				f.answer.Memo.Follow(e.memo)
			}
		}
		if f.outdated {
			break
		}
		if changed {
			bells = e.subs.bells()
		}
		switch {
		case changed && known:
			f.note(slog.LevelInfo, "a secret changed", "secret", e.ref.String())
		case e.fail != nil && e.wanted() == held:
			f.note(slog.LevelInfo, "a secret is available again", "secret", e.ref.String(), "failures", e.fail.count)
		}
		before, confirmed := e.value, e.fetchedAt
		c.install(e, f, changed, limits)
		switch {
		case changed && e.value != nil:
			c.noteVersion(e, before, confirmed, f.beganAt)
		case e.history != nil:
			e.history.settled()
		}
		suspects = sh.suspects(e, f, changed && known)
	case f.outdated, c.life.Err() != nil:
	case gone(err):
		if e.value != nil {
			bells = e.subs.bells()
		}
		c.noteGone(e, err, f.beganAt)
		c.refused(e, f, err, limits)
	default:
		c.noteFailed(e, err, f.beganAt)
		c.failed(e, f, err, limits)
	}
	for _, s := range suspects {
		c.distrust(s)
	}
	next := f.next
	e.flight = next
	c.settle(sh, e)
	sh.mu.Unlock()

	// 2. Keep the bounds, then wake who waited.
	c.evict()
	close(f.done)
	ring(bells)

	// 3. Draw conclusions about the upstream as a whole, and tell.
	for _, ev := range f.events {
		c.log.Log(context.Background(), ev.level, ev.text, append(ev.args, f.cause.Attr())...)
	}
	now := c.now()
	if c.life.Err() != nil {
		return next // we hung up, the upstream did not
	}
	if upstream.Outage(err) {
		if c.guard.failure(e.ref, upstream.Code(err), c.at(f.beganAt), now) {
			c.log.Warn("the upstream is down; last good values are served", "code", upstream.Code(err), "hint", "check the upstream and the way to it: secretagent check --probe")
		}
	} else if failures, closed := c.guard.success(); closed {
		c.log.Info("the upstream answers again", "failures", failures)
		c.due.spread(now, recoverySpread)
	}
	c.log.Debug("the upstream was asked", "secret", e.ref.String(), "outcome", outcome.String(), "took", time.Since(f.beganAt), f.cause.Attr())
	c.fetches[outcome].Add(1)
	if c.observe != nil {
		c.observe(Fetch{Ref: e.ref, Outcome: outcome, Background: f.background, Duration: time.Since(f.beganAt)})
	}
	return next
}

// sharedName returns b when both are the same text, so that it is in memory once.
func sharedName(a, b upstream.SecretName) upstream.SecretName {
	if a == b {
		return b
	}
	return a
}

// install makes the finding of f the value of e.
func (c *Cache) install(e *entry, f *flight, changed bool, limits *Limits) {
	if changed {
		e.value, e.memo = f.answer.Value, f.answer.Memo
	}
	if changed || e.since == unproven {
		e.since = f.end
	}
	e.confirmed = f.begin
	e.fetchedAt = f.beganAt
	e.fail = nil
	e.asked = false
	e.idle = false
	if c.oversize(e, limits) {
		e.clear()
		c.unseal(e, false)
		c.due.remove(e)
		return
	}
	ttl, began := c.ttlOf(e, limits), c.at(f.beganAt)
	e.took = time.Duration(c.now() - began)
	e.expires = began + int64(ttl)
	c.due.set(e, began+refreshAfter(ttl, e.took))
	c.seal(e, changed, limits)
}

// refused drops the value of e because the upstream says there is none for us.
func (c *Cache) refused(e *entry, f *flight, err error, limits *Limits) {
	same := e.value == nil && e.fail != nil && upstream.Code(e.fail.err) == upstream.Code(err) && e.since != unproven
	if e.value != nil {
		f.note(slog.LevelWarn, "a secret is gone; its value is dropped", "secret", e.ref.String(), "code", upstream.Code(err), "hint", "restore it, or give the agent its rights back")
	}
	since := e.since
	e.clear()
	c.unseal(e, true)
	e.since, e.confirmed = f.end, f.begin
	if same {
		e.since = since
	}
	c.noteFailure(e, f, err)
	e.fail.lapsed = time.Time{}
	c.retryLater(e, err, limits)
}

// failed keeps the value of e, as long as it is young enough to be served.
func (c *Cache) failed(e *entry, f *flight, err error, limits *Limits) {
	c.noteFailure(e, f, err)
	if e.value != nil && !c.servable(e, limits) {
		f.note(slog.LevelError, "a last good value is too old to be served", "secret", e.ref.String(), "since", e.fetchedAt, "hint", "bring the upstream back, or raise cache.maxStale")
		c.lapse(e)
	}
	c.retryLater(e, err, limits)
}

// lapse drops a value that became too old to be served. The caller settles e.
func (c *Cache) lapse(e *entry) {
	c.noteLapsed(e)
	c.unseal(e, false)
	e.clear()
	if e.fail != nil {
		e.fail.lapsed = e.fetchedAt
	}
}

func (c *Cache) noteFailure(e *entry, f *flight, err error) {
	if e.fail == nil || upstream.Code(e.fail.err) != upstream.Code(err) {
		if e.fail == nil {
			e.fail = &failure{backoff: newBackoff()}
		}
		level := slog.LevelWarn
		if gone(err) && !e.pinned {
			level = slog.LevelDebug // callers may ask for any name
		}
		f.note(level, "a secret could not be fetched", "secret", e.ref.String(), "code", upstream.Code(err), "err", err, "hint", hintFor(err))
	}
	e.fail.err = err
	e.fail.at = time.Now()
	e.fail.count++
}

// hintFor says what an operator can do about a call that failed.
func hintFor(err error) string {
	switch {
	case errors.Is(err, upstream.ErrAccessDenied):
		return "give the agent the right to read it"
	case gone(err):
		return "check its name, or create or restore it"
	case errors.Is(err, upstream.ErrUnauthenticated):
		return "check the agent's credentials, and the clock of this host"
	case errors.Is(err, upstream.ErrThrottled):
		return "it is tried again; raise cache.ttl or the quota when it stays"
	}
	return "it is tried again; check the upstream when it stays"
}

// retryLater decides when lookups and when the background may try again.
func (c *Cache) retryLater(e *entry, err error, limits *Limits) {
	now := c.now()
	wait, _ := e.fail.backoff.Next()
	var detail *upstream.Error
	if errors.As(err, &detail) {
		wait = max(wait, min(detail.RetryAfter, maxRetryAfter))
	}
	patience := wait
	if e.value == nil || !upstream.Outage(err) {
		// These callers get an error, not a stale value: let them ask again soon.
		patience = max(limits.NegativeTTL, 0)
		if upstream.Outage(err) {
			patience = min(patience, wait)
		}
	}
	e.fail.until = now + int64(patience)
	switch {
	case e.wanted() == held, e.value != nil && e.asked:
		if !upstream.Outage(err) {
			wait = max(wait, patience)
		}
		c.due.set(e, now+int64(wait))
	default:
		c.due.remove(e)
		e.idle = e.value != nil
	}
}

// suspects returns the other references to the secret of e that f puts in doubt: what they
// hold contradicts the new value, or e just moved to another version and they are labels
// that usually move with it.
func (sh *shard) suspects(e *entry, f *flight, moved bool) []*entry {
	if e.value == nil {
		return nil
	}
	var found []*entry
	for s := sh.secrets[e.ref.SecretName]; s != nil; s = s.next {
		if s == e || s.confirmed > f.begin {
			continue
		}
		if moved && s.ref.VersionID == "" || s.value != nil && contradict(s.value, e.value) {
			found = append(found, s)
		}
	}
	return found
}

// distrust makes what e holds count as expired, keeps a flight under way from confirming
// it, and has it refreshed at once if anyone may want it. The caller holds the shard.
func (c *Cache) distrust(e *entry) {
	e.expires = 0
	e.since = unproven
	if e.flight != nil && e.flight.started {
		e.flight.outdated = true
	}
	if e.value != nil || e.wanted() == held {
		e.idle = false
		c.due.set(e, urgent)
	}
	if e.fail != nil {
		e.fail.until = 0
	}
}
