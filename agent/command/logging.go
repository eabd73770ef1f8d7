package command

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/coreos/go-systemd/v22/journal"
	"github.com/spf13/cobra"

	"secretagent/agent"
	"secretagent/agent/config"
)

// logFlag adds --log-level to a verb that logs as an agent does.
func (a *app) logFlag(cmd *cobra.Command) {
	a.logLevel.words = []string{"debug", "info", "warn", "error"}
	a.logLevel.flag(cmd, "log-level",
		"`level` of the log instead of log.level: debug, info, warn or error; no level shows a value")
}

// deps returns what an agent gets from the command line. Its log goes to standard error, as
// configured; flush ends it. A level that the command line sets is not changed by a reload.
func (a *app) deps(cfg *config.Config) (deps agent.Deps, flush func()) {
	out := agent.LogOutput{Writer: a.Stderr, Color: a.colored(a.terminal), Journal: isJournal(a.terminal)}
	set := cfg.Log
	set.Level = cmp.Or(a.logLevel.word, set.Level)
	deps = agent.Deps{Version: a.Build.Version, LogLost: a.stderr.Lost, Stderr: a.Stderr}
	deps.Logger, deps.Level, flush = agent.NewLogger(set, out)
	if a.logLevel.word != "" {
		deps.Level = nil
	}
	a.log.Store(deps.Logger)
	// A reader of the log that goes away must not end the agent: a channel that nobody reads
	// turns the signal into an error of the write. Programs that we start get the signal.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	return deps, flush
}

// tellLost says in the log that lines of it were lost, once it is taken again.
func (a *app) tellLost(lost uint64) {
	if log := a.log.Load(); log != nil {
		log.Warn("lines of this log were lost", "failures", lost, "hint", "nobody took them in time: see who reads standard error")
	}
}

// isJournal reports whether stream is the connection to the journal that systemd says it is. The
// variable alone proves nothing: it is inherited by programs whose output goes elsewhere.
func isJournal(stream io.Writer) bool {
	is, err := journal.StderrIsJournalStream()
	return stream == io.Writer(os.Stderr) && is && err == nil
}

// logger reports warnings of what a verb opens. The agent itself logs as configured.
func (a *app) logger() *slog.Logger {
	return slog.New(&lineHandler{app: a})
}

// lineHandler writes log records in the form of this interface's warnings.
type lineHandler struct {
	app   *app
	attrs []slog.Attr
}

// Enabled implements [slog.Handler].
func (h *lineHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn
}

// Handle implements [slog.Handler].
func (h *lineHandler) Handle(_ context.Context, r slog.Record) error {
	text, hint := r.Message, ""
	var add func(slog.Attr) bool
	add = func(attr slog.Attr) bool {
		switch attr.Value = attr.Value.Resolve(); {
		case attr.Value.Kind() == slog.KindGroup:
			for _, member := range attr.Value.Group() {
				add(member)
			}
		case attr.Key == "hint":
			hint = attr.Value.String()
		default:
			text += fmt.Sprintf(" %s=%s", attr.Key, attr.Value)
		}
		return true
	}
	for _, attr := range h.attrs {
		add(attr)
	}
	r.Attrs(add)
	h.app.warningf("%s", printable(text))
	if hint != "" {
		fmt.Fprintf(h.app.Stderr, "hint: %s\n", printable(hint))
	}
	return nil
}

// WithAttrs implements [slog.Handler].
func (h *lineHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &lineHandler{app: h.app, attrs: append(h.attrs[:len(h.attrs):len(h.attrs)], attrs...)}
}

// WithGroup implements [slog.Handler].
func (h *lineHandler) WithGroup(string) slog.Handler { return h }
