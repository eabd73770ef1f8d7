//go:build unix

package child

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var temporaryStartErrors = []error{unix.EAGAIN, unix.ENOMEM, unix.ETXTBSY, unix.EMFILE, unix.ENFILE}

// group is a process group.
type group struct{ id int }

func newGroup(p *os.Process, own bool) (group, error) {
	if !own {
		return group{}, nil
	}
	return group{id: p.Pid}, nil
}

func (g group) signal(sig os.Signal) error {
	s, ok := sig.(syscall.Signal)
	if !ok {
		return fmt.Errorf("%v is not a signal of this system", sig)
	}
	return unix.Kill(-g.id, s)
}

func (g group) kill() error { return unix.Kill(-g.id, unix.SIGKILL) }

// awaitEmpty waits until no process of the group runs, for at most limit.
func (g group) awaitEmpty(limit time.Duration) {
	const poll = 2 * time.Millisecond
	for waited := time.Duration(0); waited < limit && groupRuns(g.id); waited += poll {
		time.Sleep(poll)
	}
}

func (g group) close() {}

func signalProcess(p *os.Process, sig os.Signal) error { return p.Signal(sig) }

// wake lets a process run that was stopped by SIGSTOP or the terminal.
func wake(p *os.Process) { _ = p.Signal(unix.SIGCONT) }

// signalOf returns the signal that ended a process, nil when it exited.
func signalOf(s *os.ProcessState) os.Signal {
	if ws, ok := s.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return ws.Signal()
	}
	return nil
}

func signalNumber(sig os.Signal) int {
	s, _ := sig.(syscall.Signal)
	return int(s)
}

// stopsProcess reports whether sig suspends a process that cannot prevent it.
func stopsProcess(sig os.Signal) bool { return sig == unix.SIGSTOP }

// isControllingTerminal reports whether f is the terminal that controls this process.
func isControllingTerminal(f *os.File) bool {
	if f == nil {
		return false
	}
	conn, err := f.SyscallConn()
	if err != nil {
		return false
	}
	is := false
	err = conn.Control(func(fd uintptr) {
		// Only the controlling terminal tells its foreground group.
		_, err := unix.IoctlGetInt(int(fd), unix.TIOCGPGRP)
		is = err == nil
	})
	return err == nil && is
}

// sentByTerminal reports whether a terminal sends sig by itself to all processes of its
// foreground group.
func sentByTerminal(sig os.Signal) bool {
	switch sig {
	case unix.SIGINT, unix.SIGQUIT, unix.SIGTSTP, unix.SIGWINCH:
		return true
	}
	return false
}

// ForwardedSignals returns the signals that a program which does nothing but run the
// application should hand to [Supervisor.Signal]. Absent are those that concern this process
// alone, such as SIGCHLD, SIGPIPE and SIGURG, which the Go runtime sends to itself all the
// time.
func ForwardedSignals() []os.Signal {
	return []os.Signal{
		unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2,
		unix.SIGALRM, unix.SIGCONT, unix.SIGWINCH,
	}
}

// ParseSignal reads a signal: its name in any case with or without SIG in front, or its
// number.
func ParseSignal(s string) (os.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil && n > 0 && n <= 64 {
		return syscall.Signal(n), nil
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if sig := unix.SignalNum(name); sig != 0 {
		return sig, nil
	}
	return nil, fmt.Errorf("%q is not a signal of this system: use a name such as SIGTERM or a number", s)
}
