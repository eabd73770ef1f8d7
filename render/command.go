package render

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"time"
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

// runCommand runs a program of a hook or a check, as [Hook] says. Of what it prints the log
// hears, and the error of a program that failed has the beginning, all of it masked.
func runCommand(ctx context.Context, log *slog.Logger, argv []string, mask func() *masker) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = []string{}
	for _, name := range commandEnvironment {
		if v, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	out := &head{}
	cmd.Stdout, cmd.Stderr = out, out
	ownGroup(cmd)
	cmd.Cancel = func() error { return killGroup(cmd) }
	// A daemon started by the command may keep the pipe open; the command itself is done.
	cmd.WaitDelay = commandPipeWait
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) && cmd.ProcessState.Success() && ctx.Err() == nil {
		err = nil
	}
	text := ""
	if len(out.text) > 0 {
		text = mask().mask(string(out.text), out.dropped > 0)
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
	return err
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
	text    []byte
	dropped int
}

func (h *head) Write(b []byte) (int, error) {
	kept := min(len(b), maxCommandOutput-len(h.text))
	h.text = append(h.text, b[:kept]...)
	h.dropped += len(b) - kept
	return len(b), nil
}
