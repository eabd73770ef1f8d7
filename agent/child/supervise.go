package child

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sethvargo/go-retry"

	"secretagent/upstream"
)

const (
	// readTimeout bounds one attempt to read the variables.
	readTimeout = 30 * time.Second

	// killTimeout is how long a killed application may take to be gone. Only one that hangs
	// inside the kernel needs longer.
	killTimeout = 10 * time.Second

	startBase     = 100 * time.Millisecond // between attempts to start
	startCap      = 2 * time.Second
	startAttempts = 6
)

// ErrNotRunning says that there is no application to signal.
var ErrNotRunning = errors.New("the application is not running")

// Supervisor runs one application with secrets in its environment. Its methods are safe for
// concurrent use.
type Supervisor struct {
	src    Source
	opts   Options // with defaults
	recipe *recipe
	ran    atomic.Bool

	// sharesTerminal tells that the application shares our process group, because its standard
	// input is our controlling terminal, which then sends some signals to both.
	sharesTerminal bool

	start func(env []string) (process, error) // starts one application
	check func() error                        // why that cannot work, as far as can be seen

	// startMu is held from before an application is started until proc is it, so that a signal
	// which answers the first thing it says does not go to the one before.
	startMu sync.Mutex

	mu     sync.Mutex
	proc   process // nil: none runs
	status Status
}

// New returns a supervisor that has started nothing yet. The error is that of
// [Options.Validate]. New reads the environment of this process, which must not change
// afterwards.
func New(src Source, opts Options) (*Supervisor, error) {
	opts = opts.withDefaults()
	if err := opts.check(); err != nil {
		return nil, err
	}
	runAs, err := opts.account()
	if err != nil {
		return nil, err
	}
	s := &Supervisor{
		src:            src,
		opts:           opts,
		recipe:         newRecipe(opts, append(runAs.variables(), os.Environ()...)), // the first of two counts
		sharesTerminal: isControllingTerminal(opts.Stdin),
		status:         Status{State: Waiting, Command: opts.Command[0]},
	}
	s.start = func(env []string) (process, error) { return startProcess(opts, runAs, s.sharesTerminal, env) }
	s.check = func() error { _, err := opts.program(); return err }
	if len(s.recipe.withheld) > 0 {
		opts.Logger.Info("the application does not inherit credentials of the agent",
			"variables", strings.Join(s.recipe.withheld, " "), "hint", "if it needs them, name each in exec.allow")
	}
	return s, nil
}

// Status returns what the supervisor is doing.
func (s *Supervisor) Status() (now Status) {
	s.update(func(st *Status) { now = *st })
	return now
}

// SharesTerminal reports whether the application is in our process group, because its standard
// input is our controlling terminal: what the terminal sends, it sends to both.
func (s *Supervisor) SharesTerminal() bool { return s.sharesTerminal }

// Signal sends sig to the application. os.Kill ends it and its group at once, also in the
// middle of the grace period. A signal that the terminal has sent to the application by itself
// is dropped. It returns [ErrNotRunning] before the first start, after the end, and for the
// moment between two applications.
func (s *Supervisor) Signal(sig os.Signal) error {
	s.startMu.Lock()
	s.mu.Lock()
	p := s.proc
	s.mu.Unlock()
	s.startMu.Unlock()
	var err error
	switch {
	case p == nil:
		return ErrNotRunning
	case s.sharesTerminal && sentByTerminal(sig):
		return nil
	case sig == os.Kill:
		err = p.Kill()
	default:
		err = p.Signal(sig)
	}
	if errors.Is(err, os.ErrProcessDone) {
		return ErrNotRunning
	}
	return err
}

