package render

import (
	"cmp"
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"secretagent/upstream"
)

const (
	// maxHookHold bounds how long a hook waits for other targets that share it and are being
	// rendered.
	maxHookHold = 10 * time.Second

	// maxHooks is how many different hooks run at the same time, and so is maxChecks.
	maxHooks  = 8
	maxChecks = 8

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

	s := &session{r: r, ctx: ctx, watchers: map[upstream.SecretRef]*watcher{}, hooks: make(chan struct{}, maxHooks), checks: make(chan struct{}, maxChecks)}
	for _, t := range r.targets {
		for ref := range t.known { // of the renderer before: what changes from now on is noticed
			s.watch(t, ref)
		}
	}
	r.mu.Lock()
	for _, current := range []bool{false, true} { // what is in order already can wait
		for _, t := range r.targets {
			if (t.state == Current) == current {
				s.markDirty(t, 0)
			}
		}
	}
	r.mu.Unlock()

	<-ctx.Done()
	s.stop()
	return nil
}

// session is one call of Run. Its fields are guarded by Renderer.mu.
//
// Nothing polls. A watcher for each secret marks the targets that use it dirty; a dirty target is
// queued at once, or by its timer after the debounce time or the pause of a failure; workers
// are started as long as there is a queue, and end with it. All targets that one change makes
// dirty are queued in one step, so a hook that they share, which waits until none of them is
// queued or rendered, runs once.
type session struct {
	r   *Renderer
	ctx context.Context

	queue    []*target
	workers  int
	watchers map[upstream.SecretRef]*watcher
	stopped  bool
	wg       sync.WaitGroup // workers, watchers and hooks
	hooks    chan struct{}  // a slot for each running hook
	checks   chan struct{}  // a slot for each running check
}

// watcher is the subscription to one secret.
type watcher struct {
	users  map[*target]bool
	cancel func()
	quit   chan struct{}
}

// stop ends everything and waits for it.
func (s *session) stop() {
	s.r.mu.Lock()
	s.stopped = true
	s.queue = nil
	for _, w := range s.watchers {
		close(w.quit)
		w.cancel()
	}
	for _, t := range s.r.targets {
		stopTimer(t.timer)
		t.queued, t.dirty, t.watched, t.nextTry = false, false, nil, time.Time{}
	}
	for _, g := range s.r.groups {
		stopTimer(g.timer)
	}
	s.r.mu.Unlock()
	s.wg.Wait()
	s.r.mu.Lock()
	for _, g := range s.r.groups {
		g.working = 0
	}
	s.r.ended = true
	s.r.mu.Unlock()
}

// schedule calls do after d, unless the timer is set anew before. At once, when d is none. The
// caller holds the lock, and do is called with it.
func (s *session) schedule(timer **time.Timer, d time.Duration, do func()) {
	stopTimer(*timer)
	*timer = nil
	if d <= 0 {
		do()
		return
	}
	var own *time.Timer
	own = time.AfterFunc(d, func() {
		s.r.mu.Lock()
		defer s.r.mu.Unlock()
		if *timer == own && !s.stopped { // not replaced while it fired
			*timer = nil
			do()
		}
	})
	*timer = own
}

func stopTimer(t *time.Timer) {
	if t != nil {
		t.Stop()
	}
}

// watch makes t hear of changes of ref. It is called before ref is read, so that no change
// between the read and the subscription is lost.
func (s *session) watch(t *target, ref upstream.SecretRef) {
	if !s.subscribe(t, ref) {
		s.r.log.Warn("too many secrets are watched: changes of this one are noticed late", "secret", ref.String(), "retry_in", lookAgain,
			"hint", "use fewer secrets in templates and waiting clients")
	}
}

// subscribe does what watch says. It reports false when the source takes no more
// subscriptions.
func (s *session) subscribe(t *target, ref upstream.SecretRef) bool {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	if s.stopped || t.watched[ref] {
		return true
	}
	if t.watched == nil {
		t.watched = map[upstream.SecretRef]bool{}
	}
	t.watched[ref] = true
	taken := true
	w := s.watchers[ref]
	if w == nil {
		changed, cancel := s.r.src.Subscribe(ref)
		taken = changed != nil
		w = &watcher{users: map[*target]bool{}, cancel: cancel, quit: make(chan struct{})}
		s.watchers[ref] = w
		s.wg.Go(func() { s.listen(w, changed) })
	}
	w.users[t] = true
	return taken
}

// listen marks the users of w dirty whenever its secret changes.
func (s *session) listen(w *watcher, changed <-chan struct{}) {
	var tick <-chan time.Time
	if changed == nil {
		tick = time.Tick(lookAgain)
	}
	for {
		rung := false
		select {
		case _, open := <-changed:
			if !open {
				return
			}
			rung = true
		case <-tick:
		case <-w.quit:
			return
		}
		s.r.mu.Lock()
		for t := range w.users {
			t.unchanged = t.unchanged && !rung
			s.markDirty(t, t.debounce(time.Now()))
		}
		s.r.mu.Unlock()
	}
}

// forget ends the subscriptions that t no longer needs. The caller holds the lock.
func (s *session) forget(t *target) {
	for ref := range t.watched {
		if _, used := t.known[ref]; used {
			continue
		}
		delete(t.watched, ref)
		w := s.watchers[ref]
		delete(w.users, t)
		if len(w.users) == 0 {
			close(w.quit)
			w.cancel()
			delete(s.watchers, ref)
		}
	}
}

