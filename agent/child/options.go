package child

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path"
	"runtime"
	"strings"
	"syscall"
	"time"

	"secretagent/upstream"
)

// Source is where the values come from.
type Source interface {
	// GetSecretValues returns one value per ref, in the same order and from one consistent
	// moment, or an error. It returns promptly once ctx is done.
	GetSecretValues(ctx context.Context, refs ...upstream.SecretRef) ([]upstream.SecretValue, error)

	// Subscribe returns a channel that says "ask again" after a change of any of refs. It
	// never carries a value and holds at most one notice.
	Subscribe(refs ...upstream.SecretRef) (changed <-chan struct{}, cancel func())
}

// OnChange says what happens when the variables differ from what the application has.
type OnChange string

// The values of OnChange.
const (
	Restart      OnChange = "restart" // stop the application and start it with the new values
	SignalChild  OnChange = "signal"  // send Options.ChangeSignal; the environment stays as it is
	IgnoreChange OnChange = "ignore"  // note it in [Status] only
)

// Case says how the key of a JSON secret becomes the name of a variable.
type Case string

// The values of Case.
const (
	KeepCase  Case = "keep"
	UpperCase Case = "upper"
	LowerCase Case = "lower"
)

// Variable is one environment variable from one secret.
type Variable struct {
	// Name is the variable. It must not be empty and must not contain '=', NUL or another
	// control character.
	Name string

	// Ref is the secret.
	Ref upstream.SecretRef

	// Field is the top-level key to take from a JSON secret. Strings are taken as they are,
	// numbers and booleans as JSON spells them, objects and arrays as compact JSON; null is
	// an error. Empty: the whole secret, byte by byte.
	Field string
}

// Spread puts the top-level keys of one JSON secret into one variable each, valued as
// [Variable].Field says.
type Spread struct {
	// Ref is the secret. It must hold a JSON object.
	Ref upstream.SecretRef

	// Prefix is put before every name that comes from a key, as it is spelled here.
	Prefix string

	// Case changes the case of the key; empty means KeepCase.
	Case Case

	// Sanitize replaces every character of the key that is not a letter of ASCII, a digit or
	// '_' by '_'.
	Sanitize bool

	// Keys picks and renames: key of the secret → name of the variable, used as it is; an
	// empty name is made from the key by the rules above. Each must be in the secret.
	// Empty: every key of the secret.
	Keys map[string]string
}

// Defaults of [Options].
const (
	DefaultGrace         = 30 * time.Second
	DefaultDebounce      = 2 * time.Second
	DefaultMaxRestarts   = 5
	DefaultRestartWindow = 10 * time.Minute
)

// Options says what to run and how.
type Options struct {
	// Command is the program and its arguments; no shell is involved. A program without a
	// path separator is looked up in the PATH of this process. Never put a secret here: other
	// users can read command lines.
	Command []string

	// Dir is the working directory. A relative program path is relative to it. Empty: that
	// of this process.
	Dir string

	// Env and EnvFrom are the variables that come from secrets.
	Env     []Variable
	EnvFrom []Spread

	// Pristine keeps the environment of this process from the application, except for what
	// Allow names.
	Pristine bool

	// Allow are patterns, as of [path.Match], of the variables that may be inherited. Empty
	// means all, or with Pristine none.
	Allow []string

	// Deny are patterns of variables that are never inherited. They win over Allow and do
	// not concern Env and EnvFrom.
	Deny []string

	// OnChange says what a change of the variables does; empty means Restart.
	OnChange OnChange

	// ChangeSignal is sent on a change when OnChange is SignalChild; nil means SIGHUP.
	ChangeSignal os.Signal

	// StopSignal asks the application to end; nil means SIGTERM. It is followed by SIGCONT,
	// so that a stopped application can act on it.
	StopSignal os.Signal

	// Grace is how long the application may take to end before it is killed together with
	// its group. Zero means DefaultGrace.
	Grace time.Duration

	// SignalGroup sends signals to the whole process group of the application. It is meant
	// for shell scripts, which do not pass signals on. It has no effect when the application
	// shares our group, see [Supervisor.Interactive].
	SignalGroup bool

	// Debounce is how long to wait for further changes after a change. A steady stream of
	// them is cut off after five times as long. Zero means DefaultDebounce.
	Debounce time.Duration

	// Splay is the upper bound of a random wait that is added to Debounce, so that the
	// instances of a fleet do not act at the same time.
	Splay time.Duration

	// MaxRestarts is how many changes may be acted upon at once before they are limited to
	// MaxRestarts per RestartWindow. A change that has to wait is not lost. Zeros mean
	// DefaultMaxRestarts and DefaultRestartWindow.
	MaxRestarts   int
	RestartWindow time.Duration

	// StartTimeout bounds the wait for the variables before the first start. Zero: no bound.
	StartTimeout time.Duration

	// Subreaper makes this process the reaper of orphaned descendants even when it is not
	// process 1. It is a property of the whole process and Linux only.
	Subreaper bool

	// Stdin, Stdout and Stderr are the standard streams of the application; nil is the null
	// device. An *os.File is handed over as it is, any other writer is fed through a pipe.
	Stdin          *os.File
	Stdout, Stderr io.Writer

	// Logger gets what happens, never a value; nil discards it.
	Logger *slog.Logger

	// Ready is called once, after the first start. It must not block.
	Ready func()

	// Observe is called for everything that happens, for metrics. It must not block.
	Observe func(Event)
}

