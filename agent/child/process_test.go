//go:build unix

package child

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"secretagent/upstream/upstreamtest"
)

// patience is how long a test waits for something that should happen at once.
const patience = time.Minute

func init() {
	roles["env"] = playEnv
	roles["exit"] = playExit
	roles["serve"] = playServe
	roles["parent"] = playParent
	roles["supervise"] = playSupervise
}

// playEnv prints the environment as JSON.
func playEnv([]string) int {
	out, _ := json.Marshal(os.Environ())
	fmt.Printf("%s\n", out)
	return 0
}

// playExit ends with the code, or by the signal, that it is told.
func playExit(args []string) int {
	if sig, ok := strings.CutPrefix(args[0], "signal "); ok {
		n, _ := strconv.Atoi(sig)
		_ = unix.Kill(os.Getpid(), syscall.Signal(n))
		select {}
	}
	code, _ := strconv.Atoi(args[0])
	return code
}

// playServe prints what happens to it and runs until it is told to end. With "stubborn" it
// does not listen.
func playServe(args []string) int {
	signals := make(chan os.Signal, 10)
	signal.Notify(signals, unix.SIGTERM, unix.SIGHUP, unix.SIGINT, unix.SIGUSR1, unix.SIGUSR2)
	say("started", os.Getpid(), os.Getenv("P"))
	for sig := range signals {
		say("got", sig)
		if slices.Contains(args, "stubborn") {
			continue
		}
		switch sig {
		case unix.SIGTERM:
			return 0
		case unix.SIGUSR2:
			return 42
		}
	}
	return 0
}

// playParent starts a stubborn descendant and does as playServe.
func playParent(args []string) int {
	cmd := exec.Command(os.Args[0], "serve", "stubborn")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: slices.Contains(args, "escape")}
	cmd.Stdout = os.Stdout
	if err := cmd.Start(); err != nil {
		panic(err)
	}
	say("descendant", cmd.Process.Pid)
	if slices.Contains(args, "leave") {
		return 0
	}
	return playServe(args)
}

func say(words ...any) { _, _ = os.Stdout.WriteString(fmt.Sprintln(words...)) }

// playSupervise is a program that supervises a role or a command. After -subreaper or -init it
// also runs other processes beside the application.
func playSupervise(args []string) int {
	subreaper, hooks := args[0] == "-subreaper", strings.HasPrefix(args[0], "-")
	if hooks {
		args = args[1:]
	}
	if roles[args[0]] != nil {
		args = append([]string{os.Args[0]}, args...)
	}
	s, err := New(newSource(map[string]string{"s": marker + "-0"}), Options{
		Command: args, Subreaper: subreaper, Grace: time.Second,
		Env:   []Variable{{Name: "P", Ref: ref("s")}},
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
	})
	if err != nil {
		panic(err)
	}
	stopReaper, err := StartReaper(s, slog.New(slog.DiscardHandler))
	if err != nil {
		panic(err)
	}
	defer stopReaper()
	signals := make(chan os.Signal, 10)
	signal.Notify(signals, unix.SIGINT)
	go func() {
		for sig := range signals {
			_ = s.Signal(sig)
		}
	}()
	ctx, over := context.WithCancel(context.Background())
	ran := make(chan int)
	go func() {
		n := 0
		for ; hooks && ctx.Err() == nil; n++ {
			if err := exec.Command("true").Run(); err != nil {
				say("hook failed:", err)
			}
		}
		ran <- n
	}()
	err = s.Run(context.Background())
	over()
	say("hooks", <-ran)
	if exit, ok := errors.AsType[*ExitError](err); ok {
		return exit.Code
	}
	if err != nil {
		panic(err)
	}
	return 0
}

// await waits until done, or fails with what is missing.
func await(t *testing.T, done func() bool, missing func() string) {
	t.Helper()
	for late := time.Now().Add(patience); !done(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(late) {
			t.Fatal(missing())
		}
	}
}

// output collects the lines that an application prints.
type output struct{ upstreamtest.Buffer }

// line waits for the nth line that starts with prefix and returns the rest of it.
func (o *output) line(t *testing.T, prefix string, nth int) (rest string) {
	t.Helper()
	await(t, func() bool {
		seen, all := 0, o.String()
		for l := range strings.Lines(all[:strings.LastIndexByte(all, '\n')+1]) {
			after, ok := strings.CutPrefix(strings.TrimRight(l, "\r\n"), prefix)
			if ok {
				seen++
			}
			if ok && seen == nth {
				rest = strings.TrimSpace(after)
				return true
			}
		}
		return false
	}, func() string { return fmt.Sprintf("no %q (%d) in %q", prefix, nth, o) })
	return rest
}

