package cache

import (
	"context"
	"time"

	"secretagent/upstream"
)

// reportInterval is the least time between two refreshes of one secret that [Cache.Report]
// causes.
const reportInterval = 10 * time.Second

// RefreshNow returns what the upstream says now, whatever is held; callers who ask at the
// same time share one call that starts after they asked. An error is returned even when a
// value is held, and leaves that value in place, unless it says that the secret is gone.
//
// Calls that clients force are limited by [Options.ForcedPerSecond]; beyond that the error
// wraps [upstream.ErrThrottled] and the upstream is not asked.
func (c *Cache) RefreshNow(ctx context.Context, ref upstream.SecretRef) (upstream.Answer, error) {
	if err := ctx.Err(); err != nil {
		return upstream.Answer{}, err
	}
	ref = ref.WithDefaults()
	if err := ref.Validate(); err != nil {
		return upstream.Answer{}, upstream.Wrap(err, opGet, ref)
	}
	sh := c.lock(ref.SecretName)
	e := sh.obtain(ref)
	sh.touch(e, c.now())
	f, err := sh.force(ctx, e)
	sh.unlock()
	if err != nil {
		return upstream.Answer{}, err
	}
	return c.outcome(ctx, f)
}

// Report says that the value of ref was refused where it was used. However many callers
// complain, the upstream is asked at most once in ten seconds per secret, and
// within the limit of forced calls; Report answers with what it said, or, when it was not
// asked or could not answer, as [Cache.Lookup] does.
func (c *Cache) Report(ctx context.Context, ref upstream.SecretRef) (upstream.Answer, error) {
	if err := ctx.Err(); err != nil {
		return upstream.Answer{}, err
	}
	ref = ref.WithDefaults()
	sh := c.lock(ref.SecretName)
	f := sh.complain(ctx, sh.find(ref))
	sh.unlock()
	if f != nil {
		answer, err := c.outcome(ctx, f)
		if err == nil || ctx.Err() != nil {
			return answer, err
		}
	}
	return c.Lookup(ctx, ref)
}

// complain returns the flight that answers a complaint about e, or nil when a lookup does.
func (sh lockedShard) complain(ctx context.Context, e *entry) *flight {
	if e == nil || e.value == nil {
		return nil // nothing was given out that could have been refused
	}
	sh.touch(e, sh.c.now())
	for f := e.flight; f != nil; f = f.next {
		if f.reported {
			return f
		}
	}
	now := sh.c.now()
	if e.reported != 0 && now < e.reported+int64(reportInterval) {
		return nil
	}
	f, err := sh.force(ctx, e)
	if err != nil {
		return nil
	}
	e.reported = now
	f.reported = true
	return f
}

// force returns a flight whose call starts after now, taking a token when it is a new one.
func (sh lockedShard) force(ctx context.Context, e *entry) (*flight, error) {
	c := sh.c
	if f := sh.joinable(e, true); f != nil {
		return f, nil
	}
	if err := c.force(e.ref); err != nil {
		return nil, err
	}
	return sh.join(e, true, upstream.CauseOf(ctx))
}

// force takes a token for a call about ref that a client forces.
func (c *Cache) force(ref upstream.SecretRef) error {
	if c.forced.AllowN(time.Now(), 1) {
		return nil
	}
	c.throttled.Add(1)
	return &upstream.Error{
		Op: opGet, Ref: ref, Err: upstream.ErrThrottled,
		Message:    "too many refreshes are asked for",
		RetryAfter: time.Duration(float64(time.Second) / float64(c.forced.Limit())),
	}
}

// outcome waits for f and returns what the upstream said.
func (c *Cache) outcome(ctx context.Context, f *flight) (upstream.Answer, error) {
	c.waiting.Add(1)
	defer c.waiting.Add(-1)
	select {
	case <-f.done:
		return f.answer, f.err
	case <-ctx.Done():
		return upstream.Answer{}, ctx.Err()
	}
}
