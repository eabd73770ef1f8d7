package render

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"time"

	"secretagent/upstream"
)

const (
	maxCommandOutput = 8 << 10 // bytes of a command's output that reach the log
	maxCommandReason = 300     // characters of it in the error of a command that failed
	commandPipeWait  = 2 * time.Second
)

// bounded calls do with a context that ends after timeout. An error begins with what, and says
// so when the time was over.
func bounded(ctx context.Context, timeout time.Duration, what string, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not finished after %s", timeout))
	defer cancel()
	err := do(ctx)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// commandEnvironment are the variables a command inherits: what a program needs to be found and
// to print, nothing that could hold a credential.
var commandEnvironment = []string{
	"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ", "TMPDIR",
	"SystemRoot", "SystemDrive", "PATHEXT", "TEMP", "TMP", "ComSpec", // Windows
}

// Command is a program of somebody else's, run as those of hooks and checks are: no shell reads it, it
// runs as the user of the agent, in a process group of its own, which is killed when the context
// or the timeout ends, with PATH, HOME, the locale and the time zone as its whole environment. Of
// what it prints the log hears, at most 8 KiB, and the error of a run that failed has the
// beginning, with the values of Hide masked. Exit code 0 is success.
type Command struct {
	// Argv is the program and its arguments.
	Argv []string

	// Timeout bounds one run; zero means 30 s.
	Timeout time.Duration

	// Input is what the program can read from its standard input, over a pipe; nil: nothing. The
	// caller leaves it alone until Run returns.
	Input []byte

	// Answer makes of standard output the answer of the program, which no log hears of. An answer
	// of more bytes than that is an error; zero: there is none.
	Answer int

	// Hide are values that must not be in a log or an error.
	Hide []upstream.SecretValue
}

// CheckCommand returns why argv cannot be run, for the options of who runs it: as [OptionErrors]
// with keys below that of argv. example shows a good one.
func CheckCommand(argv []string, example string) error {
	var b builder
	b.checkCommand("", argv, example, false)
	return b.problems.Err()
}

// Run runs the program and returns its answer. It blocks until the program has ended, or has
// been killed.
func (c Command) Run(ctx context.Context, log *slog.Logger) (answer []byte, err error) {
	name := "command " + c.Argv[0]
	err = bounded(ctx, cmp.Or(c.Timeout, defaultHookTimeout), name, func(ctx context.Context) (err error) {
		answer, err = c.run(ctx, log.With("command", name), func() *masker { return newMasker(c.Hide) })
		return err
	})
	return answer, err
}

// runCommand runs a program of a hook or a check, as [Hook] says.
func runCommand(ctx context.Context, log *slog.Logger, argv []string, mask func() *masker) error {
	_, err := Command{Argv: argv}.run(ctx, log, mask)
	return err
}

// run is Run without the timeout. mask is called after the program has ended.
func (c Command) run(ctx context.Context, log *slog.Logger, mask func() *masker) (answer []byte, err error) {
	cmd := exec.CommandContext(ctx, c.Argv[0], c.Argv[1:]...)
	cmd.Env = []string{}
	for _, name := range commandEnvironment {
		if v, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	out := &head{limit: maxCommandOutput}
	cmd.Stdout, cmd.Stderr = out, out
	said := &head{limit: c.Answer}
	if c.Answer > 0 {
		cmd.Stdout = said
	}
	if c.Input != nil {
		cmd.Stdin = bytes.NewReader(c.Input)
	}
	ownGroup(cmd)
	cmd.Cancel = func() error { return killGroup(cmd) }
	// A daemon started by the command may keep the pipe open; the command itself is done.
	cmd.WaitDelay = commandPipeWait
	err = cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) && cmd.ProcessState.Success() && ctx.Err() == nil {
		err = nil
	}
	text := ""
	if len(out.text) > 0 {
		m := mask()
		if len(said.text) > 0 {
			m.values = append(m.values, newMasker([]upstream.SecretValue{{SecretData: upstream.NewSecretData(slices.Clone(said.text))}}).values...)
		}
		text = m.mask(string(out.text), out.dropped > 0)
		log = log.With("output", text, "dropped_bytes", out.dropped)
		if err == nil {
			log.Info("output of a command")
		} else {
			log.Warn("output of a failed command", "hint", "the line about the failure follows")
		}
	}
	if _, ok := errors.AsType[*exec.ExitError](err); ok {
		err = errors.New(cmd.ProcessState.String())
		if reason := shorten(text, maxCommandReason); reason != "" {
			err = &printedError{state: err.Error(), output: reason}
		}
	}
	if err == nil && said.dropped > 0 {
		err = fmt.Errorf("its answer is larger than %d bytes", c.Answer)
	}
	return said.text, err
}

// printedError is how a command ended that has said something, and the beginning of that.
type printedError struct{ state, output string }

func (e *printedError) Error() string { return e.state + ": " + e.output }

// printed reports whether err quotes what a command has printed.
func printed(err error) bool {
	_, ok := errors.AsType[*printedError](err)
	return ok
}

// head keeps the beginning of what is written and counts the rest.
type head struct {
	limit   int // of the bytes that are kept
	text    []byte
	dropped int
}

func (h *head) Write(b []byte) (int, error) {
	kept := min(len(b), h.limit-len(h.text))
	h.text = append(h.text, b[:kept]...)
	h.dropped += len(b) - kept
	return len(b), nil
}