// Run starts the application once its variables are known, supervises it, and returns when it
// has ended: nil after exit code 0, an [*ExitError] after another end. When ctx is done the
// application is asked to end, killed after Options.Grace, and Run returns how it ended. Any
// other error means that it was not started, or not started again. Errors that a secret
// caused wrap the sentinels of package upstream; one that a missing program caused wraps
// [os/exec.ErrNotFound] or, when its path was given, [io/fs.ErrNotExist].
//
// Run works once. It owns all goroutines and processes that it starts and leaves none behind.
func (s *Supervisor) Run(ctx context.Context) (err error) {
	if s.ran.Swap(true) {
		return errors.New("the supervisor has run already")
	}
	defer s.update(func(st *Status) { st.State = Ended })
	if err := s.check(); err != nil {
		return fmt.Errorf("command: %w", err)
	}

	// Subscribed before the first read, no change in between is missed.
	var changed <-chan struct{}
	if len(s.recipe.refs) > 0 {
		var cancel func()
		changed, cancel = s.src.Subscribe(s.recipe.refs...)
		defer cancel()
	}
	env, err := s.await(ctx)
	if err != nil {
		return err
	}
	p, err := s.launch(ctx, env, Started)
	if err != nil {
		return err
	}
	return s.supervise(ctx, p, env.digest, changed)
}

// await reads the variables until they are known.
func (s *Supervisor) await(ctx context.Context) (environment, error) {
	bounded := ctx
	if s.opts.StartTimeout > 0 {
		var cancel context.CancelFunc
		bounded, cancel = context.WithTimeout(ctx, s.opts.StartTimeout)
		defer cancel()
	}
	var last error
	env, err := retry.DoValue(bounded, newBackoff(retryBase, retryCap), func(ctx context.Context) (environment, error) {
		env, err := s.read(ctx)
		if err == nil {
			return env, nil
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		if s.failed(ReadFailed, err); !mayPass(err) {
			return env, err
		}
		s.opts.Logger.Warn("the application waits for its variables", "command", s.opts.Command[0], "err", err, "hint", "they are read again; err names the secret or field")
		return env, retry.RetryableError(err)
	})
	switch {
	case err == nil:
		s.worked()
		return env, nil
	case ctx.Err() != nil:
		return env, context.Cause(ctx)
	case bounded.Err() != nil:
		return env, fmt.Errorf("the variables of %s are still unknown after %v: %w", s.opts.Command[0], s.opts.StartTimeout, last)
	default:
		return env, fmt.Errorf("the variables of %s: %w", s.opts.Command[0], err)
	}
}

// mayPass reports whether waiting can help against a failure to read the variables.
func mayPass(err error) bool {
	_, unfit := errors.AsType[*unfitError](err)
	return !unfit && upstream.Outage(err)
}

// read reads the variables once.
func (s *Supervisor) read(ctx context.Context) (environment, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	return s.recipe.read(ctx, s.src)
}

// launch starts the application. It tries again when the system is short of something for a
// moment.
func (s *Supervisor) launch(ctx context.Context, env environment, kind Event) (process, error) {
	backoff := retry.WithMaxRetries(startAttempts-1, newBackoff(startBase, startCap))
	p, err := retry.DoValue(ctx, backoff, func(context.Context) (process, error) {
		p, err := s.startOnce(env, kind)
		if err == nil {
			return p, nil
		}
		s.failed(StartFailed, err)
		if slices.ContainsFunc(temporaryStartErrors, func(e error) bool { return errors.Is(err, e) }) {
			err = retry.RetryableError(err)
		}
		return nil, err
	})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", s.opts.Command[0], err)
	}
	s.opts.Logger.Info("application started", "command", s.opts.Command[0], "pid", p.PID(), "reason", string(kind))
	s.opts.Observe(kind)
	return p, nil
}

// startOnce starts the application and makes it the one that signals reach.
func (s *Supervisor) startOnce(env environment, kind Event) (process, error) {
	s.startMu.Lock()
	defer s.startMu.Unlock()
	p, err := s.start(env.pairs)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.proc = p
	s.status.State, s.status.PID, s.status.StartedAt = Running, p.PID(), time.Now()
	s.status.Outdated, s.status.Failing, s.status.ExitCode = false, false, 0
	if kind == Restarted {
		s.status.Restarts++
	}
	return p, nil
}

// watch is the supervision of one application after another.
type watch struct {
	*Supervisor
	changed <-chan struct{} // nil: nothing can change
	timing  *timing
	next    *time.Timer // fires when the variables are to be read again
	p       process     // the application
	has     digest      // of its variables
}

// reading is the outcome of one read.
type reading struct {
	env environment
	err error
}

