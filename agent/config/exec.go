package config

import (
	"time"

	"secretagent/upstream"
)

// Exec is a child process with secrets in its environment.
type Exec struct {
	Command []string `yaml:"command" show:"never"` // program and arguments, no shell; empty: from the command line
	Dir     Path     `yaml:"dir"`                  // working directory; empty: that of the agent
	Env     []EnvVar `yaml:"env"`

	User  Account `yaml:"user"`  // who it runs as; empty: as the agent, whose rights it then has
	Group Account `yaml:"group"` // in place of the main group of User

	Pristine bool     `yaml:"pristine" default:"false"` // inherit nothing but what Allow names
	Allow    []string `yaml:"allow"`                    // globs: variables that are inherited; empty: all but cloud credentials, or with Pristine none
	Deny     []string `yaml:"deny"`                     // globs: variables that are never inherited

	StartTimeout  time.Duration `yaml:"startTimeout" default:"0s" min:"0s" max:"24h"` // longest wait for the first values; zero: no bound
	OnChange      string        `yaml:"onChange" default:"restart" enum:"restart|signal|ignore"`
	ChangeSignal  string        `yaml:"changeSignal" default:"SIGHUP" enum:"SIGHUP|SIGINT|SIGQUIT|SIGTERM|SIGUSR1|SIGUSR2|SIGWINCH"`
	StopSignal    string        `yaml:"stopSignal" default:"SIGTERM" enum:"SIGHUP|SIGINT|SIGQUIT|SIGTERM|SIGUSR1|SIGUSR2|SIGKILL"`
	SignalGroup   bool          `yaml:"signalGroup" default:"false"`                  // signal the whole process group, for shell scripts
	Grace         time.Duration `yaml:"grace" default:"30s" min:"1ms" max:"1h"`       // between the stop signal and the kill
	Debounce      time.Duration `yaml:"debounce" default:"2s" min:"1ms" max:"1h"`     // wait for further changes
	Splay         time.Duration `yaml:"splay" default:"0s" min:"0s" max:"24h"`        // random wait on top
	MaxRestarts   int           `yaml:"maxRestarts" default:"5" min:"1" max:"100000"` // because of changes, within RestartWindow
	RestartWindow time.Duration `yaml:"restartWindow" default:"10m" min:"1s" max:"24h"`
	Subreaper     bool          `yaml:"subreaper" default:"false"` // reap orphans also when not process 1; Linux only
}

// EnvVar is one variable from a secret, or without Name one for each field of a JSON secret.
type EnvVar struct {
	Name   string             `yaml:"name"`
	Secret upstream.SecretRef `yaml:"secret" required:"true"`
	Field  string             `yaml:"field"` // of a JSON secret; empty: the whole value

	// For one variable per field.
	Keys     map[string]string `yaml:"keys"`                                        // field → variable, "" by its own name; nil: all fields
	Prefix   string            `yaml:"prefix"`                                      // before names that come from fields
	Case     string            `yaml:"case" default:"keep" enum:"keep|upper|lower"` // of names that come from fields
	Sanitize bool              `yaml:"sanitize" default:"false"`                    // replace what no variable may contain by _
}
