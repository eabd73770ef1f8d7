package command

import "os"

// Beside terminate, this signal means something to a program; the agent has a use for it.
var (
	passedOn      = []os.Signal{os.Interrupt}
	passedOnByRun []os.Signal
)

func stayAwake() {} // Windows stops no job
