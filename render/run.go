package render

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"secretagent/upstream"
)

const (
	// maxHookHold bounds how long a hook waits for other targets that share it and are being
	// rendered.
	maxHookHold = 10 * time.Second

	// maxHooks is how many different hooks run at the same time.
	maxHooks = 8

	// lookAgain is how often a secret is looked at that the source gives no bell for.
	lookAgain = time.Minute
)

// Run renders everything, follows every change until ctx ends, and returns nil. Failures are
// repeated, logged and shown by Status; none of them ends Run. A hook that is running when
// ctx ends is killed and stays owed.
func (r *Renderer) Run(ctx context.Context) error {
	if !r.busy.TryLock() {
		return errBusy
	}
	defer r.busy.Unlock()
	r.removeLeftovers()
	r.loadOwed()

	s := &session{r: r, ctx: ctx, watchers: map[upstream.SecretRef]*watcher{}, hooks: make(chan struct{}, maxHooks)}
	r.mu.Lock()
	for _, u := range r.units {
		s.dirty(u, 0)
	}
	r.mu.Unlock()

	<-ctx.Done()
	s.stop()
	return nil
}

// session is one call of Run. Its fields are guarded by Renderer.mu.
//
// Nothing polls. A watcher for each secret marks the units that use it dirty; a dirty unit is
// queued at once, or by its timer after the settle time or the pause of a failure; workers
// are started as long as there is a queue, and end with it. All units that one change makes
// dirty are queued in one step, so a hook that they share, which waits until none of them is
// queued or rendered, runs once.
type session struct {
	r   *Renderer
	ctx context.Context

	queue    []*unit
	workers  int
	watchers map[upstream.SecretRef]*watcher
	stopped  bool
	wg       sync.WaitGroup // workers, watchers and hooks
	hooks    chan struct{}  // a slot for each running hook
}

// watcher is the subscription to one secret.
type watcher struct {
	users  map[*unit]bool
	cancel func()
	quit   chan struct{}
}

// stop ends everything and waits for it.
func (s *session) stop() {
	mu := &s.r.mu
	mu.Lock()
	s.stopped = true
	s.queue = nil
	for _, w := range s.watchers {
		close(w.quit)
		w.cancel()
	}
	for _, u := range s.r.units {
		stopTimer(u.timer)
		u.timer, u.queued, u.dirty, u.deps, u.nextTry = nil, false, false, nil, time.Time{}
	}
	for _, g := range s.r.groups {
		stopTimer(g.timer)
		g.timer = nil
	}
	mu.Unlock()
	s.wg.Wait()
	mu.Lock()
	for _, g := range s.r.groups {
		g.working = 0
	}
	mu.Unlock()
}

func stopTimer(t *time.Timer) {
	if t != nil {
		t.Stop()
	}
}

// after calls do with the lock held, unless the session has stopped by then.
func (s *session) after(d time.Duration, do func()) *time.Timer {
	return time.AfterFunc(d, func() {
		s.r.mu.Lock()
		defer s.r.mu.Unlock()
		if !s.stopped {
			do()
		}
	})
}

// watch makes u hear of changes of ref. It is called before ref is read, so that no change
// between the read and the subscription is lost.
func (s *session) watch(u *unit, ref upstream.SecretRef) {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	if s.stopped || u.deps[ref] {
		return
	}
	if u.deps == nil {
		u.deps = map[upstream.SecretRef]bool{}
	}
	u.deps[ref] = true
	w := s.watchers[ref]
	if w == nil {
		changed, cancel := s.r.src.Subscribe(ref)
		if changed == nil {
			s.r.log.Warn("too many secrets are watched: changes of this one are noticed late", "secret", ref.String(), "retry_in", lookAgain,
				"hint", "use fewer secrets in templates and waiting clients")
		}
		w = &watcher{users: map[*unit]bool{}, cancel: cancel, quit: make(chan struct{})}
		s.watchers[ref] = w
		s.wg.Go(func() { s.listen(w, changed) })
	}
	w.users[u] = true
}

// listen marks the users of w dirty whenever its secret changes.
func (s *session) listen(w *watcher, changed <-chan struct{}) {
	var tick <-chan time.Time
	if changed == nil {
		t := time.NewTicker(lookAgain)
		defer t.Stop()
		tick = t.C
	}
	for {
		select {
		case _, open := <-changed:
			if !open {
				return
			}
		case <-tick:
		case <-w.quit:
			return
		}
		s.r.mu.Lock()
		for u := range w.users {
			s.dirty(u, u.settleTime(time.Now()))
		}
		s.r.mu.Unlock()
	}
}

// forget ends the subscriptions that u no longer needs. The caller holds the lock.
func (s *session) forget(u *unit) {
	for ref := range u.deps {
		if _, used := u.known[ref]; used {
			continue
		}
		delete(u.deps, ref)
		w := s.watchers[ref]
		delete(w.users, u)
		if len(w.users) == 0 {
			close(w.quit)
			w.cancel()
			delete(s.watchers, ref)
		}
	}
}