func (o *output) pid(t *testing.T, prefix string, nth int) int {
	t.Helper()
	word, _, _ := strings.Cut(o.line(t, prefix, nth), " ")
	pid, err := strconv.Atoi(word)
	must(t, err)
	return pid
}

// real is a supervisor of a real process.
type real struct {
	*Supervisor
	src    *fakeSource
	out    *output
	log    *output
	cancel context.CancelFunc
	done   chan error
}

// newReal runs the test binary in a role, or opts.Command, with the variable P.
func newReal(t *testing.T, opts Options, role ...string) *real {
	t.Helper()
	r := &real{src: newSource(map[string]string{
		"s": marker + "-0", "path": "/named", "json": `{"password":"` + marker + `\n$x","port":5432}`,
	}), out: &output{}, log: &output{}, done: make(chan error, 1)}
	if opts.Command == nil {
		opts.Command = append([]string{os.Args[0]}, role...)
	}
	if opts.Env == nil {
		opts.Env = []Variable{{Name: "P", Ref: ref("s")}}
	}
	if opts.Stdout == nil {
		opts.Stdout = r.out
	}
	opts.Debounce = 10 * time.Millisecond
	opts.Stderr = r.log
	opts.Logger = r.log.Logger()
	var err error
	r.Supervisor, err = New(r.src, opts)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	r.cancel = cancel
	go func() { r.done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if strings.Contains(r.log.String(), marker) {
			t.Errorf("a value shows in the log:\n%s", r.log)
		}
	})
	return r
}

// serving is newReal with the role serve, which has said that it started.
func serving(t *testing.T, opts Options, more ...string) *real {
	t.Helper()
	r := newReal(t, opts, append([]string{"serve"}, more...)...)
	r.out.line(t, "started", 1)
	return r
}

// wait returns what Run returned.
func (r *real) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-r.done:
		if err != nil && strings.Contains(err.Error(), marker) {
			t.Errorf("a value shows in %v", err)
		}
		return err
	case <-time.After(patience):
		t.Fatalf("Run has not returned; output %q, log\n%s", r.out, r.log)
		return nil
	}
}

// stop ends the supervisor and checks the exit code.
func (r *real) stop(t *testing.T, code int) *ExitError {
	t.Helper()
	r.cancel()
	return wantCode(t, r.wait(t), code)
}

// gone waits until a process has ended. Zombies count as ended: it is not up to the test that
// their parent collects them.
func gone(t *testing.T, pid int) {
	t.Helper()
	await(t, func() bool { return !alive(pid) }, func() string { return fmt.Sprintf("process %d is still there", pid) })
}

func alive(pid int) bool {
	if unix.Kill(pid, 0) != nil {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return runtime.GOOS != "linux"
	}
	_, state, _ := bytes.Cut(stat, []byte(") "))
	return len(state) > 0 && state[0] != 'Z' && state[0] != 'X'
}

