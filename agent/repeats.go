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
	maxRepeats = 256             // kinds of lines that are counted at the same time
)

// repeats is a [slog.Handler] that keeps failures from flooding the log. A kind of line is a
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
type repeats struct {
	next  slog.Handler
	attrs []slog.Attr // given to the logger
	state *repeatState
}

type repeatState struct {
	mu     sync.Mutex
	kinds  map[lineKind]*repeat
	closed bool
}

// lineKind is what lines have in common that are counted together.
type lineKind struct {
	level   slog.Level
	part    string
	message string
	code    string
}

// repeat is a kind of line that was seen lately. It is guarded by the state's mutex.
type repeat struct {
	kind   lineKind
	named  []string // what lines were written about
	about  string   // what record is about
	begun  time.Time
	last   time.Time
	pause  time.Duration
	timer  *time.Timer
	total  uint64 // lines not written
	recent uint64 // of these, since the last summary
	record slog.Record
	next   slog.Handler // with what the logger of record was given
}

func newRepeats(next slog.Handler) *repeats {
	return &repeats{next: next, state: &repeatState{kinds: map[lineKind]*repeat{}}}
}

// Enabled implements [slog.Handler].
func (h *repeats) Enabled(ctx context.Context, level slog.Level) bool {
	return h.next.Enabled(ctx, level)
}

// WithAttrs implements [slog.Handler].
func (h *repeats) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &repeats{next: h.next.WithAttrs(attrs), attrs: slices.Concat(h.attrs, attrs), state: h.state}
}

// WithGroup implements [slog.Handler].
func (h *repeats) WithGroup(name string) slog.Handler {
	return &repeats{next: h.next.WithGroup(name), attrs: h.attrs, state: h.state}
}

// Handle implements [slog.Handler].
func (h *repeats) Handle(ctx context.Context, r slog.Record) error {
	l := h.read(r)
	if (r.Level >= slog.LevelWarn || l.recovery) && h.count(r, l) {
		return nil
	}
	if r.Level == slog.LevelInfo {
		h.state.catchUp(l)
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
var aboutKeys = [...]string{"secret", "file", "endpoint", "caller", "path", "address", "command", "hook", "op", "source"}

func (h *repeats) read(r slog.Record) line {
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
func (h *repeats) count(r slog.Record, l line) (only bool) {
	s := h.state
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	k := s.kinds[l.kind]
	if k == nil && len(s.kinds) >= maxRepeats {
		l.kind.code = "" // only codes can be this many
		k = s.kinds[l.kind]
	}
	now := time.Now()
	switch {
	case k == nil && len(s.kinds) >= 2*maxRepeats:
		return false
	case k == nil:
		k = &repeat{kind: l.kind, named: []string{l.news}, begun: now, last: now, pause: firstPause}
		k.timer = time.AfterFunc(k.pause, func() { s.elapsed(k) })
		s.kinds[l.kind] = k
		return false
	case !slices.Contains(k.named, l.news) && len(k.named) < maxNamed:
		k.named, k.last = append(k.named, l.news), now
		return false
	}
	k.total += l.weight
	k.recent += l.weight
	k.last, k.about, k.record, k.next = now, l.about, r.Clone(), h.next
	return true
}

// catchUp writes what was counted about the thing of l, which is written next: the other way
// round, a failure would seem to follow its recovery.
func (s *repeatState) catchUp(l line) {
	var tell []func()
	s.mu.Lock()
	for _, k := range s.kinds {
		if k.kind.level >= slog.LevelWarn && k.kind.part == l.kind.part && k.about == l.about {
			next, r := k.next, k.summary()
			tell = append(tell, func() { write(next, r) })
		}
	}
	s.mu.Unlock()
	for _, f := range tell {
		f()
	}
}

// elapsed writes what has become of k in its pause.
func (s *repeatState) elapsed(k *repeat) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	line, next := k.summary(), k.next
	switch {
	case line != nil:
		k.pause = min(2*k.pause, lastPause)
		k.timer.Reset(k.pause)
	case time.Since(k.last) < max(k.pause, forgotten):
		k.timer.Reset(k.pause)
	default:
		delete(s.kinds, k.kind)
		line = k.end()
	}
	s.mu.Unlock()
	write(next, line)
}

// summary returns the line for what was counted since the last one; nil when that is nothing.
func (k *repeat) summary() *slog.Record {
	if k.recent == 0 {
		return nil
	}
	r := k.record
	r.Time = time.Now()
	r.AddAttrs(slog.Uint64("repeated", k.recent), slog.Duration("during", r.Time.Sub(k.begun).Round(time.Second)))
	k.recent, k.record = 0, slog.Record{}
	return &r
}

// end returns the line that says that k is over; nil when nothing was left out, and for a
// recovery, which ends by itself.
func (k *repeat) end() *slog.Record {
	if k.total == 0 || k.kind.level < slog.LevelWarn {
		return nil
	}
	r := slog.NewRecord(time.Now(), slog.LevelInfo, "it stopped repeating", 0)
	r.AddAttrs(slog.String("what", k.kind.message))
	if k.kind.code != "" {
		r.AddAttrs(slog.String("code", k.kind.code))
	}
	r.AddAttrs(slog.Uint64("repeated", k.total), slog.Duration("during", k.last.Sub(k.begun).Round(time.Second)))
	return &r
}

// flush writes the summaries of what was counted, and lets every line through from now on.
func (h *repeats) flush() {
	s := h.state
	s.mu.Lock()
	s.closed = true
	var due []*repeat
	var lines []*slog.Record
	for _, k := range s.kinds {
		k.timer.Stop()
		if r := k.summary(); r != nil {
			due, lines = append(due, k), append(lines, r)
		}
	}
	clear(s.kinds)
	s.mu.Unlock()
	for i, r := range lines {
		write(due[i].next, r)
	}
}

// write passes r on as if it came from a logger.
func write(next slog.Handler, r *slog.Record) {
	if r == nil {
		return
	}
	if ctx := context.Background(); next.Enabled(ctx, r.Level) {
		_ = next.Handle(ctx, *r) // as of a logger, nobody could be told
	}
}
