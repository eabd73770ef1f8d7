package render

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sethvargo/go-retry"
	"golang.org/x/sync/errgroup"

	"secretagent/upstream"
)

// maxOpenFolders is how many folders RenderOnce keeps open between making everything ready
// and publishing it.
const maxOpenFolders = 128

// errBusy is returned by Run, RenderOnce and Diff while another of them works.
var errBusy = errors.New("the renderer is already at work")

// Renderer keeps files equal to what their templates and secrets say.
type Renderer struct {
	src    Source
	opts   Options
	log    *slog.Logger
	units  []*unit      // in the order of the options: targets, then sets
	groups []*hookGroup // one for each different hook
	owed   *owedBook

	busy sync.Mutex // held by the one of Run, RenderOnce and Diff that works

	mu sync.Mutex // guards the mutable part of units and groups
}

// New checks opts and reads and parses every template. It starts nothing, and writes nothing.
// An error joins every problem, each with the place of its target or set, as templates[0] or
// sets[0].files[1], or with that in a template.
func New(src Source, opts Options) (*Renderer, error) {
	if src == nil {
		return nil, errors.New("render: a source of secrets is needed")
	}
	if err := opts.validate(); err != nil {
		return nil, err
	}
	r := &Renderer{src: src, opts: opts, log: opts.logger(), owed: newOwedBook(opts.StateDir)}
	var p problems
	funcs := helpers()
	groups := map[string]*hookGroup{}
	folders := map[folder][]string{}
	for i := range opts.Targets {
		t := &opts.Targets[i]
		key := fmt.Sprintf("templates[%d]", i)
		u := &unit{name: t.Destination, files: []string{t.Destination}, onRemoved: t.OnRemoved, wait: t.Wait}
		doc, err := documentOf(&t.Content, t.Destination, funcs)
		p.addErr(key, err)
		u.docs = []document{doc}
		own, err := lookupOwner(t.User, t.Group)
		p.addErr(key, err)
		in := folder{root: opts.Root, path: filepath.Dir(t.Destination), sync: !t.NoSync}
		base := filepath.Base(t.Destination)
		u.place = &filePlace{folder: in, base: base, mode: orMode(t.Mode, DefaultMode), owner: own, backup: t.Backup, seed: maphash.MakeSeed()}
		if _, ok := folders[in]; !ok {
			u.leftovers = func() error { return in.removeLeftovers(folders[in]) }
		}
		folders[in] = append(folders[in], base)
		r.add(u, t.Hook, t.Splay, groups)
	}
	for i := range opts.Sets {
		s := &opts.Sets[i]
		key := fmt.Sprintf("sets[%d]", i)
		own, err := lookupOwner(s.User, s.Group)
		p.addErr(key, err)
		in := folder{root: opts.Root, path: s.Directory, sync: !s.NoSync}
		sp := &setPlace{folder: in, mode: orMode(s.Mode, DefaultFolderMode), owner: own}
		u := &unit{name: s.Directory, place: sp, leftovers: sp.removeLeftovers, onRemoved: s.OnRemoved, wait: s.Wait}
		for j := range s.Files {
			f := &s.Files[j]
			fkey := fmt.Sprintf("%s.files[%d]", key, j)
			doc, err := documentOf(&f.Content, f.Name, funcs)
			p.addErr(fkey, err)
			fown, err := lookupOwner(f.User, f.Group)
			p.addErr(fkey, err)
			if f.User == "" {
				fown.uid = own.uid
			}
			if f.Group == "" {
				fown.gid = own.gid
			}
			u.docs = append(u.docs, doc)
			u.files = append(u.files, filepath.Join(s.Directory, f.Name))
			sp.files = append(sp.files, setFile{name: f.Name, mode: orMode(f.Mode, DefaultMode), owner: fown})
		}
		r.add(u, s.Hook, s.Splay, groups)
	}
	if err := p.err(); err != nil {
		return nil, err
	}
	return r, nil
}

// add registers u, sharing the group of an equal hook.
func (r *Renderer) add(u *unit, hook *Hook, splay time.Duration, groups map[string]*hookGroup) {
	u.state, u.backoff = Pending, newBackoff()
	r.units = append(r.units, u)
	if hook == nil || r.opts.NoHooks {
		return
	}
	key := hook.key(splay)
	g := groups[key]
	if g == nil {
		g = &hookGroup{hook: hook, splay: splay, owing: map[*unit]uint64{}, backoff: newBackoff()}
		groups[key] = g
		r.groups = append(r.groups, g)
	}
	u.group = g
}

