package agent_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"secretagent/agent"
	"secretagent/agent/config"
	"secretagent/cache"
	"secretagent/render"
	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

// logbook collects the lines of a JSON log.
type logbook struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// logLine is what these tests look at.
type logLine struct {
	Level, Msg, Secret, File, Code, What, Hint string
	Repeated, Failures                         uint64
	During                                     time.Duration
}

// take returns the lines since the last time.
func (l *logbook) take(t testing.TB) (lines []logLine) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.b.String()) {
		var e logLine
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		lines = append(lines, e)
	}
	l.b.Reset()
	return lines
}

func (l *logbook) logger(t testing.TB) (logger *slog.Logger, flush func()) {
	logger, _, flush = agent.NewLogger(config.Log{Level: "info", Format: "json"}, agent.LogOutput{Writer: l})
	t.Cleanup(flush)
	return logger, flush
}

// with returns the lines with that message, or the end of whose repetition is told.
func with(lines []logLine, msg string) (found []logLine) {
	for _, l := range lines {
		if l.Msg == msg || l.What == msg {
			found = append(found, l)
		}
	}
	return found
}

// toldOf counts what was told with that message, one by one or in summaries.
func toldOf(lines []logLine, msg string) (n uint64) {
	for _, l := range lines {
		if l.Msg == msg {
			n += max(1, l.Repeated)
		}
	}
	return n
}

// TestAnOutageOfAnHour runs a cache with 200 declared secrets, of which one is refused in the
// middle of an outage, and a renderer of 20 files that comes too late to get its values.
func TestAnOutageOfAnHour(t *testing.T) {
	const secrets, files = 200, 20
	synctest.Test(t, func(t *testing.T) {
		fake := upstreamtest.NewFake()
		var pins []cache.Pin
		for i := range secrets {
			name := fmt.Sprintf("app/%03d", i)
			fake.MustCreate(t, name, "v1", "value")
			pins = append(pins, cache.Pin{Ref: upstream.SecretRef{SecretName: upstream.SecretName(name)}})
		}
		var log logbook
		logger, _ := log.logger(t)
		limits := cache.Limits{TTL: time.Minute, MaxStale: 2 * time.Minute, Pins: pins}
		c, err := cache.New(fake, cache.Options{Limits: limits, Logger: logger.With("part", "cache")})
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		opts := render.Options{Logger: logger.With("part", "render")}
		for i := range files {
			opts.Targets = append(opts.Targets, render.Target{
				Destination: fmt.Sprintf("%s/%02d", dir, i), Content: render.Content{Contents: fmt.Sprintf(`{{ secret "app/%03d" }}`, i)}})
		}
		r, err := render.New(c, opts)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = c.Run(ctx) })
		if err := c.Warm(ctx); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		if lines := log.take(t); len(lines) != 0 {
			t.Errorf("while all is well: %+v", lines)
		}

		// The outage. Callers go on asking, and get errors once values are too old.
		outage := &upstream.Error{Err: upstream.ErrUnavailable, Message: "no route to host"}
		fake.Fail("GetSecretValue", outage)
		for i := range 180 {
			time.Sleep(10 * time.Second)
			if i == 30 {
				running.Go(func() { _ = r.Run(ctx) })
			}
			_, _ = c.LookupAll(ctx, []upstream.SecretRef{pins[0].Ref, pins[100].Ref})
		}
		denied := pins[77].Ref.SecretName
		fake.Intercept(func(_ context.Context, _ string, ref upstream.SecretRef) error {
			if ref.SecretName == denied {
				return &upstream.Error{Err: upstream.ErrAccessDenied}
			}
			return nil
		})
		for range 30 {
			time.Sleep(time.Minute)
			_, _ = c.Lookup(ctx, pins[77].Ref)
		}
		during := log.take(t)

		fake.Intercept(nil)
		fake.Fail("GetSecretValue", nil)
		time.Sleep(30 * time.Minute)
		after := log.take(t)
		cancel()
		running.Wait()
		synctest.Wait()

		t.Logf("%d lines during the outage, %d after it", len(during), len(after))
		if len(during) > 150 || len(after) > 80 {
			for _, l := range slices.Concat(during, after) {
				t.Logf("%+v", l)
			}
			t.Errorf("%d lines during the outage, %d after it", len(during), len(after))
		}
		// Nothing that matters is lost.
		// A refusal is an answer, so each one ends the outage for a moment.
		if down := with(during, "the upstream is down; last good values are served"); len(down) == 0 || down[0].Repeated != 0 || len(down) > 20 {
			t.Errorf("the outage is told by %+v", down)
		}
		told := false
		for _, l := range with(during, "a secret could not be fetched") {
			told = told || l.Secret == string(denied)+":ACSCurrent" && l.Code == "Forbidden.NoPermission"
		}
		if !told {
			t.Errorf("that a secret was refused in the outage is not told")
		}
		for _, msg := range []string{"a last good value is too old to be served", "file not rendered; what is there stays"} {
			found := with(during, msg)
			var repeated uint64
			for _, l := range found {
				repeated += l.Repeated
			}
			if len(found) == 0 || repeated == 0 {
				t.Errorf("%s: %+v", msg, found)
			}
		}
		for _, l := range during {
			if l.Level != "INFO" && l.Hint == "" {
				t.Errorf("no hint: %+v", l)
			}
		}
		if toldOf(after, "the upstream answers again") == 0 {
			t.Error("the end of the outage was not told")
		}
		// The secret that was refused is told to fail twice, for two reasons.
		all := slices.Concat(during, after)
		if gone, back := toldOf(all, "a secret could not be fetched"), toldOf(all, "a secret is available again"); gone < 3 || back != gone && back != gone-1 {
			t.Errorf("%d secrets are told to fail, %d to be back", gone, back)
		}
		if n := toldOf(after, "file in order again"); n != files {
			t.Errorf("%d of %d files are told to be in order again", n, files)
		}
		ended := with(after, "file not rendered; what is there stays")
		if len(ended) == 0 || ended[len(ended)-1].Msg != "it stopped repeating" || ended[len(ended)-1].Repeated == 0 {
			t.Errorf("the end of a repetition: %+v", ended)
		}
	})
}

