package child

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

// fakeProcess is a process that ends when it is told to.
type fakeProcess struct {
	lockable
	pid     int
	env     []string
	done    chan struct{}
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
	defer p.locked()()
	if p.over {
		return os.ErrProcessDone
	}
	p.signals = append(p.signals, sig)
	return nil
}

func (p *fakeProcess) Stop(sig os.Signal) error {
	err := p.Signal(sig)
	if err == nil && p.onStop != nil {
		p.onStop(p)
	} else if err == nil {
		err = p.exit(end{})
	}
	return err
}

func (p *fakeProcess) Kill() error {
	if p.onKill != nil {
		p.onKill(p)
		return nil
	}
	return p.exit(end{code: 137, signal: syscall.SIGKILL})
}

func (p *fakeProcess) exit(e end) error {
	defer p.locked()()
	if p.over {
		return os.ErrProcessDone
	}
	p.over, p.end = true, e
	close(p.done)
	return nil
}

// stubborn makes a process ignore the stop signal.
func stubborn(p *fakeProcess) { p.onStop = func(*fakeProcess) {} }

func allStubborn(st *stage) { st.prepare = stubborn }

// slow returns what makes a process end ten seconds after the stop signal.
func slow(e end) func(*fakeProcess) {
	return func(p *fakeProcess) {
		p.onStop = func(*fakeProcess) {
			go func() { time.Sleep(10 * time.Second); _ = p.exit(e) }()
		}
	}
}

// stage is a supervisor with fake processes, whose application has the variable P from the
// secret s.
type stage struct {
	*Supervisor
	lockable
	t        *testing.T
	src      *fakeSource
	ctx      context.Context
	cancel   context.CancelFunc
	done     chan error
	over     bool // Run has returned
	log      upstreamtest.Buffer
	started  []*fakeProcess
	startErr []error              // of the next starts
	prepare  func(p *fakeProcess) // what the next processes do
	checkErr error
	events   map[Event]int
}

func newStage(t *testing.T, opts Options) *stage {
	t.Helper()
	st := &stage{t: t, src: newSource(map[string]string{"s": marker + " 0"}), done: make(chan error, 1), events: map[Event]int{}}
	opts.Command = []string{os.Args[0]}
	opts.Pristine = true
	opts.Env = []Variable{{Name: "P", Ref: ref("s")}}
	opts.Logger = st.log.Logger()
	opts.Observe = func(e Event) { defer st.locked()(); st.events[e]++ }
	var err error
	st.Supervisor, err = New(st.src, opts)
	must(t, err)
	st.check = func() error { defer st.locked()(); return st.checkErr }
	st.start = func(env []string) (process, error) {
		defer st.locked()()
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
	st.ctx, st.cancel = context.WithCancel(t.Context())
	return st
}

// onStage calls fn with a stage in a synctest bubble, once before, which may be nil, has prepared
// it and Run has come to rest. It checks that what fn leaves running ends well.
func onStage(t *testing.T, opts Options, before, fn func(st *stage)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		t.Helper()
		st := newStage(t, opts)
		if before != nil {
			before(st)
		}
		go func() { st.done <- st.Run(st.ctx) }()
		synctest.Wait()
		fn(st)
		if !st.over {
			st.cancel()
			if err := st.wait(); err != nil {
				t.Errorf("Run returned %v", err)
			}
		}
		if s := st.Status(); s.State != Ended {
			t.Errorf("after the end: %+v", s)
		}
		if n := st.src.subscribers(); n != 0 {
			t.Errorf("%d subscriptions are left", n)
		}
		if strings.Contains(st.log.String(), marker) {
			t.Errorf("a value shows in\n%s", &st.log)
		}
	})
}

// wait returns what Run returned, which must be now.
func (st *stage) wait() error {
	st.t.Helper()
	synctest.Wait()
	select {
	case err := <-st.done:
		st.over = true
		return err
	default:
		st.t.Fatal("Run has not returned")
		return nil
	}
}

// change gives the secret another value and lets d pass.
func (st *stage) change(value string, d time.Duration) {
	st.src.set("s", marker+value)
	sleep(d)
}

