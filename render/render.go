package render

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"secretagent/upstream"
)

// errBusy is returned by Run, RenderOnce and Diff while another of them works.
var errBusy = errors.New("the renderer is already at work")

// Renderer keeps files equal to what their templates and secrets say.
type Renderer struct {
	src     Source
	opts    Options
	log     *slog.Logger
	targets []*target    // in the order of the options: Targets, then Sets
	groups  []*hookGroup // one for each different hook
	owed    *owedBook

	commands bool // there are checks or hooks that run a program, whose output is masked

	busy sync.Mutex // held by the one of Run, RenderOnce and Diff that works

	mu    sync.Mutex // guards ended and the mutable part of targets and groups
	ended bool       // Run has returned
}

// New checks opts and reads and parses every template. It starts nothing, and writes nothing.
// The error is that of [Options.Validate].
func New(src Source, opts Options) (*Renderer, error) {
	if src == nil {
		return nil, errors.New("render: a source of secrets is needed")
	}
	b := build(opts)
	if err := b.problems.Err(); err != nil {
		return nil, err
	}
	opts.Timeout = cmp.Or(opts.Timeout, defaultTimeout)
	if opts.Observe == nil {
		opts.Observe = func(Event) {}
	}
	return &Renderer{
		src: src, opts: opts, log: cmp.Or(opts.Logger, slog.New(slog.DiscardHandler)),
		targets: b.targets, groups: b.groups, owed: newOwedBook(b.stateDir),
		commands: slices.ContainsFunc(b.targets, func(t *target) bool {
			return t.check != nil || t.group != nil && len(t.group.hook.Command) > 0
		}),
	}, nil
}

// RenderOnce renders and publishes everything, runs the hooks of what changed or still owes
// one, and returns. Failures are joined, one for each target.
//
// A read that failed for a temporary reason is repeated while ctx has a deadline that has not
// passed; without a deadline everything is tried once. Unless Options.Partial is set, every
// file is complete on disk under a temporary name, and checked, before the first one is
// published: a missing secret, a full disk, a destination that is refused or a check that
// fails publishes nothing.
func (r *Renderer) RenderOnce(ctx context.Context) error {
	if !r.busy.TryLock() {
		return errBusy
	}
	defer r.busy.Unlock()
	r.removeLeftovers()
	r.loadOwed()

	errs := make([]error, len(r.targets))
	results := make([]*rendering, len(r.targets))
	r.each(errs, func(i int, t *target) (err error) {
		started := time.Now()
		if results[i], err = r.computePatiently(ctx, t); err != nil {
			return r.record(t, started, attempted{err: err})
		}
		return nil
	})
	if err := r.joinNamed(errs); err != nil && !r.opts.Partial {
		return err
	}

	ready := make([]*prepared, len(r.targets))
	r.each(errs, func(i int, t *target) (err error) {
		started := time.Now()
		if ready[i], err = t.publisher.prepare(results[i].outs); err == nil {
			err = r.check(ctx, t, ready[i], results[i])
		}
		if err != nil {
			return r.record(t, started, attempted{err: err})
		}
		if ready[i] != nil {
			ready[i].release()
		}
		return nil
	})
	if err := r.joinNamed(errs); err != nil && !r.opts.Partial {
		for _, p := range ready {
			if p != nil {
				p.abort()
			}
		}
		return err
	}

	r.each(errs, func(i int, t *target) error {
		started := time.Now()
		changed, err := r.commit(t, ready[i])
		return r.record(t, started, attempted{results[i], changed, false, err})
	})
	all := []error{r.joinNamed(errs)}
	for _, g := range r.groups {
		r.mu.Lock()
		owed := len(g.owing) > 0
		r.mu.Unlock()
		if owed {
			all = append(all, r.runHook(ctx, g))
		}
	}
	return errors.Join(all...)
}

