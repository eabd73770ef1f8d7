package agent_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
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

// logbook is a JSON log with its logger.
type logbook struct {
	*slog.Logger

	text  upstreamtest.Buffer
	taken int
	level *slog.LevelVar
	flush func()
}

// inBubble calls test in a bubble of synctest, with a log.
func inBubble(t *testing.T, test func(t *testing.T, log *logbook)) {
	synctest.Test(t, func(t *testing.T) {
		var log logbook
		log.Logger, log.level, log.flush = agent.NewLogger(config.Log{Level: "info", Format: "json"}, agent.LogOutput{Writer: &log.text})
		t.Cleanup(log.flush)
		test(t, &log)
	})
}

// logLine is what these tests look at.
type logLine struct {
	Level, Msg, Secret, Code, What, Hint string
	Repeated                             uint64
	During                               time.Duration
}

// take returns the lines since the last time.
func (l *logbook) take(t *testing.T) (lines []logLine) {
	t.Helper()
	text := l.text.String()[l.taken:]
	l.taken += len(text)
	for line := range strings.Lines(text) {
		var e logLine
		must(t, json.Unmarshal([]byte(line), &e))
		lines = append(lines, e)
	}
	return lines
}

// wantTold compares the messages since the last time: +n after one sums up n lines, and xn stands
// for n equal ones in a row.
func (l *logbook) wantTold(t *testing.T, want string) {
	t.Helper()
	var told []string
	for lines := l.take(t); len(lines) > 0; {
		first, n := lines[0], 0
		for n < len(lines) && lines[n].Msg == first.Msg && lines[n].Repeated == first.Repeated {
			n++
		}
		lines = lines[n:]
		if first.Repeated > 0 {
			first.Msg += fmt.Sprint("+", first.Repeated)
		}
		if n > 1 {
			first.Msg += fmt.Sprint(" x", n)
		}
		told = append(told, first.Msg)
	}
	if got := strings.Join(told, ", "); got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
}

// with returns the lines with that message, or the end of whose repetition is told.
func with(lines []logLine, msg string) []logLine {
	return slices.DeleteFunc(slices.Clone(lines), func(l logLine) bool { return l.Msg != msg && l.What != msg })
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
	dir := t.TempDir()
	inBubble(t, func(t *testing.T, log *logbook) {
		fake := upstreamtest.NewFake()
		limits := cache.Limits{TTL: time.Minute, MaxStale: 2 * time.Minute}
		for i := range secrets {
			name := fmt.Sprintf("app/%03d", i)
			fake.MustCreate(t, name, "v1", "value")
			limits.Pins = append(limits.Pins, cache.Pin{Ref: upstream.SecretRef{SecretName: upstream.SecretName(name)}})
		}
		c, err := cache.New(fake, cache.Options{Limits: limits, Logger: log.With("part", "cache")})
		must(t, err)
		opts := render.Options{Logger: log.With("part", "render")}
		for i := range files {
			opts.Targets = append(opts.Targets, render.Target{
				Destination: filepath.Join(dir, fmt.Sprint(i)), Content: render.Content{Contents: fmt.Sprintf(`{{ secret "app/%03d" }}`, i)}})
		}
		r, err := render.New(c, opts)
		must(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = c.Run(ctx) })
		must(t, c.Warm(ctx))
		time.Sleep(5 * time.Minute)
		log.wantTold(t, "") // while all is well

		// The outage. Callers go on asking, and get errors once values are too old.
		fake.Fail("GetSecretValue", &upstream.Error{Err: upstream.ErrUnavailable, Message: "no route to host"})
		for i := range 180 {
			time.Sleep(10 * time.Second)
			if i == 30 {
				running.Go(func() { _ = r.Run(ctx) })
			}
			_, _ = c.LookupAll(ctx, []upstream.SecretRef{limits.Pins[0].Ref, limits.Pins[100].Ref})
		}
		denied := limits.Pins[77].Ref
		fake.Intercept(func(_ context.Context, _ string, ref upstream.SecretRef) error {
			if ref.SecretName == denied.SecretName {
				return &upstream.Error{Err: upstream.ErrAccessDenied}
			}
			return nil
		})
		for range 30 {
			time.Sleep(time.Minute)
			_, _ = c.Lookup(ctx, denied)
		}
		during := log.take(t)

		fake.Intercept(nil)
		fake.Fail("GetSecretValue", nil)
		time.Sleep(30 * time.Minute)
		after := log.take(t)
		cancel()
		running.Wait()
		synctest.Wait()

		if len(during) > 150 || len(after) > 80 {
			t.Errorf("%d lines during the outage, %d after it: %+v %+v", len(during), len(after), during, after)
		}
		wantOutageTold(t, during, after, denied, files)
	})
}

