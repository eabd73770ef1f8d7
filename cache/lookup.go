package cache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"secretagent/upstream"
)

// patience is how long a lookup waits for a slow upstream when it could serve a stale value
// instead.
const patience = 2 * time.Second

// failureMemory is how long the failure of a call makes lookups of what is held not wait for
// the next one. It is longer than the longest back-off.
const failureMemory = time.Minute

// Peek returns the value of ref when it is held and fresh. It never waits for the upstream
// and allocates nothing. It counts as a use of the value; a false result counts as nothing,
// because a [Cache.Lookup] follows.
func (c *Cache) Peek(ref upstream.SecretRef) (answer upstream.Answer, ok bool) {
	ref = ref.WithDefaults()
	now := c.now()
	sh := c.lock(ref.SecretName)
	answer, ok = sh.fresh(sh.find(ref), now)
	sh.unlock()
	return answer, ok
}

// GetSecretValue returns the value of [Cache.Lookup], fresh or stale.
func (c *Cache) GetSecretValue(ctx context.Context, ref upstream.SecretRef) (upstream.SecretValue, error) {
	answer, err := c.Lookup(ctx, ref)
	if err != nil {
		return upstream.SecretValue{}, err
	}
	return *answer.Value, nil
}

// Lookup returns the value of ref: a fresh one from memory, or one that the upstream gives
// now, shared with everyone who asks at the same time, or, when the upstream cannot answer,
// the last good one, marked [upstream.Stale] with the reason. Once a call has failed, lookups
// of that value do not wait for the next call.
//
// It returns the error of ctx as soon as ctx is done, without disturbing others who wait for
// the same value. Other errors wrap the sentinels of package upstream: what the upstream
// said about the secret, at most [Limits.NegativeTTL] ago, or its outage when no value young
// enough is held.
//
//  1. What is held and fresh is the answer.
//  2. Before the back-off of the last failure has ended, so is what it said, or a stale value.
//  3. While the upstream is down, so is a stale value. When a probe is due, it is made behind
//     the lookup.
//  4. Otherwise the upstream is asked, by a flight that everyone joins, and waited for.
func (c *Cache) Lookup(ctx context.Context, ref upstream.SecretRef) (upstream.Answer, error) {
	if answer, ok := c.Peek(ref); ok { // 1.
		return answer, nil
	}
	if err := ctx.Err(); err != nil {
		return upstream.Answer{}, err
	}
	ref = ref.WithDefaults()
	if err := ref.Validate(); err != nil {
		return upstream.Answer{}, upstream.Wrap(err, opGet, ref)
	}
	sh := c.lock(ref.SecretName)
	e := sh.obtain(ref)
	f, answer, err := sh.miss(e, upstream.CauseOf(ctx))
	patient := e.value == nil
	sh.unlock()
	if f == nil {
		return answer, err
	}
	return c.await(ctx, e, f, patient) // 4.
}

// miss is a lookup from the point where nothing fresh was found. It returns the flight to
// wait for, or the answer.
func (sh lockedShard) miss(e *entry, cause upstream.Cause) (f *flight, answer upstream.Answer, err error) {
	c, now := sh.c, sh.c.now()
	if answer, ok := sh.fresh(e, now); ok { // another caller was faster
		return nil, answer, nil
	}
	sh.touch(e, now)
	if e.fail != nil && now < e.fail.until { // 2.
		answer, err = sh.instead(e, e.fail.err)
		return nil, answer, err
	}
	if reason, until, down := sh.outage(e); down { // 3.
		if answer, ok := sh.staleAnswer(e, reason); ok {
			if now >= until {
				if _, err := sh.join(e, false, cause); err == nil {
					c.outage.begin(now, c.fetchTimeout)
				}
			}
			return nil, answer, nil
		}
	}
	if f, err = sh.join(e, false, cause); err != nil { // 4.
		answer, err = sh.instead(e, err)
	}
	return f, answer, err
}

// outage reports whether the upstream is down, as a whole or for e alone, and until when it
// need not be asked.
func (sh lockedShard) outage(e *entry) (reason string, until int64, down bool) {
	reason, until, down = sh.c.outage.state()
	if e.fail != nil && e.fail.until != 0 && isOutage(e, e.fail.err) && sh.c.now()-e.fail.at < int64(failureMemory+sh.c.fetchTimeout) {
		return upstream.Reason(e.fail.err), max(until, e.fail.until), true
	}
	return reason, until, down
}

