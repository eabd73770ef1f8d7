//go:build unix

package child

import (
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// temporaryStartErrors say that the system is short of something, or the program being replaced:
// starting may succeed soon.
var temporaryStartErrors = []error{unix.EAGAIN, unix.ENOMEM, unix.ETXTBSY, unix.EMFILE, unix.ENFILE}

// credential makes a process run as a; nil for nil.
func (a *account) credential() *syscall.Credential {
	if a == nil {
		return nil
	}
	return &syscall.Credential{Uid: a.uid, Gid: a.gid, Groups: a.groups}
}

// group is a process group.
type group struct{ id int }

func newGroup(p *os.Process, own bool) (group, error) {
	if !own {
		return group{}, nil
	}
	return group{id: p.Pid}, nil
}

func (g group) signal(sig os.Signal) error {
	s, _ := sig.(syscall.Signal) // every signal of Unix is one
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

// endOf returns how the process ended whose state is s.
func endOf(s *os.ProcessState) end {
	if ws, ok := s.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return end{code: 128 + int(ws.Signal()), signal: ws.Signal()}
	}
	return end{code: s.ExitCode()}
}

// isControllingTerminal reports whether f, which may be nil, is the terminal that controls this
// process.
func isControllingTerminal(f *os.File) bool {
	if f == nil {
		return false
	}
	// Only the controlling terminal tells its foreground group.
	_, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPGRP)
	return err == nil
}

// sentByTerminal reports whether a terminal sends sig by itself to all processes of its
// foreground group.
func sentByTerminal(sig os.Signal) bool {
	return sig == unix.SIGINT || sig == unix.SIGQUIT || sig == unix.SIGTSTP || sig == unix.SIGWINCH
}

// signals are those that Options can name.
var signals = map[string]os.Signal{
	"SIGHUP": unix.SIGHUP, "SIGINT": unix.SIGINT, "SIGQUIT": unix.SIGQUIT, "SIGTERM": unix.SIGTERM, "SIGKILL": unix.SIGKILL,
	"SIGUSR1": unix.SIGUSR1, "SIGUSR2": unix.SIGUSR2, "SIGWINCH": unix.SIGWINCH,
}
