package child

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"secretagent/upstream"
)

// fakeProcess is a process that ends when it is told to.
type fakeProcess struct {
	pid  int
	env  []string
	done chan struct{}

	mu      sync.Mutex
	end     end
	over    bool
	signals []os.Signal
	onStop  func(*fakeProcess) // nil: exit with code 0 at once
	onKill  func(*fakeProcess) // nil: end by SIGKILL at once
}

func (p *fakeProcess) PID() int              { return p.pid }
func (p *fakeProcess) Done() <-chan struct{} { return p.done }
func (p *fakeProcess) End() end              { return p.end }

func (p *fakeProcess) Signal(sig os.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return os.ErrProcessDone
	}
	p.signals = append(p.signals, sig)
	return nil
}

func (p *fakeProcess) Stop(sig os.Signal) error {
	if err := p.Signal(sig); err != nil {
		return err
	}
	if p.onStop != nil {
		p.onStop(p)
	} else {
		p.exit(end{})
	}
	return nil
}

func (p *fakeProcess) Kill() error {
	if p.onKill != nil {
		p.onKill(p)
		return nil
	}
	return p.exit(end{code: 137, signal: syscall.SIGKILL})
}

func (p *fakeProcess) exit(e end) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return os.ErrProcessDone
	}
	p.over, p.end = true, e
	close(p.done)
	return nil
}

func (p *fakeProcess) got() []os.Signal {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.signals)
}

// stage is a supervisor with fake processes, inside a synctest bubble.
type stage struct {
	*Supervisor
	src    *fakeSource
	cancel context.CancelFunc
	done   chan error
	log    *bytes.Buffer // read after the end only

	mu       sync.Mutex
	started  []*fakeProcess
	startErr []error              // of the next starts
	prepare  func(p *fakeProcess) // what the next processes do
	checkErr error
	events   []Event
	ready    int
}

