package child

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
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

// Variable is one environment variable from one secret or, without Name, one for each
// top-level key of a JSON secret.
type Variable struct {
	// Name is the variable: letters of ASCII, digits and underscores.
	Name string

	// Ref is the secret. Without Name it must hold a JSON object.
	Ref upstream.SecretRef

	// Field is the top-level key to take from a JSON secret. Strings are taken as they are,
	// numbers and booleans as JSON spells them, objects and arrays as compact JSON; null is
	// an error. Empty: the whole secret as it is, which is base64 for a binary one: no variable
	// can hold a NUL byte.
	Field string

	// Keys picks and renames, for a Variable without Name: key of the secret → name of the
	// variable, used as it is; an empty name is made from the key by the rules below. Each
	// must be in the secret. Empty: every key of the secret.
	Keys map[string]string

	// Prefix is put before every name that comes from a key, as it is spelled here.
	Prefix string

	// Case changes the case of the key; empty means KeepCase.
	Case Case

	// Sanitize replaces every character of the key that is not a letter of ASCII, a digit or
	// '_' by '_'.
	Sanitize bool
}

// Defaults of [Options].
const (
	defaultGrace         = 30 * time.Second
	defaultDebounce      = 2 * time.Second
	defaultMaxRestarts   = 5
	defaultRestartWindow = 10 * time.Minute
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

	// Env are the variables that come from secrets.
	Env []Variable

	// Pristine keeps the environment of this process from the application, except for what
	// Allow names.
	Pristine bool

	// Allow are patterns of the variables that may be inherited: names with * for any text
	// and ? for one character. Empty means all, or with Pristine none.
	Allow []string

	// Deny are patterns of variables that are never inherited. They win over Allow and do
	// not concern Env.
	Deny []string

	// Withheld are variables that are inherited only where Allow spells their name: a pattern
	// does not count. They hold or point to credentials of this process.
	Withheld []string

	// User is who the application runs as, by name or number: with the groups of that user, no
	// capability, and HOME, USER and LOGNAME of that user in place of the inherited ones. Only a
	// process of root can give up its rights. Empty: the application has the rights of this
	// process. Unix only.
	User string

	// Group takes the place of the main group of User.
	Group string

	// OnChange says what a change of the variables does; empty means Restart.
	OnChange OnChange

	// ChangeSignal is the name of the signal that is sent on a change when OnChange is
	// SignalChild; empty means SIGHUP.
	ChangeSignal string

	// StopSignal is the name of the signal that asks the application to end; empty means
	// SIGTERM. SIGCONT follows it, so that a stopped application can act on it.
	StopSignal string

	// Grace is how long the application may take to end before it is killed together with
	// its group. Zero means 30 seconds.
	Grace time.Duration

	// SignalGroup sends signals to the whole process group of the application. It is meant
	// for shell scripts, which do not pass signals on. It has no effect when the application
	// shares our group because its standard input is our controlling terminal.
	SignalGroup bool

	// Debounce is how long to wait for further changes after a change. A steady stream of
	// them is cut off after five times as long. Zero means 2 seconds.
	Debounce time.Duration

	// Splay is the upper bound of a random wait that is added to Debounce, so that the
	// instances of a fleet do not act at the same time.
	Splay time.Duration

	// MaxRestarts is how many changes may be acted upon at once before they are limited to
	// MaxRestarts per RestartWindow. A change that has to wait is not lost. Zeros mean 5 and
	// 10 minutes.
	MaxRestarts   int
	RestartWindow time.Duration

	// StartTimeout bounds the wait for the variables before the first start. Zero: no bound.
	StartTimeout time.Duration

	// Subreaper makes this process the reaper of orphaned descendants even when it is not
	// process 1; see [StartReaper]. It is a property of the whole process and Linux only.
	Subreaper bool

	// Stdin, Stdout and Stderr are the standard streams of the application; nil is the null
	// device. An *os.File is handed over as it is, any other writer is fed through a pipe.
	Stdin          *os.File
	Stdout, Stderr io.Writer

	// Logger gets what happens, never a value; nil discards it.
	Logger *slog.Logger

	// Observe is called for everything that happens, for metrics. It must not block.
	Observe func(Event)
}

// withDefaults returns o with every optional field filled in and Dir made absolute.
func (o Options) withDefaults() Options {
	o.OnChange = cmp.Or(o.OnChange, Restart)
	o.ChangeSignal = cmp.Or(o.ChangeSignal, "SIGHUP")
	o.StopSignal = cmp.Or(o.StopSignal, "SIGTERM")
	o.Grace = cmp.Or(o.Grace, defaultGrace)
	o.Debounce = cmp.Or(o.Debounce, defaultDebounce)
	o.MaxRestarts = cmp.Or(o.MaxRestarts, defaultMaxRestarts)
	o.RestartWindow = cmp.Or(o.RestartWindow, defaultRestartWindow)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Observe == nil {
		o.Observe = func(Event) {}
	}
	if o.Dir != "" {
		// Without a working directory of our own there is no relative one to start in either:
		// check reports that.
		if abs, err := filepath.Abs(o.Dir); err == nil {
			o.Dir = abs
		}
	}
	return o
}

// Validate reports every problem of o that [New] would refuse, as [upstream.OptionErrors]. It
// looks for the program and the working directory, and changes nothing.
func (o Options) Validate() error { return o.withDefaults().check() }