// TestRepetitionsAreSummarised states the times of the lines.
func TestRepetitionsAreSummarised(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log logbook
		logger, flush := log.logger(t)
		logger = logger.With("part", "x")
		begun := time.Now()
		fail := func(secret string) {
			logger.Warn("it fails", "secret", secret, "err", errors.New("no"), "hint", "repair it")
		}
		fail("a")
		for range 3600 - 1 {
			time.Sleep(time.Second)
			fail("a")
			synctest.Wait()
		}
		lines := log.take(t)
		var got []string
		var total uint64 = 1
		for _, l := range lines[1:] {
			got = append(got, l.During.String())
			total += l.Repeated
			if l.Secret != "a" || l.Hint != "repair it" || l.Level != "WARN" {
				t.Errorf("%+v", l)
			}
		}
		want := "10s 30s 1m10s 2m30s 5m10s 10m30s 20m30s 30m30s 40m30s 50m30s"
		if strings.Join(got, " ") != want || lines[0].Repeated != 0 {
			t.Errorf("summaries after %s, want %s", got, want)
		}
		// It stops: the rest is told, and then the end.
		time.Sleep(time.Hour)
		rest := log.take(t)
		if len(rest) != 2 || rest[0].Repeated+total != 3600 || rest[1].Msg != "it stopped repeating" || rest[1].What != "it fails" ||
			rest[1].Repeated != 3599 || rest[1].During != 3599*time.Second || rest[1].Level != "INFO" {
			t.Errorf("%d told before, then %+v", total, rest)
		}
		// The next one is a first again.
		fail("a")
		if again := log.take(t); len(again) != 1 || again[0].Repeated != 0 {
			t.Errorf("%+v", again)
		}
		// Other things, other codes and other parts are told at once, but only so many.
		for i := range 20 {
			fail(fmt.Sprint("thing ", i))
		}
		logger.Warn("it fails", "secret", "a", "code", "Other", "hint", "x")
		logger.With("part", "y").Warn("it fails", "secret", "a", "hint", "x")
		if n := len(log.take(t)); n != 7+2 { // "a" is one of the eight
			t.Errorf("%d lines", n)
		}
		// What was left out by the source counts; the end of the log loses nothing.
		logger.Warn("it fails", "secret", "a", "suppressed", uint64(41), "hint", "x")
		flush()
		if l := log.take(t); len(l) != 1 || l[0].Repeated != 13+42 {
			t.Errorf("%+v", l)
		}
		fail("a")
		fail("a")
		if n := len(log.take(t)); n != 2 {
			t.Errorf("after the flush: %d lines", n)
		}
		if time.Since(begun) < 2*time.Hour-time.Second {
			t.Errorf("the clock went wrong: %s", time.Since(begun))
		}
	})
}