// newStage returns a stage whose application has the variable P from the secret s.
func newStage(t *testing.T, opts Options) *stage {
	t.Helper()
	st := &stage{src: newSource(map[string]string{"s": marker + " 0"}), log: &bytes.Buffer{}, done: make(chan error, 1)}
	opts.Command = []string{"app"}
	opts.Pristine = true
	opts.Env = []Variable{{Name: "P", Ref: ref("s")}}
	opts.Logger = slog.New(slog.NewTextHandler(st.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	opts.Observe = func(e Event) {
		st.mu.Lock()
		defer st.mu.Unlock()
		st.events = append(st.events, e)
	}
	opts.Ready = func() { st.ready++ }
	var err error
	if st.Supervisor, err = New(st.src, opts); err != nil {
		t.Fatal(err)
	}
	st.check = func() error {
		st.mu.Lock()
		defer st.mu.Unlock()
		return st.checkErr
	}
	st.start = func(env []string) (process, error) {
		st.mu.Lock()
		defer st.mu.Unlock()
		if len(st.startErr) > 0 {
			err := st.startErr[0]
			st.startErr = st.startErr[1:]
			return nil, err
		}
		p := &fakeProcess{pid: 100 + len(st.started), env: env, done: make(chan struct{})}
		if st.prepare != nil {
			st.prepare(p)
		}
		st.started = append(st.started, p)
		return p, nil
	}
	return st
}

func (st *stage) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	st.cancel = cancel
	go func() { st.done <- st.Run(ctx) }()
	synctest.Wait()
	t.Cleanup(func() {
		if n := st.src.subscribers(); n != 0 {
			t.Errorf("%d subscriptions are left", n)
		}
		if strings.Contains(st.log.String(), marker) || strings.Contains(fmt.Sprintf("%+v", st.events), marker) {
			t.Errorf("a value shows in\n%s%+v", st.log, st.events)
		}
	})
}

// wait returns what Run returned, which must be now.
func (st *stage) wait(t *testing.T) error {
	t.Helper()
	synctest.Wait()
	select {
	case err := <-st.done:
		return err
	default:
		t.Fatal("Run has not returned")
		return nil
	}
}

// stop ends the stage.
func (st *stage) stop(t *testing.T) {
	t.Helper()
	st.cancel()
	if err := st.wait(t); err != nil {
		t.Errorf("Run returned %v", err)
	}
}

// sleep lets time pass and everything settle.
func sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (st *stage) app(t *testing.T) *fakeProcess {
	t.Helper()
	st.mu.Lock()
	defer st.mu.Unlock()
	if len(st.started) == 0 {
		t.Fatal("nothing was started")
	}
	return st.started[len(st.started)-1]
}

// wantApp checks how often the application was started and with what last.
func (st *stage) wantApp(t *testing.T, starts int, value string) {
	t.Helper()
	st.mu.Lock()
	n := len(st.started)
	st.mu.Unlock()
	if n != starts {
		t.Fatalf("%d starts, want %d", n, starts)
	}
	if n > 0 {
		if got := st.app(t).env; len(got) != 1 || got[0] != "P="+marker+value {
			t.Fatalf("the application has %q, want %q", got, value)
		}
	}
}

func (st *stage) count(kind EventKind) int {
	st.mu.Lock()
	defer st.mu.Unlock()
	n := 0
	for _, e := range st.events {
		if e.Kind == kind {
			n++
		}
	}
	return n
}

func TestChangedValueRestartsAfterTheDebounce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, Options{})
		st.run(t)
		st.wantApp(t, 1, " 0")
		if s := st.Status(); s.State != Running || s.PID != 100 || s.Restarts != 0 || st.ready != 1 {
			t.Errorf("%+v, ready %d times", s, st.ready)
		}
		sleep(time.Hour)
		st.src.set("s", marker+" 1")
		sleep(DefaultDebounce - 1)
		st.wantApp(t, 1, " 0")
		sleep(1)
		st.wantApp(t, 2, " 1")
		if got := st.started[0].got(); !slices.Equal(got, []os.Signal{syscall.SIGTERM}) {
			t.Errorf("the old application got %v", got)
		}
		s := st.Status()
		if s.State != Running || s.PID != 101 || s.Restarts != 1 || s.Outdated || s.Failing || s.LastChange.IsZero() || st.ready != 1 {
			t.Errorf("%+v, ready %d times", s, st.ready)
		}
		st.stop(t)
		if s := st.Status(); s.State != Ended || s.PID != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestUnchangedValueDoesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, Options{})
		st.run(t)
		for range 3 {
			st.src.set("s", marker+" 0") // a new version with the same data
			sleep(time.Minute)
		}
		st.src.set("unrelated", "x")
		sleep(time.Minute)
		st.wantApp(t, 1, " 0")
		if n := st.count(Unchanged); n != 4 {
			t.Errorf("%d notices came to nothing, want 4", n)
		}
		st.stop(t)
	})
}

func TestBurstOfChangesActsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, Options{Debounce: 2 * time.Second})
		st.run(t)
		for i := range 4 {
			st.src.set("s", fmt.Sprint(marker, " ", i+1))
			sleep(time.Second)
		}
		st.wantApp(t, 1, " 0")
		sleep(time.Second)
		st.wantApp(t, 2, " 4")
		sleep(time.Hour)
		st.wantApp(t, 2, " 4")
		st.stop(t)
	})
}

func TestSteadyStreamOfChangesIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, Options{Debounce: 2 * time.Second})
		st.run(t)
		for i := range 11 {
			st.src.set("s", fmt.Sprint(marker, " ", i+1))
			sleep(time.Second)
		}
		st.wantApp(t, 2, " 10")
		st.stop(t)
	})
}

func TestSplayIsAddedOncePerBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var waits []time.Duration
		st := newStage(t, Options{Splay: time.Minute, MaxRestarts: 1000})
		st.run(t)
		for i := range 20 {
			changed := time.Now()
			st.src.set("s", fmt.Sprint(marker, " ", i+1))
			sleep(DefaultDebounce + time.Minute)
			st.wantApp(t, i+2, fmt.Sprint(" ", i+1))
			wait := st.Status().StartedAt.Sub(changed)
			if wait < DefaultDebounce || wait > DefaultDebounce+time.Minute {
				t.Errorf("waited %v", wait)
			}
			waits = append(waits, wait)
		}
		if slices.Sort(waits); waits[len(waits)-1]-waits[0] < 5*time.Second {
			t.Errorf("all waits are alike: %v", waits)
		}
		st.stop(t)
	})
}

