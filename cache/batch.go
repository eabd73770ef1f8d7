package cache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"secretagent/upstream"
)

// maxRounds bounds how often several labels of one secret are read again because they
// changed while they were read.
const maxRounds = 64

// maxParallel bounds the secrets of one batch that are looked up at the same time.
const maxParallel = 16

// LookupAll answers every reference as [Cache.Lookup] does, from one consistent moment:
// all references to one secret are answered as they were at one and the same time, so that
// two labels never mix two rotations. It asks the upstream only for what is not held, or not
// known to belong together.
//
// Both results have the length of refs; for each reference either the answer or the error is
// set. When the labels of one secret cannot be brought together, because the upstream is
// down or changes them faster than they can be read, each reference to it has an error that
// wraps [upstream.ErrUnavailable].
func (c *Cache) LookupAll(ctx context.Context, refs []upstream.SecretRef) ([]upstream.Answer, []error) {
	answers, errs := make([]upstream.Answer, len(refs)), make([]error, len(refs))
	var g errgroup.Group
	g.SetLimit(maxParallel)
	for _, group := range groupBySecret(refs) {
		if len(group.refs) == 1 {
			if answer, ok := c.Peek(group.refs[0]); ok {
				for i := range group.indices {
					answers[i] = answer
				}
				continue
			}
		}
		g.Go(func() error {
			found := c.lookupGroup(ctx, group.refs)
			for i, at := range group.indices {
				answers[i], errs[i] = found[at].answer, found[at].err
			}
			return nil
		})
	}
	_ = g.Wait() // the functions return nil
	return answers, errs
}

// GetSecretValues returns the values of [Cache.LookupAll], or, when one of them fails, no
// value and the error of the first that did, which names its reference.
func (c *Cache) GetSecretValues(ctx context.Context, refs ...upstream.SecretRef) ([]upstream.SecretValue, error) {
	answers, errs := c.LookupAll(ctx, refs)
	values := make([]upstream.SecretValue, len(refs))
	for i, ref := range refs {
		if errs[i] != nil {
			return nil, named(ref, errs[i])
		}
		values[i] = *answers[i].Value
	}
	return values, nil
}

// named returns err with ref in its text; nil for nil.
func named(ref upstream.SecretRef, err error) error {
	var detail *upstream.Error
	if err == nil || errors.As(err, &detail) && detail.Ref.WithDefaults() == ref.WithDefaults() {
		return err
	}
	return fmt.Errorf("secret %s: %w", ref, err)
}

// group is the references of a batch to one secret.
type group struct {
	refs    []upstream.SecretRef // with defaults, each once
	indices map[int]int          // :: index in the batch → index in refs
}

func groupBySecret(refs []upstream.SecretRef) []*group {
	var groups []*group
	byName := make(map[upstream.SecretName]*group, len(refs))
	for i, ref := range refs {
		ref = ref.WithDefaults()
		g := byName[ref.SecretName]
		if g == nil {
			g = &group{indices: map[int]int{}}
			byName[ref.SecretName] = g
			groups = append(groups, g)
		}
		at := slices.Index(g.refs, ref)
		if at < 0 {
			at = len(g.refs)
			g.refs = append(g.refs, ref)
		}
		g.indices[i] = at
	}
	return groups
}

// sighting is what is known about one reference of a group. The state (answer or err) held
// at every moment from tick since to tick confirmed; since is unproven when nothing was seen.
type sighting struct {
	answer           upstream.Answer
	err              error
	since, confirmed uint64
	end              uint64 // of the call that confirmed it; 0 when it was held
}

// lookupGroup answers refs, which are to one secret, from one moment.
//
//  1. Start with what is held and fresh.
//  2. Read what is missing, and what was last confirmed before the newest state was first
//     seen. A state that is the same in two reads held all the time between them.
//  3. Stop when there is a moment at which all of them held. The two reads of each then
//     lie around that moment.
func (c *Cache) lookupGroup(ctx context.Context, refs []upstream.SecretRef) []sighting {
	if len(refs) == 1 {
		answer, err := c.Lookup(ctx, refs[0])
		return []sighting{{answer: answer, err: err}}
	}
	for i, ref := range refs {
		if err := ref.Validate(); err != nil {
			// One bad label does not spoil the others.
			rest := slices.Delete(slices.Clone(refs), i, i+1)
			return slices.Insert(c.lookupGroup(ctx, rest), i, sighting{err: upstream.Wrap(err, opGet, ref)})
		}
	}
	found := make([]sighting, len(refs))
	sh := c.lock(refs[0].SecretName)
	for i, ref := range refs { // 1.
		found[i] = sh.known(ref, nil)
	}
	if together(found) {
		sh.countHits(refs, found)
		sh.unlock()
		return found
	}
	sh.unlock()

	for range maxRounds {
		if err := c.readGroup(ctx, refs, found); err != nil { // 2.
			if ctx.Err() != nil {
				return slices.Repeat([]sighting{{err: ctx.Err()}}, len(refs))
			}
			return c.heldGroup(refs, err)
		}
		if together(found) { // 3.
			c.misses.Add(uint64(len(found)))
			c.remember(refs, found)
			return found
		}
	}
	return slices.Repeat([]sighting{{err: &upstream.Error{
		Op: opGet, Ref: upstream.SecretRef{SecretName: refs[0].SecretName}, Err: upstream.ErrUnavailable,
		Message: fmt.Sprintf("its labels move faster than they can be read: no consistent answer in %d attempts", maxRounds),
	}}}, len(refs))
}