// supervise watches over p, whose variables have the digest has, and over what takes its
// place, until the application has ended for good. It returns how.
func (s *Supervisor) supervise(ctx context.Context, p process, has digest, changed <-chan struct{}) error {
	var (
		w        = &watch{Supervisor: s, changed: changed, timing: newTiming(s.opts), next: time.NewTimer(time.Hour), p: p, has: has}
		readings = make(chan reading, 1)
		reads    sync.WaitGroup
		busy     bool // a read is under way
		again    bool // and another one is due after it
	)
	w.next.Stop()
	readCtx, cancel := context.WithCancel(ctx)
	defer reads.Wait()
	defer cancel()
	read := func() {
		busy, again = true, false
		reads.Go(func() {
			env, err := s.read(readCtx)
			readings <- reading{env, err}
		})
	}
	for {
		select {
		case <-ctx.Done():
			how, err := w.stop(w.p)
			return cmp.Or(err, how)
		case <-w.p.Done():
			return s.ended(w.p, false)
		case <-w.changed:
			w.next.Reset(w.timing.noticed(time.Now()))
		case <-w.next.C:
			w.timing.endBurst()
			if busy {
				again = true
			} else {
				read()
			}
		case r := <-readings:
			busy = false
			if again {
				read() // r may be from before the last change
			} else if over, err := w.consider(ctx, r); over {
				return err
			}
		}
	}
}

// consider acts upon a reading. When the application has ended for good, over is true and err
// says how.
func (w *watch) consider(ctx context.Context, r reading) (over bool, err error) {
	log := w.logger()
	if r.err != nil {
		if ctx.Err() == nil {
			log.Warn("cannot read the variables again; the application goes on with what it has", "err", r.err, "hint", "they are read again; err names the secret or field")
			w.retry(ReadFailed, r.err)
		}
		return false, nil
	}
	differs := r.env.digest != w.has
	news := w.outdated(differs)
	switch wait := w.timing.mayAct(time.Now()); {
	case !differs:
		w.succeeded()
		w.opts.Observe(Unchanged)
	case w.opts.OnChange == IgnoreChange:
		w.succeeded()
		if news {
			log.Info("variables changed; the application keeps the old ones")
			w.opts.Observe(Ignored)
		}
	case wait > 0:
		w.succeeded()
		if news {
			log.Warn("variables change too often; the application goes on with the old ones for now", "retry_in", wait, "hint", "rotate less often, or raise exec.maxRestarts")
			w.opts.Observe(Deferred)
		}
		w.next.Reset(wait)
	case w.opts.OnChange == SignalChild:
		w.signal(r.env.digest)
	default:
		if err := w.check(); err != nil {
			// An application with old variables is better than none.
			log.Error("variables changed, but the application could not be started again; the old one goes on", "err", err, "hint", "it is tried again; put the program back in its place")
			w.retry(StartFailed, err)
			return false, nil
		}
		w.timing.acted(time.Now())
		w.succeeded()
		log.Info("variables changed; application restarts")
		return w.replace(ctx, r.env)
	}
	return false, nil
}

// signal tells the application that its variables have changed to those with the digest now.
func (w *watch) signal(now digest) {
	log, sig := w.logger(), signals[w.opts.ChangeSignal]
	if err := w.p.Signal(sig); err != nil {
		log.Error("variables changed, but the application cannot be signalled", "signal", sig, "err", err, "hint", "it is tried again; check exec.changeSignal, and who the program runs as")
		w.retry(SignalFailed, err)
		return
	}
	w.timing.acted(time.Now())
	w.succeeded()
	w.has = now
	w.outdated(false)
	w.update(func(st *Status) { st.Signals++ })
	log.Info("variables changed; application signalled", "signal", sig)
	w.opts.Observe(Signalled)
}

// retry notes a failure and sets the time of the next attempt.
func (w *watch) retry(event Event, err error) {
	w.failed(event, err)
	w.next.Reset(w.timing.failed())
}

// succeeded notes that the last failure is over.
func (w *watch) succeeded() {
	w.timing.succeeded()
	w.worked()
}

