package cache

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"secretagent/upstream"
)

const opGet = "GetSecretValue"

// maxFlights bounds flights that are under way or wait for a slot.
const maxFlights = 4096

// flight is one upstream call for one entry and everyone who waits for it. An entry has at
// most one that is under way and one that follows it.
type flight struct {
	done chan struct{} // closed when the rest is known

	cause upstream.Cause // the request that made it; none in the background

	// Guarded by the shard.
	started  bool    // the upstream may have looked already
	outdated bool    // a change was announced after it started
	reported bool    // caused by Report
	next     *flight // for those who need a call that starts later

	// Written before done is closed, never after.
	background bool // nobody waited when it was made; guarded by the shard until then
	answer     upstream.Answer
	err        error
	news       bool   // what was held has changed or is gone
	begin, end uint64 // ticks around the call
	began      int64  // the call

	events []event // to be logged once the shard is free
}

// event is a log line that waits for a lock to be given up.
type event struct {
	level slog.Level
	text  string
	args  []any
}

// log writes what was noted.
func (f *flight) log(log *slog.Logger) {
	for _, ev := range f.events {
		log.Log(context.Background(), ev.level, ev.text, append(ev.args, f.cause.Attr())...)
	}
}

func (f *flight) note(level slog.Level, text string, args ...any) {
	f.events = append(f.events, event{level, text, args})
}

// calls counts flights, so that there is a bound and that [Cache.Close] can wait.
type calls struct {
	mu      sync.Mutex
	running int
	all     sync.WaitGroup
}

// begin lets one more flight begin, unless life has ended.
func (c *calls) begin(life context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if life.Err() != nil {
		return errStopped()
	}
	if c.running >= maxFlights {
		return &upstream.Error{Message: "too many fetches are waiting for the upstream", Err: upstream.ErrUnavailable}
	}
	c.running++
	c.all.Add(1)
	return nil
}

func (c *calls) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running--
	c.all.Done()
}

func (c *calls) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running
}

func errStopped() error {
	return &upstream.Error{Message: "the cache has been stopped", Err: upstream.ErrUnavailable}
}

// joinable returns the flight that a caller who comes now may wait for, or nil when it takes
// a new one. A strict caller needs an upstream call that starts after it came; everyone
// needs one that started after the last announced change.
func (sh lockedShard) joinable(e *entry, strict bool) *flight {
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
// later leave it so.
func (sh lockedShard) join(e *entry, strict bool, cause upstream.Cause) (*flight, error) {
	if f := sh.joinable(e, strict); f != nil {
		return f, nil
	}
	f := &flight{done: make(chan struct{}), cause: cause}
	if e.flight != nil {
		e.flight.next = f // the same goroutine runs it
		return f, nil
	}
	if err := sh.c.calls.begin(sh.c.life); err != nil {
		return nil, upstream.Wrap(err, opGet, e.ref)
	}
	sh.change(e)
	e.flight = f
	go sh.c.run(e, f)
	return f, nil
}

// run makes the call of f and of those that were queued behind it meanwhile.
func (c *Cache) run(e *entry, f *flight) {
	defer c.calls.end()
	for f != nil {
		value, err := c.call(e, f)
		f = c.finish(e, f, &value, err)
	}
}

// call asks the upstream under the flight's own deadline; of the callers' contexts only the
// cause reaches it.
func (c *Cache) call(e *entry, f *flight) (upstream.SecretValue, error) {
	ctx, cancel := context.WithTimeout(upstream.WithCause(c.life, f.cause), c.fetchTimeout)
	defer cancel()
	f.begin, f.began = c.tick.Add(1), c.now()
	defer func() { f.end = c.tick.Add(1) }()
	sh := c.lock(e.ref.SecretName)
	ref := e.ref
	sh.unlock()
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return upstream.SecretValue{}, c.lateError(ctx, ref, "no slot for a fetch became free")
	}

	sh = c.lock(e.ref.SecretName)
	f.started = true
	sh.unlock()
	f.begin, f.began = c.tick.Add(1), c.now()
	c.outage.begin(c.now(), c.fetchTimeout)
	value, err := c.up.GetSecretValue(ctx, ref)
	if upstream.IsContextError(err) {
		// The waiters did not give up: the upstream was late.
		err = c.lateError(ctx, ref, "the upstream did not answer")
	}
	if err == nil {
		// Here, and nowhere else, an answer becomes a value.
		err = upstream.Wrap(value.Answers(ref), opGet, ref)
	}
	return value, err
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

// finish stores what the call of f found, wakes who waited, and returns the flight to run next.
func (c *Cache) finish(e *entry, f *flight, value *upstream.SecretValue, err error) *flight {
	sh := c.lock(e.ref.SecretName)
	if e.ref.Computed {
		err = upstream.Conceal(err)
	}
	outcome, bells := sh.store(e, f, value, err)
	ref := e.ref
	next := f.next
	e.flight = next
	sh.unlock()

	c.evict()
	c.judgeClock(f)
	c.conclude(ref, f, outcome) // first: who has the answer finds the upstream judged by it
	close(f.done)
	for _, b := range bells {
		b.ring()
	}
	return next
}

// conclude draws conclusions about the upstream as a whole, and tells what f has found.
func (c *Cache) conclude(ref upstream.SecretRef, f *flight, outcome Outcome) {
	f.log(c.log)
	if c.life.Err() != nil {
		return // we hung up, the upstream did not
	}
	now := c.now()
	took := time.Duration(now - f.began)
	if upstream.Down(f.err) || upstream.Reason(f.err) == upstream.CodeInvalidAnswer { // the latter prolongs an outage, and begins none
		defer c.due.wake.ring() // while it was on its way, Run waited for its outcome
		if c.outage.failure(ref, f.err, f.began, now) {
			c.ends.soon(c.clock, 0)
			c.log.Warn("the upstream is down; last good values are served", "code", upstream.Reason(f.err), "hint", "check the upstream and the way to it: secretagent check --probe")
		}
	} else if before, ended := c.outage.success(now); ended {
		c.log.Info("the upstream answers again", "failures", before.count)
		window := recoverySpread
		if upstream.Unreached(before.err) {
			window = reachedSpread
		}
		c.due.spread(now, window)
	}
	c.log.Debug("the upstream was asked", "secret", ref.String(), "outcome", outcome.String(), "took", took, f.cause.Attr())
	c.fetches[outcome].Add(1)
	if c.observe != nil {
		c.observe(Fetch{Ref: ref, Outcome: outcome, Background: f.background, News: f.news, Duration: took})
	}
}
