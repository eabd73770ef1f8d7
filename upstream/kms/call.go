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
	Options   // complete
	endpoints []*endpoint
	budget    *budget
	breaker   *health
}

func newPolicy(o Options) *policy {
	p := &policy{Options: o, budget: newBudget(o.Budget),
		breaker: &health{limit: o.Breaker.Failures, first: o.Breaker.Pause, longest: o.Breaker.MaxPause}}
	for _, e := range o.Endpoints {
		p.endpoints = append(p.endpoints, newEndpoint(e, o.MaxConcurrent))
	}
	return p
}

// call is one operation on its way.
type call struct {
	request

	// send makes one attempt on an endpoint. Its context ends with the attempt.
	send func(ctx context.Context, e *endpoint) outcome

	deadline time.Time
	route    route
	attempts int
	lost     bool  // an earlier attempt may have been carried out
	unknown  bool  // the same, but for what our own agent has refused
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
	if c.route = newRoute(p.endpoints, c.valueOnly); len(c.route.endpoints) == 0 {
		return upstream.Wrap(&upstream.Error{Err: upstream.ErrUnsupported, Endpoint: p.endpoints[0].name, Message: fmt.Sprintf(
			"a dedicated gateway serves GetSecretValue alone; add a shared gateway (kms.%s.aliyuncs.com) to the endpoints", p.endpoints[0].Region)}, c.op, c.ref)
	}
	// Whichever comes first ends the call; only the caller's own end is the caller's error.
	c.deadline = time.Now().Add(p.Deadline)
	if d, ok := ctx.Deadline(); ok && d.Before(c.deadline) {
		c.deadline = d
	}
	timed, cancel := context.WithDeadlineCause(ctx, c.deadline, errOutOfTime)
	defer cancel()

	err := retry.Do(timed, p.backoff(c), func(ctx context.Context) error { return p.attempt(ctx, c) })
	switch {
	case err == nil:
		return nil
	case ended(ctx) != nil:
		return ended(ctx)
	case errors.Is(err, errOutOfTime), upstream.IsContextError(err):
		if err = c.last; err == nil && c.attempts == 0 {
			err = p.budget.refusal(fmt.Sprintf("its turn in the call budget of this agent did not come within %v", p.Deadline))
		} else if err == nil {
			err = &upstream.Error{Err: upstream.ErrUnavailable, Message: fmt.Sprintf("no answer within %v", p.Deadline)}
		}
	}
	err = upstream.Wrap(err, c.op, c.ref)
	if known, ok := err.(*upstream.Error); ok && c.unknown && upstream.Changes(c.op) {
		told := *known
		told.Unknown = true
		return &told
	}
	return err
}

// backoff returns the waits between the attempts of c: none while an endpoint of this round
// was not asked yet, then exponential with full jitter, never less than the service asked
// for. It stops rather than wait beyond the deadline.
func (p *policy) backoff(c *call) retry.Backoff {
	waits := retry.WithFullJitter(retry.WithCappedDuration(p.Retry.Cap, retry.NewExponential(p.Retry.Base)))
	return retry.BackoffFunc(func() (time.Duration, bool) {
		if c.attempts >= p.Retry.MaxAttempts {
			return 0, true
		}
		if c.faulted && !c.route.roundOver() {
			return 0, false
		}
		wait, stop := waits.Next()
		wait = max(wait, hintOf(c.last))
		return wait, stop || time.Now().Add(wait).After(c.deadline)
	})
}

// attempt makes one attempt. The error is a retry.RetryableError where another may do
// better.
func (p *policy) attempt(ctx context.Context, c *call) error {
	if done, err := c.done(ctx, nil); done || err != nil {
		return err
	}
	leg := c.route.next(time.Now(), c.deadline, p.Timeout)
	service, err := p.admit(ctx, c, leg)
	if err != nil {
		leg.endpoint.health.report(leg.permit, outcome{})
		if c.last != nil && !upstream.IsContextError(err) {
			return c.last // what really happened says more than that nothing was tried after it
		}
		return err
	}
	logger := p.Logger.With(upstream.CauseOf(ctx).Attr())
	out := p.send(ctx, c, leg, logger)
	p.report(out, leg, service, logger)
	if out.err == nil {
		return nil
	}
	if leg.endpoint.local() && out.fault && !out.lost && c.route.roundOver() {
		out.quit = true // nobody listens: our own agent does not run, and waiting does not start it
	}
	if out.quit {
		if done, err := c.done(ctx, out.err); done || err != nil {
			return err
		}
	}
	c.lost = c.lost || out.lost
	c.unknown = c.unknown || out.lost && !out.refused
	c.faulted, c.last = out.fault, out.err
	if !out.fault {
		c.route.restart() // this endpoint works, it only wants to be asked later
	}
	if out.quit {
		return out.err
	}
	return retry.RetryableError(out.err)
}

