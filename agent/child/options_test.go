package child

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"secretagent/upstream"
)

func validOptions() Options {
	return Options{
		Command: []string{os.Args[0]},
		Env:     []Variable{{Name: "A", Ref: ref("a")}, {Ref: ref("b"), Keys: map[string]string{"k": "K"}}},
	}
}

func TestOptionsAreValidated(t *testing.T) {
	given := validOptions()
	must(t, given.Validate())
	if _, err := New(newSource(nil), given); err != nil || given.Env[0].Ref != ref("a") || given.Env[1].Ref != ref("b") {
		t.Errorf("New returned %v, and the caller's variables are %v now", err, given.Env)
	}
	const name = "must be a variable name: letters, digits and underscores, no digit first"
	const pattern = "must be a variable name, with * for any text and ? for one character"
	folder := t.TempDir()
	plain := filepath.Join(folder, "plain")
	must(t, os.WriteFile(plain, []byte("text"), 0o600))
	for want, mutate := range map[string]func(*Options){
		"command: must start with a program, such as [kill, -HUP, \"1\"]":                                              func(o *Options) { o.Command = nil },
		"command: must start with a program, ":                                                                         func(o *Options) { o.Command = []string{"", "x"} },
		"command[1]: must not contain a NUL character":                                                                 func(o *Options) { o.Command = []string{os.Args[0], "b\x00"} },
		"command[0]: must not contain a NUL character":                                                                 func(o *Options) { o.Command = []string{"b\x00"} },
		"command: must start with a program that can be run: exec: \"no-such-program\": executable file not found in ": func(o *Options) { o.Command = []string{"no-such-program"} },
		"dir: " + plain + ": must be a folder that exists":                                                             func(o *Options) { o.Dir = plain },
		"dir: " + filepath.Join(folder, "no") + ": must be a folder that exists":                                       func(o *Options) { o.Dir = filepath.Join(folder, "no") },
		"env[0].name: A=B: " + name:                                                                                    func(o *Options) { o.Env[0].Name = "A=B" },
		"env[0].name: A\nB: " + name:                                                                                   func(o *Options) { o.Env[0].Name = "A\nB" },
		"env[2].name: A: is set twice: keep one":                                                                       func(o *Options) { o.Env = append(o.Env, Variable{Name: "A", Ref: ref("c")}) },
		"env[1].keys.k: K: is set twice: keep one":                                                                     func(o *Options) { o.Env[0].Name = "K" },
		"env[1].keys.k: 1K: " + name:                                                                                   func(o *Options) { o.Env[1].Keys["k"] = "1K" },
		`env[1].keys.a=b: "a=b" cannot be the name of a variable`:                                                      func(o *Options) { o.Env[1].Keys["a=b"] = "" },
		"env[1].prefix: =: must be the start of a variable name":                                                       func(o *Options) { o.Env[1].Prefix = "=" },
		"env[1].case: title: must be keep, upper or lower":                                                             func(o *Options) { o.Env[1].Case = "title" },
		"env[1].field: f: needs a name for its variable":                                                               func(o *Options) { o.Env[1].Field = "f" },
		"env[0].name: A: makes one variable: keys, prefix, case and sanitize":                                          func(o *Options) { o.Env[0].Sanitize = true },
		"env[0].secret: ":         func(o *Options) { o.Env[0].Ref = upstream.SecretRef{} },
		"env[1].secret: ":         func(o *Options) { o.Env[1].Ref = ref("a b") },
		"allow[1]: [: " + pattern: func(o *Options) { o.Allow = []string{"OK", "["} },
		"deny[0]: " + pattern:     func(o *Options) { o.Deny = []string{""} },
		"onChange: reload: must be restart, signal or ignore":                     func(o *Options) { o.OnChange = "reload" },
		"changeSignal: SIGKILL: must be the name of a signal that a program can":  func(o *Options) { o.OnChange, o.ChangeSignal = SignalChild, "SIGKILL" },
		"changeSignal: SIGNOPE: must be the name of a signal that a program can":  func(o *Options) { o.OnChange, o.ChangeSignal = SignalChild, "SIGNOPE" },
		"stopSignal: SIGSTOP: must be the name of a signal that ends a program, ": func(o *Options) { o.StopSignal = "SIGSTOP" },
		"grace: -1s: must not be negative":                                        func(o *Options) { o.Grace = -time.Second },
		"debounce: -1ns: must not be negative":                                    func(o *Options) { o.Debounce = -1 },
		"splay: -1ns: must not be negative":                                       func(o *Options) { o.Splay = -1 },
		"restartWindow: -1ns: must not be negative":                               func(o *Options) { o.RestartWindow = -1 },
		"startTimeout: -1ns: must not be negative":                                func(o *Options) { o.StartTimeout = -1 },
		"maxRestarts: -1: must not be negative":                                   func(o *Options) { o.MaxRestarts = -1 },
	} {
		if runtime.GOOS == "windows" && strings.HasPrefix(want, "changeSignal") {
			continue // it has no signals
		}
		o := validOptions()
		mutate(&o)
		problems, _ := errors.AsType[upstream.OptionErrors](o.Validate())
		s, err := New(newSource(nil), o)
		if len(problems) != 1 || !strings.HasPrefix(problems.Error(), want) || s != nil || err == nil || err.Error() != problems.Error() {
			t.Errorf("got %v, and of New %v; want %q", problems, err, want)
		}
	}
	o := Options{Grace: -1, Dir: folder, Env: []Variable{{Name: "1", Ref: ref("a")}}}
	if err := o.Validate(); err == nil || strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("not every problem is told at once: %v", err)
	}
}

func TestExitErrorText(t *testing.T) {
	for want, err := range map[string]*ExitError{
		"the application exited with code 3":                                 {Code: 3},
		`the application was ended by signal "terminated"`:                   {Code: 143, Signal: syscall.SIGTERM},
		"the application did not end within the grace period and was killed": {Code: 137, Signal: syscall.SIGKILL, Killed: true},
	} {
		if got := err.Error(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