// sleep lets time pass and everything come to rest.
func sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (st *stage) app() *fakeProcess {
	st.t.Helper()
	defer st.locked()()
	if len(st.started) == 0 {
		st.t.Fatal("nothing was started")
	}
	return st.started[len(st.started)-1]
}

// wantApp checks how often the application was started and with what last.
func (st *stage) wantApp(starts int, value string) {
	st.t.Helper()
	defer st.locked()()
	if n := len(st.started); n != starts {
		st.t.Fatalf("%d starts, want %d", n, starts)
	}
	if starts > 0 && !slices.Equal(st.started[starts-1].env, []string{"P=" + marker + value}) {
		st.t.Fatalf("the application has %q, want %q", st.started[starts-1].env, value)
	}
}

// wantSignals checks what an application got.
func wantSignals(t *testing.T, p *fakeProcess, want ...os.Signal) {
	t.Helper()
	defer p.locked()()
	if !slices.Equal(p.signals, want) {
		t.Errorf("application %d got %v, want %v", p.pid, p.signals, want)
	}
}

// wantStatus checks the status.
func (st *stage) wantStatus(ok func(Status) bool) {
	st.t.Helper()
	if s := st.Status(); !ok(s) {
		st.t.Errorf("%+v", s)
	}
}

func (st *stage) wantEvents(kind Event, want int) {
	st.t.Helper()
	defer st.locked()()
	if n := st.events[kind]; n != want {
		st.t.Errorf("%d times %s, want %d", n, kind, want)
	}
}

// between fails unless from <= n <= to.
func between(t *testing.T, what string, n, from, to int) {
	t.Helper()
	if n < from || n > to {
		t.Errorf("%d %s, want %d to %d", n, what, from, to)
	}
}

func TestChangedValueRestartsAfterTheDebounce(t *testing.T) {
	replaced := func(p *fakeProcess) { p.onStop = func(p *fakeProcess) { _ = p.exit(end{code: 3}) } }
	onStage(t, Options{}, func(st *stage) { st.prepare = replaced }, func(st *stage) {
		st.prepare = nil
		st.wantApp(1, " 0")
		st.wantStatus(func(s Status) bool { return s.State == Running && s.PID == 100 && s.Restarts == 0 })
		sleep(time.Hour)
		st.change(" 1", defaultDebounce-1)
		st.wantApp(1, " 0")
		sleep(1)
		st.wantApp(2, " 1")
		wantSignals(t, st.started[0], syscall.SIGTERM)
		st.wantStatus(func(s Status) bool {
			// The exit code is not that of the application before.
			return s.State == Running && s.PID == 101 && s.Restarts == 1 && s.ExitCode == 0 && !s.Outdated && !s.Failing && !s.ChangedAt.IsZero()
		})
	})
}

func TestUnchangedValueDoesNothing(t *testing.T) {
	onStage(t, Options{}, nil, func(st *stage) {
		for range 3 {
			st.change(" 0", time.Minute) // a new version with the same data
		}
		st.src.set("unrelated", "x")
		sleep(time.Minute)
		st.wantApp(1, " 0")
		st.wantEvents(Unchanged, 4)
	})
}

func TestBurstOfChangesActsOnceAndIsCutOff(t *testing.T) {
	onStage(t, Options{Debounce: 2 * time.Second}, nil, func(st *stage) {
		for i := range 4 {
			st.change(fmt.Sprint(" ", i+1), time.Second)
		}
		st.wantApp(1, " 0")
		sleep(time.Second)
		st.wantApp(2, " 4")
		sleep(time.Hour)
		st.wantApp(2, " 4")
		for i := range 11 {
			st.change(fmt.Sprint(" ", i+11), time.Second)
		}
		st.wantApp(3, " 20")
	})
}