// wantOutageTold checks that nothing that matters is lost in the lines during an outage, in which
// the secret denied was refused, and after it.
func wantOutageTold(t *testing.T, during, after []logLine, denied upstream.SecretRef, files uint64) {
	t.Helper()
	// A refusal is an answer, so each one ends the outage for a moment.
	if down := with(during, "the upstream is down; last good values are served"); len(down) == 0 || down[0].Repeated != 0 || len(down) > 20 {
		t.Errorf("the outage is told by %+v", down)
	}
	if !slices.ContainsFunc(with(during, "a secret could not be fetched"), func(l logLine) bool {
		return strings.HasPrefix(l.Secret, string(denied.SecretName)) && l.Code == "Forbidden.NoPermission"
	}) {
		t.Errorf("that a secret was refused in the outage is not told")
	}
	for _, msg := range []string{"a last good value is too old to be served", "file not rendered; what is there stays"} {
		if found := with(during, msg); toldOf(found, msg) <= uint64(len(found)) {
			t.Errorf("%s: %+v", msg, found)
		}
	}
	if i := slices.IndexFunc(during, func(l logLine) bool { return l.Level != "INFO" && l.Hint == "" }); i >= 0 {
		t.Errorf("no hint: %+v", during[i])
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
}

// TestRepetitionsAreSummarised states the times of the lines.
func TestRepetitionsAreSummarised(t *testing.T) {
	inBubble(t, func(t *testing.T, log *logbook) {
		logger := log.With("part", "x")
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
		for _, l := range lines[1:] {
			got = append(got, l.During.String())
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
		end := logLine{Level: "INFO", Msg: "it stopped repeating", What: "it fails", Repeated: 3599, During: 3599 * time.Second}
		if len(rest) != 2 || rest[1] != end || toldOf(append(lines, rest...), "it fails") != 3600 {
			t.Errorf("%+v", rest)
		}
		// The next one is a first again.
		fail("a")
		log.wantTold(t, "it fails")
		// Other things, other codes and other parts are told at once, but only so many.
		for i := range 20 {
			fail(fmt.Sprint("thing ", i))
		}
		logger.Warn("it fails", "secret", "a", "code", "Other", "hint", "x")
		log.With("part", "y").Warn("it fails", "secret", "a", "hint", "x")
		log.wantTold(t, "it fails x9") // 7 and 2: "a" is one of eight
		// What was left out by the source counts; the end of the log loses nothing.
		logger.Warn("it fails", "secret", "a", "suppressed", uint64(41), "hint", "x")
		log.flush()
		log.wantTold(t, "it fails+55") // 13 and 42
		fail("a")
		fail("a")
		log.wantTold(t, "it fails x2")
	})
}

// TestFailureDoesNotSeemToFollowItsRecovery: what was counted is told before the line that may
// be its end, and only then.
func TestFailureDoesNotSeemToFollowItsRecovery(t *testing.T) {
	inBubble(t, func(t *testing.T, log *logbook) {
		logger := log.With("part", "x")
		for range 5 {
			logger.Warn("it fails", "file", "a", "hint", "repair it")
		}
		logger.Info("another is fine", "file", "b")
		log.With("part", "y").Info("another part is fine", "file", "a")
		logger.Info("file in order again", "file", "a", "failures", 5)
		time.Sleep(time.Hour)
		log.wantTold(t, "it fails, another is fine, another part is fine, it fails+4, file in order again, it stopped repeating+4")
	})
}

// TestAnotherErrorIsNews: a line that names nothing but its error is told at once when that is
// another, such as the next mistake in a configuration.
func TestAnotherErrorIsNews(t *testing.T) {
	inBubble(t, func(t *testing.T, log *logbook) {
		for i := range 20 {
			log.Error("not reloaded", "err", fmt.Errorf("mistake %d", i%12), "hint", "repair it")
		}
		log.Info("reloaded")
		log.wantTold(t, "not reloaded x8, not reloaded+12, reloaded")
	})
}

// TestOnlyFailuresAndRecoveriesAreSummarised: a change of state is news each time.
func TestOnlyFailuresAndRecoveriesAreSummarised(t *testing.T) {
	inBubble(t, func(t *testing.T, log *logbook) {
		for range 100 {
			log.Info("file published", "file", "a")
			log.Info("endpoint is back", "endpoint", "b", "failures", 3)
		}
		time.Sleep(time.Hour)
		log.wantTold(t, "file published, endpoint is back, file published x99, endpoint is back+99")
	})
}

// TestKindsAreBounded sends more kinds than are counted. None is lost, and those that can be
// told apart by a code alone are counted together.
func TestKindsAreBounded(t *testing.T) {
	inBubble(t, func(t *testing.T, log *logbook) {
		for i := range 2000 {
			log.Warn("it fails", "code", fmt.Sprint(i), "hint", "x")
		}
		log.wantTold(t, "it fails x257")
		log.flush()
		log.wantTold(t, "it fails+1743")
	})
	inBubble(t, func(t *testing.T, log *logbook) {
		for i := range 2000 {
			log.Warn(fmt.Sprint("message ", i))
		}
		if n := len(log.take(t)); n != 2000 {
			t.Errorf("%d of 2000 messages", n)
		}
	})
}

// TestTheLevelIsObeyedLive changes the level while lines are held back.
func TestTheLevelIsObeyedLive(t *testing.T) {
	inBubble(t, func(t *testing.T, log *logbook) {
		log.Debug("detail")
		log.Warn("it fails")
		log.Warn("it fails")
		log.wantTold(t, "it fails")
		log.level.Set(slog.LevelError)
		time.Sleep(time.Hour)
		log.Warn("it fails")
		log.wantTold(t, "")
		log.level.Set(slog.LevelDebug)
		log.Debug("detail")
		log.wantTold(t, "detail")
	})
}
