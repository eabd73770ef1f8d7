package kms

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/sethvargo/go-retry"

	"secretagent/upstream"
)

// policy decides when and where a call is attempted, and whether again. It knows nothing of
// HTTP: sending is a function of the call.
type policy struct {
	endpoints []*endpoint
	budget    *budget
	breaker   *breaker
	timeout   time.Duration
	deadline  time.Duration
	retry     Retry
	logger    *slog.Logger
	observe   func(Observation)
}

func newPolicy(o Options, endpoints []*endpoint) *policy {
	b := newBudget(o.Budget)
	return &policy{
		endpoints: endpoints,
		budget:    b,
		breaker:   newBreaker(o.Breaker, o.Logger, b.restart),
		timeout:   o.Timeout,
		deadline:  o.Deadline,
		retry:     o.Retry,
		logger:    o.Logger,
		observe:   o.Observe,
	}
}

// call is one operation on its way.
type call struct {
	op        string
	ref       upstream.SecretRef
	valueOnly bool // a dedicated gateway serves it

	// send makes one attempt on an endpoint. Its context ends with the attempt.
	send func(ctx context.Context, e *endpoint) outcome

	// settle, where set, finds out by reading whether an earlier attempt whose answer was
	// lost has done its work. It is asked before the call is repeated, with a nil refusal,
	// and when a repetition was refused. It returns true when the work is done.
	settle func(ctx context.Context, refusal error) (bool, error)

	tour     *tour
	attempts int
	lost     bool  // an earlier attempt may have been carried out
	faulted  bool  // the last attempt failed through no fault of the request
	last     error // of the last attempt
}

// errOutOfTime is the cause of a context that the policy, not the caller, has ended.
var errOutOfTime = errors.New("the call took too long")

// do makes attempts until one is answered for good, the attempts are used up or no time is
// left. It returns the error of ctx as it is when the caller gave up, and an
// *upstream.Error in all other cases.
func (p *policy) do(ctx context.Context, c *call) error {
	if err := ended(ctx); err != nil {
		return err
	}
	c.tour = newTour(p.endpoints, c.valueOnly)
	if len(c.tour.endpoints) == 0 {
		return upstream.Wrap(&upstream.Error{Err: upstream.ErrUnsupported, Endpoint: p.endpoints[0].name, Message: fmt.Sprintf(
			"a dedicated gateway serves GetSecretValue alone; add a shared gateway (kms.%s.aliyuncs.com) to the endpoints", p.endpoints[0].Region)}, c.op, c.ref)
	}
	// Whichever comes first ends the call; only the caller's own end is the caller's error.
	deadline := time.Now().Add(p.deadline)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	timed, cancel := context.WithDeadlineCause(ctx, deadline, errOutOfTime)
	defer cancel()

	err := retry.Do(timed, p.backoff(c, deadline), func(ctx context.Context) error {
		return p.attempt(ctx, c, deadline)
	})
	switch {
	case err == nil:
		return nil
	case ended(ctx) != nil:
		return ended(ctx)
	case errors.Is(err, errOutOfTime), isContextError(err):
		if c.last == nil {
			c.last = &upstream.Error{Err: upstream.ErrUnavailable, Message: fmt.Sprintf("no answer within %v", p.deadline)}
		}
		err = c.last
	}
	return upstream.Wrap(err, c.op, c.ref)
}

// attempt makes one attempt. The error is a retry.RetryableError where another may do
// better.
func (p *policy) attempt(ctx context.Context, c *call, deadline time.Time) error {
	if c.lost && c.settle != nil {
		done, err := c.settle(ctx, nil)
		if done || err != nil {
			return err
		}
	}
	t := c.tour.next(time.Now(), deadline, p.timeout)
	out := p.send(ctx, c, t, deadline)
	if out.err == nil {
		return nil
	}
	if errors.Is(out.err, errNotTried) {
		if c.last != nil {
			// What really happened says more than that nothing was tried after it.
			return c.last
		}
		return errors.Unwrap(out.err)
	}
	if c.lost && out.quit && c.settle != nil {
		if done, err := c.settle(ctx, out.err); done || err != nil {
			return err
		}
	}
	c.lost = c.lost || out.lost
	c.faulted = out.fault
	c.last = out.err
	if !out.fault {
		c.tour.stay()
	}
	if out.quit {
		return out.err
	}
	return retry.RetryableError(out.err)
}