func TestProcessHasExactlyTheEnvironmentPromised(t *testing.T) {
	t.Setenv("TEST_DENIED", "no")
	t.Setenv("P", "inherited, but replaced")
	t.Setenv("NOTIFY_SOCKET", "@none")
	want := []string{"P=" + marker + "-0", "DB_PASSWORD=" + marker + "\n$x", "DB_PORT=5432", "PATH=/named"}
	for _, pair := range os.Environ() {
		if name, _, _ := strings.Cut(pair, "="); !slices.Contains([]string{"P", "PATH", "TEST_DENIED", "NOTIFY_SOCKET"}, name) {
			want = append(want, pair)
		}
	}
	r := newReal(t, Options{Deny: []string{"TEST_D*"}, Env: []Variable{
		{Name: "P", Ref: ref("s")}, {Name: "PATH", Ref: ref("path")}, {Ref: ref("json"), Prefix: "DB_", Case: UpperCase},
	}}, "env")
	wantCode(t, r.wait(t), 0)
	var got []string
	must(t, json.Unmarshal([]byte(r.out.String()), &got))
	slices.Sort(want)
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestProcessExitCodeIsPassedOn(t *testing.T) {
	for _, c := range []struct {
		how  string
		code int
		sig  os.Signal
	}{{"0", 0, nil}, {"1", 1, nil}, {"42", 42, nil}, {"255", 255, nil}, {"signal 9", 137, unix.SIGKILL}, {"signal 15", 143, unix.SIGTERM}} {
		if exit := wantCode(t, newReal(t, Options{}, "exit", c.how).wait(t), c.code); exit.Signal != c.sig || exit.Killed {
			t.Errorf("%s: %+v", c.how, exit)
		}
	}
}

func TestProcessSignals(t *testing.T) {
	t.Run("they are passed on", func(t *testing.T) {
		r := serving(t, Options{})
		must(t, r.Signal(unix.SIGUSR1))
		r.out.line(t, "got user defined signal 1", 1)
		if s := r.Status(); s.State != Running {
			t.Errorf("%+v", s)
		}
		must(t, r.Signal(unix.SIGTERM))
		wantCode(t, r.wait(t), 0)
		r.out.line(t, "got terminated", 1)
	})
	t.Run("a suspended application can be stopped", func(t *testing.T) {
		r := serving(t, Options{Grace: patience})
		must(t, r.Signal(unix.SIGSTOP))
		r.stop(t, 0)
	})
	t.Run("one that is ignored is followed by the end", func(t *testing.T) {
		r := serving(t, Options{Grace: time.Millisecond}, "stubborn")
		if exit := r.stop(t, 137); exit.Signal != unix.SIGKILL || !exit.Killed {
			t.Errorf("%+v", exit)
		}
		gone(t, r.out.pid(t, "started", 1))
	})
	t.Run("the whole group when asked", func(t *testing.T) {
		r := newReal(t, Options{SignalGroup: true}, "parent")
		r.out.line(t, "started", 2)
		must(t, r.Signal(unix.SIGUSR1))
		r.out.line(t, "got user defined signal 1", 2)
		r.stop(t, 0)
	})
}

func TestProcessDescendantsAreKilled(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, r *real){
		"after a stop":            func(t *testing.T, r *real) { r.stop(t, 0) },
		"after it ends by itself": func(t *testing.T, r *real) { must(t, r.Signal(unix.SIGUSR2)); wantCode(t, r.wait(t), 42) },
		"after a kill":            func(t *testing.T, r *real) { must(t, r.Signal(os.Kill)); wantCode(t, r.wait(t), 137) },
		"before a restart": func(t *testing.T, r *real) {
			old := r.out.pid(t, "descendant", 1)
			r.src.set("s", marker+"-1")
			r.out.line(t, "descendant", 2)
			if alive(old) {
				t.Error("the new application met descendants of the old one")
			}
			r.out.line(t, "started", 4)
			r.stop(t, 0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newReal(t, Options{}, "parent")
			pid := r.out.pid(t, "descendant", 1)
			r.out.line(t, "started", 2) // both
			end(t, r)
			gone(t, pid)
		})
	}
	t.Run("when it leaves them behind", func(t *testing.T) {
		r := newReal(t, Options{}, "parent", "leave")
		wantCode(t, r.wait(t), 0)
		gone(t, r.out.pid(t, "descendant", 1))
	})
}

func TestProcessThatEscapesDoesNotHoldRunUp(t *testing.T) {
	t.Parallel()
	r := newReal(t, Options{}, "parent", "leave", "escape")
	pid := r.out.pid(t, "descendant", 1)
	defer func() { _ = unix.Kill(pid, unix.SIGKILL) }()
	wantCode(t, r.wait(t), 0) // although its output is still open
	if !alive(pid) {
		t.Error("it has not escaped")
	}
}

func TestProcessMethodsInParallel(t *testing.T) {
	r := serving(t, Options{MaxRestarts: 1000})
	ctx, stop := context.WithCancel(t.Context())
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for ctx.Err() == nil {
				time.Sleep(time.Millisecond)
				// A signal that every process ignores.
				if err := r.Signal(unix.SIGWINCH); err != nil && !errors.Is(err, ErrNotRunning) {
					t.Errorf("Signal: %v", err)
				}
				if s := r.Status(); s.State == Running && s.PID == 0 {
					t.Errorf("%+v", s)
				}
			}
		})
	}
	for i := range 5 {
		r.src.set("s", fmt.Sprintf("%s-%d", marker, i+1))
		if got := r.out.line(t, "started", i+2); !strings.HasSuffix(got, fmt.Sprintf("-%d", i+1)) {
			t.Errorf("started with %q", got)
		}
	}
	stop()
	callers.Wait()
	r.stop(t, 0)
}