// RenderOnce renders and publishes everything, runs the hooks of what changed or still owes
// one, and returns. Failures are joined, one for each target.
//
// A read that failed for a temporary reason is repeated while ctx has a deadline that has not
// passed; without a deadline everything is tried once. Unless Options.Partial is set, every
// file is complete on disk under a temporary name before the first one is published: a
// missing secret, a full disk or a destination that is refused publishes nothing.
func (r *Renderer) RenderOnce(ctx context.Context) error {
	if !r.busy.TryLock() {
		return errBusy
	}
	defer r.busy.Unlock()
	r.removeLeftovers()
	r.loadOwed()

	results := make([]*rendering, len(r.units))
	errs := r.each(func(i int, u *unit) error {
		started := time.Now()
		result, err := r.computePatiently(ctx, u)
		if err != nil {
			r.failed(u, started, err)
			return err
		}
		results[i] = result
		return nil
	})
	if err := joinNamed(r.units, errs); err != nil && !r.opts.Partial {
		return err
	}

	ready := make([]staged, len(r.units))
	var open atomic.Int32
	prepared := r.each(func(i int, u *unit) error {
		if results[i] == nil {
			return nil
		}
		s, err := u.place.prepare(results[i].outs)
		if err != nil {
			r.failed(u, time.Now(), err)
			return err
		}
		if s != nil {
			if open.Add(1) > maxOpenFolders {
				s.park()
			}
			ready[i] = s
		}
		return nil
	})
	if err := joinNamed(r.units, prepared); err != nil && !r.opts.Partial {
		for _, s := range ready {
			if s != nil {
				s.abort()
			}
		}
		return err
	}

	published := r.each(func(i int, u *unit) error {
		if results[i] == nil || prepared[i] != nil {
			return nil
		}
		begun := time.Now()
		changed, err := r.commit(u, ready[i])
		r.finished(u, begun, results[i], changed, err)
		return err
	})
	all := []error{joinNamed(r.units, errs), joinNamed(r.units, prepared), joinNamed(r.units, published)}
	for _, g := range r.groups {
		if g.owes(&r.mu) {
			all = append(all, r.runHook(ctx, g))
		}
	}
	return errors.Join(all...)
}

// each calls do for every unit, several at a time, and returns the errors in their order.
func (r *Renderer) each(do func(int, *unit) error) []error {
	errs := make([]error, len(r.units))
	var g errgroup.Group
	g.SetLimit(r.opts.workers())
	for i, u := range r.units {
		g.Go(func() error {
			errs[i] = do(i, u)
			return nil
		})
	}
	_ = g.Wait() // they never return an error
	return errs
}

// joinNamed joins errs, each with the name of its unit.
func joinNamed(units []*unit, errs []error) error {
	var named []error
	for i, err := range errs {
		if err != nil {
			named = append(named, fmt.Errorf("render %s: %w", units[i].name, err))
		}
	}
	return errors.Join(named...)
}

// computePatiently repeats a computation that failed for a temporary reason, as long as ctx
// has a deadline.
func (r *Renderer) computePatiently(ctx context.Context, u *unit) (*rendering, error) {
	if _, bounded := ctx.Deadline(); !bounded {
		return u.compute(ctx, r.src, r.opts.timeout(), nil)
	}
	var last error
	result, err := retry.DoValue(ctx, newBackoff(), func(ctx context.Context) (*rendering, error) {
		result, err := u.compute(ctx, r.src, r.opts.timeout(), nil)
		if err != nil && ctx.Err() == nil {
			last = err
		}
		if temporary(err) {
			return nil, retry.RetryableError(err)
		}
		return result, err
	})
	if err != nil && ctx.Err() != nil && last != nil {
		return nil, fmt.Errorf("gave up: %w", last)
	}
	return result, err
}

// commit publishes s for u, if there is anything to publish, and makes the hook owed.
func (r *Renderer) commit(u *unit, s staged) (changed bool, err error) {
	if s == nil {
		return false, nil
	}
	var seq uint64
	if u.group != nil {
		stamp, err := s.stamp()
		if err == nil {
			seq, err = r.intend(u, stamp)
		}
		if err != nil {
			s.abort()
			return false, fmt.Errorf("remember that the hook is owed: %w", err)
		}
	}
	changed, err = s.commit()
	if changed && u.group != nil {
		r.mu.Lock()
		u.group.owe(u, seq)
		r.mu.Unlock()
	}
	return changed, err
}

