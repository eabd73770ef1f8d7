package render

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"secretagent/upstream"
)

// maxPasses bounds how often a template is executed again because values changed between
// the reads of its first execution, or because other values made it ask for other secrets.
const maxPasses = 6

// errKeptChanging is retried like every other failure.
var errKeptChanging = errors.New("the secrets kept changing while they were read")

// entry is what a secretReader knows about one reference.
type entry struct {
	value  upstream.SecretValue
	absent error // the not-found error; nil: value is set
}

// same reports whether both say the same. What is absent has the zero value.
func (e entry) same(other entry) bool {
	return (e.absent == nil) == (other.absent == nil) &&
		e.value.VersionID == other.value.VersionID && e.value.SecretData.Equal(other.value.SecretData)
}

// secretReader reads the secrets of one target during one computation. One goroutine uses it.
type secretReader struct {
	ctx     context.Context
	src     Source
	timeout time.Duration
	watch   func(upstream.SecretRef) // called before a reference is read for the first time

	entries   map[upstream.SecretRef]entry
	used      map[upstream.SecretRef]bool // :: reference used in this pass → may be absent
	readAlone bool                        // a value of this pass was read apart from the others
	failed    bool                        // the source did not answer in this pass
}

// get returns the value of ref, reading it unless this computation already has. optional says
// that the caller can do without: an absent secret then is no reason to fail early.
func (s *secretReader) get(ref upstream.SecretRef, optional bool) (upstream.SecretValue, error) {
	ref = ref.WithDefaults()
	if was, seen := s.used[ref]; !seen || was && !optional {
		s.used[ref] = optional
	}
	e, known := s.entries[ref]
	if !known {
		s.watch(ref)
		values, err := s.read(ref)
		switch {
		case err == nil:
			e = entry{value: values[0]}
		case errors.Is(err, upstream.ErrNotFound):
			e = entry{absent: err}
		default:
			s.failed = true
			return upstream.SecretValue{}, err
		}
		s.entries[ref] = e
		s.readAlone = true
	}
	return e.value, e.absent
}

// read asks the source once, within the timeout. An error that is not known to be about a
// reference that the template spells out shows none.
func (s *secretReader) read(refs ...upstream.SecretRef) ([]upstream.SecretValue, error) {
	ctx, cancel := context.WithTimeout(s.ctx, s.timeout)
	defer cancel()
	values, err := s.src.GetSecretValues(ctx, refs...)
	if err == nil && len(values) != len(refs) {
		return nil, errors.New("the source answered with another number of values than asked for")
	}
	if err != nil && slices.ContainsFunc(refs, func(ref upstream.SecretRef) bool { return ref.Computed }) {
		if e, ok := errors.AsType[*upstream.Error](err); !ok || e.Ref.Computed || !slices.Contains(refs, e.Ref.WithDefaults()) {
			err = upstream.Conceal(err)
		}
	}
	return values, err
}

// readTogether reads refs from one consistent moment, except that those which may be absent
// and are get an absent entry.
func (s *secretReader) readTogether(refs map[upstream.SecretRef]bool) (map[upstream.SecretRef]entry, error) {
	entries := make(map[upstream.SecretRef]entry, len(refs))
	for range maxPasses {
		present := make([]upstream.SecretRef, 0, len(refs))
		for ref := range refs {
			if entries[ref].absent == nil {
				present = append(present, ref)
			}
		}
		if len(present) == 0 {
			return entries, nil
		}
		values, err := s.read(present...)
		if err == nil {
			for i, ref := range present {
				entries[ref] = entry{value: values[i]}
			}
			return entries, nil
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
				entries[ref] = entry{absent: one}
				missing = true
			} else if one != nil {
				return nil, one
			}
		}
		if !missing {
			return nil, err
		}
	}
	return nil, errKeptChanging
}

// atOneMoment runs execute until all values it used came from one consistent moment. known is
// what the previous computation used; it makes one execution the usual case.
func (s *secretReader) atOneMoment(known map[upstream.SecretRef]bool, execute func() error) error {
	s.entries = map[upstream.SecretRef]entry{}
	if len(known) > 0 {
		entries, err := s.readTogether(known)
		switch {
		case err == nil:
			s.entries = entries
		case upstream.Outage(err):
			return err // the same reads one by one would fail as well
		default:
			// A secret that was needed last time is gone or denied. Perhaps it is not needed
			// any more: let the execution ask again.
		}
	}
	for range maxPasses {
		s.used, s.readAlone, s.failed = map[upstream.SecretRef]bool{}, false, false
		err := execute()
		if err != nil && (!s.readAlone || s.failed) {
			return err
		}
		if err == nil && (!s.readAlone || len(s.used) < 2) {
			return nil
		}
		entries, together := s.readTogether(s.used)
		if together != nil {
			return cmp.Or(err, together)
		}
		agree := true
		for ref := range s.used {
			agree = agree && s.entries[ref].same(entries[ref])
		}
		if agree {
			return err
		}
		s.entries = entries
	}
	return errKeptChanging
}
