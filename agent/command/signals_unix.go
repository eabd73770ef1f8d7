//go:build unix

package command

import (
	"os"
	"os/signal"
	"slices"
	"syscall"
)

// Beside terminate, these signals mean something to a program; those that run passes on are
// the ones that the agent itself has no use for. Left out are those with which the kernel tells
// a process about itself, and those that Go does not hand out.
var (
	passedOn      = slices.Concat([]os.Signal{os.Interrupt, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGCONT}, passedOnByRun)
	passedOnByRun = slices.Concat([]os.Signal{
		syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH, syscall.SIGALRM, syscall.SIGVTALRM, syscall.SIGIO,
	}, systemSignals())
)

// stayAwake keeps the signals that stop a job from stopping this process: a program that does not
// share our terminal would go on alone, and SIGTERM would have no effect.
func stayAwake() {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGTSTP) // nobody reads it, and programs that we start get it
	// A write to the terminal would be tried, and a handler called, again and again.
	signal.Ignore(syscall.SIGTTIN, syscall.SIGTTOU)
}
