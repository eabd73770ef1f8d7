//go:build unix

package command

import (
	"os"
	"syscall"
)

// Beside terminate, these signals mean something to a program; those that run passes on are
// the ones that the agent itself has no use for.
var (
	passedOn = []os.Signal{
		os.Interrupt, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH, syscall.SIGCONT,
	}
	passedOnByRun = []os.Signal{syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH}
)
