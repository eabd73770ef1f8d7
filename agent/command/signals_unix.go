//go:build unix

package command

import (
	"os"
	"syscall"
)

// hangup asks the agent to reload.
const hangup = syscall.SIGHUP

// terminate asks a program to end.
const terminate = syscall.SIGTERM

// passedOn returns the other signals that mean something to a program.
func passedOn() []os.Signal {
	return []os.Signal{
		os.Interrupt, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH, syscall.SIGCONT,
	}
}

// passedOnByRun returns those that the agent itself has no use for.
func passedOnByRun() []os.Signal {
	return []os.Signal{syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH}
}