func TestRestartsAreLimitedAndTheLastChangeIsNotLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, Options{MaxRestarts: 3, RestartWindow: 30 * time.Minute})
		st.run(t)
		for i := range 20 {
			st.src.set("s", fmt.Sprint(marker, " ", i+1))
			sleep(10 * time.Second)
		}
		st.wantApp(t, 4, " 3")
		if s := st.Status(); !s.Outdated || s.State != Running || st.count(Deferred) != 1 {
			t.Errorf("%+v, deferred %d times", s, st.count(Deferred))
		}
		sleep(10 * time.Minute) // one restart is earned in that time
		st.wantApp(t, 5, " 20")
		if s := st.Status(); s.Outdated || s.Restarts != 4 {
			t.Errorf("%+v", s)
		}
		// Never more than MaxRestarts per window in the long run.
		for i := range 24 * 60 {
			st.src.set("s", fmt.Sprint(marker, " ", i+21))
			sleep(time.Minute)
		}
		if n := st.Status().Restarts; n < 3*48 || n > 3*48+8 {
			t.Errorf("%d restarts after a day, 3 per 30 minutes are allowed", n)
		}
		st.stop(t)
	})
}

func TestFailedReadKeepsTheApplicationAndIsTriedAgain(t *testing.T) {
	for name, failure := range map[string]error{
		"unavailable": &upstream.Error{Err: upstream.ErrUnavailable},
		"not found":   &upstream.Error{Err: upstream.ErrNotFound},
		"denied":      &upstream.Error{Err: upstream.ErrAccessDenied},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := newStage(t, Options{})
				st.run(t)
				st.src.fail(failure)
				st.src.set("s", marker+" 1")
				sleep(time.Hour)
				st.wantApp(t, 1, " 0")
				if s := st.Status(); !s.Failing || s.LastError != failure.Error() || s.State != Running {
					t.Errorf("%+v", s)
				}
				if n := st.src.readCount(); n < 60 || n > 100 {
					t.Errorf("%d reads in an hour", n)
				}
				st.src.fail(nil)
				sleep(retryCap + retryCap/4)
				st.wantApp(t, 2, " 1")
				if s := st.Status(); s.Failing || s.LastError == "" {
					t.Errorf("%+v", s)
				}
				st.stop(t)
			})
		})
	}
}

func TestUnfitChangeKeepsTheApplication(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, Options{})
		st.run(t)
		st.src.set("s", marker+"\x00")
		sleep(time.Minute)
		st.wantApp(t, 1, " 0")
		if s := st.Status(); !s.Failing || !strings.Contains(s.LastError, "P: secret s") || strings.Contains(s.LastError, marker) {
			t.Errorf("%+v", s)
		}
		st.src.set("s", marker+" 2")
		sleep(DefaultDebounce)
		st.wantApp(t, 2, " 2")
		st.stop(t)
	})
}

func TestStartWaitsForTheUpstream(t *testing.T) {
	for name, failure := range map[string]error{
		"unavailable":         &upstream.Error{Err: upstream.ErrUnavailable},
		"throttled":           fmt.Errorf("get: %w", &upstream.Error{Err: upstream.ErrThrottled}),
		"credentials refused": &upstream.Error{Err: upstream.ErrUnauthenticated},
		"a slow answer":       context.DeadlineExceeded,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := newStage(t, Options{})
				st.src.fail(failure)
				st.run(t)
				sleep(time.Hour)
				st.wantApp(t, 0, "")
				if s := st.Status(); s.State != Waiting || !s.Failing || st.ready != 0 {
					t.Errorf("%+v, ready %d times", s, st.ready)
				}
				if n := st.src.readCount(); n < 60 || n > 100 {
					t.Errorf("%d reads in an hour", n)
				}
				if err := st.Signal(syscall.SIGHUP); err != ErrNotRunning {
					t.Errorf("Signal before the start: %v", err)
				}
				st.src.fail(nil)
				sleep(retryCap + retryCap/4)
				st.wantApp(t, 1, " 0")
				st.stop(t)
			})
		})
	}
}

func TestStartTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, Options{StartTimeout: 30 * time.Second})
		st.src.fail(&upstream.Error{Err: upstream.ErrUnavailable, Endpoint: "kms.example"})
		st.run(t)
		sleep(30*time.Second - 1)
		if s := st.Status(); s.State != Waiting {
			t.Errorf("%+v", s)
		}
		sleep(1)
		err := st.wait(t)
		if !errors.Is(err, upstream.ErrUnavailable) || upstream.ExitCode(err) != upstream.ExitUnavailable || !strings.Contains(err.Error(), "30s") {
			t.Errorf("Run returned %v", err)
		}
		st.wantApp(t, 0, "")
	})
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, Options{StartTimeout: 5 * time.Second})
		st.src.onRead = func(ctx context.Context, _ int) error { <-ctx.Done(); return ctx.Err() }
		st.run(t)
		sleep(5 * time.Second)
		if err := st.wait(t); upstream.ExitCode(err) != upstream.ExitUnavailable {
			t.Errorf("Run returned %v after a read that hangs", err)
		}
	})
}

func TestStartFailsAtOnceWhenWaitingCannotHelp(t *testing.T) {
	for name, c := range map[string]struct {
		failure error
		data    string
		exit    int
	}{
		"not found":       {&upstream.Error{Ref: ref("s"), Err: upstream.ErrNotFound}, "", upstream.ExitNotFound},
		"denied":          {&upstream.Error{Ref: ref("s"), Err: upstream.ErrAccessDenied}, "", upstream.ExitDenied},
		"to be deleted":   {&upstream.Error{Ref: ref("s"), Err: upstream.ErrPendingDeletion}, "", upstream.ExitFailed},
		"NUL in a secret": {nil, marker + "\x00", upstream.ExitFailed},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := newStage(t, Options{})
				st.src.put("s", c.data)
				st.src.fail(c.failure)
				st.run(t)
				err := st.wait(t)
				if err == nil || upstream.ExitCode(err) != c.exit || !strings.Contains(err.Error(), "P: ") || strings.Contains(err.Error(), marker) {
					t.Errorf("Run returned %v with exit code %d, want %d", err, upstream.ExitCode(err), c.exit)
				}
				st.wantApp(t, 0, "")
				if s := st.Status(); s.State != Ended || st.ready != 0 {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

func TestCancelledWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, Options{StartTimeout: time.Hour})
		st.src.fail(&upstream.Error{Err: upstream.ErrUnavailable})
		st.run(t)
		sleep(10 * time.Minute)
		st.cancel()
		if err := st.wait(t); !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	})
}

func TestEndOfTheApplicationEndsRun(t *testing.T) {
	for _, c := range []struct {
		end  end
		code int
	}{{end{}, 0}, {end{code: 3}, 3}, {end{code: 139, signal: syscall.SIGSEGV}, 139}} {
		synctest.Test(t, func(t *testing.T) {
			st := newStage(t, Options{})
			st.run(t)
			_ = st.app(t).exit(c.end)
			err := st.wait(t)
			var exit *ExitError
			if c.code == 0 && err != nil || c.code != 0 && (!errors.As(err, &exit) || exit.Code != c.code || exit.Signal != c.end.signal || exit.Killed) {
				t.Errorf("Run returned %v, want code %d", err, c.code)
			}
			if s := st.Status(); s.State != Ended || s.ExitCode != c.code || st.count(Exited) != 1 {
				t.Errorf("%+v", s)
			}
			st.wantApp(t, 1, " 0")
			if err := st.Signal(syscall.SIGHUP); err != ErrNotRunning {
				t.Errorf("Signal after the end: %v", err)
			}
			if err := st.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "already") {
				t.Errorf("the second Run returned %v", err)
			}
		})
	}
}