// done reports whether an earlier attempt whose answer was lost has done the work.
func (c *call) done(ctx context.Context, refusal error) (bool, error) {
	if !c.lost || c.resolve == nil {
		return false, nil
	}
	return c.resolve(ctx, refusal)
}

// admit waits for the budget and asks the breaker, before and after: calls that wait must not
// follow each other into a service that has failed meanwhile. Neither applies to a socket.
func (p *policy) admit(ctx context.Context, c *call, l leg) (permit, error) {
	if l.endpoint.local() {
		return permit{}, nil
	}
	if s, until := p.breaker.at(time.Now()); s == resting {
		return permit{}, p.breaker.refusal(time.Until(until))
	}
	if err := p.budget.wait(ctx, c.deadline); err != nil {
		return permit{}, err
	}
	service, ok := p.breaker.admit(time.Now())
	if !ok {
		return permit{}, p.breaker.refusal(p.breaker.first)
	}
	return service, nil
}

// send makes one attempt and tells the observer and the log how it went.
func (p *policy) send(ctx context.Context, c *call, l leg, logger *slog.Logger) outcome {
	c.attempts++
	begun := time.Now()
	attempt, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	out := c.send(attempt, l.endpoint)
	if c.ref.Computed {
		out.err = upstream.Conceal(out.err)
	}
	took := time.Since(begun)
	if p.Observe != nil {
		o := Observation{Op: c.op, Endpoint: l.endpoint.name, Attempt: c.attempts, Took: took}
		if out.err != nil {
			o.Code = codeOf(out.err)
		}
		p.Observe(o)
	}
	if out.err != nil {
		logger.Debug("attempt failed", "op", c.op, "secret", c.ref.String(), "endpoint", l.endpoint.name, "attempt", c.attempts, "took", took, "err", out.err)
	} else {
		logger.Debug("attempt answered", "op", c.op, "secret", c.ref.String(), "endpoint", l.endpoint.name, "attempt", c.attempts, "took", took)
	}
	return out
}

// report tells everyone who keeps count how an attempt ended: the endpoint, and of attempts
// over the network the budget and the breaker.
func (p *policy) report(out outcome, l leg, service permit, logger *slog.Logger) {
	switch c := l.endpoint.health.report(l.permit, out); {
	case c.rests > 0:
		logger.Log(context.Background(), levelOf(c, out), "endpoint rests", "endpoint", l.endpoint.name, "failures", c.failures, "retry_in", c.rests.Round(time.Millisecond), "err", out.err,
			"hint", "it is tried again; check the endpoint and the way to it")
	case c.recovered:
		logger.Info("endpoint is back", "endpoint", l.endpoint.name, "failures", c.failures)
	}
	if l.endpoint.local() {
		return
	}
	p.budget.report(out, logger)
	switch c := p.breaker.report(service, out); {
	case c.rests > 0:
		logger.Log(context.Background(), levelOf(c, out), "breaker open: the service fails, and is left alone until a probe succeeds", "retry_in", c.rests.Round(time.Millisecond),
			"hint", "check the endpoints and the way to them: secretagent check --probe")
	case c.recovered:
		logger.Info("breaker closed: the service answers again", "during", c.lasted.Round(time.Millisecond))
		// Nobody else has waited for what nobody served on this host.
		if nobody := upstream.Unreached(c.last.err) && !c.last.lost; !nobody || !l.endpoint.onHost() {
			p.budget.restart(c.lasted, c.last.err)
		}
	}
}

// levelOf returns the level of the line about a rest. One that follows another within a moment
// is news to nobody.
func levelOf(c change, out outcome) slog.Level {
	if c.again && upstream.Unreached(out.err) {
		return slog.LevelDebug
	}
	return slog.LevelWarn
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

// codeOf returns the code that an attempt failed with.
func codeOf(err error) string {
	if upstream.IsContextError(err) {
		return "Canceled"
	}
	return upstream.Reason(err)
}