func TestSplayIsAddedOncePerBurst(t *testing.T) {
	onStage(t, Options{Splay: time.Minute, MaxRestarts: 1000}, nil, func(st *stage) {
		var waits []time.Duration
		for i := range 20 {
			changed := time.Now()
			st.change(fmt.Sprint(" ", i+1), defaultDebounce+time.Minute)
			st.wantApp(i+2, fmt.Sprint(" ", i+1))
			waits = append(waits, st.Status().StartedAt.Sub(changed))
		}
		slices.Sort(waits)
		if first, last := waits[0], waits[19]; first < defaultDebounce || last > defaultDebounce+time.Minute || last-first < 5*time.Second {
			t.Errorf("the waits are %v", waits)
		}
	})
}

func TestRestartsAreLimitedAndTheLastChangeIsNotLost(t *testing.T) {
	onStage(t, Options{MaxRestarts: 3, RestartWindow: 30 * time.Minute}, nil, func(st *stage) {
		for i := range 20 {
			st.change(fmt.Sprint(" ", i+1), 10*time.Second)
		}
		st.wantApp(4, " 3")
		st.wantStatus(func(s Status) bool { return s.Outdated && s.State == Running })
		st.wantEvents(Deferred, 1)
		sleep(10 * time.Minute) // one restart is earned in that time
		st.wantApp(5, " 20")
		st.wantStatus(func(s Status) bool { return !s.Outdated && s.Restarts == 4 })
		for i := range 24 * 60 {
			st.change(fmt.Sprint(" ", i+21), time.Minute)
		}
		between(t, "restarts after a day", st.Status().Restarts, 3*48, 3*48+8) // 3 per 30 minutes
	})
}

func TestFailedReadKeepsTheApplicationAndIsTriedAgain(t *testing.T) {
	for _, failure := range []error{upstream.ErrUnavailable, upstream.ErrNotFound, upstream.ErrAccessDenied} {
		onStage(t, Options{}, nil, func(st *stage) {
			st.src.fail(&upstream.Error{Err: failure})
			st.change(" 1", time.Hour)
			st.wantApp(1, " 0")
			st.wantStatus(func(s Status) bool { return s.Failing && s.Error == failure.Error() && s.State == Running })
			between(t, "reads in an hour", st.src.readCount(), 60, 100)
			st.src.fail(nil)
			sleep(retryCap + retryCap/4)
			st.wantApp(2, " 1")
			st.wantStatus(func(s Status) bool { return !s.Failing && s.Error != "" })
		})
	}
}

func TestUnfitChangeKeepsTheApplication(t *testing.T) {
	onStage(t, Options{}, nil, func(st *stage) {
		st.change("\x00", time.Minute)
		st.wantApp(1, " 0")
		st.wantStatus(func(s Status) bool {
			return s.Failing && strings.Contains(s.Error, "P: secret s") && !strings.Contains(s.Error, marker)
		})
		st.change(" 2", defaultDebounce)
		st.wantApp(2, " 2")
	})
}

func TestStartWaitsForTheUpstream(t *testing.T) {
	for _, failure := range []error{
		&upstream.Error{Err: upstream.ErrUnavailable}, fmt.Errorf("get: %w", &upstream.Error{Err: upstream.ErrThrottled}),
		&upstream.Error{Err: upstream.ErrUnauthenticated}, context.DeadlineExceeded,
	} {
		onStage(t, Options{}, func(st *stage) { st.src.fail(failure) }, func(st *stage) {
			sleep(time.Hour)
			st.wantApp(0, "")
			st.wantStatus(func(s Status) bool { return s.State == Waiting && s.Failing })
			between(t, "reads in an hour", st.src.readCount(), 60, 100)
			if err := st.Signal(syscall.SIGHUP); err != ErrNotRunning {
				t.Errorf("Signal before the start: %v", err)
			}
			st.src.fail(nil)
			sleep(retryCap + retryCap/4)
			st.wantApp(1, " 0")
		})
	}
}

