package cache_test

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"secretagent/cache"
	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

// causes is an upstream that notes who caused its calls, and answers after a second.
type causes struct {
	mu   sync.Mutex
	seen []string
	err  error
}

func (u *causes) GetSecretValue(ctx context.Context, ref upstream.SecretRef) (upstream.SecretValue, error) {
	u.mu.Lock()
	u.seen = append(u.seen, upstream.CauseOf(ctx).RequestID)
	err := u.err
	u.mu.Unlock()
	time.Sleep(time.Second)
	if err != nil {
		return upstream.SecretValue{}, err
	}
	return constant(1)(ctx, ref)
}

// journal is a log that flights write while a test reads.
type journal struct {
	upstreamtest.Buffer
	taken int
}

// take returns what was written since the last time, once all flights have landed.
func (j *journal) take() string {
	synctest.Wait()
	all := j.String()
	defer func() { j.taken = len(all) }()
	return all[j.taken:]
}

// take returns what was noted since the last time.
func (u *causes) take() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := strings.Join(u.seen, " ")
	u.seen = nil
	return s
}

func causedBy(t *testing.T, id string) context.Context {
	return upstream.WithCause(t.Context(), upstream.Cause{RequestID: id})
}

// TestTheCauseOfAFlight: a call to the upstream has one cause, the request that made it
// necessary, however many wait for it; what the cache does of itself has none.
func TestTheCauseOfAFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log journal
		up := &causes{}
		c := open(t, up, cache.Options{Limits: cache.Limits{TTL: time.Minute, Pins: []cache.Pin{{Ref: ref("pinned")}}},
			Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
		start(t, c)
		time.Sleep(time.Minute) // the declared secret: fetched, and refreshed before it expires
		if got, lines := up.take(), log.take(); strings.TrimSpace(got) != "" || strings.Contains(lines, "request_id") || lines == "" {
			t.Errorf("the background has causes: %q\n%s", got, lines)
		}

		for _, id := range []string{"first", "second", "third"} {
			go c.Lookup(causedBy(t, id), ref("app/db"))
			time.Sleep(time.Millisecond)
		}
		time.Sleep(2 * time.Second)
		if got := up.take(); got != "first" {
			t.Errorf("a shared flight was caused by %q", got)
		}
		if lines := log.take(); strings.Count(lines, "request_id=first") != 1 || strings.Contains(lines, "second") {
			t.Errorf("log:\n%s", lines)
		}
		// A call that has to start later has a cause of its own.
		go c.RefreshNow(causedBy(t, "fourth"), ref("app/db"))
		time.Sleep(time.Millisecond)
		go c.RefreshNow(causedBy(t, "fifth"), ref("app/db"))
		time.Sleep(5 * time.Second)
		if got := up.take(); got != "fourth fifth" {
			t.Errorf("forced calls were caused by %q", got)
		}
		go c.Report(causedBy(t, "sixth"), ref("app/db"))
		go c.LookupAll(causedBy(t, "seventh"), []upstream.SecretRef{ref("app/other")})
		time.Sleep(2 * time.Second)
		if got := up.take(); got != "sixth seventh" && got != "seventh sixth" {
			t.Errorf("report and batch: %q", got)
		}

		// An outage: the lookup that fails is in the line that says so.
		log.take()
		up.mu.Lock()
		up.err = &upstream.Error{Err: upstream.ErrUnavailable}
		up.mu.Unlock()
		if _, err := c.Lookup(causedBy(t, "eighth"), ref("app/new")); err == nil {
			t.Error("the upstream is down")
		}
		if lines := log.take(); !strings.Contains(lines, "level=WARN") || !strings.Contains(lines, "request_id=eighth") {
			t.Errorf("log:\n%s", lines)
		}
	})
}