// await waits for f. An impatient caller is served what is held when the upstream is slow.
func (c *Cache) await(ctx context.Context, e *entry, f *flight, patient bool) (upstream.Answer, error) {
	c.waiting.Add(1)
	defer c.waiting.Add(-1)
	var enough <-chan time.Time
	if !patient {
		timer := time.NewTimer(patience)
		defer timer.Stop()
		enough = timer.C
	}
	for {
		select {
		case <-f.done:
			if f.err == nil {
				c.misses.Add(1)
				return f.answer, nil
			}
			sh := c.lock(e.ref.SecretName)
			defer sh.unlock()
			return sh.instead(e, f.err)
		case <-ctx.Done():
			return upstream.Answer{}, ctx.Err()
		case <-enough:
			sh := c.lock(e.ref.SecretName)
			// It may be our own budget that we wait for, after an outage that made it small.
			reason, _, _ := sh.outage(e)
			reason = cmp.Or(reason, c.outage.lately(e.fetchedAt), upstream.Code(upstream.ErrUnavailable))
			answer, ok := sh.staleAnswer(e, reason)
			sh.unlock()
			if ok {
				return answer, nil
			}
			enough = nil
		}
	}
}

// instead answers a lookup whose call failed with err: with what the upstream said, or, in an
// outage, with the held value, or, when there is none young enough, with an error.
func (sh lockedShard) instead(e *entry, err error) (upstream.Answer, error) {
	if !isOutage(e, err) {
		sh.c.negatives.Add(1)
		return upstream.Answer{}, err
	}
	if answer, ok := sh.staleAnswer(e, upstream.Reason(err)); ok {
		return answer, nil
	}
	sh.c.errors.Add(1)
	switch {
	case e.value != nil:
		err = sh.tooOldError(e, sh.c.clock.wall(e.fetchedAt))
	case e.fail != nil:
		err = sh.failureError(e)
	}
	return upstream.Answer{}, err
}

// staleAnswer returns the value of e marked as stale, and counts it, when it is young enough.
func (sh lockedShard) staleAnswer(e *entry, reason string) (answer upstream.Answer, ok bool) {
	now := sh.c.now()
	if !sh.servable(e, now) {
		return answer, false
	}
	answer = sh.asStale(e, now, reason)
	sh.countStale(e, answer.Reason)
	return answer, true
}

// asStale returns the value of e marked as stale.
func (sh lockedShard) asStale(e *entry, now int64, reason string) upstream.Answer {
	answer := e.answer(now)
	answer.Freshness, answer.Reason = upstream.Stale, reason
	if e.restored && sh.c.clock.skew() > 0 {
		answer.Reason = codeClockSkew
	}
	return answer
}

// countStale counts a stale answer, and tells it in the history of e.
func (sh lockedShard) countStale(e *entry, reason string) {
	sh.tell(e, Event{Kind: EventStale, Code: reason}, time.Now())
	if _, known := sh.stale[reason]; !known {
		reason = sh.c.reasons.bound(reason)
	}
	sh.stale[reason]++
}

// failureError returns why there is no value in e, whose last call failed.
func (sh lockedShard) failureError(e *entry) error {
	if upstream.Outage(e.fail.err) && !e.fail.lapsed.IsZero() {
		return sh.tooOldError(e, e.fail.lapsed)
	}
	return e.fail.err
}

// tooOldError says since when the upstream has not confirmed the value of e.
func (sh lockedShard) tooOldError(e *entry, fetched time.Time) error {
	err := &upstream.Error{Op: opGet, Ref: e.ref, Err: upstream.ErrUnavailable}
	bound := "no stale value may be served"
	if limits := sh.c.limits.Load(); limits.MaxStale != Never {
		bound = fmt.Sprintf("the last good value may be served for %s", limits.MaxStale)
	}
	err.Message = fmt.Sprintf("the upstream has not confirmed it since %s and %s", fetched.UTC().Format(time.RFC3339), bound)
	if e.fail != nil {
		err.Message += "; last failure: " + upstream.Reason(e.fail.err)
		var detail *upstream.Error
		if errors.As(e.fail.err, &detail) {
			err.RequestID, err.Endpoint, err.RetryAfter = detail.RequestID, detail.Endpoint, detail.RetryAfter
		}
	}
	return err
}