func TestStartTimeout(t *testing.T) {
	onStage(t, Options{StartTimeout: 30 * time.Second}, func(st *stage) { st.src.fail(&upstream.Error{Err: upstream.ErrUnavailable, Endpoint: "kms.example"}) }, func(st *stage) {
		sleep(30*time.Second - 1)
		st.wantStatus(func(s Status) bool { return s.State == Waiting })
		sleep(1)
		err := st.wait()
		if !errors.Is(err, upstream.ErrUnavailable) || upstream.ExitCode(err) != upstream.ExitUnavailable || !strings.Contains(err.Error(), "30s") {
			t.Errorf("Run returned %v", err)
		}
		st.wantApp(0, "")
	})
	onStage(t, Options{StartTimeout: 5 * time.Second}, func(st *stage) {
		st.src.onRead = func(ctx context.Context, _ int) error { <-ctx.Done(); return ctx.Err() }
	}, func(st *stage) {
		sleep(5 * time.Second)
		if err := st.wait(); upstream.ExitCode(err) != upstream.ExitUnavailable {
			t.Errorf("Run returned %v after a read that hangs", err)
		}
	})
}

func TestStartFailsAtOnceWhenWaitingCannotHelp(t *testing.T) {
	for _, c := range []struct {
		failure error
		data    string
		exit    int
	}{
		{&upstream.Error{Ref: ref("s"), Err: upstream.ErrNotFound}, "", upstream.ExitNotFound},
		{&upstream.Error{Ref: ref("s"), Err: upstream.ErrAccessDenied}, "", upstream.ExitDenied},
		{&upstream.Error{Ref: ref("s"), Err: upstream.ErrPendingDeletion}, "", upstream.ExitFailed},
		{nil, marker + "\x00", upstream.ExitFailed},
	} {
		onStage(t, Options{}, func(st *stage) {
			st.src.put("s", c.data)
			st.src.fail(c.failure)
		}, func(st *stage) {
			err := st.wait()
			if err == nil || upstream.ExitCode(err) != c.exit || !strings.Contains(err.Error(), "P: ") || strings.Contains(err.Error(), marker) {
				t.Errorf("Run returned %v with exit code %d, want %d", err, upstream.ExitCode(err), c.exit)
			}
			st.wantApp(0, "")
		})
	}
}

func TestCancelledWhileWaiting(t *testing.T) {
	onStage(t, Options{StartTimeout: time.Hour}, func(st *stage) { st.src.fail(&upstream.Error{Err: upstream.ErrUnavailable}) }, func(st *stage) {
		sleep(10 * time.Minute)
		st.cancel()
		if err := st.wait(); !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	})
}