// each calls do for every target whose element of errs is nil, several at a time, and puts
// its error there.
func (r *Renderer) each(errs []error, do func(int, *target) error) {
	var g errgroup.Group
	g.SetLimit(maxWorkers)
	for i, t := range r.targets {
		if errs[i] == nil {
			g.Go(func() error {
				errs[i] = do(i, t)
				return nil
			})
		}
	}
	_ = g.Wait() // they never return an error
}

// joinNamed joins errs, each with the name of its target.
func (r *Renderer) joinNamed(errs []error) error {
	var named []error
	for i, err := range errs {
		if err != nil {
			named = append(named, fmt.Errorf("render %s: %w", r.targets[i].name, err))
		}
	}
	return errors.Join(named...)
}

// computePatiently repeats a computation that failed for a temporary reason, as long as ctx
// has a deadline.
func (r *Renderer) computePatiently(ctx context.Context, t *target) (*rendering, error) {
	_, bounded := ctx.Deadline()
	var last error // before ctx ended
	for backoff := newBackoff(); ; {
		result, err := t.compute(ctx, r.src, r.opts.Timeout, nil)
		if err != nil && ctx.Err() == nil {
			last = err
		}
		if !bounded || !temporary(err) {
			return result, err
		}
		select {
		case <-time.After(pause(backoff, err)):
		case <-ctx.Done():
			return nil, fmt.Errorf("gave up: %w", cmp.Or(last, err))
		}
	}
}

// check lets the check of t look at p, if there are both. It aborts p when that fails.
func (r *Renderer) check(ctx context.Context, t *target, p *prepared, result *rendering) error {
	if p == nil || t.check == nil {
		return nil
	}
	p.release() // it may take long
	started := time.Now()
	err := t.check.run(ctx, r.log.With("file", t.name), p.path, func() *masker { return r.masker(result.toMask()...) })
	r.opts.Observe(Event{Name: t.name, Check: true, Elapsed: time.Since(started), Err: err})
	if err != nil {
		p.abort()
	}
	return err
}

// commit publishes p for t, if there is anything to publish, and makes the hook owed.
func (r *Renderer) commit(t *target, p *prepared) (changed bool, err error) {
	if p == nil {
		return false, nil
	}
	defer p.abort()
	return r.owing(t, p.stamp, p.commit)
}

// remove deletes what t published, because a secret it needs is gone.
func (r *Renderer) remove(t *target) (changed bool, err error) {
	stamp, err := t.publisher.published()
	if err == nil && stamp == stampAbsent {
		_, err = t.publisher.delete() // somebody removed the file, but not the backup
		return false, err
	}
	if err != nil {
		return false, err
	}
	return r.owing(t, stampAbsent, t.publisher.delete)
}

// owing calls publish, after which stamp identifies what is published for t, and makes the hook
// owed if that changed something. It records this before, so that a kill cannot lose the hook;
// a hook that is owed already stays owed if nothing is published.
func (r *Renderer) owing(t *target, stamp string, publish func() (bool, error)) (changed bool, err error) {
	if t.group == nil {
		return publish()
	}
	r.mu.Lock()
	_, owing := t.group.owing[t]
	r.mu.Unlock()
	stamps := []string{stamp}
	if owing {
		was, err := t.publisher.published()
		if err != nil {
			return false, fmt.Errorf("remember that the hook is owed: %w", err)
		}
		stamps = append(stamps, was)
	}
	seq, err := r.owed.intend(t.name, stamps...)
	if err != nil {
		return false, fmt.Errorf("remember that the hook is owed: %w", err)
	}
	changed, err = publish()
	if changed {
		r.mu.Lock()
		t.group.owe(t, seq)
		r.mu.Unlock()
	}
	return changed, err
}

// removeLeftovers deletes the temporary files of a killed predecessor. What cannot be looked
// at now is reported when something is published there.
func (r *Renderer) removeLeftovers() {
	for _, t := range r.targets {
		if t.leftovers == nil {
			continue
		}
		if err := t.leftovers(); err != nil {
			r.log.Warn("leftovers of an earlier run may remain", "file", t.name, "err", err, "hint", "make the folder readable for the agent")
		}
	}
}