func TestGraceThenKill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, Options{StopSignal: syscall.SIGQUIT})
		st.prepare = func(p *fakeProcess) { p.onStop = func(*fakeProcess) {} }
		st.run(t)
		st.cancel()
		sleep(DefaultGrace - 1)
		if s := st.Status(); s.State != Stopping || s.PID != 100 {
			t.Errorf("%+v", s)
		}
		sleep(1)
		var exit *ExitError
		if err := st.wait(t); !errors.As(err, &exit) || exit.Code != 137 || !exit.Killed {
			t.Errorf("Run returned %v", err)
		}
		if got := st.app(t).got(); !slices.Equal(got, []os.Signal{syscall.SIGQUIT}) || st.count(Killed) != 1 {
			t.Errorf("the application got %v, killed %d times", got, st.count(Killed))
		}
	})
}

func TestRestartKillsAnApplicationThatIgnoresTheStopSignal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, Options{Grace: 5 * time.Second})
		st.prepare = func(p *fakeProcess) { p.onStop = func(*fakeProcess) {} }
		st.run(t)
		st.prepare = nil
		st.src.set("s", marker+" 1")
		sleep(DefaultDebounce + 5*time.Second)
		st.wantApp(t, 2, " 1")
		if st.count(Killed) != 1 {
			t.Errorf("killed %d times", st.count(Killed))
		}
		st.stop(t)
	})
}

func TestKillCutsTheGraceShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, Options{})
		st.prepare = func(p *fakeProcess) { p.onStop = func(*fakeProcess) {} }
		st.run(t)
		st.cancel()
		sleep(time.Second)
		if err := st.Signal(os.Kill); err != nil {
			t.Error(err)
		}
		var exit *ExitError
		if err := st.wait(t); !errors.As(err, &exit) || exit.Code != 137 {
			t.Errorf("Run returned %v", err)
		}
	})
}

func TestUnkillableApplicationIsNotDoubled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, Options{})
		st.prepare = func(p *fakeProcess) { p.onStop, p.onKill = func(*fakeProcess) {}, func(*fakeProcess) {} }
		st.run(t)
		st.src.set("s", marker+" 1")
		sleep(DefaultDebounce + DefaultGrace + killTimeout)
		if err := st.wait(t); err == nil || !strings.Contains(err.Error(), "process 100 is still there") {
			t.Errorf("Run returned %v", err)
		}
		st.wantApp(t, 1, " 0")
	})
}

func TestSignalOnChange(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no signals")
	}
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, Options{OnChange: SignalChild, ChangeSignal: syscall.SIGQUIT, MaxRestarts: 2, RestartWindow: time.Hour})
		st.run(t)
		st.src.set("s", marker+" 0")
		sleep(time.Minute)
		if got := st.app(t).got(); len(got) != 0 {
			t.Errorf("unchanged, but signalled %v", got)
		}
		st.src.set("s", marker+" 1")
		sleep(time.Minute)
		st.src.ring() // the same as was signalled last
		sleep(time.Minute)
		st.src.set("s", marker+" 2")
		sleep(time.Minute)
		st.src.set("s", marker+" 3") // beyond the rate
		sleep(time.Minute)
		st.wantApp(t, 1, " 0")
		if got := st.app(t).got(); !slices.Equal(got, []os.Signal{syscall.SIGQUIT, syscall.SIGQUIT}) {
			t.Errorf("signalled %v", got)
		}
		if s := st.Status(); s.Signals != 2 || !s.Outdated || s.Restarts != 0 {
			t.Errorf("%+v", s)
		}
		sleep(time.Hour)
		if s := st.Status(); s.Signals != 3 || s.Outdated {
			t.Errorf("%+v", s)
		}
		st.stop(t)
	})
}

func TestIgnoreChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, Options{OnChange: IgnoreChange})
		st.run(t)
		for i := range 3 {
			st.src.set("s", fmt.Sprint(marker, " ", i+1))
			sleep(time.Minute)
		}
		if s := st.Status(); !s.Outdated || st.count(Ignored) != 1 || len(st.app(t).got()) != 0 {
			t.Errorf("%+v, ignored %d times", s, st.count(Ignored))
		}
		st.src.set("s", marker+" 0")
		sleep(time.Minute)
		if s := st.Status(); s.Outdated {
			t.Errorf("the old value is back: %+v", s)
		}
		st.wantApp(t, 1, " 0")
		st.stop(t)
	})
}

