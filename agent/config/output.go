package config

import (
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"secretagent/upstream"
)

// Render holds what all rendered files share.
type Render struct {
	Root     Path `yaml:"root"`                           // set: destinations outside it are refused
	StateDir Path `yaml:"stateDir" default:"./var/state"` // remembers hooks that are owed
}

// Template is one rendered file.
type Template struct {
	Content     `yaml:",inline"`
	Destination Path     `yaml:"destination" required:"true"`
	Mode        FileMode `yaml:"mode" default:"0600"`
	User        Account  `yaml:"user"`
	Group       Account  `yaml:"group"`
	Backup      bool     `yaml:"backup" default:"false"` // keep the content before as DESTINATION.bak
	Sync        bool     `yaml:"sync" default:"true"`    // fsync; false for tmpfs
	Publishing  `yaml:",inline"`
}

// Set is a directory of rendered files that are published together, by one rename.
type Set struct {
	Directory  Path      `yaml:"directory" required:"true"`
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
	Format     string         `yaml:"format" enum:"env|json|yaml|toml|properties|raw|pem"`
	Secrets    []FormatSecret `yaml:"secrets"` // what Format writes, merged in this order
}

// FormatSecret is a secret as a source of names and values: the fields of a JSON object, or
// the whole of it as one value.
type FormatSecret struct {
	Name   upstream.SecretRef `yaml:"name" required:"true"`
	Key    string             `yaml:"key"`                                   // the name of a secret that is one value
	Field  string             `yaml:"field"`                                 // only this field of the object
	Keys   map[string]string  `yaml:"keys"`                                  // field → name, "" by its own name; nil: all fields
	Prefix string             `yaml:"prefix"`                                // before every name
	Case   string             `yaml:"case" default:"keep" enum:"keep|upper"` // of every name
}

