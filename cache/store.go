package cache

import (
	"errors"
	"log/slog"
	"time"

	"secretagent/upstream"
)

// maxRetryAfter bounds how long an upstream can ask to be left alone.
const maxRetryAfter = 5 * time.Minute

// store makes what the call of f found the state of e, and returns whom that concerns. What may
// predate an announced change is the answer for those who asked before it. A value is kept then, too, but not as
// a fresh one: who has seen it must not be served an older one when the upstream fails now.
func (sh lockedShard) store(e *entry, f *flight, value *upstream.SecretValue, err error) (outcome Outcome, bells []bell) {
	sh.change(e)
	f.err = err
	switch {
	case err == nil:
		return sh.found(e, f, value)
	case f.outdated, sh.c.life.Err() != nil:
	case upstream.Gone(err):
		if e.value != nil {
			bells, f.news = e.subs.bells(), true
		}
		sh.tellFailure(e, EventGone, err, f.began)
		sh.refused(e, f, err)
	default:
		sh.tellFailure(e, EventFailed, err, f.began)
		sh.failed(e, f, err)
	}
	return outcomeOf(err), bells
}

// found stores a value.
func (sh lockedShard) found(e *entry, f *flight, value *upstream.SecretValue) (outcome Outcome, bells []bell) {
	value.SecretName = sharedName(value.SecretName, e.ref.SecretName)
	before, confirmed := e.value, e.fetchedAt
	outcome = Unchanged
	f.answer = upstream.Answer{Value: e.value, Derived: e.derived, Age: time.Duration(sh.c.now() - f.began), Freshness: upstream.Miss}
	if !sameValue(before, value) {
		outcome = Changed
		f.answer.Value, f.answer.Derived = value, new(upstream.Derived)
		if before == nil {
			outcome = First
		} else {
			f.answer.Derived.Follow(e.derived)
		}
	}
	if outcome != Unchanged || e.restored { // that it is confirmed is news, too
		bells = e.subs.bells()
	}
	switch {
	case outcome == Changed:
		f.news = true
		f.note(slog.LevelInfo, "a secret changed", "secret", e.ref.String())
	case e.fail != nil && e.keep() == keptAlways:
		f.note(slog.LevelInfo, "a secret is available again", "secret", e.ref.String(), "failures", e.fail.count)
	}
	sh.install(e, f, outcome != Unchanged)
	switch {
	case outcome != Unchanged && e.value != nil:
		sh.tellVersion(e, before, confirmed, f.began)
	case e.history != nil:
		e.history.endRuns()
	}
	for _, other := range sh.contradicted(e, f, outcome == Changed) {
		sh.expire(other)
	}
	if f.outdated {
		sh.expire(e)
	}
	return outcome, bells
}

// sharedName returns b when both are the same text, so that it is in memory once.
func sharedName(a, b upstream.SecretName) upstream.SecretName {
	if a == b {
		return b
	}
	return a
}

// install makes the finding of f the value of e.
func (sh lockedShard) install(e *entry, f *flight, changed bool) {
	c := sh.c
	if changed {
		e.value, e.derived = f.answer.Value, f.answer.Derived
	}
	if changed || e.since == unproven {
		e.since = f.end
	}
	e.confirmed = f.begin
	e.fetchedAt, e.restored = f.began, false
	e.fail = nil
	e.asked = false
	e.idle = false
	if sh.oversize(e) {
		e.clear()
		sh.unseal(e, false)
		c.due.remove(e)
		return
	}
	ttl := sh.ttlOf(e)
	e.took = time.Duration(c.now() - f.began)
	e.expires = f.began + int64(ttl)
	c.due.set(e, f.began+refreshAfter(ttl, e.took))
	sh.seal(e, changed)
}

// oversize reports, and counts, that the value of e is not to be kept: it would push everything
// else out and then go itself.
func (sh lockedShard) oversize(e *entry) bool {
	if int64(e.cost()) <= sh.c.limits.Load().MaxBytes || e.keep() == keptAlways {
		return false
	}
	sh.c.oversized.Add(1)
	return true
}