// withDefaults returns o with every optional field filled in.
func (o Options) withDefaults() Options {
	if o.OnChange == "" {
		o.OnChange = Restart
	}
	if o.ChangeSignal == nil {
		o.ChangeSignal = syscall.SIGHUP
	}
	if o.StopSignal == nil {
		o.StopSignal = syscall.SIGTERM
	}
	if o.Grace == 0 {
		o.Grace = DefaultGrace
	}
	if o.Debounce == 0 {
		o.Debounce = DefaultDebounce
	}
	if o.MaxRestarts == 0 {
		o.MaxRestarts = DefaultMaxRestarts
	}
	if o.RestartWindow == 0 {
		o.RestartWindow = DefaultRestartWindow
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Ready == nil {
		o.Ready = func() {}
	}
	if o.Observe == nil {
		o.Observe = func(Event) {}
	}
	return o
}

// check reports every problem of o, whose defaults are filled in. Each names the key at
// fault.
func (o Options) check() error {
	var problems []error
	add := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }

	if len(o.Command) == 0 || o.Command[0] == "" {
		add("command: it is empty: name the program to run")
	}
	for i, arg := range o.Command {
		if strings.ContainsRune(arg, 0) {
			add("command[%d]: it contains a NUL byte", i)
		}
	}
	if strings.ContainsRune(o.Dir, 0) {
		add("dir: it contains a NUL byte")
	}
	for key, patterns := range map[string][]string{"allow": o.Allow, "deny": o.Deny} {
		for i, p := range patterns {
			if _, err := path.Match(p, ""); err != nil || p == "" {
				add("%s[%d]: %q is not a pattern: use a name, with * and ? for the unknown parts", key, i, p)
			}
		}
	}
	switch o.OnChange {
	case Restart, IgnoreChange:
	case SignalChild:
		if runtime.GOOS == "windows" {
			add("onChange: Windows has no signals: use %s or %s", Restart, IgnoreChange)
		}
	default:
		add("onChange: %q: use %s, %s or %s", o.OnChange, Restart, SignalChild, IgnoreChange)
	}
	if o.ChangeSignal == os.Kill || stopsProcess(o.ChangeSignal) {
		add("changeSignal: the application cannot handle %v: choose another", o.ChangeSignal)
	}
	if stopsProcess(o.StopSignal) {
		add("stopSignal: %v does not end a process: choose another", o.StopSignal)
	}
	for _, d := range []struct {
		key   string
		value time.Duration
	}{
		{"grace", o.Grace}, {"debounce", o.Debounce}, {"splay", o.Splay},
		{"restartWindow", o.RestartWindow}, {"startTimeout", o.StartTimeout},
	} {
		if d.value < 0 {
			add("%s: %v: must not be negative", d.key, d.value)
		}
	}
	if o.MaxRestarts < 0 {
		add("maxRestarts: %d: must not be negative", o.MaxRestarts)
	}
	return errors.Join(problems...)
}
