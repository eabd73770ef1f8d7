package command

// Rules of the interface:
//
//   - Standard output carries the answer and nothing else, so that it can be piped or stored.
//     A verb that only does something prints nothing there. Secret values are printed byte by
//     byte; only on a terminal a newline is added.
//   - Everything else goes to standard error: errors, warnings, questions, progress.
//   - An error is one line that begins with "secretagent: ", the cause last, without a full
//     stop. Where there is something to do about it, a second line begins with
//     "hint: ". Problems of a configuration file are the exception: all of them are shown,
//     each with the line it is on.
//   - A warning begins with "secretagent: warning: ". It never changes the exit code.
//   - Questions are asked on a terminal only. Without one, the flag that answers the question
//     is required.
//   - Nothing is written to standard output before the verb has succeeded.
//   - Text is for people and may change; --output json is for programs and only grows.

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"secretagent/agent"
	"secretagent/agent/config"
	"secretagent/upstream"
)

// printf writes to standard error.
func (a *app) printf(format string, args ...any) {
	fmt.Fprintf(a.Stderr, "secretagent: "+format+"\n", args...)
}

func (a *app) warningf(format string, args ...any) { a.printf("warning: "+format, args...) }

// hinted is an error with a suggestion.
type hinted struct {
	error
	hint string
}

func (e hinted) Unwrap() error { return e.error }

// withHint adds a suggestion to err.
func withHint(err error, format string, args ...any) error {
	return hinted{err, fmt.Sprintf(format, args...)}
}

// usageError is a mistake in how the command was called.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// many returns how many of something there are, such as "1 secret" or "2 secrets".
func many(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprint(n, " ", noun)
}

// report prints err and returns the exit code. verb is the command that failed, for the hint.
func (a *app) report(err error, verb string) int {
	if problems, ok := errors.AsType[config.Problems](err); ok {
		a.printf("%s in the configuration:", many(len(problems), "problem"))
		fmt.Fprint(a.Stderr, problems.Report())
		return upstream.ExitUsage
	}
	if files, ok := errors.AsType[*agent.FilesError](err); ok && len(files.Problems) > 1 {
		a.printf("%d problems with the files to render:", len(files.Problems))
		for _, problem := range files.Problems {
			fmt.Fprintf(a.Stderr, "  %s\n", errorLine(problem))
		}
	} else {
		a.printf("%s", strings.TrimSuffix(errorLine(err), "."))
	}
	if hint := hintFor(err, verb); hint != "" {
		fmt.Fprintf(a.Stderr, "hint: %s\n", hint)
	}
	if _, usage := errors.AsType[usageError](err); usage {
		return upstream.ExitUsage
	}
	return upstream.ExitCode(err)
}

// errorLine returns the text of err without line breaks.
func errorLine(err error) string {
	return strings.NewReplacer("\r", " ", "\n", "; ").Replace(strings.TrimSpace(err.Error()))
}

// hintFor returns what to do about err; empty when nothing general can be said.
func hintFor(err error, verb string) string {
	if h, ok := errors.AsType[hinted](err); ok {
		return h.hint
	}
	if _, usage := errors.AsType[usageError](err); usage {
		return fmt.Sprintf("see %s --help", verb)
	}
	switch {
	case errors.Is(err, upstream.ErrPendingDeletion):
		return "take the deletion back with: secretagent secret restore NAME"
	case errors.Is(err, upstream.ErrUnauthenticated):
		return "the service knows no such key or user, or it is disabled or expired: check upstream.alibaba.credentials, or user and passwordFile of upstream.etcd"
	case errors.Is(err, upstream.ErrNoCredentials):
		return "nothing was sent, because no key or password was found: say where it is with upstream.alibaba.credentials, or with passwordFile and tls of upstream.etcd"
	case errors.Is(err, upstream.ErrClockSkew):
		return "set the clock of this host"
	case errors.Is(err, upstream.ErrThrottled):
		return "ask again later"
	}
	return ""
}

// confirm asks a question that is answered with yes or no. Without a terminal it returns a
// usage error that names the flag to use instead.
func (a *app) confirm(question, flag string) error {
	if !isTerminal(a.Stdin) {
		return usagef("there is no terminal to ask on: confirm with %s", flag)
	}
	fmt.Fprintf(a.Stderr, "%s [y/N] ", question)
	line, err := bufio.NewReader(io.LimitReader(a.Stdin, 256)).ReadString('\n')
	if err != nil && line == "" {
		fmt.Fprintln(a.Stderr)
		return usagef("there was no answer: confirm with %s", flag)
	}
	if answer := strings.ToLower(strings.TrimSpace(line)); answer != "y" && answer != "yes" {
		return errors.New("not confirmed, nothing was changed")
	}
	return nil
}

// isTerminal reports whether a person is at the other end of stream.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && isTTY(f)
}

// colored reports whether stream is a terminal whose user wants colours.
func (a *app) colored(stream any) bool {
	return isTerminal(stream) && a.Getenv("NO_COLOR") == "" && a.Getenv("TERM") != "dumb"
}

// printRaw writes a secret value as it is.
func (a *app) printRaw(value []byte) error {
	if isTerminal(a.Stdout) && !strings.HasSuffix(string(value), "\n") {
		value = append(append([]byte(nil), value...), '\n')
	}
	return a.write(value)
}

// print writes an answer in the form that out says: as indented JSON or as text.
func (a *app) print(out *output, answer any, text string) error {
	if !out.json() {
		return a.write([]byte(text))
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(answer); err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	return a.write(b.Bytes())
}

// write is the only way to standard output.
func (a *app) write(b []byte) error {
	if _, err := a.Stdout.Write(b); err != nil {
		return fmt.Errorf("write the answer: %w", err)
	}
	return nil
}