// Publishing says when a file changes and what follows.
type Publishing struct {
	OnRemoved string        `yaml:"onRemoved" default:"keep" enum:"keep|delete"` // when a secret is deleted upstream
	Wait      Wait          `yaml:"wait"`
	Splay     time.Duration `yaml:"splay" default:"0s" min:"0s" max:"24h"` // random delay before a change is published
	Hook      *Hook         `yaml:"hook"`
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

// checkOutputs checks everything that is rendered.
func checkOutputs(p *problems, c *Config) {
	for i := range c.Templates {
		t, at := &c.Templates[i], key("templates[%d]", i)
		t.Content.check(p, at)
		t.Publishing.check(p, at, c.Exec != nil)
		checkRoot(p, c.Render.Root, at+".destination", t.Destination)
		checkMode(p, at+".mode", t.Mode)
	}
	for i := range c.Sets {
		s, at := &c.Sets[i], key("sets[%d]", i)
		s.Publishing.check(p, at, c.Exec != nil)
		checkRoot(p, c.Render.Root, at+".directory", s.Directory)
		checkMode(p, at+".mode", s.Mode)
		if s.Mode&0o300 != 0o300 {
			p.addf(at+".mode", s.Mode.String(), `must let the agent write into the directory, as "0700" does`)
		}
		if p.has(at+".files") && len(s.Files) == 0 {
			p.addf(at+".files", "", "must hold at least one file")
		}
		names := map[string]bool{}
		for j := range s.Files {
			f, at := &s.Files[j], key("%s.files[%d]", at, j)
			f.Content.check(p, at)
			checkMode(p, at+".mode", f.Mode)
			if p.has(at+".name") && (f.Name == "" || f.Name[0] == '.' || strings.ContainsAny(f.Name, `/\`+"\x00")) {
				p.addf(at+".name", f.Name, "must be a file name: not empty, no slash, no leading dot")
			}
			if names[f.Name] && f.Name != "" {
				p.addf(at+".name", f.Name, "is given to two files of the set: choose another")
			}
			names[f.Name] = true
		}
		for j := range c.Templates {
			if inside(s.Directory, c.Templates[j].Destination) {
				p.addf(key("templates[%d].destination", j), string(c.Templates[j].Destination), "lies in the directory of sets[%d], which holds nothing else", i)
			}
		}
	}
}

func checkMode(p *problems, key string, m FileMode) {
	switch {
	case m&0o400 == 0:
		p.addf(key, m.String(), `must let the owner read, as "0400" does`)
	case m&0o002 != 0:
		p.addf(key, m.String(), "must not let everyone write")
	}
}

func checkRoot(p *problems, root Path, key string, path Path) {
	if root != "" && path != "" && !inside(root, path) {
		p.addf(key, string(path), "is outside render.root, %s", root)
	}
}

// inside reports whether path lies below dir.
func inside(dir, path Path) bool {
	if dir == "" || path == "" {
		return false
	}
	rel, err := filepath.Rel(string(dir), string(path))
	return err == nil && rel != "." && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator))
}

func (c *Content) check(p *problems, at string) {
	given := 0
	for _, name := range []string{"source", "contents", "format"} {
		if p.has(joinKey(at, name)) {
			given++
		}
	}
	switch {
	case given == 0:
		p.addf(at, "", "must have source, contents or format")
	case given > 1:
		p.addf(at, "", "must have only one of source, contents and format")
	case c.Format == "" && len(c.Secrets) > 0:
		p.addf(at+".secrets", "", "belongs to format; a template names its secrets itself")
	case c.Format != "" && len(c.Secrets) == 0:
		p.addf(at+".secrets", "", "must name what format %s writes", c.Format)
	case c.Format == "raw" && len(c.Secrets) > 1:
		p.addf(at+".secrets", "", "must be one secret: format raw writes its bytes and nothing else")
	}
	if (c.LeftDelim == "") != (c.RightDelim == "") {
		p.addf(at, "", "must have both leftDelim and rightDelim, or none")
	}
	for i := range c.Secrets {
		c.Secrets[i].check(p, key("%s.secrets[%d]", at, i), c.Format)
	}
}

func (s *FormatSecret) check(p *problems, at, format string) {
	if format == "raw" || format == "pem" {
		for _, name := range []string{"key", "keys", "prefix", "case"} {
			if p.has(joinKey(at, name)) {
				p.addf(joinKey(at, name), "", "has no use with format %s, which writes no names; field picks a part", format)
			}
		}
		return
	}
	given := []string{}
	for _, name := range []string{"key", "field", "keys"} {
		if p.has(joinKey(at, name)) {
			given = append(given, name)
		}
	}
	if len(given) > 1 {
		p.addf(joinKey(at, given[1]), "", "must not be combined with %s", given[0])
	}
}

func (b *Publishing) check(p *problems, at string, child bool) {
	if b.Wait.Max != 0 && b.Wait.Max < b.Wait.Min {
		p.addf(at+".wait.max", b.Wait.Max.String(), "must not be shorter than wait.min, %s", b.Wait.Min)
	}
	if b.Hook != nil {
		b.Hook.check(p, at+".hook", child)
	}
}

func (h *Hook) check(p *problems, at string, child bool) {
	given := 0
	for _, name := range []string{"command", "signal", "http"} {
		if p.has(joinKey(at, name)) {
			given++
		}
	}
	switch {
	case given == 0:
		p.addf(at, "", "must have command, signal or http")
	case given > 1:
		p.addf(at, "", "must have only one of command, signal and http")
	case p.has(at + ".command"):
		checkCommand(p, at+".command", h.Command)
	}
	if s := h.Signal; s != nil {
		switch {
		case s.Child == (s.PIDFile != ""):
			p.addf(at+".signal", "", "must have either child: true or pidFile")
		case s.Child && !child:
			p.addf(at+".signal.child", "true", "needs exec, which starts the child")
		}
	}
	if h.HTTP != nil && h.HTTP.URL != "" {
		u, err := url.Parse(h.HTTP.URL)
		switch {
		case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
			p.addf(at+".http.url", "", "must be an http or https URL")
		case u.User != nil:
			p.addf(at+".http.url", "", "must not contain a user or password")
		case !loopback(u.Host):
			p.addf(at+".http.url", "", "must point to a loopback host, such as 127.0.0.1")
		}
	}
}

// checkCommand checks a program and its arguments.
func checkCommand(p *problems, at string, argv []string) {
	if len(argv) == 0 || argv[0] == "" {
		p.addf(at, "", "must start with a program, such as [kill, -HUP, \"1\"]")
	}
	for i, arg := range argv {
		if strings.ContainsRune(arg, 0) {
			p.addf(key("%s[%d]", at, i), "", "must not contain a NUL character")
		}
	}
}
