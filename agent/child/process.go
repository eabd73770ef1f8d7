package child

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"time"
)

const (
	// pipeDelay is how long output is read after the application has ended, when a process
	// that escaped still holds the pipe.
	pipeDelay = 2 * time.Second

	// emptyDelay is how long to wait for killed members of the group to be gone, so that the
	// next application finds ports and locks free.
	emptyDelay = 5 * time.Second
)

// process is a running application as the supervisor sees it. All methods are safe for
// concurrent use.
type process interface {
	// PID returns the process id, also after the end.
	PID() int

	// Signal sends sig. It returns os.ErrProcessDone after the end.
	Signal(sig os.Signal) error

	// Stop sends sig and lets a stopped application run so that it can act on it.
	Stop(sig os.Signal) error

	// Kill ends the application and its group without asking.
	Kill() error

	// Done is closed when the application has ended, its group is killed and its output is
	// passed on.
	Done() <-chan struct{}

	// End says how it ended. It may be called once Done is closed.
	End() end
}

// end is how an application ended.
type end struct {
	code   int       // exit code, or 128+n after signal n
	signal os.Signal // nil unless a signal ended it
}

// startProcess starts the application of opts as runAs, which may be nil, with env as its whole
// environment. With shareGroup it gets no group of its own: the terminal talks to us and it at
// once.
func startProcess(opts Options, runAs *account, shareGroup bool, env []string) (process, error) {
	program, err := opts.program()
	if err != nil {
		return nil, err
	}
	p := &osProcess{
		cmd: &exec.Cmd{
			Path: program, Args: opts.Command, Dir: opts.Dir, Env: env,
			Stdout: opts.Stdout, Stderr: opts.Stderr,
			WaitDelay: pipeDelay, SysProcAttr: attributes(runAs, shareGroup),
		},
		ownGroup:    !shareGroup,
		signalGroup: opts.SignalGroup && !shareGroup,
		done:        make(chan struct{}),
	}
	if opts.Stdin != nil {
		p.cmd.Stdin = opts.Stdin
	}
	started := make(chan error)
	go p.live(started)
	return p, <-started
}

// osProcess is a process of the operating system.
type osProcess struct {
	cmd         *exec.Cmd
	ownGroup    bool
	signalGroup bool
	done        chan struct{}
	end         end // written before done is closed

	mu    sync.Mutex
	group group // its id is ours while gone is false
	gone  bool  // the application may have been reaped
}

// live starts the application, stays until it has ended and cleans up after it. It holds on
// to one thread: the parent-death signal is tied to the thread that forked.
func (p *osProcess) live(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	err := p.cmd.Start()
	p.cmd.Env = nil // not needed any more
	if err != nil {
		started <- err
		return
	}
	p.group, err = newGroup(p.cmd.Process, p.ownGroup)
	if err != nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
		started <- fmt.Errorf("set up the process group: %w", err)
		return
	}
	started <- nil

	if !awaitExit(p.cmd.Process.Pid) {
		_ = p.cmd.Wait() // the group must not be killed while the application runs
	}
	p.mu.Lock()
	if p.ownGroup {
		_ = p.group.kill() // whatever the application left behind
	}
	p.gone = true
	p.mu.Unlock()
	_ = p.cmd.Wait() // again is harmless; a failed pipe says nothing about how the application ended
	if p.ownGroup {
		p.group.awaitEmpty(emptyDelay)
	}
	p.group.close()
	p.end = end{code: 255} // when another part of the program took the status
	if state := p.cmd.ProcessState; state != nil {
		p.end = endOf(state)
	}
	close(p.done)
}

func (p *osProcess) PID() int              { return p.cmd.Process.Pid }
func (p *osProcess) Done() <-chan struct{} { return p.done }
func (p *osProcess) End() end              { return p.end }

func (p *osProcess) Signal(sig os.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.gone:
		return os.ErrProcessDone
	case p.signalGroup:
		return p.group.signal(sig)
	}
	return signalProcess(p.cmd.Process, sig)
}

func (p *osProcess) Stop(sig os.Signal) error {
	if err := p.Signal(sig); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.gone {
		wake(p.cmd.Process)
	}
	return nil
}

func (p *osProcess) Kill() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.gone:
		return os.ErrProcessDone
	case p.ownGroup:
		return p.group.kill()
	}
	return p.cmd.Process.Kill()
}

// ExitError says that the application ended other than with exit code 0.
type ExitError struct {
	// Code is its exit code, 1 to 255 on Unix; 128+n when signal n ended it.
	Code int

	// Signal is what ended it; nil when it exited by itself.
	Signal os.Signal

	// Killed tells that it was killed because it did not end within Options.Grace.
	Killed bool
}

func (e *ExitError) Error() string {
	switch {
	case e.Killed:
		return "the application did not end within the grace period and was killed"
	case e.Signal != nil:
		return fmt.Sprintf("the application was ended by signal %q", e.Signal.String())
	default:
		return fmt.Sprintf("the application exited with code %d", e.Code)
	}
}
