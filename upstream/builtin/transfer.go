package builtin

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"secretagent/upstream"
)

// Keeper keeps secrets as a whole: a [Store], or what its caller makes of another Secrets Manager.
type Keeper interface {
	// Secrets is that of a [Store]. Where the moment of the secrets is not one, nothing else can be had.
	Secrets(ctx context.Context, prefix string, fn func(iter.Seq2[*Secret, error]) error) error

	// Lookup returns those of the named secrets that exist.
	Lookup(ctx context.Context, names []upstream.SecretName) (map[upstream.SecretName]*Secret, error)

	// Fit returns what of a secret can be kept here; nil: nothing. note says what cannot, or why, and may be empty.
	Fit(in *Secret) (kept *Secret, note string)

	// PutSecret is that of a [Store], for what Fit has returned.
	PutSecret(ctx context.Context, in *Secret, replace bool) error
}

// Transfer moves secrets as a whole, with versions, labels, tags and times: in memory in the clear, at both ends
// sealed with the keys of that end. What is the same already is left alone, so that a transfer that was interrupted is
// repeated to go on.
type Transfer struct {
	From, To Keeper

	Prefix string                // of the names
	Names  []upstream.SecretName // nil: all that begin with Prefix

	Replace bool // what is another secret at the end
	DryRun  bool // tell what would be done

	// Moment says that everything must be of one moment: no other one is read when that cannot be had any more, and
	// the transfer fails with [ErrMomentLost].
	Moment bool

	// Progress, which may be nil, hears how many secrets are done, on several goroutines.
	Progress func(done int)
}

// ErrMomentLost is of a [Transfer]. It is an [upstream.ErrUnavailable].
var ErrMomentLost error = &sentinel{"what was read is there no more as it was", upstream.ErrUnavailable}

// Moved is what a [Transfer] has done with a secret, or would do.
type Moved struct {
	SecretName upstream.SecretName
	Result     string // one of the words below
	Note       string `json:",omitempty"` // what of it cannot be kept at the end
}

// The results of a transfer.
const (
	Copied    = "copied"    // it was not there, or only in part
	Replaced  = "replaced"  // another one was there
	Unchanged = "unchanged" // it was there
	Differs   = "differs"   // another one is there, and was left alone
	Skipped   = "skipped"   // it cannot be kept there: the note says why
)

const (
	movers       = 16      // transfers at the same time: they share transactions, or wait for a network
	moveAtOnce   = 64      // secrets that are looked up together
	moveAtOnceOf = 1 << 20 // and about their size
)

// Run moves the secrets, and returns what was done, by name; also after an error.
func (t Transfer) Run(ctx context.Context) ([]Moved, error) {
	run := &transferRun{Transfer: t, done: map[upstream.SecretName]Moved{}}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(movers)
	err := run.read(ctx, func(some []*Secret) { group.Go(func() error { return run.move(ctx, some) }) })
	err = cmp.Or(group.Wait(), err)
	moved := make([]Moved, 0, len(run.done))
	for _, m := range run.done {
		moved = append(moved, m)
	}
	slices.SortFunc(moved, func(a, b Moved) int { return cmp.Compare(a.SecretName, b.SecretName) })
	return moved, err
}

type transferRun struct {
	Transfer
	mu   sync.Mutex
	done map[upstream.SecretName]Moved
}

// read calls each with some of the secrets to move at a time.
func (t *transferRun) read(ctx context.Context, each func([]*Secret)) error {
	if t.Names == nil {
		began := false
		return t.From.Secrets(ctx, t.Prefix, func(all iter.Seq2[*Secret, error]) error {
			if began && t.Moment {
				return Errorf(ErrMomentLost, "etcd has compacted what was read before the end was reached; try again")
			}
			began = true
			return inParts(all, each)
		})
	}
	names := sortedNames(t.Names)
	found, err := t.From.Lookup(ctx, names)
	if err != nil {
		return err
	}
	for _, name := range names {
		if found[name] == nil {
			return Errorf(upstream.ErrNotFound, "there is no secret %q", name)
		}
	}
	return inParts(func(yield func(*Secret, error) bool) {
		for _, name := range names {
			if !yield(found[name], nil) {
				return
			}
		}
	}, each)
}

// inParts calls each with some of the secrets at a time.
func inParts(all iter.Seq2[*Secret, error], each func([]*Secret)) error {
	var part []*Secret
	size := 0
	for s, err := range all {
		if err != nil {
			return err
		}
		part, size = append(part, s), size+s.size()
		if len(part) == moveAtOnce || size >= moveAtOnceOf {
			each(part)
			part, size = nil, 0
		}
	}
	if len(part) > 0 {
		each(part)
	}
	return nil
}

// move moves some secrets.
func (t *transferRun) move(ctx context.Context, some []*Secret) error {
	names := make([]upstream.SecretName, len(some))
	for i, s := range some {
		names[i] = s.SecretName
	}
	there, err := t.To.Lookup(ctx, names)
	if err != nil {
		return err
	}
	for _, s := range some {
		m, err := t.moveOne(ctx, s, there[s.SecretName])
		if err != nil {
			return err
		}
		t.mu.Lock()
		if before, ok := t.done[s.SecretName]; !ok || before.Result == Unchanged { // else it is read again
			t.done[s.SecretName] = m
		}
		done := len(t.done)
		t.mu.Unlock()
		if t.Progress != nil {
			t.Progress(done)
		}
	}
	return nil
}