// loadOwed takes over the hooks that an earlier process still owed.
func (r *Renderer) loadOwed() {
	if len(r.groups) == 0 {
		return
	}
	byName := map[string]*target{}
	for _, t := range r.targets {
		if t.group != nil {
			byName[t.name] = t
		}
	}
	owed, err := r.owed.load(func(name string) (string, bool) {
		t := byName[name]
		if t == nil {
			return "", false
		}
		stamp, err := t.publisher.published()
		if err != nil {
			stamp = "" // a folder that cannot be read now is no reason to forget the hook
		}
		return stamp, true
	})
	if err != nil {
		r.log.Warn("some owed hooks may be forgotten", "path", r.opts.StateDir, "err", err, "hint", "run the hooks by hand if their files changed")
	}
	r.mu.Lock()
	for name, seq := range owed {
		t := byName[name]
		_, known := t.group.owing[t] // from the renderer before this one
		t.group.owe(t, seq)
		if !known {
			t.group.untried, t.group.notBefore = true, time.Time{} // it has waited already
		}
	}
	r.mu.Unlock()
	for name := range owed {
		r.log.Info("hook is still owed", "file", name, "hook", byName[name].group.hook.String())
	}
}

// attempted is how an attempt to bring a target up to date ended.
type attempted struct {
	result  *rendering // nil: it could not be computed
	changed bool       // something was published or deleted
	removed bool       // what was published is gone, for the reason that err says
	err     error
}

// record notes how an attempt ended and tells the log and Observe. It returns a.err.
func (r *Renderer) record(t *target, started time.Time, a attempted) error {
	now := time.Now()
	r.mu.Lock()
	failures := t.failures
	if t.lastTry = now; t.state == Current && t.unchanged && a.result == nil && temporary(a.err) {
		r.mu.Unlock()
		r.log.Info("file not looked at again; nothing says that it is out of date", "file", t.name, "err", a.err)
		return a.err
	}
	t.failure = a.err
	if a.changed {
		t.lastChange = now
	}
	switch {
	case a.err == nil:
		if a.changed || t.values == nil {
			t.before = t.values
		}
		t.values, t.versions = a.result.values, a.result.versions
		if r.commands {
			t.values = a.result.toMask()
		}
		t.state, t.failures, t.nextTry, t.backoff = Current, 0, time.Time{}, newBackoff()
		t.unchanged = !t.dirty
	case a.removed:
		t.state = Removed
		t.failures++
	default:
		t.state = Failed
		t.failures++
	}
	r.mu.Unlock()

	event := Event{Name: t.name, Changed: a.changed, Elapsed: now.Sub(started)}
	switch {
	case a.removed && a.changed:
		r.log.Warn("file deleted: a secret it needs was deleted", "file", t.name, "err", a.err, "hint", "restore the secret, or remove the template")
	case a.changed:
		r.log.Info("file published", "file", t.name, "took", event.Elapsed)
	}
	switch {
	case a.err != nil && !a.removed:
		event.Err = a.err
		r.log.Warn("file not rendered; what is there stays", "file", t.name, "err", a.err, "hint", "it is tried again; err says where the template, the secret or the folder is wrong")
	case a.err == nil && failures > 0:
		r.log.Info("file in order again", "file", t.name, "failures", failures)
	}
	r.opts.Observe(event)
	return a.err
}

// masker knows the values in use and what was made of them, those that were in use before, and also.
func (r *Renderer) masker(also ...upstream.SecretValue) *masker {
	r.mu.Lock()
	all := slices.Clone(also)
	seen := map[*byte]bool{}
	for _, t := range r.targets {
		for _, v := range slices.Concat(t.values, t.before) {
			if b := v.SecretData.Reveal(); len(b) > 0 && !seen[&b[0]] { // values are shared
				seen[&b[0]] = true
				all = append(all, v)
			}
		}
	}
	r.mu.Unlock()
	return newMasker(all)
}