// check is Validate of options whose defaults are filled in.
func (o Options) check() error {
	var p upstream.OptionErrors
	o.checkCommand(&p)
	o.checkEnv(&p)
	_, err := o.account()
	p.Add("", err)
	o.checkChange(&p)
	notNegative(&p, "grace", o.Grace)
	notNegative(&p, "debounce", o.Debounce)
	notNegative(&p, "splay", o.Splay)
	notNegative(&p, "maxRestarts", o.MaxRestarts)
	notNegative(&p, "restartWindow", o.RestartWindow)
	notNegative(&p, "startTimeout", o.StartTimeout)
	if o.Subreaper && runtime.GOOS != "linux" {
		p.Addf("subreaper", "true", "must be false: only Linux has it")
	}
	return p.Err()
}

func notNegative[T int | time.Duration](p *upstream.OptionErrors, key string, value T) {
	if value < 0 {
		p.Addf(key, fmt.Sprint(value), "must not be negative")
	}
}

func (o Options) checkCommand(p *upstream.OptionErrors) {
	for i, arg := range o.Command {
		if strings.ContainsRune(arg, 0) {
			p.Addf(fmt.Sprintf("command[%d]", i), "", "must not contain a NUL character")
		}
	}
	if info, err := os.Stat(o.Dir); o.Dir != "" && (err != nil || !info.IsDir()) {
		*p = append(*p, &upstream.OptionError{Key: "dir", Value: o.Dir, Reason: "must be a folder that exists", Err: err})
		return // which a relative program is looked for in
	}
	switch {
	case len(o.Command) == 0 || o.Command[0] == "":
		p.Addf("command", "", `must start with a program, such as [kill, -HUP, "1"]`)
	case !strings.ContainsRune(o.Command[0], 0):
		if _, err := o.program(); err != nil {
			*p = append(*p, &upstream.OptionError{Key: "command", Reason: upstream.NoProgram(o.Command[0], err), Err: err})
		}
	}
}

// program returns the path of the program to start. A name is looked up in the PATH of this
// process. The error wraps [exec.ErrNotFound] or says why a path does not lead to a program.
func (o Options) program() (string, error) {
	name := o.Command[0]
	if strings.ContainsAny(name, "/"+string(filepath.Separator)) && !filepath.IsAbs(name) {
		// The kernel would resolve it after changing to the directory.
		abs, err := filepath.Abs(filepath.Join(o.Dir, name))
		if err != nil {
			return "", err
		}
		name = abs
	}
	found, err := exec.LookPath(name)
	if err != nil {
		return "", err
	}
	return filepath.Abs(found)
}

var (
	variableName    = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	variablePattern = regexp.MustCompile(`^[A-Za-z0-9_*?]+$`)
)

func (o Options) checkEnv(p *upstream.OptionErrors) {
	const must = "must be a variable name: letters, digits and underscores, no digit first"
	taken := map[string]bool{} // :: folded name
	once := func(key, name string) {
		if taken[foldName(name)] {
			p.Addf(key, name, "is set twice: keep one")
		}
		taken[foldName(name)] = true
	}
	for i, v := range o.Env {
		at := fmt.Sprintf("env[%d].", i)
		p.Add(at+"secret", v.Ref.Validate())
		if v.Name != "" {
			if !variableName.MatchString(v.Name) {
				p.Addf(at+"name", v.Name, must)
			}
			once(at+"name", v.Name)
			if v.Keys != nil || v.Prefix != "" || v.Case != "" && v.Case != KeepCase || v.Sanitize {
				p.Addf(at+"name", v.Name, "makes one variable: keys, prefix, case and sanitize have no use with it")
			}
			continue
		}
		if v.Field != "" {
			p.Addf(at+"field", v.Field, "needs a name for its variable")
		}
		if v.Prefix != "" && !variableName.MatchString(v.Prefix) {
			p.Addf(at+"prefix", v.Prefix, "must be the start of a variable name")
		}
		if !slices.Contains([]Case{"", KeepCase, UpperCase, LowerCase}, v.Case) {
			p.Addf(at+"case", string(v.Case), "must be keep, upper or lower")
		}
		for _, field := range slices.Sorted(maps.Keys(v.Keys)) {
			name := v.nameOf(field)
			if v.Keys[field] != "" && !variableName.MatchString(name) {
				p.Addf(at+"keys."+field, name, must)
			} else if err := checkName(name); err != nil {
				p.Add(at+"keys."+field, err)
			}
			once(at+"keys."+field, name)
		}
	}
	checkPatterns(p, "allow", o.Allow)
	checkPatterns(p, "deny", o.Deny)
}

func checkPatterns(p *upstream.OptionErrors, key string, patterns []string) {
	for i, pattern := range patterns {
		if !variablePattern.MatchString(pattern) {
			p.Addf(fmt.Sprintf("%s[%d]", key, i), pattern, "must be a variable name, with * for any text and ? for one character")
		}
	}
}

func (o Options) checkChange(p *upstream.OptionErrors) {
	switch o.OnChange {
	case Restart, IgnoreChange:
	case SignalChild:
		if runtime.GOOS == "windows" {
			p.Addf("onChange", string(o.OnChange), "must be restart or ignore: Windows has no signals")
		} else if signals[o.ChangeSignal] == nil || o.ChangeSignal == "SIGKILL" {
			p.Addf("changeSignal", o.ChangeSignal, "must be the name of a signal that a program can handle, such as SIGHUP")
		}
	default:
		p.Addf("onChange", string(o.OnChange), "must be restart, signal or ignore")
	}
	if signals[o.StopSignal] == nil {
		p.Addf("stopSignal", o.StopSignal, "must be the name of a signal that ends a program, such as SIGTERM")
	}
}