// readGroup reads those of refs for which found does not reach to the newest state. Its error
// is that of ctx, or an outage.
func (c *Cache) readGroup(ctx context.Context, refs []upstream.SecretRef, found []sighting) error {
	flights := make([]*flight, len(refs))
	newest := newestState(found)
	sh := c.lock(refs[0].SecretName)
	for i, ref := range refs {
		if found[i].since != unproven && found[i].confirmed > newest {
			continue
		}
		e := sh.obtain(ref)
		sh.touch(e, c.now())
		f, err := sh.join(e, found[i].since != unproven, upstream.CauseOf(ctx))
		if err != nil {
			sh.unlock()
			return err
		}
		flights[i] = f
	}
	sh.unlock()
	for i, f := range flights {
		if f == nil {
			continue
		}
		answer, err := c.outcome(ctx, f)
		if ctx.Err() != nil || err != nil && c.isOutage(refs[i], err) {
			return cmp.Or(ctx.Err(), err)
		}
		found[i].see(answer, err, f.begin, f.end)
	}
	return nil
}

// isOutage is what a lookup of ref would take err for.
func (c *Cache) isOutage(ref upstream.SecretRef, err error) bool {
	sh := c.lock(ref.SecretName)
	defer sh.unlock()
	if e := sh.find(ref); e != nil {
		return isOutage(e, err)
	}
	return upstream.Outage(err)
}

// remember keeps the proof that found belongs together for the next batch, where an entry
// knows less: one that was expired between the two reads has only seen the second. The
// proof goes to the sealed file as well.
func (c *Cache) remember(refs []upstream.SecretRef, found []sighting) {
	sh := c.lock(refs[0].SecretName)
	defer sh.unlock()
	for i, ref := range refs {
		e := sh.find(ref)
		if e == nil || found[i].end == 0 {
			continue
		}
		if e.since == found[i].end {
			e.since = found[i].since
		}
		if e.value != nil && e.since != unproven {
			sh.seal(e, true)
		}
	}
}

// see adds what a call between begin and end found.
func (s *sighting) see(answer upstream.Answer, err error, begin, end uint64) {
	same := s.since != unproven && sameValue(s.answer.Value, answer.Value) && upstream.Code(s.err) == upstream.Code(err)
	if !same {
		s.since = end
	}
	s.answer, s.err, s.confirmed, s.end = answer, err, begin, end
}

// newestState returns the tick at which the youngest known state was first seen.
func newestState(found []sighting) (newest uint64) {
	for i := range found {
		if found[i].since != unproven {
			newest = max(newest, found[i].since)
		}
	}
	return newest
}

// together reports whether there is a moment at which all of found held, and that they do
// not contradict each other, as they would if a label moved away and back between two reads.
func together(found []sighting) bool {
	var newest uint64
	confirmed := ^uint64(0)
	for i := range found {
		newest = max(newest, found[i].since)
		confirmed = min(confirmed, found[i].confirmed)
		for j := range i {
			a, b := found[i].answer.Value, found[j].answer.Value
			if a != nil && b != nil && contradict(a, b) {
				return false
			}
		}
	}
	return newest < confirmed
}

// known returns what is known about ref without asking: a fresh value or a refusal, or, in an
// outage, what may be served during one.
func (sh lockedShard) known(ref upstream.SecretRef, outage error) sighting {
	e, now := sh.find(ref), sh.c.now()
	switch {
	case e == nil:
	case now < e.expires:
		sh.touch(e, now)
		return sighting{answer: e.answer(now), since: e.since, confirmed: e.confirmed}
	case outage != nil && sh.servable(e, now):
		return sighting{answer: sh.asStale(e, now, upstream.Reason(outage)), since: e.since, confirmed: e.confirmed}
	case e.value == nil && e.fail != nil && !upstream.Outage(e.fail.err) && (outage != nil || now < e.fail.until):
		return sighting{err: e.fail.err, since: e.since, confirmed: e.confirmed}
	}
	return sighting{err: outage, since: unproven}
}

// heldGroup answers refs during an outage: with what is held, if it is young enough and
// known to belong together.
func (c *Cache) heldGroup(refs []upstream.SecretRef, outage error) []sighting {
	found := make([]sighting, len(refs))
	sh := c.lock(refs[0].SecretName)
	defer sh.unlock()
	for i, ref := range refs {
		found[i] = sh.known(ref, outage)
	}
	if together(found) {
		sh.countHits(refs, found)
		return found
	}
	c.errors.Add(1)
	for i, ref := range refs {
		if found[i].answer.Value != nil {
			found[i] = sighting{err: &upstream.Error{
				Op: opGet, Ref: ref, Err: upstream.ErrUnavailable, Code: upstream.Reason(outage),
				Message: "it is held, but the upstream cannot confirm that it belongs together with the other labels asked for",
			}}
		}
	}
	return found
}

// countHits counts a group that was answered from memory.
func (sh lockedShard) countHits(refs []upstream.SecretRef, found []sighting) {
	for i := range found {
		switch {
		case found[i].err != nil:
			sh.c.negatives.Add(1)
		case found[i].answer.Freshness == upstream.Stale:
			sh.countStale(sh.find(refs[i]), found[i].answer.Reason)
		default:
			sh.hits++
		}
	}
}
