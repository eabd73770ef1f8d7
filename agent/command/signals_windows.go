package command

import (
	"os"
	"syscall"
)

// terminate asks a program to end.
const terminate = syscall.SIGTERM

// passedOn returns the other signals that mean something to a program.
func passedOn() []os.Signal { return []os.Signal{os.Interrupt} }
