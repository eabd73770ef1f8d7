// Command secretagent hands secrets to the applications of its host; see README.md.
package main

import (
	"context"
	_ "embed"
	"os"

	"secretagent/agent/command"
)

// version is set by the linker: -ldflags "-X main.version=1.2.3".
var version = "dev"

// example is the configuration with every key, which the binary prints as a help topic.
//
//go:embed agent.example.yaml
var example string

func main() {
	os.Exit(command.Main(command.SignalContext(context.Background()), command.Process{
		Args:    os.Args[1:],
		Stdin:   os.Stdin,
		Stdout:  os.Stdout,
		Stderr:  os.Stderr,
		Getenv:  os.Getenv,
		Version: version,
		Example: example,
	}))
}
