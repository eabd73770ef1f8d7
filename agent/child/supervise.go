package child

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
	src         Source
	opts        Options // with defaults
	recipe      *recipe
	interactive bool
	ran         atomic.Bool

	start func(env []string) (process, error) // starts one application
	check func() error                        // why that cannot work, as far as can be seen

	// birth is held from before an application is started until proc is it: a signal that
	// answers the first thing it says must not go to the one before.
	birth sync.Mutex

	mu     sync.Mutex
	proc   process // nil: none runs
	status Status
}

// New checks opts and returns a supervisor that has started nothing yet. The error holds
// every problem and names the key of each. New reads the environment of this process, which
// must not change afterwards.
func New(src Source, opts Options) (*Supervisor, error) {
	opts = opts.withDefaults()
	if opts.Dir != "" {
		abs, err := filepath.Abs(opts.Dir)
		if err != nil {
			return nil, fmt.Errorf("dir: %w", err)
		}
		opts.Dir = abs
	}
	problems := opts.check()
	recipe, err := newRecipe(opts, os.Environ())
	if err := errors.Join(problems, err); err != nil {
		return nil, err
	}
	s := &Supervisor{
		src:         src,
		opts:        opts,
		recipe:      recipe,
		interactive: isControllingTerminal(opts.Stdin),
		status:      Status{State: Waiting, Command: opts.Command[0]},
	}
	l := &launcher{
		command: opts.Command, dir: opts.Dir,
		stdin: opts.Stdin, stdout: opts.Stdout, stderr: opts.Stderr,
		shareGroup: s.interactive, signalGroup: opts.SignalGroup,
	}
	s.start = l.start
	s.check = func() error { _, err := l.resolve(); return err }
	return s, nil
}

// Interactive reports whether the application shares our process group, because its standard
// input is our controlling terminal. The caller must then not end on SIGINT, which the
// terminal sends to both.
func (s *Supervisor) Interactive() bool { return s.interactive }

// Refs returns the secrets that the variables need, each once and with its defaults.
func (s *Supervisor) Refs() []upstream.SecretRef {
	return append([]upstream.SecretRef(nil), s.recipe.refs...)
}

// Status returns what the supervisor is doing.
func (s *Supervisor) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// Signal sends sig to the application. os.Kill ends it and its group at once, also in the
// middle of the grace period. When [Supervisor.Interactive], signals that the terminal sends
// to the application by itself are dropped. It returns [ErrNotRunning] before the first start,
// after the end, and for the moment between two applications.
func (s *Supervisor) Signal(sig os.Signal) error {
	s.birth.Lock()
	s.mu.Lock()
	p := s.proc
	s.mu.Unlock()
	s.birth.Unlock()
	if p == nil {
		return ErrNotRunning
	}
	if s.interactive && sentByTerminal(sig) {
		return nil
	}
	send := p.Signal
	if sig == os.Kill {
		send = func(os.Signal) error { return p.Kill() }
	}
	err := send(sig)
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
	defer s.setState(Ended)
	if err := s.check(); err != nil {
		return fmt.Errorf("command: %w", err)
	}
	stopReaper, err := startReaper(s.opts.Subreaper, s.family, s.opts.Logger)
	if err != nil {
		return err
	}
	defer stopReaper()

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
	s.opts.Ready()
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
	var unfit *unfitError
	return !errors.As(err, &unfit) && upstream.Outage(err)
}

// read reads the variables once.
func (s *Supervisor) read(ctx context.Context) (environment, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	return s.recipe.read(ctx, s.src)
}

// launch starts the application. It tries again when the system is short of something for a
// moment.
func (s *Supervisor) launch(ctx context.Context, env environment, kind EventKind) (process, error) {
	backoff := retry.WithMaxRetries(startAttempts-1, newBackoff(startBase, startCap))
	p, err := retry.DoValue(ctx, backoff, func(context.Context) (process, error) {
		p, err := s.bear(env, kind)
		if err == nil {
			return p, nil
		}
		s.failed(StartFailed, err)
		if temporaryStart(err) {
			return nil, retry.RetryableError(err)
		}
		return nil, err
	})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", s.opts.Command[0], err)
	}
	s.opts.Logger.Info("application started", "command", s.opts.Command[0], "pid", p.PID(), "reason", string(kind))
	s.opts.Observe(Event{Kind: kind, PID: p.PID()})
	return p, nil
}

