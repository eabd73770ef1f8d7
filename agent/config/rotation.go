package config

import (
	"time"

	"secretagent/upstream"
)

// Rotation says how a secret gets new versions.
type Rotation struct {
	Secret upstream.SecretName `yaml:"secret" required:"true"`
	Every  time.Duration       `yaml:"every" default:"0s" min:"0s" max:"87600h"` // zero: only by hand
	Window *Window             `yaml:"window"`                                   // nil: any time
	Jitter time.Duration       `yaml:"jitter" default:"0s" min:"0s" max:"168h"`

	New  NewValue `yaml:"new" required:"true"`
	Set  *Command `yaml:"set"`  // nil: nothing to put into force
	Test *Command `yaml:"test"` // nil: nothing to try

	PendingStage string `yaml:"pendingStage" default:"Pending"`
	MaxAttempts  int    `yaml:"maxAttempts" default:"5" min:"1" max:"100"`
}

// Window is a part of the day.
type Window struct {
	From string `yaml:"from" required:"true"`
	To   string `yaml:"to" required:"true"`
	Zone string `yaml:"zone" default:"UTC"`
}

// NewValue says how the next value is made: by Command, or from the current one with Password, Pair
// or both.
type NewValue struct {
	Password *Password     `yaml:"password"`
	Pair     *Pair         `yaml:"pair"`
	Command  []string      `yaml:"command" show:"never"` // program and arguments; no shell
	Timeout  time.Duration `yaml:"timeout" default:"30s" min:"100ms" max:"1h"`
}

// Password is a random password, drawn as GetRandomPassword does.
type Password struct {
	Field                   string `yaml:"field"` // of a JSON secret; empty: the whole value
	Length                  int    `yaml:"length" default:"32" min:"8" max:"128"`
	ExcludeCharacters       string `yaml:"excludeCharacters"`
	ExcludeLowercase        bool   `yaml:"excludeLowercase" default:"false"`
	ExcludeUppercase        bool   `yaml:"excludeUppercase" default:"false"`
	ExcludeNumbers          bool   `yaml:"excludeNumbers" default:"false"`
	ExcludePunctuation      bool   `yaml:"excludePunctuation" default:"false"`
	RequireEachIncludedType bool   `yaml:"requireEachIncludedType" default:"true"`
}

// Pair are accounts that take turns.
type Pair struct {
	Field string   `yaml:"field" required:"true"` // that holds the account
	Users []string `yaml:"users" required:"true"`
}

// Command is a program that a rotation runs.
type Command struct {
	Command []string      `yaml:"command" required:"true" show:"never"` // program and arguments; no shell
	Timeout time.Duration `yaml:"timeout" default:"30s" min:"100ms" max:"1h"`
}