func (t *transferRun) moveOne(ctx context.Context, s, there *Secret) (m Moved, err error) {
	m = Moved{SecretName: s.SecretName, Result: Skipped}
	kept, note := t.To.Fit(s)
	m.Note = note
	if kept == nil {
		return m, nil
	}
	if there != nil {
		if there, _ = t.To.Fit(there); there == nil {
			m.Result = Differs
			return m, nil
		}
	}
	switch {
	case there == nil || !there.is(kept) && there.PartOf(kept):
		m.Result = Copied
	case there.is(kept):
		m.Result = Unchanged
	case t.Replace:
		m.Result = Replaced
	default:
		m.Result = Differs
	}
	if !t.DryRun && (m.Result == Copied || m.Result == Replaced) {
		err = t.To.PutSecret(ctx, kept, m.Result == Replaced)
	}
	return m, err
}

// Restored is what [Restore] has done.
type Restored struct {
	Secrets int // that there are
	Written int // of these, others were there or none
	Removed int // that the backup does not have
}

// Restore makes what to holds what from does, seeds included, and reads it back. Unless it may replace, to holds nothing
// but a part of that, as an earlier call leaves it that was interrupted; otherwise Restore fails with
// [upstream.ErrExists]. Each secret is replaced as a whole; then those are removed that from does not have. progress,
// which may be nil, hears how much of everything is done.
func Restore(ctx context.Context, from, to *Store, replace, dryRun bool, progress func(done, total int)) (r Restored, err error) {
	names, err := from.Names(ctx)
	if err != nil {
		return r, err
	}
	r.Secrets = len(names)
	step := func(number int) func(int) {
		return func(done int) {
			if progress != nil {
				progress(number*len(names)+done, 3*len(names))
			}
		}
	}
	t := Transfer{From: from, To: to, Replace: true, DryRun: true, Progress: step(0)}
	plan, err := t.Run(ctx)
	if err != nil {
		return r, err
	}
	extra, err := to.others(ctx, names)
	if err != nil {
		return r, err
	}
	var other []upstream.SecretName
	for _, m := range plan {
		switch m.Result {
		case Replaced:
			other = append(other, m.SecretName)
			r.Written++
		case Copied:
			r.Written++
		case Skipped:
			return r, Errorf(upstream.ErrUnsupported, "the secret %q cannot be kept: %s", m.SecretName, m.Note)
		}
	}
	r.Removed = len(extra)
	if n := len(other) + len(extra); n > 0 && !replace {
		return r, Errorf(upstream.ErrExists, "%s holds %d secrets that the backup does not have, or has otherwise, such as %q", to.place.Name, n, append(other, extra...)[0])
	}
	if dryRun {
		return r, nil
	}
	t.DryRun, t.Replace, t.Progress = false, replace, step(1)
	if _, err := t.Run(ctx); err != nil {
		return r, err
	}
	for _, name := range extra {
		_, err := to.DeleteSecret(ctx, upstream.DeleteSecretInput{SecretName: name, ForceDeleteWithoutRecovery: true})
		if err != nil && !errors.Is(err, upstream.ErrNotFound) {
			return r, err
		}
	}
	seeds, err := from.Seeds(ctx)
	if err == nil {
		err = to.SetSeeds(ctx, seeds, false)
	}
	if err != nil {
		return r, err
	}
	return r, Same(ctx, from, to, step(2))
}

// Same returns an error unless to holds what from does, seeds included. progress, which may be nil, hears how
// many secrets were compared.
func Same(ctx context.Context, from, to *Store, progress func(done int)) error {
	compared, err := Transfer{From: from, To: to, DryRun: true, Progress: progress}.Run(ctx)
	if err != nil {
		return err
	}
	names := make([]upstream.SecretName, len(compared))
	for i, m := range compared {
		if m.Result != Unchanged {
			return Errorf(upstream.ErrUnavailable, "read back, the secret %q is not what the backup has: others have changed it meanwhile; repeat it", m.SecretName)
		}
		names[i] = m.SecretName
	}
	extra, err := to.others(ctx, names)
	if err == nil && len(extra) > 0 {
		err = Errorf(upstream.ErrUnavailable, "there is a secret %q that the backup does not have: others have made it meanwhile; repeat it", extra[0])
	}
	if err != nil {
		return err
	}
	wanted, err := from.Seeds(ctx)
	if err != nil {
		return err
	}
	seeds, err := to.Seeds(ctx)
	if err == nil && !slices.Equal(seeds, wanted) {
		err = Errorf(upstream.ErrUnavailable, "the notes of done seeds are not those of the backup: others have changed them meanwhile; repeat it")
	}
	return err
}

// others returns the names of secrets that are none of those.
func (s *Store) others(ctx context.Context, names []upstream.SecretName) (others []upstream.SecretName, err error) {
	all, err := s.Names(ctx)
	for _, name := range all {
		if _, known := slices.BinarySearch(names, name); !known {
			others = append(others, name)
		}
	}
	return others, err
}

// Verify reads every secret as a whole, and returns how many there are. progress, which may be nil, hears how many were
// read.
func (s *Store) Verify(ctx context.Context, progress func(done int)) (n int, err error) {
	err = s.Secrets(ctx, "", func(all iter.Seq2[*Secret, error]) error {
		n = 0
		for secret, err := range all {
			if err != nil {
				return err
			}
			if err := secret.validate(); err != nil {
				return s.place.Damaged("the secret %q is not one: %v", secret.SecretName, err)
			}
			if n++; progress != nil && n%moveAtOnce == 0 {
				progress(n)
			}
		}
		return nil
	})
	return n, err
}