// bear starts the application once and makes it the one that signals reach.
func (s *Supervisor) bear(env environment, kind EventKind) (process, error) {
	s.birth.Lock()
	defer s.birth.Unlock()
	p, err := s.start(env.pairs)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.proc = p
	s.status.State, s.status.PID, s.status.StartedAt = Running, p.PID(), time.Now()
	s.status.Outdated, s.status.Failing = false, false
	if kind == Restarted {
		s.status.Restarts++
	}
	return p, nil
}

// watch is the supervision of one application after another.
type watch struct {
	*Supervisor
	changed <-chan struct{} // nil: nothing can change
	pace    *pace
	p       process // the application
	has     digest  // of its variables
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
		w        = &watch{Supervisor: s, changed: changed, pace: newPace(s.opts), p: p, has: has}
		look     = time.NewTimer(time.Hour)
		readings = make(chan reading, 1)
		busy     bool // a read is under way
		again    bool // and another one is due after it
		reads    sync.WaitGroup
	)
	look.Stop()
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
			return w.finish()
		case <-w.p.Done():
			return s.ended(w.p, false)
		case _, open := <-w.changed:
			if !open {
				w.changed = nil
				continue
			}
			look.Reset(w.pace.notice(time.Now()))
		case <-look.C:
			w.pace.settled()
			if busy {
				again = true
			} else {
				read()
			}
		case r := <-readings:
			busy = false
			if again {
				read() // r may be from before the last change
				continue
			}
			wait, over, err := w.consider(ctx, r)
			if over {
				return err
			}
			if wait > 0 {
				look.Reset(wait)
			}
		}
	}
}

// consider acts upon a reading. It returns how long to wait before the next one, zero when
// that can wait for the next change. When the application has ended for good, over is true
// and err how.
func (w *watch) consider(ctx context.Context, r reading) (wait time.Duration, over bool, err error) {
	log := w.opts.Logger.With("command", w.opts.Command[0], "pid", w.p.PID())
	if r.err != nil {
		if ctx.Err() == nil {
			w.failed(ReadFailed, r.err)
			log.Warn("cannot read the variables again; the application goes on with what it has", "err", r.err, "hint", "they are read again; err names the secret or field")
		}
		return w.pace.failed(), false, nil
	}
	if r.env.digest == w.has {
		w.fine()
		w.outdated(false)
		w.opts.Observe(Event{Kind: Unchanged, PID: w.p.PID()})
		return 0, false, nil
	}
	first := w.outdated(true)
	if w.opts.OnChange == IgnoreChange {
		w.fine()
		if first {
			log.Info("variables changed; the application keeps the old ones")
			w.opts.Observe(Event{Kind: Ignored, PID: w.p.PID()})
		}
		return 0, false, nil
	}
	if wait := w.pace.mayAct(time.Now()); wait > 0 {
		w.fine()
		if first {
			log.Warn("variables change too often; the application goes on with the old ones for now", "retry_in", wait, "hint", "rotate less often, or raise exec.maxRestarts")
			w.opts.Observe(Event{Kind: Deferred, PID: w.p.PID()})
		}
		return wait, false, nil
	}
	if w.opts.OnChange == SignalChild {
		if err := w.p.Signal(w.opts.ChangeSignal); err != nil {
			w.failed(SignalFailed, err)
			log.Error("variables changed, but the application cannot be signalled", "signal", w.opts.ChangeSignal, "err", err, "hint", "it is tried again; check exec.changeSignal, and who the program runs as")
			return w.pace.failed(), false, nil
		}
		w.pace.acted(time.Now())
		w.fine()
		w.has = r.env.digest
		w.outdated(false)
		w.mu.Lock()
		w.status.Signals++
		w.mu.Unlock()
		log.Info("variables changed; application signalled", "signal", w.opts.ChangeSignal)
		w.opts.Observe(Event{Kind: Signalled, PID: w.p.PID()})
		return 0, false, nil
	}
	if err := w.check(); err != nil {
		// Better an old application than none.
		w.failed(StartFailed, err)
		log.Error("variables changed, but the application could not be started again; the old one goes on", "err", err, "hint", "it is tried again; put the program back in its place")
		return w.pace.failed(), false, nil
	}
	w.pace.acted(time.Now())
	w.fine()
	log.Info("variables changed; application restarts")
	over, err = w.replace(ctx, r.env)
	return 0, over, err
}