// logger returns what tells of the application that runs.
func (w *watch) logger() *slog.Logger {
	return w.opts.Logger.With("command", w.opts.Command[0], "pid", w.p.PID())
}

// replace stops the application and starts it with env, or with what is current by then. It
// reports whether it has ended for good instead, and how.
func (w *watch) replace(ctx context.Context, env environment) (over bool, err error) {
	select {
	case <-w.p.Done():
		return true, w.ended(w.p, false) // by itself, before it was asked
	default:
	}
	how, err := w.stop(w.p)
	switch {
	case err != nil:
		return true, err
	case ctx.Err() != nil:
		return true, how
	}
	select {
	case <-w.changed:
		// That was while the old application took its time. What env holds may be revoked already.
		if newer, err := w.read(ctx); err == nil {
			env = newer
		} else if ctx.Err() == nil {
			w.failed(ReadFailed, err)
		}
	default:
	}
	next, err := w.launch(ctx, env, Restarted)
	switch {
	case err != nil && ctx.Err() != nil:
		return true, how
	case err != nil:
		return true, err
	}
	w.p, w.has = next, env.digest
	return false, nil
}

// stop ends p: the stop signal, the grace, then the end of the whole group. It waits for the
// end and returns how p ended. err says that it did not.
func (s *Supervisor) stop(p process) (how, err error) {
	s.update(func(st *Status) { st.State = Stopping })
	switch err := p.Stop(signals[s.opts.StopSignal]); {
	case errors.Is(err, os.ErrProcessDone):
	case err != nil:
		s.opts.Logger.Warn("cannot ask the application to end", "command", s.opts.Command[0], "pid", p.PID(), "err", err, "hint", "nothing: it is killed")
	default:
		select {
		case <-p.Done():
			return s.ended(p, false), nil
		case <-time.After(s.opts.Grace):
		}
		s.opts.Logger.Warn("the application ignores the stop signal and is killed", "command", s.opts.Command[0], "pid", p.PID(), "took", s.opts.Grace,
			"hint", "raise exec.grace or set exec.stopSignal")
		s.opts.Observe(Killed)
	}
	killErr := p.Kill()
	select {
	case <-p.Done():
		return s.ended(p, killErr == nil), nil
	case <-time.After(killTimeout):
		return nil, errors.Join(fmt.Errorf("process %d is still there %v after it was killed", p.PID(), killTimeout), killErr)
	}
}

// ended notes that p is gone and returns how it ended.
func (s *Supervisor) ended(p process, killed bool) error {
	e := p.End()
	s.mu.Lock()
	s.proc = nil
	s.status.PID, s.status.ExitCode = 0, e.code
	s.mu.Unlock()
	s.opts.Logger.Info("application ended", "command", s.opts.Command[0], "pid", p.PID(), "exit_code", e.code)
	s.opts.Observe(Exited)
	if e.code == 0 {
		return nil
	}
	return &ExitError{Code: e.code, Signal: e.signal, Killed: killed}
}

// family returns the running application and its group, for the reaper; zeros without one.
func (s *Supervisor) family() (leader, group int) {
	if s == nil {
		return 0, 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc != nil {
		leader = s.proc.PID()
	}
	if !s.sharesTerminal {
		group = leader
	}
	return leader, group
}

// update changes the status.
func (s *Supervisor) update(change func(*Status)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.status)
}

// outdated notes whether the application has old variables and reports whether that is new.
func (s *Supervisor) outdated(is bool) (changed bool) {
	s.update(func(st *Status) {
		changed = st.Outdated != is
		st.Outdated = is
		if is && changed {
			st.ChangedAt = time.Now()
		}
	})
	return changed
}

// failed notes a failure.
func (s *Supervisor) failed(event Event, err error) {
	s.update(func(st *Status) { st.Failing, st.Error, st.ErrorAt = true, err.Error(), time.Now() })
	s.opts.Observe(event)
}

// worked notes that the last failure is over.
func (s *Supervisor) worked() {
	failing := false
	s.update(func(st *Status) { failing, st.Failing = st.Failing, false })
	if failing {
		s.opts.Logger.Info("the application can be looked after again", "command", s.opts.Command[0])
	}
}
