package render

import (
	"context"
	"errors"
	"time"

	"secretagent/upstream"
)

// maxPasses bounds how often a template is executed again because values changed between
// the reads of its first execution, or because other values made it ask for other secrets.
const maxPasses = 6

// errUnsettled is retried like every other failure.
var errUnsettled = errors.New("the secrets kept changing while they were read")

// entry is what a scope knows about one reference.
type entry struct {
	value  upstream.SecretValue
	absent error // the not-found error; nil: value is set
}

// same reports whether both say the same.
func (e entry) same(other entry) bool {
	if e.absent != nil || other.absent != nil {
		return e.absent != nil && other.absent != nil
	}
	return e.value.VersionID == other.value.VersionID && e.value.SecretData.Equal(other.value.SecretData)
}

// scope hands values to the documents of one unit during one computation. It is used by one
// goroutine.
type scope struct {
	ctx     context.Context
	src     Source
	timeout time.Duration
	watch   func(upstream.SecretRef) // called before a reference is read for the first time; may be nil

	memo map[upstream.SecretRef]entry
	used map[upstream.SecretRef]bool // :: reference → may be absent
	lazy bool                        // a value of this pass was read apart from the others
	fail error                       // why the source did not answer in this pass
}

// get returns the value of ref, reading it unless this computation already has. optional says
// that the caller can do without: an absent secret then is no reason to fail early.
func (s *scope) get(ref upstream.SecretRef, optional bool) (upstream.SecretValue, error) {
	ref = ref.WithDefaults()
	if was, seen := s.used[ref]; !seen || was && !optional {
		s.used[ref] = optional
	}
	e, known := s.memo[ref]
	if !known {
		if s.watch != nil {
			s.watch(ref)
		}
		values, err := s.read(ref)
		switch {
		case err == nil:
			e = entry{value: values[0]}
		case errors.Is(err, upstream.ErrNotFound):
			e = entry{absent: err}
		default:
			s.fail = err
			return upstream.SecretValue{}, err
		}
		s.memo[ref] = e
		s.lazy = true
	}
	return e.value, e.absent
}

// read asks the source once, within the timeout.
func (s *scope) read(refs ...upstream.SecretRef) ([]upstream.SecretValue, error) {
	ctx, cancel := context.WithTimeout(s.ctx, s.timeout)
	defer cancel()
	values, err := s.src.GetSecretValues(ctx, refs...)
	if err == nil && len(values) != len(refs) {
		return nil, errors.New("the source answered with another number of values than asked for")
	}
	return values, err
}

// readTogether reads refs from one consistent moment, except that those which may be absent
// and are get an absent entry.
func (s *scope) readTogether(refs map[upstream.SecretRef]bool) (map[upstream.SecretRef]entry, error) {
	memo := make(map[upstream.SecretRef]entry, len(refs))
	for range maxPasses {
		present := make([]upstream.SecretRef, 0, len(refs))
		for ref := range refs {
			if memo[ref].absent == nil {
				present = append(present, ref)
			}
		}
		if len(present) == 0 {
			return memo, nil
		}
		values, err := s.read(present...)
		if err == nil {
			for i, ref := range present {
				memo[ref] = entry{value: values[i]}
			}
			return memo, nil
		}
		if !errors.Is(err, upstream.ErrNotFound) {
			return nil, err
		}
		// One of them is not there. Find out which, and go on without it if that is allowed.
		missing := false
		for _, ref := range present {
			if !refs[ref] {
				continue
			}
			if _, one := s.read(ref); errors.Is(one, upstream.ErrNotFound) {
				memo[ref] = entry{absent: one}
				missing = true
			} else if one != nil {
				return nil, one
			}
		}
		if !missing {
			return nil, err
		}
	}
	return nil, errUnsettled
}

// settle runs execute until all values it used came from one consistent moment, and returns
// them. known is what the previous computation used; it makes one execution the usual case.
func (s *scope) settle(known map[upstream.SecretRef]bool, execute func() error) (map[upstream.SecretRef]entry, error) {
	s.memo = map[upstream.SecretRef]entry{}
	if len(known) > 0 {
		memo, err := s.readTogether(known)
		switch {
		case err == nil:
			s.memo = memo
		case upstream.Outage(err):
			// The same reads one by one would fail as well. Report what was asked for.
			s.used = known
			return nil, err
		default:
			// A secret that was needed last time is gone or denied. Perhaps it is not needed
			// any more: let the execution ask again.
		}
	}
	for range maxPasses {
		s.used, s.lazy, s.fail = map[upstream.SecretRef]bool{}, false, nil
		err := execute()
		if err != nil && (!s.lazy || s.fail != nil) {
			return nil, err
		}
		if err == nil && (!s.lazy || len(s.used) < 2) {
			return s.taken(), nil
		}
		memo, together := s.readTogether(s.used)
		if together != nil {
			if err != nil {
				return nil, err
			}
			return nil, together
		}
		agree := true
		for ref := range s.used {
			agree = agree && s.memo[ref].same(memo[ref])
		}
		if agree {
			return s.taken(), err
		}
		s.memo = memo
	}
	return nil, errUnsettled
}

// taken returns the entries that the last execution used.
func (s *scope) taken() map[upstream.SecretRef]entry {
	out := make(map[upstream.SecretRef]entry, len(s.used))
	for ref := range s.used {
		out[ref] = s.memo[ref]
	}
	return out
}