// errNotTried marks refusals of our own budget and breaker.
var errNotTried = errors.New("not tried")

// notTried wraps a refusal.
type notTried struct{ error }

func (e notTried) Is(target error) bool { return target == errNotTried }
func (e notTried) Unwrap() error        { return e.error }

// send passes budget and breaker, sends, and tells everyone how it went.
func (p *policy) send(ctx context.Context, c *call, t turn, deadline time.Time) outcome {
	sent := false
	logger := p.logger.With(upstream.CauseOf(ctx).Attr())
	try := func() outcome {
		sent = true
		c.attempts++
		begun := time.Now()
		ctx, cancel := context.WithTimeout(ctx, t.timeout)
		defer cancel()
		out := c.send(ctx, t.endpoint)
		took := time.Since(begun)
		if p.observe != nil {
			o := Observation{Op: c.op, Endpoint: t.endpoint.name, Attempt: c.attempts, Took: took}
			if out.err != nil {
				o.Code = codeOf(out.err)
			}
			p.observe(o)
		}
		if out.err != nil {
			logger.Debug("attempt failed", "op", c.op, "secret", c.ref.String(), "endpoint", t.endpoint.name, "attempt", c.attempts, "took", took, "err", out.err)
		} else {
			logger.Debug("attempt answered", "op", c.op, "secret", c.ref.String(), "endpoint", t.endpoint.name, "attempt", c.attempts, "took", took)
		}
		return out
	}

	var out outcome
	if t.endpoint.local() {
		out = try()
		// Nobody listens: our own agent does not run, and waiting does not start it.
		out.quit = out.quit || out.fault && !out.lost && !c.tour.open()
	} else {
		if out.err = p.breaker.refusal(); out.err == nil {
			if out.err = p.budget.wait(ctx, deadline); out.err == nil {
				out = p.breaker.run(try)
			}
		}
		if sent {
			p.budget.report(out, logger)
		}
	}
	if !sent {
		if !isContextError(out.err) {
			out.err = notTried{out.err}
		}
		out.quit = true
	}
	t.endpoint.report(t, out, time.Now(), logger)
	return out
}

// backoff returns the waits between the attempts of c: none while an endpoint of this round
// was not asked yet, then exponential with full jitter, never less than the service asked
// for. It stops rather than wait beyond the deadline.
func (p *policy) backoff(c *call, deadline time.Time) retry.Backoff {
	waits := retry.WithFullJitter(retry.WithCappedDuration(p.retry.Cap, retry.NewExponential(p.retry.Base)))
	return retry.BackoffFunc(func() (time.Duration, bool) {
		if c.attempts >= p.retry.MaxAttempts {
			return 0, true
		}
		if c.faulted && c.tour.open() {
			return 0, false
		}
		wait, stop := waits.Next()
		wait = max(wait, hintOf(c.last))
		return wait, stop || time.Now().Add(wait).After(deadline)
	})
}

// ended returns the error of ctx, also in the moment between its deadline and the timer that
// announces it: contexts derived with the same deadline end in no particular order.
func ended(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if d, ok := ctx.Deadline(); ok && !time.Now().Before(d) {
		return context.DeadlineExceeded
	}
	return nil
}

func isContextError(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// codeOf returns the code the service answered with, or that of the error's class.
func codeOf(err error) string {
	var e *upstream.Error
	if errors.As(err, &e) && e.Code != "" {
		return e.Code
	}
	if isContextError(err) {
		return "Canceled"
	}
	return upstream.Code(err)
}
