package agent

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

// The bounds of summaries.
const (
	firstPause = 10 * time.Second // between a line and its first summary; it doubles
	lastPause  = 10 * time.Minute
	forgotten  = 2 * time.Minute // without a line of its kind, at least
	maxNamed   = 8               // different things of which a line says at once that they fail
	maxKinds   = 256             // kinds of lines that are counted at the same time
)

// logSummary is a [slog.Handler] that keeps failures from flooding the log. A kind of line is a
// level, a part, a message and a code:
//
//  1. the first line of a kind is written at once, and so is the first for each of a few
//     things it is about (a secret, a file, …; the error, where it names nothing);
//  2. what comes after it is counted, and summarised by its latest line, with repeated and
//     during, after a pause that doubles from summary to summary, or before an info line of the
//     same part about the same thing, which may tell that it is over;
//  3. when it has stopped for a whole pause and for two minutes, that is said in one line with
//     the total, and the next one is a first again.
//
// Warnings and errors are treated so, and of the other lines those that tell of a recovery:
// they have the key failures, and what fails for many things recovers for as many.
type logSummary struct {
	next  slog.Handler
	attrs []slog.Attr // given to the logger
	state *summaryState
}

// summaryState is what the loggers of one log share.
type summaryState struct {
	mu     sync.Mutex
	kinds  map[lineKind]*summary
	closed bool
}

// lineKind is what lines have in common that are counted together.
type lineKind struct {
	level   slog.Level
	part    string
	message string
	code    string
}

// summary is what was seen lately of a kind of line. The state's mutex guards it.
type summary struct {
	kind   lineKind
	named  []string // what lines were written about
	about  string   // what record is about
	begun  time.Time
	last   time.Time
	pause  time.Duration
	timer  *time.Timer
	total  uint64 // lines not written
	due    uint64 // of these, since a summary was written
	record slog.Record
	next   slog.Handler // with what the logger of record was given
}

func newLogSummary(next slog.Handler) *logSummary {
	return &logSummary{next: next, state: &summaryState{kinds: map[lineKind]*summary{}}}
}

// Enabled implements [slog.Handler].
func (h *logSummary) Enabled(ctx context.Context, level slog.Level) bool {
	return h.next.Enabled(ctx, level)
}

// WithAttrs implements [slog.Handler].
func (h *logSummary) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &logSummary{next: h.next.WithAttrs(attrs), attrs: slices.Concat(h.attrs, attrs), state: h.state}
}

// WithGroup implements [slog.Handler].
func (h *logSummary) WithGroup(name string) slog.Handler {
	return &logSummary{next: h.next.WithGroup(name), attrs: h.attrs, state: h.state}
}

// Handle implements [slog.Handler].
func (h *logSummary) Handle(ctx context.Context, r slog.Record) error {
	l := h.read(r)
	if (r.Level >= slog.LevelWarn || l.recovery) && h.count(r, l) {
		return nil
	}
	if r.Level == slog.LevelInfo {
		// A failure that is told after this line would seem to follow its own recovery.
		h.state.write(func(s *summary) bool {
			return s.kind.level >= slog.LevelWarn && s.kind.part == l.kind.part && s.about == l.about
		})
	}
	return h.next.Handle(ctx, r)
}

// line is what a record says about itself.
type line struct {
	kind     lineKind
	about    string
	news     string // about, or the error of a line that is about nothing
	recovery bool
	weight   uint64 // 1 and what its source has left out already
}

// aboutKeys name what a line is about.
var aboutKeys = [...]string{"secret", "file", "endpoint", "caller", "access_key", "path", "address", "command", "check", "hook", "op", "source"}

func (h *logSummary) read(r slog.Record) line {
	l := line{kind: lineKind{level: r.Level, message: r.Message}, weight: 1}
	var about strings.Builder
	var err string
	see := func(a slog.Attr) bool {
		switch a.Key {
		case "part":
			l.kind.part = a.Value.String()
		case "code":
			l.kind.code = a.Value.String()
		case "failures":
			l.recovery = true
		case "err":
			err = a.Value.String()
		case "suppressed":
			if a.Value.Kind() == slog.KindUint64 {
				l.weight += a.Value.Uint64()
			}
		default:
			if slices.Contains(aboutKeys[:], a.Key) {
				about.WriteString(a.Key + "=" + a.Value.String() + "\x00")
			}
		}
		return true
	}
	for _, a := range h.attrs {
		see(a)
	}
	r.Attrs(see)
	l.about = about.String()
	l.news = cmp.Or(l.about, err)
	return l
}

