package config

import (
	"time"

	"secretagent/upstream"
)

// Render holds what all rendered files share.
type Render struct {
	Root       Path     `yaml:"root"`                                      // set: destinations outside it are refused
	FolderMode FileMode `yaml:"folderMode"`                                // of folders that are made; zero: see [render.Options]
	StateDir   Path     `yaml:"stateDir" default:"$STATE_DIRECTORY/state"` // remembers hooks that are owed
}

// Template is one rendered file.
type Template struct {
	Content     `yaml:",inline"`
	Destination Path     `yaml:"destination" required:"true" path:"write"`
	Mode        FileMode `yaml:"mode" default:"0600"`
	User        Account  `yaml:"user"`
	Group       Account  `yaml:"group"`
	Backup      bool     `yaml:"backup" default:"false"` // keep the content before as DESTINATION.bak
	Sync        bool     `yaml:"sync" default:"true"`    // fsync; false for tmpfs
	Publishing  `yaml:",inline"`
}

// Set is a directory of rendered files that are published together, by one rename.
type Set struct {
	Directory  Path      `yaml:"directory" required:"true" path:"write"`
	Mode       FileMode  `yaml:"mode" default:"0700"` // of the directory
	User       Account   `yaml:"user"`
	Group      Account   `yaml:"group"`
	Sync       bool      `yaml:"sync" default:"true"` // fsync; false for tmpfs
	Files      []SetFile `yaml:"files" required:"true"`
	Publishing `yaml:",inline"`
}

// SetFile is one file of a [Set].
type SetFile struct {
	Name    string `yaml:"name" required:"true"` // inside the directory, without a slash
	Content `yaml:",inline"`
	Mode    FileMode `yaml:"mode" default:"0600"`
	User    Account  `yaml:"user"`  // empty: that of the set
	Group   Account  `yaml:"group"` // empty: that of the set
}

// Content says what is in a rendered file: exactly one of Source, Contents and Format is set.
type Content struct {
	Source     Path           `yaml:"source" path:"watch"`   // template file
	Contents   string         `yaml:"contents" show:"never"` // template text
	LeftDelim  string         `yaml:"leftDelim"`             // in place of {{
	RightDelim string         `yaml:"rightDelim"`            // in place of }}
	Format     string         `yaml:"format" enum:"env|shell|docker|json|yaml|toml|properties|raw|pem"`
	Secrets    []FormatSecret `yaml:"secrets"` // what Format writes, merged in this order
}

// FormatSecret is a secret as a source of names and values: the fields of a JSON object, or
// the whole of it as one value.
type FormatSecret struct {
	Name     upstream.SecretRef `yaml:"name" required:"true"`
	Key      string             `yaml:"key"`                                           // the name of a secret that is one value
	Field    string             `yaml:"field"`                                         // only this field of the object
	Keys     map[string]string  `yaml:"keys"`                                          // field → name, "" by its own name; nil: all fields
	Prefix   string             `yaml:"prefix"`                                        // before every name
	Case     string             `yaml:"case" default:"keep" enum:"keep|upper|lower"`   // of every name
	Sanitize bool               `yaml:"sanitize" default:"false"`                      // replace what no variable may contain by _
	Decode   string             `yaml:"decode" default:"none" enum:"none|base64|auto"` // of format raw and pem; auto: base64 when the secret is of type binary
}

// Publishing says when a file changes and what follows.
type Publishing struct {
	OnRemoved string        `yaml:"onRemoved" default:"keep" enum:"keep|delete"` // when a secret is deleted upstream
	Wait      Wait          `yaml:"wait"`
	Splay     time.Duration `yaml:"splay" default:"0s" min:"0s" max:"24h"` // random delay before a change is published
	Check     *Check        `yaml:"check"`
	Hook      *Hook         `yaml:"hook"`
}

// Check is a program that looks at new content before it is published.
type Check struct {
	Command []string      `yaml:"command" required:"true" show:"never"` // one argument has {{ .Path }}; no shell
	Timeout time.Duration `yaml:"timeout" default:"30s" min:"100ms" max:"1h"`
}

// Wait lets several changes become one.
type Wait struct {
	Min time.Duration `yaml:"min" default:"0s" min:"0s" max:"1h"` // quiet time after the last change
	Max time.Duration `yaml:"max" default:"0s" min:"0s" max:"1h"` // at most this after the first; zero: four times Min
}

// Hook is what happens after a change was published: exactly one of Command, Signal and HTTP
// is set.
type Hook struct {
	Command []string      `yaml:"command" show:"never"` // program and arguments; no shell
	Timeout time.Duration `yaml:"timeout" default:"30s" min:"100ms" max:"1h"`
	Signal  *HookSignal   `yaml:"signal"`
	HTTP    *HookHTTP     `yaml:"http"`
}

// HookSignal signals the child process of exec, or the process whose number is in a file:
// exactly one of Child and PIDFile is set.
type HookSignal struct {
	Child   bool   `yaml:"child" default:"false"`
	PIDFile Path   `yaml:"pidFile"`
	Name    string `yaml:"name" default:"SIGHUP" enum:"SIGHUP|SIGINT|SIGQUIT|SIGTERM|SIGUSR1|SIGUSR2|SIGWINCH"`
}

// HookHTTP calls a URL on this host.
type HookHTTP struct {
	URL    string `yaml:"url" required:"true" show:"never"`
	Method string `yaml:"method" default:"POST" enum:"GET|POST"`
}