func TestProcessOutputToAFileIsHandedOver(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "out"))
	must(t, err)
	defer func() { _ = f.Close() }()
	wantCode(t, newReal(t, Options{Stdout: f, Pristine: true}, "env").wait(t), 0)
	got, err := os.ReadFile(f.Name())
	if err != nil || string(got) != `["P=`+marker+`-0"]`+"\n" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestProcessInput(t *testing.T) {
	in, feed, err := os.Pipe()
	must(t, err)
	defer func() { _ = in.Close() }()
	r := newReal(t, Options{Command: []string{"cat"}, Stdin: in})
	_, _ = io.WriteString(feed, "hello\n")
	r.out.line(t, "hello", 1)
	_ = feed.Close()
	wantCode(t, r.wait(t), 0)
	if r.sharesTerminal {
		t.Error("a pipe passes for a terminal")
	}
}

func TestProcessWorkingDirectory(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "app.sh"), []byte("#!/bin/sh\npwd\necho pwd=$PWD arg=$1\n"), 0o700))
	t.Setenv("PWD", "/")
	real, err := filepath.EvalSymlinks(dir)
	must(t, err)
	r := newReal(t, Options{Command: []string{"./app.sh", "a b"}, Dir: dir})
	wantCode(t, r.wait(t), 0)
	if r.out.line(t, real, 1); r.out.line(t, "pwd="+dir, 1) != "arg=a b" {
		t.Errorf("%q", r.out)
	}
}

// TestProgramsAreRefusedForTheReason also holds what callers may look for in an error.
func TestProgramsAreRefusedForTheReason(t *testing.T) {
	dir := t.TempDir()
	plain, broken := filepath.Join(dir, "plain"), filepath.Join(dir, "broken")
	for path, mode := range map[string]os.FileMode{plain: 0o600, broken: 0o700} {
		must(t, os.WriteFile(path, []byte("\x7fELF, but no more"), mode))
	}
	for _, c := range []struct {
		opts Options
		want error
		says string
	}{
		{Options{Command: []string{"no-such-program"}}, exec.ErrNotFound, "program that can be run: exec: \"no-such-program\""},
		{Options{Command: []string{"./x"}, Dir: dir}, fs.ErrNotExist, "program that can be run: exec: \"" + filepath.Join(dir, "x")},
		{Options{Command: []string{plain}}, fs.ErrPermission, "program that can be run: exec: \"" + plain},
		{Options{Command: []string{dir}}, unix.EISDIR, "program that can be run: exec: \"" + dir},
		{Options{Command: []string{"/bin/sh"}, Dir: filepath.Join(dir, "x")}, fs.ErrNotExist, "dir: "},
	} {
		if _, err := New(newSource(nil), c.opts); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v: New returned %v, want %v", c.opts.Command, err, c.want)
		}
	}
	// Only the attempt shows that a file is not a program.
	if err := newReal(t, Options{Command: []string{broken}}).wait(t); !errors.Is(err, unix.ENOEXEC) {
		t.Errorf("Run returned %v", err)
	}
}

// startSupervisor runs the test binary as a supervisor, a process that can be killed. wrap, which
// may be empty, is a command to run it with.
func startSupervisor(t *testing.T, wrap []string, terminal *os.File, args ...string) (*program, *output) {
	t.Helper()
	argv := append(append(slices.Clone(wrap), os.Args[0], "supervise"), args...)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.WaitDelay = time.Second
	out := &output{}
	cmd.Stdout, cmd.Stderr = out, out
	if terminal != nil {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
		cmd.Env = append(os.Environ(), "TERM=dumb")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	}
	must(t, cmd.Start())
	p := &program{Cmd: cmd, ended: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-p.ended })
	return p, out
}

// program is a supervisor that runs as a process of its own.
type program struct {
	*exec.Cmd
	ended chan struct{}
	err   error // valid once ended is closed
}

// code waits for the end and returns the exit code.
func (p *program) code(t *testing.T) int {
	t.Helper()
	select {
	case <-p.ended:
		var exit *exec.ExitError
		if p.err != nil && !errors.As(p.err, &exit) && !errors.Is(p.err, exec.ErrWaitDelay) {
			t.Fatal(p.err)
		}
		return p.ProcessState.ExitCode()
	case <-time.After(patience):
		t.Fatal("the supervisor has not ended")
		return 0
	}
}