// settleTime returns how long a change that was noticed now has to wait.
func (u *unit) settleTime(now time.Time) time.Duration {
	if u.wait.Min == 0 {
		return 0
	}
	since := now
	if u.dirty {
		since = u.dirtySince
	}
	most := u.wait.Max
	if most == 0 {
		most = 4 * u.wait.Min
	}
	return min(u.wait.Min, since.Add(most).Sub(now))
}

// dirty makes sure that u is rendered after delay. The caller holds the lock.
func (s *session) dirty(u *unit, delay time.Duration) {
	if s.stopped || u.queued {
		return
	}
	if !u.dirty {
		u.dirty, u.dirtySince = true, time.Now()
	}
	if u.running {
		return // looked at when it is done
	}
	stopTimer(u.timer)
	u.timer = nil
	if delay > 0 {
		var t *time.Timer
		t = s.after(delay, func() {
			if u.timer == t { // not replaced while it fired
				u.timer = nil
				s.enqueue(u)
			}
		})
		u.timer = t
		return
	}
	s.enqueue(u)
}

// enqueue gives u to a worker. The caller holds the lock.
func (s *session) enqueue(u *unit) {
	u.queued = true
	if u.group != nil {
		u.group.working++
	}
	s.queue = append(s.queue, u)
	if s.workers < s.r.opts.workers() {
		s.workers++
		s.wg.Go(s.work)
	}
}

// work renders until the queue is empty.
func (s *session) work() {
	for {
		s.r.mu.Lock()
		if len(s.queue) == 0 {
			s.workers--
			s.r.mu.Unlock()
			return
		}
		u := s.queue[0]
		s.queue = s.queue[1:]
		u.queued, u.running, u.dirty = false, true, false
		s.r.mu.Unlock()
		s.render(u)
	}
}

// render brings u up to date.
func (s *session) render(u *unit) {
	r := s.r
	started := time.Now()
	err := s.attempt(u, started)

	r.mu.Lock()
	defer r.mu.Unlock()
	u.running = false
	if u.group != nil {
		u.group.working--
	}
	if s.stopped {
		return
	}
	switch {
	case err != nil:
		// Whatever was used before or would be used now may heal it.
		wait := pause(u.backoff, err)
		if u.dirty {
			wait = min(wait, u.settleTime(time.Now()))
		}
		u.nextTry = time.Now().Add(wait)
		s.dirty(u, wait)
	default:
		s.forget(u)
		if u.dirty {
			s.dirty(u, u.settleTime(time.Now()))
		}
	}
	if u.group != nil {
		s.kick(u.group)
	}
}

// attempt computes and publishes u once.
func (s *session) attempt(u *unit, started time.Time) error {
	r := s.r
	result, err := u.compute(s.ctx, r.src, r.opts.timeout(), func(ref upstream.SecretRef) { s.watch(u, ref) })
	if s.ctx.Err() != nil {
		return s.ctx.Err()
	}
	if err != nil {
		if removed(err) && u.onRemoved == Delete {
			return s.deleted(u, started, err)
		}
		r.failed(u, started, err)
		return err
	}
	ready, err := u.place.prepare(result.outs)
	if err != nil {
		r.failed(u, started, err)
		return err
	}
	changed, err := r.commit(u, ready)
	r.finished(u, started, result, changed, err)
	return err
}

// deleted takes away what u published. The error stays: the target is not ready, and is tried
// again in case the secret comes back.
func (s *session) deleted(u *unit, started time.Time, cause error) error {
	r := s.r
	changed, err := r.remove(u)
	if err != nil {
		r.failed(u, started, err)
		return err
	}
	now := time.Now()
	r.mu.Lock()
	u.state, u.failure, u.lastTry = Removed, cause, now
	u.failures++
	if changed {
		u.lastChange = now
	}
	r.mu.Unlock()
	if changed {
		r.log.Warn("file deleted: a secret it needs was deleted", "file", u.name, "err", cause, "hint", "restore the secret, or remove the template")
	}
	r.observe(Event{Name: u.name, Changed: changed, Elapsed: now.Sub(started)})
	return cause
}

// kick runs the hook of g as soon as it may. The caller holds the lock.
func (s *session) kick(g *hookGroup) {
	if s.stopped || g.running || len(g.owing) == 0 {
		return
	}
	stopTimer(g.timer)
	g.timer = nil
	at := g.notBefore
	if hold := g.owedSince.Add(maxHookHold); g.working > 0 && hold.After(at) {
		at = hold // or earlier, when the last of them is done
	}
	if d := time.Until(at); d > 0 {
		g.timer = s.after(d, func() { s.kick(g) })
		return
	}
	g.running = true
	s.wg.Go(func() {
		select {
		case s.hooks <- struct{}{}:
			_ = s.r.runHook(s.ctx, g) // it logs and remembers its failure
			<-s.hooks
		case <-s.ctx.Done():
		}
		s.r.mu.Lock()
		defer s.r.mu.Unlock()
		g.running = false
		s.kick(g)
	})
}

// randomUpTo returns a random time in [0, d].
func randomUpTo(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return rand.N(d + 1)
}