func TestEndOfTheApplicationEndsRun(t *testing.T) {
	for _, e := range []end{{}, {code: 3}, {code: 139, signal: syscall.SIGSEGV}} {
		onStage(t, Options{}, nil, func(st *stage) {
			_ = st.app().exit(e)
			if exit := wantCode(t, st.wait(), e.code); exit.Signal != e.signal || exit.Killed {
				t.Errorf("%+v", exit)
			}
			st.wantStatus(func(s Status) bool { return s.State == Ended && s.PID == 0 && s.ExitCode == e.code })
			st.wantEvents(Exited, 1)
			st.wantApp(1, " 0")
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
	onStage(t, Options{StopSignal: "SIGQUIT"}, allStubborn, func(st *stage) {
		st.cancel()
		sleep(defaultGrace - 1)
		st.wantStatus(func(s Status) bool { return s.State == Stopping && s.PID == 100 })
		sleep(1)
		if exit := wantCode(t, st.wait(), 137); !exit.Killed {
			t.Errorf("%+v", exit)
		}
		wantSignals(t, st.app(), syscall.SIGQUIT)
		st.wantEvents(Killed, 1)
	})
}

func TestRestartKillsAnApplicationThatIgnoresTheStopSignal(t *testing.T) {
	onStage(t, Options{Grace: 5 * time.Second}, allStubborn, func(st *stage) {
		st.prepare = nil
		st.change(" 1", defaultDebounce+5*time.Second)
		st.wantApp(2, " 1")
		st.wantEvents(Killed, 1)
	})
}

func TestKillCutsTheGraceShort(t *testing.T) {
	onStage(t, Options{}, allStubborn, func(st *stage) {
		st.cancel()
		sleep(time.Second)
		must(t, st.Signal(os.Kill))
		wantCode(t, st.wait(), 137)
	})
}

func TestUnkillableApplicationIsNotDoubled(t *testing.T) {
	onStage(t, Options{}, func(st *stage) {
		st.prepare = func(p *fakeProcess) { p.onStop, p.onKill = func(*fakeProcess) {}, func(*fakeProcess) {} }
	}, func(st *stage) {
		st.change(" 1", defaultDebounce+defaultGrace+killTimeout)
		if err := st.wait(); err == nil || !strings.Contains(err.Error(), "process 100 is still there") {
			t.Errorf("Run returned %v", err)
		}
		st.wantApp(1, " 0")
	})
}

func TestSignalOnChange(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no signals")
	}
	for name, sig := range map[string]os.Signal{"": syscall.SIGHUP, "SIGQUIT": syscall.SIGQUIT} {
		onStage(t, Options{OnChange: SignalChild, ChangeSignal: name, MaxRestarts: 2, RestartWindow: time.Hour}, nil, func(st *stage) {
			st.change(" 0", time.Minute)
			wantSignals(t, st.app())
			st.change(" 1", time.Minute)
			st.src.ring() // the same as was signalled last
			sleep(time.Minute)
			st.change(" 2", time.Minute)
			st.change(" 3", time.Minute) // beyond the rate
			st.wantApp(1, " 0")
			wantSignals(t, st.app(), sig, sig)
			st.wantStatus(func(s Status) bool { return s.Signals == 2 && s.Outdated && s.Restarts == 0 })
			sleep(time.Hour)
			st.wantStatus(func(s Status) bool { return s.Signals == 3 && !s.Outdated })
		})
	}
}

func TestIgnoreChange(t *testing.T) {
	onStage(t, Options{OnChange: IgnoreChange}, nil, func(st *stage) {
		for i := range 3 {
			st.change(fmt.Sprint(" ", i+1), time.Minute)
		}
		st.wantStatus(func(s Status) bool { return s.Outdated })
		st.wantEvents(Ignored, 1)
		wantSignals(t, st.app())
		st.change(" 0", time.Minute)
		st.wantStatus(func(s Status) bool { return !s.Outdated }) // the old value is back
		st.wantApp(1, " 0")
	})
}

func TestChangeDuringTheStopReachesTheNextApplication(t *testing.T) {
	onStage(t, Options{}, func(st *stage) { st.prepare = slow(end{}) }, func(st *stage) {
		st.change(" 1", defaultDebounce+5*time.Second)
		st.wantStatus(func(s Status) bool { return s.State == Stopping })
		st.change(" 2", 5*time.Second)
		st.wantApp(2, " 2")
		sleep(time.Hour)
		st.wantApp(2, " 2")
		st.cancel()
		sleep(10 * time.Second)
	})
}

func TestCancelledDuringARestartStartsNothing(t *testing.T) {
	onStage(t, Options{}, func(st *stage) { st.prepare = slow(end{code: 7}) }, func(st *stage) {
		st.change(" 1", defaultDebounce+time.Second)
		st.cancel()
		sleep(9 * time.Second)
		wantCode(t, st.wait(), 7)
		st.wantApp(1, " 0")
	})
}

func TestReadThatHangsHoldsNothingUp(t *testing.T) {
	hangIn := func(second func(n int) bool) func(context.Context, int) error {
		return func(ctx context.Context, n int) error {
			if !second(n) {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}
	}
	for _, endsItself := range []bool{false, true} {
		onStage(t, Options{}, func(st *stage) { st.src.onRead = hangIn(func(n int) bool { return n >= 2 }) }, func(st *stage) {
			st.change(" 1", defaultDebounce+time.Second)
			if endsItself {
				_ = st.app().exit(end{})
				wantCode(t, st.wait(), 0)
			}
		})
	}
	onStage(t, Options{}, func(st *stage) { st.src.onRead = hangIn(func(n int) bool { return n == 2 }) }, func(st *stage) {
		st.change(" 1", defaultDebounce+readTimeout-1)
		st.wantApp(1, " 0")
		sleep(1 + 2*retryBase)
		st.wantApp(2, " 1")
	})
}

func TestChangeDuringAReadIsReadAgain(t *testing.T) {
	onStage(t, Options{MaxRestarts: 1, RestartWindow: 24 * time.Hour}, func(st *stage) {
		st.src.onRead = func(_ context.Context, n int) error {
			if n == 2 {
				time.Sleep(time.Second)
				st.src.set("s", marker+" 2")
				time.Sleep(10 * time.Second)
			}
			return nil
		}
	}, func(st *stage) {
		st.change(" 1", time.Minute)
		st.wantApp(2, " 2")
		between(t, "reads", st.src.readCount(), 3, 3)
	})
}

func TestStartIsTriedAgainWhenTheSystemIsShortOfSomething(t *testing.T) {
	busy := &os.PathError{Op: "fork/exec", Path: "app", Err: temporaryStartErrors[0]}
	onStage(t, Options{}, func(st *stage) { st.startErr = []error{busy, busy} }, func(st *stage) {
		sleep(time.Minute)
		st.wantApp(1, " 0")
		st.wantEvents(StartFailed, 2)
	})
	onStage(t, Options{}, func(st *stage) { st.startErr = slices.Repeat([]error{busy}, startAttempts+2) }, func(st *stage) {
		sleep(time.Minute)
		if err := st.wait(); !errors.Is(err, busy.Err) || !strings.Contains(err.Error(), "start "+os.Args[0]+": ") || len(st.startErr) != 2 {
			t.Errorf("Run returned %v, %d attempts fewer than there were failures", err, len(st.startErr))
		}
	})
}

func TestStartOrRestartThatCannotBeIsAnError(t *testing.T) {
	refused := func(st *stage) {
		st.startErr = []error{&os.PathError{Op: "fork/exec", Path: "app", Err: fs.ErrPermission}}
	}
	ends := func(st *stage) {
		if err := st.wait(); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("Run returned %v", err)
		}
	}
	onStage(t, Options{}, refused, ends)
	onStage(t, Options{}, nil, func(st *stage) {
		refused(st)
		st.change(" 1", defaultDebounce)
		ends(st)
	})
}

func TestProgramThatGoesMissing(t *testing.T) {
	missing := func(st *stage) { defer st.locked()(); st.checkErr = exec.ErrNotFound }
	onStage(t, Options{}, missing, func(st *stage) {
		if err := st.wait(); !errors.Is(err, exec.ErrNotFound) || st.src.readCount() != 0 {
			t.Errorf("Run returned %v after %d reads", err, st.src.readCount())
		}
	})
	onStage(t, Options{}, nil, func(st *stage) {
		missing(st)
		st.change(" 1", time.Minute)
		st.wantApp(1, " 0")
		wantSignals(t, st.app())
		st.wantStatus(func(s Status) bool { return s.State == Running && s.Outdated && s.Failing })
		func() { defer st.locked()(); st.checkErr = nil }()
		sleep(retryCap + retryCap/4)
		st.wantApp(2, " 1")
	})
}

func TestSignalsAreForwarded(t *testing.T) {
	onStage(t, Options{}, nil, func(st *stage) {
		send := func(signals ...os.Signal) {
			for _, sig := range signals {
				must(t, st.Signal(sig))
			}
		}
		send(syscall.SIGHUP, syscall.SIGINT)
		wantSignals(t, st.app(), syscall.SIGHUP, syscall.SIGINT)
		st.sharesTerminal = true // what the terminal sends itself is not repeated
		send(syscall.SIGINT, syscall.SIGTERM)
		wantSignals(t, st.app(), syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM)
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
		time.Sleep(20 * time.Millisecond) // a signal that does not wait gets lost in that time
	}
	go func() { st.done <- st.Run(st.ctx) }()
	if err := <-sent; err != nil {
		t.Errorf("the signal was lost: %v", err)
	}
	wantSignals(t, st.app(), syscall.SIGHUP)
	st.cancel()
	must(t, <-st.done)
}

func TestWithoutSecretsNothingIsRead(t *testing.T) {
	onStage(t, Options{}, func(st *stage) { st.recipe.variables, st.recipe.refs = nil, nil }, func(st *stage) {
		if len(st.app().env) != 0 || st.src.readCount() != 0 || st.src.subscribers() != 0 {
			t.Error("the source was asked")
		}
	})
}
