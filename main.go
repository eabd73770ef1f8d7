// Command secretagent hands secrets to the applications of its host; see README.md.
package main

import (
	"context"
	"os"

	"secretagent/agent/command"
)

// version is set by the linker: -ldflags "-X main.version=1.2.3".
var version = "dev"

func main() {
	os.Exit(command.Main(command.SignalContext(context.Background()), command.Process{
		Args:    os.Args[1:],
		Stdin:   os.Stdin,
		Stdout:  os.Stdout,
		Stderr:  os.Stderr,
		Getenv:  os.Getenv,
		Version: version,
	}))
}