// refused drops the value of e because the upstream says there is none for us.
func (sh lockedShard) refused(e *entry, f *flight, err error) {
	same := e.value == nil && e.fail != nil && upstream.Code(e.fail.err) == upstream.Code(err) && e.since != unproven
	if e.value != nil {
		f.note(slog.LevelWarn, "a secret is gone; its value is dropped", "secret", e.ref.String(), "code", upstream.Reason(err), "hint", "restore it, or give the agent its rights back")
	}
	since := e.since
	e.clear()
	sh.unseal(e, true)
	e.since, e.confirmed = f.end, f.begin
	if same {
		e.since = since
	}
	sh.noteFailure(e, f, err)
	e.fail.lapsed = time.Time{}
	sh.retryLater(e, err)
}

// failed keeps the value of e, as long as it is young enough to be served.
func (sh lockedShard) failed(e *entry, f *flight, err error) {
	sh.noteFailure(e, f, err)
	switch {
	case e.value == nil:
	case sh.ended(e, sh.c.now()):
		sh.lapse(e, f)
	default:
		sh.c.ends.soon(sh.c.clock, sh.end(e))
	}
	sh.retryLater(e, err)
}

func (sh lockedShard) noteFailure(e *entry, f *flight, err error) {
	if e.fail == nil || upstream.Reason(e.fail.err) != upstream.Reason(err) {
		if e.fail == nil {
			e.fail = &failure{}
		}
		level := slog.LevelWarn
		if upstream.Gone(err) && !e.pinned {
			level = slog.LevelDebug // callers may ask for any name
		}
		f.note(level, "a secret could not be fetched", "secret", e.ref.String(), "code", upstream.Reason(err), "err", err, "hint", hintFor(err))
	}
	e.fail.add(err)
	e.fail.at = sh.c.now()
}

// hintFor says what an operator can do about a call that failed.
func hintFor(err error) string {
	switch {
	case errors.Is(err, upstream.ErrAccessDenied):
		return "give the agent the right to read it"
	case upstream.Gone(err):
		return "check its name, or create or restore it"
	case errors.Is(err, upstream.ErrUnauthenticated), errors.Is(err, upstream.ErrNoCredentials):
		return "check the agent's credentials"
	case errors.Is(err, upstream.ErrClockSkew):
		return "set the clock of this host"
	case errors.Is(err, upstream.ErrThrottled):
		return "it is tried again; raise cache.ttl or the quota when it stays"
	}
	return "it is tried again; check the upstream when it stays"
}

// isOutage reports whether err, of a call for e, says nothing about the secret. Where a value is
// held the question was a good one, and a refusal of it says as little.
func isOutage(e *entry, err error) bool {
	return upstream.Outage(err) || e.value != nil && !upstream.Gone(err)
}

// retryLater decides when lookups and when the background may try again.
func (sh lockedShard) retryLater(e *entry, err error) {
	c, outage := sh.c, isOutage(e, err)
	now, wait := c.now(), e.fail.wait()
	told := false // how long to leave it alone
	if detail, ok := errors.AsType[*upstream.Error](err); ok && detail.RetryAfter > wait {
		told, wait = true, min(detail.RetryAfter, maxRetryAfter)
	}
	lookups := wait
	if e.value == nil || !outage {
		// These callers get an error, not a stale value: let them ask again soon.
		lookups = max(c.limits.Load().NegativeTTL, 0)
		if outage {
			lookups = min(lookups, wait)
		}
	}
	e.fail.until = now + int64(lookups)
	if e.keep() != keptAlways && (e.value == nil || !sh.wanted(e)) {
		c.due.remove(e)
		e.idle = e.value != nil
		return
	}
	switch {
	case !outage:
		c.due.set(e, now+int64(max(wait, lookups)))
	case told || !upstream.Down(err):
		c.due.set(e, now+int64(wait)) // whatever becomes of the upstream meanwhile
	default:
		c.due.setRetry(e, now+int64(wait))
	}
}

// contradicted returns the other references to the secret of e that f puts in doubt: what they
// hold contradicts the new value, or e just moved to another version and they are labels
// that usually move with it.
func (sh lockedShard) contradicted(e *entry, f *flight, moved bool) []*entry {
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

// expire makes what e holds count as expired, keeps a flight under way from confirming
// it, and has it refreshed at once if anyone may want it.
func (sh lockedShard) expire(e *entry) {
	e.expires = 0
	e.since = unproven
	if e.flight != nil && e.flight.started {
		e.flight.outdated = true
	}
	if e.value != nil || e.keep() == keptAlways {
		e.idle = false
		sh.c.due.set(e, urgent)
	}
	if e.fail != nil {
		e.fail.until = 0
	}
}
