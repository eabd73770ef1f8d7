package command

import (
	"os"
	"syscall"
)

// terminate asks a program to end.
const terminate = syscall.SIGTERM

// passedOn returns the other signals that mean something to a program.
func passedOn() []os.Signal { return []os.Signal{os.Interrupt} }

// hangup never arrives here; a changed file reloads the agent all the same.
const hangup = syscall.SIGHUP

// passedOnByRun returns those that the agent itself has no use for.
func passedOnByRun() []os.Signal { return nil }