// TestFailureDoesNotSeemToFollowItsRecovery: what was counted is told before the line that may
// be its end, and only then.
func TestFailureDoesNotSeemToFollowItsRecovery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log logbook
		logger, _ := log.logger(t)
		logger = logger.With("part", "x")
		for range 5 {
			logger.Warn("it fails", "file", "a", "hint", "repair it")
		}
		logger.Info("another is fine", "file", "b")
		logger.With("part", "y").Info("another part is fine", "file", "a")
		logger.Info("file in order again", "file", "a", "failures", 5)
		time.Sleep(time.Hour)
		var got []string
		for _, l := range log.take(t) {
			got = append(got, fmt.Sprint(l.Msg, " ", l.Repeated))
		}
		want := []string{"it fails 0", "another is fine 0", "another part is fine 0", "it fails 4", "file in order again 0", "it stopped repeating 4"}
		if !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	})
}

// TestAnotherErrorIsNews: a line that names nothing but its error is told at once when that is
// another, such as the next mistake in a configuration.
func TestAnotherErrorIsNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log logbook
		logger, _ := log.logger(t)
		for i := range 20 {
			logger.Error("not reloaded", "err", fmt.Errorf("mistake %d", i%12), "hint", "repair it")
		}
		if n := len(log.take(t)); n != 8 {
			t.Errorf("%d lines at once", n)
		}
		logger.Info("reloaded")
		if l := log.take(t); len(l) != 2 || l[0].Repeated != 12 || l[1].Msg != "reloaded" {
			t.Errorf("%+v", l)
		}
	})
}

// TestOnlyFailuresAndRecoveriesAreSummarised: a change of state is news each time.
func TestOnlyFailuresAndRecoveriesAreSummarised(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log logbook
		logger, _ := log.logger(t)
		for range 100 {
			logger.Info("file published", "file", "a")
			logger.Info("endpoint is back", "endpoint", "b", "failures", 3)
		}
		time.Sleep(time.Hour)
		lines := log.take(t)
		if n := len(with(lines, "file published")); n != 100 {
			t.Errorf("%d changes of 100", n)
		}
		back := with(lines, "endpoint is back")
		if len(back) != 2 || back[1].Repeated != 99 || back[1].What != "" {
			t.Errorf("%+v", back)
		}
	})
}

// TestKindsAreBounded sends more kinds than are counted. None is lost, and those that can be
// told apart by a code alone are counted together.
func TestKindsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log logbook
		logger, flush := log.logger(t)
		for i := range 2000 {
			logger.Warn("it fails", "code", fmt.Sprint(i), "hint", "x")
		}
		if n := len(log.take(t)); n != 257 {
			t.Errorf("%d lines for 2000 codes", n)
		}
		flush()
		if l := log.take(t); len(l) != 1 || l[0].Repeated != 2000-257 {
			t.Errorf("%+v", l)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		var log logbook
		logger, _ := log.logger(t)
		for i := range 2000 {
			logger.Warn(fmt.Sprint("message ", i))
		}
		if n := len(log.take(t)); n != 2000 {
			t.Errorf("%d of 2000 messages", n)
		}
	})
}

// TestTheLevelIsObeyedLive changes the level while lines are held back.
func TestTheLevelIsObeyedLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log logbook
		logger, level, flush := agent.NewLogger(config.Log{Level: "info", Format: "json"}, agent.LogOutput{Writer: &log})
		defer flush()
		logger.Debug("detail")
		logger.Warn("it fails")
		logger.Warn("it fails")
		if n := len(log.take(t)); n != 1 {
			t.Errorf("%d lines", n)
		}
		level.Set(slog.LevelError)
		time.Sleep(time.Hour)
		logger.Warn("it fails")
		if l := log.take(t); len(l) != 0 {
			t.Errorf("%+v", l)
		}
		level.Set(slog.LevelDebug)
		logger.Debug("detail")
		if n := len(log.take(t)); n != 1 {
			t.Errorf("%d lines", n)
		}
	})
}
