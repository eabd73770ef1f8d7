package child

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"secretagent/upstream"
)

func validOptions() Options {
	return Options{
		Command: []string{"app"},
		Env:     []Variable{{Name: "A", Ref: ref("a")}},
		EnvFrom: []Spread{{Ref: ref("b"), Keys: map[string]string{"k": "K"}}},
	}
}

func TestOptionsAreChecked(t *testing.T) {
	if _, err := New(newSource(nil), validOptions()); err != nil {
		t.Fatalf("valid options: %v", err)
	}
	for _, c := range []struct {
		name   string
		mutate func(*Options)
		want   string
	}{
		{"no command", func(o *Options) { o.Command = nil }, "command: "},
		{"an empty program", func(o *Options) { o.Command = []string{"", "x"} }, "command: "},
		{"NUL in an argument", func(o *Options) { o.Command = []string{"a", "b\x00"} }, "command[1]: "},
		{"NUL in the folder", func(o *Options) { o.Dir = "/a\x00" }, "dir: "},
		{"a variable without a name", func(o *Options) { o.Env[0].Name = "" }, "env[0]: the name of the variable is empty"},
		{"a name with =", func(o *Options) { o.Env[0].Name = "A=B" }, `env[0]: "A=B" cannot be the name`},
		{"a name with NUL", func(o *Options) { o.Env[0].Name = "A\x00" }, `env[0]: "A\x00" cannot be the name`},
		{"a name with a line break", func(o *Options) { o.Env[0].Name = "A\nB" }, `env[0]: "A\nB" cannot be the name`},
		{"two variables of one name", func(o *Options) { o.Env = append(o.Env, Variable{Name: "A", Ref: ref("c")}) }, "env[1]: env[0] sets A already"},
		{"a key and a variable of one name", func(o *Options) { o.Env[0].Name = "K" }, `envFrom[0].keys["k"]: env[0] sets K already`},
		{"a bad key", func(o *Options) { o.EnvFrom[0].Keys["k"] = "=" }, `envFrom[0].keys["k"]: `},
		{"a bad prefix", func(o *Options) { o.EnvFrom[0].Prefix = "=" }, "envFrom[0].prefix: "},
		{"an unknown case", func(o *Options) { o.EnvFrom[0].Case = "title" }, `envFrom[0].case: "title"`},
		{"a variable without a secret", func(o *Options) { o.Env[0].Ref = upstream.SecretRef{} }, "env[0]: secret: "},
		{"a malformed secret", func(o *Options) { o.EnvFrom[0].Ref = ref("a b") }, "envFrom[0]: secret: "},
		{"a bad pattern", func(o *Options) { o.Allow = []string{"OK", "["} }, `allow[1]: "["`},
		{"an empty pattern", func(o *Options) { o.Deny = []string{""} }, `deny[0]: ""`},
		{"an unknown reaction", func(o *Options) { o.OnChange = "reload" }, `onChange: "reload"`},
		{"a signal that cannot be handled", func(o *Options) { o.ChangeSignal = os.Kill }, "changeSignal: "},
		{"a stop signal that suspends", func(o *Options) { o.StopSignal = syscall.Signal(19) }, "stopSignal: "},
		{"negative grace", func(o *Options) { o.Grace = -time.Second }, "grace: -1s"},
		{"negative debounce", func(o *Options) { o.Debounce = -1 }, "debounce: "},
		{"negative splay", func(o *Options) { o.Splay = -1 }, "splay: "},
		{"negative window", func(o *Options) { o.RestartWindow = -1 }, "restartWindow: "},
		{"negative start timeout", func(o *Options) { o.StartTimeout = -1 }, "startTimeout: "},
		{"negative restarts", func(o *Options) { o.MaxRestarts = -1 }, "maxRestarts: -1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.name == "a stop signal that suspends" && !stopsProcess(syscall.Signal(19)) {
				t.Skip("the number of SIGSTOP is another one here")
			}
			o := validOptions()
			c.mutate(&o)
			s, err := New(newSource(nil), o)
			if err == nil || s != nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error that says %q", err, c.want)
			}
		})
	}
	o := validOptions()
	o.Command, o.Grace, o.Env[0].Name = nil, -1, ""
	_, err := New(newSource(nil), o)
	for _, part := range []string{"command: ", "grace: ", "env[0]: "} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%q is missing in %v", part, err)
		}
	}
}

func TestNewDoesNotTouchTheCallersOptions(t *testing.T) {
	o := validOptions()
	if _, err := New(newSource(nil), o); err != nil {
		t.Fatal(err)
	}
	if o.Env[0].Ref != ref("a") || o.EnvFrom[0].Ref != ref("b") {
		t.Error("New filled in the caller's slices")
	}
}

func TestParseSignal(t *testing.T) {
	for in, want := range map[string]os.Signal{"SIGTERM": syscall.SIGTERM, "term": syscall.SIGTERM, "Int": os.Interrupt, "SIGKILL": os.Kill} {
		if got, err := ParseSignal(in); err != nil || got != want {
			t.Errorf("ParseSignal(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "SIG", "NOPE", "-1", "0", "65", "SIGTERM "} {
		if got, err := ParseSignal(in); err == nil || got != nil {
			t.Errorf("ParseSignal(%q) = %v, %v; want an error", in, got, err)
		}
	}
	for _, sig := range ForwardedSignals() {
		if sig == os.Kill || sig == syscall.Signal(0x17) && strings.Contains(sig.String(), "urgent") {
			t.Errorf("%v is forwarded", sig)
		}
	}
}

func TestExitErrorText(t *testing.T) {
	for _, c := range []struct {
		err  *ExitError
		want string
	}{
		{&ExitError{Code: 3}, "the application exited with code 3"},
		{&ExitError{Code: 143, Signal: syscall.SIGTERM}, `the application was ended by signal "terminated"`},
		{&ExitError{Code: 137, Signal: syscall.SIGKILL, Killed: true}, "the application did not end within the grace period and was killed"},
	} {
		if got := c.err.Error(); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
		var e *ExitError
		if !errors.As(error(c.err), &e) {
			t.Error("not an *ExitError")
		}
	}
}