// debounce returns how long a change that was noticed now waits for others to follow.
func (t *target) debounce(now time.Time) time.Duration {
	since := now
	if t.dirty {
		since = t.dirtySince
	}
	most := cmp.Or(t.wait.Max, 4*t.wait.Min)
	return min(t.wait.Min, since.Add(most).Sub(now))
}

// markDirty makes sure that t is rendered after delay. The caller holds the lock.
func (s *session) markDirty(t *target, delay time.Duration) {
	if s.stopped || t.queued {
		return
	}
	if !t.dirty {
		t.dirty, t.dirtySince = true, time.Now()
	}
	if t.running {
		return // looked at when it is done
	}
	s.schedule(&t.timer, delay, func() { s.enqueue(t) })
}

// enqueue gives t to a worker. The caller holds the lock.
func (s *session) enqueue(t *target) {
	t.queued = true
	if t.group != nil {
		t.group.working++
	}
	s.queue = append(s.queue, t)
	if s.workers < maxWorkers {
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
		t := s.queue[0]
		s.queue = s.queue[1:]
		t.queued, t.running, t.dirty = false, true, false
		s.r.mu.Unlock()
		s.render(t)
	}
}

// render brings t up to date.
func (s *session) render(t *target) {
	err := s.attempt(t)

	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	t.running = false
	if t.group != nil {
		t.group.working--
	}
	if s.stopped {
		return
	}
	if err != nil {
		wait := pause(t.backoff, err)
		if t.dirty {
			wait = min(wait, t.debounce(time.Now()))
		}
		t.nextTry = time.Now().Add(wait)
		s.markDirty(t, wait) // what it used before is still watched, for one of them may heal it
	} else {
		s.forget(t)
		if t.dirty {
			s.markDirty(t, t.debounce(time.Now()))
		}
	}
	if t.group != nil {
		s.runHookWhenDue(t.group)
	}
}

// attempt computes and publishes t once. An error says that it is to be tried again, also when
// the file was deleted because a secret is gone: the secret may come back.
func (s *session) attempt(t *target) error {
	r, started := s.r, time.Now()
	var a attempted
	asOf := time.Time{}
	a.result, asOf, a.err = s.compute(t)
	switch {
	case s.ctx.Err() != nil:
		return s.ctx.Err()
	case a.err == nil:
		if a.changed, a.err = s.publish(t, a.result, asOf); a.err != nil && !a.changed && s.ctx.Err() != nil {
			return s.ctx.Err() // a check that had to end says nothing about the content
		}
	case removed(a.err) && t.onRemoved == Delete:
		changed, err := r.remove(t)
		a.changed, a.removed = changed, err == nil
		if err != nil {
			a.err = err
		}
	}
	return r.record(t, started, a)
}

// compute returns the result, and as of when it is where it is made from values of before a crash; otherwise zero.
func (s *session) compute(t *target) (result *rendering, asOf time.Time, err error) {
	compute := func() (*rendering, error) {
		return t.compute(s.ctx, s.r.src, s.r.opts.Timeout, func(ref upstream.SecretRef) { s.watch(t, ref) })
	}
	result, err = compute()
	src, restores := s.r.src.(Restoring)
	if err != nil || !restores || t.confirmed {
		return result, asOf, err
	}
	asOf, unconfirmed := src.Restored(slices.Collect(maps.Keys(t.known))...)
	if unconfirmed {
		return result, asOf, nil
	}
	t.confirmed = true
	if !asOf.IsZero() { // they may have been confirmed after they were read
		result, err = compute()
	}
	return result, time.Time{}, err
}

// errMayBeNewer is why what is published before a crash is not replaced.
var errMayBeNewer error = &upstream.Error{Err: upstream.ErrUnavailable, Message: "what is there may be newer than the values of before a crash, which the upstream has not confirmed yet"}

// publish puts the result of a computation on disk, unless it differs from what was published after asOf. While a check
// looks at it, another worker takes the place of this one, so that a check that hangs holds up no other target.
func (s *session) publish(t *target, result *rendering, asOf time.Time) (changed bool, err error) {
	p, err := t.publisher.prepare(result.outs)
	if err != nil {
		return false, err
	}
	if p != nil && !asOf.IsZero() && t.isFrom(asOf) {
		p.abort()
		return false, errMayBeNewer
	}
	if p != nil && t.check != nil {
		p.release() // many may wait for a slot
		s.r.mu.Lock()
		if len(s.queue) > 0 {
			s.wg.Go(s.work)
		} else {
			s.workers--
		}
		s.r.mu.Unlock()
		select {
		case s.checks <- struct{}{}:
			err = s.r.check(s.ctx, t, p, result)
			<-s.checks
		case <-s.ctx.Done():
			p.abort()
			err = s.ctx.Err()
		}
		s.r.mu.Lock()
		s.workers++
		s.r.mu.Unlock()
	}
	if err != nil {
		return false, err
	}
	return s.r.commit(t, p)
}

// runHookWhenDue runs the hook of g as soon as it may. The caller holds the lock.
func (s *session) runHookWhenDue(g *hookGroup) {
	if s.stopped || s.ctx.Err() != nil || g.running || len(g.owing) == 0 {
		return
	}
	at := g.notBefore
	if hold := g.owedSince.Add(maxHookHold); g.working > 0 && hold.After(at) {
		at = hold // or earlier, when the last of them is done
	}
	if d := time.Until(at); d > 0 {
		s.schedule(&g.timer, d, func() { s.runHookWhenDue(g) })
		return
	}
	stopTimer(g.timer)
	g.timer, g.running = nil, true
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
		s.runHookWhenDue(g)
	})
}

// randomUpTo returns a random time in [0, d].
func randomUpTo(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return rand.N(d + 1)
}
