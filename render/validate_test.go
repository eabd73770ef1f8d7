package render

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"secretagent/upstream"
)

// validOptions are two targets of which a test makes one problem.
func validOptions() Options {
	return Options{
		Targets: []Target{{Content: inline("x"), Destination: "/tmp/x"}},
		Sets:    []Set{{Directory: "/tmp/set", Files: []SetFile{{Name: "f", Content: inline("y")}}}},
	}
}

// Ensure that each rule is held by Validate and New alike, and names key and value.
func TestValidate(t *testing.T) {
	dir := t.TempDir()
	mustWrite(t, dir+"/file", "x")
	mustWrite(t, dir+"/large.tmpl", strings.Repeat("x", maxTemplate+1))
	mustWrite(t, dir+"/bad.tmpl", "ok\n{{ secret \"a\" }}{{ $x }}\n")
	file := func(change func(*Target)) func(*Options) { return func(o *Options) { change(&o.Targets[0]) } }
	set := func(change func(*Set)) func(*Options) { return func(o *Options) { change(&o.Sets[0]) } }
	check := func(c Check) func(*Options) { return set(func(s *Set) { s.Check = &c }) }
	hook := func(h Hook) func(*Options) { return file(func(t *Target) { t.Hook = &h }) }
	format := func(f Format, secrets ...FormatSecret) func(*Options) {
		return file(func(t *Target) { t.Content = Content{Format: f, Secrets: secrets} })
	}
	source := func(path string) func(*Options) { return file(func(t *Target) { t.Content = Content{Source: path} }) }
	for want, change := range map[string]func(*Options){
		"timeout: -1ns: must not be negative":                                                      func(o *Options) { o.Timeout = -1 },
		"render.root: /no/such: must be a folder that exists":                                      func(o *Options) { o.Root, o.Targets, o.Sets = "/no/such", nil, nil },
		"templates[0].destination: must be set":                                                    file(func(t *Target) { t.Destination = "" }),
		"templates[0].destination: /tmp/x/: must not end in a separator":                           file(func(t *Target) { t.Destination = "/tmp/x/" }),
		"templates[0].destination: must not contain a NUL":                                         file(func(t *Target) { t.Destination = "/tmp/\x00" }),
		"templates[0].destination: /tmp/x: is outside render.root, " + dir:                         func(o *Options) { o.Root, o.Sets = dir, nil },
		"templates[1].destination: /tmp/x: templates[0].destination writes the same path":          func(o *Options) { o.Targets = append(o.Targets, o.Targets[0]) },
		"templates[0].destination: /tmp/set/x: lies in the directory of sets[0], which holds":      file(func(t *Target) { t.Destination = "/tmp/set/x" }),
		"sets[1].directory: /tmp/set/x: lies in the directory of sets[0], which holds":             func(o *Options) { o.Sets = append(o.Sets, o.Sets[0]); o.Sets[1].Directory = "/tmp/set/x" },
		"templates[0].destination: " + dir + "/file: it is also the source":                        file(func(t *Target) { t.Content, t.Destination = Content{Source: dir + "/file"}, dir+"/file" }),
		"templates[0]: must have source, contents or format":                                       file(func(t *Target) { t.Content = Content{} }),
		"templates[0]: must have only one of source, contents and format":                          file(func(t *Target) { t.Format, t.Secrets = JSON, []FormatSecret{{Ref: ref("a")}} }),
		"templates[0]: must have both leftDelim and rightDelim, or none":                           file(func(t *Target) { t.LeftDelim = "<<" }),
		"templates[0].secrets: belongs to format; a template names":                                file(func(t *Target) { t.Secrets = []FormatSecret{{}} }),
		"templates[0].source: " + dir + "/none: cannot be read: no such file":                      source(dir + "/none"),
		"templates[0].source: " + dir + "/large.tmpl: cannot be read: is larger than":              source(dir + "/large.tmpl"),
		"templates[0].source: " + dir + ": cannot be read: is not a regular file":                  source(dir),
		"templates[0].source: " + dir + `/bad.tmpl:2:20: at {{ secret "a" }}{{ $x }}: undefined v`: source(dir + "/bad.tmpl"),
		"templates[0].contents: x (inline template):1: unclosed action":                            file(func(t *Target) { t.Contents = "{{ 1" }),
		"templates[0].mode: 10600: must be permission bits":                                        file(func(t *Target) { t.Mode = 0o10600 }),
		`templates[0].mode: 0200: must let the owner read, as "0400" does`:                         file(func(t *Target) { t.Mode = 0o200 }),
		"templates[0].mode: 0602: must not let everyone write":                                     file(func(t *Target) { t.Mode = 0o602 }),
		"templates[0].user: nobody-of-that-name: is not known here":                                file(func(t *Target) { t.User = "nobody-of-that-name" }),
		"templates[0].group: nobody-of-that-name: is not known here":                               file(func(t *Target) { t.Group = "nobody-of-that-name" }),
		"templates[0].onRemoved: drop: must be keep or delete":                                     file(func(t *Target) { t.OnRemoved = "drop" }),
		"templates[0].wait.min: -1s: must not be negative":                                         file(func(t *Target) { t.Wait.Min = -time.Second }),
		"templates[0].wait.max: 1s: must not be shorter than wait.min, 2s":                         file(func(t *Target) { t.Wait = Wait{2 * time.Second, time.Second} }),
		"templates[0].splay: -1s: must not be negative":                                            file(func(t *Target) { t.Splay = -time.Second }),
		"templates[0].hook: must have command, signal or http":                                     hook(Hook{}),
		"templates[0].hook: must have only one of command, signal and http":                        hook(Hook{Command: []string{"true"}, PIDFile: "/x"}),
		"templates[0].hook.command: must start with a program, such as":                            hook(Hook{Command: []string{""}}),
		"templates[0].hook.command: /no/such: must start with a program that can be run: no such":  hook(Hook{Command: []string{"/no/such"}}),
		"templates[0].hook.command: no-such: must start with a program that can be run: exec":      hook(Hook{Command: []string{"no-such"}}),
		"templates[0].hook.command[1]: must not contain a NUL":                                     hook(Hook{Command: []string{"true", "\x00"}}),
		"templates[0].hook.timeout: -1s: must not be negative":                                     hook(Hook{PIDFile: "/x", Timeout: -time.Second}),
		"templates[0].hook.signal: must have either child: true or pidFile":                        hook(Hook{Signal: "HUP"}),
		"templates[0].hook.signal.child: true: needs exec":                                         hook(Hook{Child: true}),
		"templates[0].hook.signal.name: NOPE: must be the name of a signal":                        hook(Hook{PIDFile: "/x", Signal: "NOPE"}),
		"templates[0].hook.http.url: must point to a loopback host, such as 127.0.0.1":             hook(Hook{URL: "http://127.0.0.1.example.com/"}),
		"templates[0].hook.http.url: must be an http or https URL":                                 hook(Hook{URL: "file:///etc/passwd"}),
		"templates[0].hook.http.url: must not contain a user or password":                          hook(Hook{URL: "http://u:p@127.0.0.1/"}),
		"templates[0].hook.http.method: PUT: must be GET or POST":                                  hook(Hook{URL: "http://[::1]:1/", Method: "PUT"}),
		`sets[0].check.command: must start with a program, such as [nginx, -t`:                     check(Check{}),
		"sets[0].check.command: /no/such: must start with a program that can be run: no such": func(o *Options) {
			o.NoHooks, o.Sets[0].Check = true, &Check{Command: []string{"/no/such", "{{.Path}}"}}
		},
		"sets[0].check.command: true: must have an argument with {{ .Path }}":               check(Check{Command: []string{"true", "{{ .path }}"}}),
		"sets[0].check.timeout: -1s: must not be negative":                                  check(Check{Command: []string{"true", "{{ .Path }}"}, Timeout: -time.Second}),
		"templates[0].format: xml: must be one of env, shell, docker, json, yaml, toml":     format("xml"),
		"templates[0].secrets: must name what format json writes":                           format(JSON),
		"templates[0].secrets[0].name:":                                                     format(JSON, FormatSecret{}),
		"templates[0].secrets[0].prefix: has no use with format raw, which writes no names": format(Raw, FormatSecret{Ref: ref("a"), Prefix: "k"}),
		"templates[0].secrets: must be one secret: format raw writes its bytes":             format(Raw, FormatSecret{Ref: ref("a")}, FormatSecret{Ref: ref("b")}),
		"templates[0].secrets[0].field: must not be combined with key":                      format(Env, FormatSecret{Ref: ref("a"), Key: "k", Field: "f"}),
		"templates[0].secrets[0].keys: must not be combined with field":                     format(Env, FormatSecret{Ref: ref("a"), Field: "f", Keys: map[string]string{"x": ""}}),
		"sets[0].directory: must be set":                                                    set(func(s *Set) { s.Directory = "" }),
		"sets[0].files: must hold at least one file":                                        set(func(s *Set) { s.Files = nil }),
		"sets[0].files[1].name: f: is given to two files of the set":                        set(func(s *Set) { s.Files = append(s.Files, s.Files[0]) }),
		"sets[0].files[0].name: a/b: must be a file name":                                   set(func(s *Set) { s.Files[0].Name = "a/b" }),
		"sets[0].files[0].name: ..data: must be a file name":                                set(func(s *Set) { s.Files[0].Name = "..data" }),
		`sets[0].mode: 0400: must let the agent write into the directory, as "0700" does`:   set(func(s *Set) { s.Mode = 0o400 }),
		"templates[1].destination: /tmp/x.bak: templates[0].backup writes the same path": func(o *Options) {
			o.Targets[0].Backup = true
			o.Targets = append(o.Targets, Target{Content: inline("x"), Destination: "/tmp/x.bak"})
		},
		"render.stateDir: " + dir + "/file/sub: must be a directory that the agent can write to": func(o *Options) {
			o.StateDir, o.Targets[0].Hook = dir+"/file/sub", &Hook{PIDFile: "/x"}
		},
	} {
		o := validOptions()
		change(&o)
		err := o.Validate()
		problems, ok := err.(upstream.OptionErrors)
		if !ok || len(problems) != 1 || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
		if _, newErr := New(newFakeSource(), o); newErr == nil || newErr.Error() != err.Error() {
			t.Errorf("New says %v, Validate %v", newErr, err)
		}
	}
	if left := names(t, dir); len(left) != 3 {
		t.Errorf("Validate wrote %q", left)
	}
}

// Ensure that what is valid passes, and that all problems come at once.
func TestValidateAll(t *testing.T) {
	o := validOptions()
	o.Root, o.StateDir = "/", filepath.Join(t.TempDir(), "new", "state")
	o.Targets[0].Hook = &Hook{Child: true, Signal: "sigusr1"}
	o.Signal = func(os.Signal) error { return nil }
	o.Sets[0].Hook = &Hook{Command: []string{"true"}}
	if err := o.Validate(); err != nil {
		t.Error(err)
	}
	if _, err := New(nil, o); err == nil {
		t.Error("a nil source is accepted")
	}
	o.Signal, o.NoHooks = nil, true // programs and the child may be made later
	o.Sets[0].Hook.Command[0] = "no-such"
	if err := o.Validate(); err != nil {
		t.Error(err)
	}
	o.Timeout, o.Targets[0].Mode, o.Sets[0].Files[0].Contents = -1, 0o777, "{{ nonsense }}"
	err := o.Validate()
	if strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("not all problems at once: %v", err)
	}
	var te *TemplateError
	if !errors.As(err, &te) || te.File != "f (inline template)" || te.Line != 1 || te.Column != 4 {
		t.Errorf("the place in the template: %+v", te)
	}
}
