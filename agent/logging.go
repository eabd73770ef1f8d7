package agent

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/lmittmann/tint"

	"secretagent/agent/config"
)

// LogOutput is where a log goes, and what becomes of it there. Neither changes JSON.
type LogOutput struct {
	io.Writer

	Color   bool // a terminal shows it, in colours
	Journal bool // the journal of systemd keeps it, with a time and a priority of its own
}

// NewLogger returns a logger as configured and the level it obeys, which may be changed while
// the logger is in use. What fails again and again is summarised; flush writes the summaries
// that are due later, and is called when the log ends.
func NewLogger(cfg config.Log, out LogOutput) (logger *slog.Logger, level *slog.LevelVar, flush func()) {
	level = new(slog.LevelVar)
	level.Set(logLevel(cfg.Level))
	var handler slog.Handler
	if cfg.Format == "json" {
		handler = slog.NewJSONHandler(asciiControls{out}, &slog.HandlerOptions{Level: level})
	} else {
		handler = newTextHandler(out, level)
	}
	summary := newLogSummary(handler)
	return slog.New(summary), level, summary.flush
}

// logLevel reads a level that the configuration has checked.
func logLevel(name string) slog.Level {
	var level slog.Level
	if err := level.UnmarshalText([]byte(name)); err != nil {
		return slog.LevelInfo
	}
	return level
}

// asciiControls is a writer of JSON that escapes what encoding/json leaves as it is although
// a terminal may obey it: DEL, the C1 controls, and marks that turn the direction of a text.
// In JSON such characters stand in strings only, where an escape means the same.
type asciiControls struct{ io.Writer }

func (w asciiControls) Write(p []byte) (int, error) {
	obeyed := func(r rune) bool { return r >= 0x7f && !unicode.IsPrint(r) }
	if !bytes.ContainsFunc(p, obeyed) {
		return w.Writer.Write(p)
	}
	escaped := make([]byte, 0, len(p)+16)
	for _, r := range string(p) {
		if !obeyed(r) {
			escaped = utf8.AppendRune(escaped, r)
			continue
		}
		for _, unit := range utf16.AppendRune(nil, r) {
			escaped = fmt.Appendf(escaped, `\u%04x`, unit)
		}
	}
	if _, err := w.Writer.Write(escaped); err != nil {
		return 0, err
	}
	return len(p), nil
}

// How lines for people look.
const (
	messageWidth = 44 // most messages are shorter, so that what follows stands in a column
	lineTime     = "2006-01-02T15:04:05.000Z07:00"
	terminalTime = "15:04:05.000"
	red          = 9 // of the ANSI palette, bright
)

// newTextHandler writes lines for people: time, level, message and then the rest.
func newTextHandler(out LogOutput, level slog.Leveler) slog.Handler {
	opts := &tint.Options{Level: level, NoColor: !out.Color, TimeFormat: lineTime}
	if out.Color {
		opts.TimeFormat = terminalTime
	}
	opts.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
		switch {
		case len(groups) > 0:
		case a.Key == slog.TimeKey && a.Value.Kind() == slog.KindTime && out.Journal:
			return slog.Attr{}
		case a.Key == slog.LevelKey && out.Journal:
			if l, ok := a.Value.Any().(slog.Level); ok {
				a.Value = slog.StringValue(journalLevel(l))
			}
		case a.Key == slog.MessageKey:
			text := oneLine(a.Value.String())
			a.Value = slog.StringValue(text + strings.Repeat(" ", max(0, messageWidth-utf8.RuneCountInString(text))))
		case a.Key == "err" && a.Value.Kind() == slog.KindAny:
			a = tint.Attr(red, a)
		}
		return a
	}
	return tint.NewTextHandler(out, opts)
}

// journalLevel returns a level behind the priority that journald takes from the beginning of
// a line, so that journalctl --priority finds it.
func journalLevel(l slog.Level) string {
	switch {
	case l >= slog.LevelError:
		return "<3>ERR"
	case l >= slog.LevelWarn:
		return "<4>WRN"
	case l >= slog.LevelInfo:
		return "<6>INF"
	}
	return "<7>DBG"
}

// oneLine keeps a message from breaking its line or driving a terminal. The handler does the
// same for keys and values, by quoting them.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return utf8.RuneError
		}
		return r
	}, s)
}
