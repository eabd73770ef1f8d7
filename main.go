// Command secretagent hands secrets to the applications of its host; see README.md.
package main

import (
	"context"
	_ "embed"
	"os"

	"secretagent/agent/command"
)

// Set by the linker: -ldflags "-X main.version=1.2.3 -X main.commit=… -X main.date=2026-11-30". What
// is empty is as the Go command has recorded it from the checkout.
var version, commit, date string

// What the binary prints as help topics: the configuration with every key, and who is trusted.
var (
	//go:embed agent.example.yaml
	example string
	//go:embed SECURITY.md
	trust string
)

func main() {
	os.Exit(command.Main(command.SignalContext(context.Background()), command.Process{
		Args:    os.Args[1:],
		Stdin:   os.Stdin,
		Stdout:  os.Stdout,
		Stderr:  os.Stderr,
		Getenv:  os.Getenv,
		Build:   command.Build{Version: version, Commit: commit, Date: date},
		Example: example,
		Trust:   trust,
	}))
}