// intend records what is about to be published. A hook that is owed already stays owed if the
// publish does not happen.
func (r *Renderer) intend(u *unit, stamp string) (uint64, error) {
	r.mu.Lock()
	_, owing := u.group.owing[u]
	r.mu.Unlock()
	var earlier []string
	if owing {
		was, err := u.place.stamp()
		if err != nil {
			return 0, err
		}
		earlier = append(earlier, was)
	}
	return r.owed.intend(u.name, stamp, earlier...)
}

// remove deletes what u published, because a secret it needs is gone.
func (r *Renderer) remove(u *unit) (changed bool, err error) {
	var seq uint64
	if u.group != nil {
		if stamp, err := u.place.stamp(); err != nil || stamp == stampAbsent {
			return false, err
		}
		if seq, err = r.intend(u, stampAbsent); err != nil {
			return false, err
		}
	}
	changed, err = u.place.remove()
	if changed && u.group != nil {
		r.mu.Lock()
		u.group.owe(u, seq)
		r.mu.Unlock()
	}
	return changed, err
}

// removeLeftovers deletes the temporary files of a killed predecessor. What cannot be looked
// at now is reported when something is published there.
func (r *Renderer) removeLeftovers() {
	for _, u := range r.units {
		if u.leftovers == nil {
			continue
		}
		if err := u.leftovers(); err != nil {
			r.log.Warn("leftovers of an earlier run may remain", "file", u.name, "err", err, "hint", "make the folder readable for the agent")
		}
	}
}

// loadOwed takes over the hooks that an earlier process still owed.
func (r *Renderer) loadOwed() {
	if len(r.groups) == 0 {
		return
	}
	byName := map[string]*unit{}
	for _, u := range r.units {
		if u.group != nil {
			byName[u.name] = u
		}
	}
	owed, err := r.owed.load(func(name string) (string, bool) {
		u := byName[name]
		if u == nil {
			return "", false
		}
		stamp, err := u.place.stamp()
		return stamp, err == nil
	})
	if err != nil {
		r.log.Warn("some owed hooks may be forgotten", "path", r.opts.StateDir, "err", err, "hint", "run the hooks by hand if their files changed")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, seq := range owed {
		u := byName[name]
		u.group.owe(u, seq)
		r.log.Info("hook is still owed", "file", name, "hook", u.group.hook.String())
	}
}

// finished records a computation that succeeded and the attempt to publish it.
func (r *Renderer) finished(u *unit, started time.Time, result *rendering, changed bool, err error) {
	now := time.Now()
	r.mu.Lock()
	failures := u.failures
	if changed {
		u.lastChange = now
	}
	if err == nil {
		if changed || u.values == nil {
			u.before = u.values
		}
		u.values, u.absent = result.values, result.absent
		u.state, u.rendered, u.failure, u.failures, u.nextTry = Current, true, nil, 0, time.Time{}
		u.backoff = newBackoff()
		u.lastTry = now
	}
	r.mu.Unlock()
	if changed {
		r.log.Info("file published", "file", u.name, "took", now.Sub(started))
	}
	if err != nil {
		r.failed(u, started, err)
		return
	}
	if failures > 0 {
		r.log.Info("file in order again", "file", u.name, "failures", failures)
	}
	r.observe(Event{Name: u.name, Changed: changed, Elapsed: now.Sub(started)})
}

// failed records a failure. What is published stays.
func (r *Renderer) failed(u *unit, started time.Time, err error) {
	now := time.Now()
	r.mu.Lock()
	u.state, u.failure, u.lastTry = Failed, err, now
	u.failures++
	r.mu.Unlock()
	r.log.Warn("file not rendered; what is there stays", "file", u.name, "err", err, "hint", "it is tried again; err says where the template, the secret or the folder is wrong")
	r.observe(Event{Name: u.name, Elapsed: now.Sub(started), Err: err})
}

func (r *Renderer) observe(e Event) {
	if r.opts.Observe != nil {
		r.opts.Observe(e)
	}
}

// masker knows the values in use and those that were in use before.
func (r *Renderer) masker() *masker {
	r.mu.Lock()
	var all []upstream.SecretValue
	seen := map[*byte]bool{}
	for _, u := range r.units {
		for _, v := range slices.Concat(u.values, u.before) {
			if b := v.SecretData.Reveal(); len(b) > 0 && !seen[&b[0]] { // values are shared
				seen[&b[0]] = true
				all = append(all, v)
			}
		}
	}
	r.mu.Unlock()
	return newMasker(all)
}