// fine notes that the last failure is over.
func (w *watch) fine() {
	w.pace.worked()
	w.worked()
}

// replace stops the application and starts it with env, or with what is current by then. It
// reports whether it has ended for good instead, and how.
func (w *watch) replace(ctx context.Context, env environment) (over bool, err error) {
	select {
	case <-w.p.Done():
		return true, w.ended(w.p, false) // by itself, before it was asked
	default:
	}
	killed, err := w.stop(w.p)
	if err != nil {
		return true, err
	}
	how := w.ended(w.p, killed)
	if ctx.Err() != nil {
		return true, how
	}
	select {
	case <-w.changed:
		// While the old application took its time. What env holds may be revoked already.
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

// finish ends the application for good and returns how it ended.
func (w *watch) finish() error {
	killed, err := w.stop(w.p)
	if err != nil {
		return err
	}
	return w.ended(w.p, killed)
}

// stop ends p: the stop signal, the grace, then the end of the whole group. It waits for the
// end and reports whether it had to kill.
func (s *Supervisor) stop(p process) (killed bool, err error) {
	s.setState(Stopping)
	switch err := p.Stop(s.opts.StopSignal); {
	case errors.Is(err, os.ErrProcessDone):
	case err != nil:
		s.opts.Logger.Warn("cannot ask the application to end", "command", s.opts.Command[0], "pid", p.PID(), "err", err, "hint", "nothing: it is killed")
	default:
		grace := time.NewTimer(s.opts.Grace)
		defer grace.Stop()
		select {
		case <-p.Done():
			return false, nil
		case <-grace.C:
		}
		s.opts.Logger.Warn("the application ignores the stop signal and is killed", "command", s.opts.Command[0], "pid", p.PID(), "took", s.opts.Grace,
			"hint", "raise exec.grace or set exec.stopSignal")
		s.opts.Observe(Event{Kind: Killed, PID: p.PID()})
	}
	killErr := p.Kill()
	gone := time.NewTimer(killTimeout)
	defer gone.Stop()
	select {
	case <-p.Done():
		return killErr == nil, nil
	case <-gone.C:
		return true, errors.Join(fmt.Errorf("process %d is still there %v after it was killed", p.PID(), killTimeout), killErr)
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
	s.opts.Observe(Event{Kind: Exited, PID: p.PID(), Code: e.code})
	if e.code == 0 {
		return nil
	}
	return &ExitError{Code: e.code, Signal: e.signal, Killed: killed}
}

// family returns the running application and its group, for the reaper.
func (s *Supervisor) family() (leader, group int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.proc == nil:
		return 0, 0
	case s.interactive:
		return s.proc.PID(), 0
	default:
		return s.proc.PID(), s.proc.PID()
	}
}

func (s *Supervisor) setState(state State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.State = state
}

// outdated notes whether the application has old variables and reports whether that is new.
func (s *Supervisor) outdated(is bool) (changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed = s.status.Outdated != is
	s.status.Outdated = is
	if is && changed {
		s.status.LastChange = time.Now()
	}
	return changed
}

// failed notes a failure.
func (s *Supervisor) failed(kind EventKind, err error) {
	s.mu.Lock()
	s.status.Failing, s.status.LastError, s.status.LastErrorAt = true, err.Error(), time.Now()
	pid := s.status.PID
	s.mu.Unlock()
	s.opts.Observe(Event{Kind: kind, PID: pid, Err: err})
}

// worked notes that the last failure is over.
func (s *Supervisor) worked() {
	s.mu.Lock()
	failing := s.status.Failing
	s.status.Failing = false
	s.mu.Unlock()
	if failing {
		s.opts.Logger.Info("the application can be looked after again", "command", s.opts.Command[0])
	}
}