func TestChangeDuringTheStopReachesTheNextApplication(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, Options{})
		st.prepare = func(p *fakeProcess) {
			p.onStop = func(*fakeProcess) {
				go func() { time.Sleep(10 * time.Second); _ = p.exit(end{}) }()
			}
		}
		st.run(t)
		st.src.set("s", marker+" 1")
		sleep(DefaultDebounce + 5*time.Second)
		if s := st.Status(); s.State != Stopping {
			t.Fatalf("%+v", s)
		}
		st.src.set("s", marker+" 2")
		sleep(5 * time.Second)
		st.wantApp(t, 2, " 2")
		sleep(time.Hour)
		st.wantApp(t, 2, " 2")
		st.cancel()
		sleep(10 * time.Second)
		if err := st.wait(t); err != nil {
			t.Error(err)
		}
	})
}

func TestCancelledDuringARestartStartsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, Options{})
		st.prepare = func(p *fakeProcess) {
			p.onStop = func(*fakeProcess) {
				go func() { time.Sleep(10 * time.Second); _ = p.exit(end{code: 7}) }()
			}
		}
		st.run(t)
		st.src.set("s", marker+" 1")
		sleep(DefaultDebounce + time.Second)
		st.cancel()
		sleep(9 * time.Second)
		var exit *ExitError
		if err := st.wait(t); !errors.As(err, &exit) || exit.Code != 7 {
			t.Errorf("Run returned %v", err)
		}
		st.wantApp(t, 1, " 0")
	})
}

func TestReadThatHangsHoldsNothingUp(t *testing.T) {
	for _, how := range []string{"cancelled", "application ends"} {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := newStage(t, Options{})
				st.src.onRead = func(ctx context.Context, n int) error {
					if n == 1 {
						return nil
					}
					<-ctx.Done()
					return ctx.Err()
				}
				st.run(t)
				st.src.set("s", marker+" 1")
				sleep(DefaultDebounce + time.Second)
				if how == "cancelled" {
					st.stop(t)
					return
				}
				_ = st.app(t).exit(end{})
				if err := st.wait(t); err != nil {
					t.Error(err)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, Options{})
		st.src.onRead = func(ctx context.Context, n int) error {
			if n != 2 {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}
		st.run(t)
		st.src.set("s", marker+" 1")
		sleep(DefaultDebounce + readTimeout - 1)
		st.wantApp(t, 1, " 0")
		sleep(1 + 2*retryBase)
		st.wantApp(t, 2, " 1")
		st.stop(t)
	})
}

func TestChangeDuringAReadIsReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, Options{MaxRestarts: 1, RestartWindow: 24 * time.Hour})
		var once sync.Once
		st.src.onRead = func(_ context.Context, n int) error {
			if n == 2 {
				once.Do(func() {
					time.Sleep(time.Second)
					st.src.set("s", marker+" 2")
					time.Sleep(10 * time.Second)
				})
			}
			return nil
		}
		st.run(t)
		st.src.set("s", marker+" 1")
		sleep(time.Minute)
		st.wantApp(t, 2, " 2")
		if n := st.src.readCount(); n != 3 {
			t.Errorf("%d reads, want 3", n)
		}
		st.stop(t)
	})
}

func TestStartIsTriedAgainWhenTheSystemIsShortOfSomething(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, Options{})
		busy := &os.PathError{Op: "fork/exec", Path: "app", Err: temporaryStartErrors[0].(syscall.Errno)}
		st.startErr = []error{busy, busy}
		st.run(t)
		sleep(time.Minute)
		st.wantApp(t, 1, " 0")
		if n := st.count(StartFailed); n != 2 {
			t.Errorf("%d failed starts", n)
		}
		st.stop(t)
	})
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, Options{})
		busy := temporaryStartErrors[0]
		st.startErr = []error{busy, busy, busy, busy, busy, busy, busy, busy}
		st.run(t)
		sleep(time.Minute)
		if err := st.wait(t); !errors.Is(err, busy) || !strings.Contains(err.Error(), "start app: ") || len(st.startErr) != 8-startAttempts {
			t.Errorf("Run returned %v after %d attempts", err, 8-len(st.startErr))
		}
	})
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, Options{})
		st.startErr = []error{&os.PathError{Op: "fork/exec", Path: "app", Err: fs.ErrPermission}}
		st.run(t)
		if err := st.wait(t); !errors.Is(err, fs.ErrPermission) || st.ready != 0 {
			t.Errorf("Run returned %v", err)
		}
	})
}

func TestRestartThatCannotStartIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, Options{})
		st.run(t)
		st.startErr = []error{fs.ErrPermission}
		st.src.set("s", marker+" 1")
		sleep(DefaultDebounce)
		if err := st.wait(t); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("Run returned %v", err)
		}
	})
}

func TestMissingProgram(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, Options{})
		st.checkErr = exec.ErrNotFound
		st.run(t)
		if err := st.wait(t); !errors.Is(err, exec.ErrNotFound) || st.src.readCount() != 0 {
			t.Errorf("Run returned %v after %d reads", err, st.src.readCount())
		}
	})
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, Options{})
		st.run(t)
		st.mu.Lock()
		st.checkErr = exec.ErrNotFound // the program is being replaced
		st.mu.Unlock()
		st.src.set("s", marker+" 1")
		sleep(time.Minute)
		st.wantApp(t, 1, " 0")
		if s := st.Status(); s.State != Running || !s.Outdated || !s.Failing || len(st.app(t).got()) != 0 {
			t.Errorf("%+v", s)
		}
		st.mu.Lock()
		st.checkErr = nil
		st.mu.Unlock()
		sleep(retryCap + retryCap/4)
		st.wantApp(t, 2, " 1")
		st.stop(t)
	})
}

func TestSignalsAreForwarded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, Options{})
		st.run(t)
		for _, sig := range []os.Signal{syscall.SIGHUP, syscall.SIGINT} {
			if err := st.Signal(sig); err != nil {
				t.Error(err)
			}
		}
		if got := st.app(t).got(); !slices.Equal(got, []os.Signal{syscall.SIGHUP, syscall.SIGINT}) {
			t.Errorf("the application got %v", got)
		}
		st.interactive = true // what the terminal sends itself is not repeated
		for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGTERM} {
			if err := st.Signal(sig); err != nil {
				t.Error(err)
			}
		}
		if got := st.app(t).got(); !slices.Equal(got, []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM}) {
			t.Errorf("the application got %v", got)
		}
		st.stop(t)
	})
}

// TestSignalDuringAStartReachesTheNewApplication: it runs, and may have asked for the signal,
// before the supervisor has heard that it was started.
func TestSignalDuringAStartReachesTheNewApplication(t *testing.T) {
	st := newStage(t, Options{})
	sent := make(chan error, 1)
	st.prepare = func(*fakeProcess) {
		calling := make(chan struct{})
		go func() {
			close(calling)
			sent <- st.Signal(syscall.SIGHUP)
		}()
		<-calling
		time.Sleep(20 * time.Millisecond) // for a signal that does not wait to go astray
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { st.done <- st.Run(ctx) }()
	if err := <-sent; err != nil {
		t.Errorf("the signal was lost: %v", err)
	}
	if got := st.app(t).got(); len(got) != 1 || got[0] != syscall.SIGHUP {
		t.Errorf("the application got %v", got)
	}
	cancel()
	if err := <-st.done; err != nil {
		t.Error(err)
	}
}

func TestWithoutSecretsNothingIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage(t, Options{})
		st.recipe.variables, st.recipe.refs = nil, nil
		st.run(t)
		if len(st.app(t).env) != 0 || st.src.readCount() != 0 || st.src.subscribers() != 0 {
			t.Error("the source was asked")
		}
		st.stop(t)
	})
}

func TestRefs(t *testing.T) {
	s, err := New(newSource(nil), validOptions())
	if err != nil {
		t.Fatal(err)
	}
	want := []upstream.SecretRef{ref("a").WithDefaults(), ref("b").WithDefaults()}
	if got := s.Refs(); !slices.Equal(got, want) {
		t.Errorf("Refs() = %v, want %v", got, want)
	}
}