// count notes a line and reports whether that is all that happens to it for now.
func (h *logSummary) count(r slog.Record, l line) (only bool) {
	st := h.state
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.closed {
		return false
	}
	s := st.kinds[l.kind]
	if s == nil && len(st.kinds) >= maxKinds {
		l.kind.code = "" // only codes can be this many
		s = st.kinds[l.kind]
	}
	now := time.Now()
	switch {
	case s == nil && len(st.kinds) >= 2*maxKinds:
		return false
	case s == nil:
		s = &summary{kind: l.kind, named: []string{l.news}, begun: now, last: now, pause: firstPause}
		s.timer = time.AfterFunc(s.pause, func() { st.pauseOver(s) })
		st.kinds[l.kind] = s
		return false
	case !slices.Contains(s.named, l.news) && len(s.named) < maxNamed:
		s.named, s.last = append(s.named, l.news), now
		return false
	}
	s.total += l.weight
	s.due += l.weight
	s.last, s.about, s.record, s.next = now, l.about, r.Clone(), h.next
	return true
}

// write writes the summaries that are due of the kinds that are wanted.
func (st *summaryState) write(wanted func(*summary) bool) {
	var writes []func()
	st.mu.Lock()
	for _, s := range st.kinds {
		if s.due > 0 && wanted(s) {
			writes = append(writes, s.take())
		}
	}
	st.mu.Unlock()
	for _, write := range writes {
		write()
	}
}

// pauseOver writes what has become of s in its pause.
func (st *summaryState) pauseOver(s *summary) {
	st.mu.Lock()
	write := func() {}
	switch {
	case st.closed:
	case s.due > 0:
		s.pause = min(2*s.pause, lastPause)
		s.timer.Reset(s.pause)
		write = s.take()
	case time.Since(s.last) < max(s.pause, forgotten):
		s.timer.Reset(s.pause)
	default:
		delete(st.kinds, s.kind)
		write = s.end()
	}
	st.mu.Unlock()
	write()
}

// take returns what writes the summary that is due, once the mutex is free.
func (s *summary) take() (write func()) {
	next, r := s.next, s.record
	r.Time = time.Now()
	r.AddAttrs(slog.Uint64("repeated", s.due), slog.Duration("during", r.Time.Sub(s.begun).Round(time.Second)))
	s.due, s.record = 0, slog.Record{}
	return func() { handle(next, r) }
}

// end returns what writes that s is over; nothing when nothing was left out, and for a recovery,
// which ends by itself.
func (s *summary) end() (write func()) {
	if s.total == 0 || s.kind.level < slog.LevelWarn {
		return func() {}
	}
	r := slog.NewRecord(time.Now(), slog.LevelInfo, "it stopped repeating", 0)
	r.AddAttrs(slog.String("what", s.kind.message))
	if s.kind.code != "" {
		r.AddAttrs(slog.String("code", s.kind.code))
	}
	r.AddAttrs(slog.Uint64("repeated", s.total), slog.Duration("during", s.last.Sub(s.begun).Round(time.Second)))
	return func() { handle(s.next, r) }
}

// flush writes the summaries that are due, and lets every line through from now on.
func (h *logSummary) flush() {
	st := h.state
	st.mu.Lock()
	st.closed = true
	for _, s := range st.kinds {
		s.timer.Stop()
	}
	st.mu.Unlock()
	st.write(func(*summary) bool { return true })
}

// handle passes r on as if it came from a logger.
func handle(next slog.Handler, r slog.Record) {
	if ctx := context.Background(); next.Enabled(ctx, r.Level) {
		_ = next.Handle(ctx, r) // as of a logger, nobody could be told
	}
}
