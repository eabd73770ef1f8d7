package cache_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"secretagent/cache"
	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

// TestTheCauseOfAFlight: a call to the upstream has one cause, the request that made it
// necessary, however many wait for it; what the cache does of itself has none.
func TestTheCauseOfAFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log upstreamtest.Buffer
		var mu sync.Mutex
		var causes []string
		var down error
		up := fetchFunc(func(ctx context.Context, r upstream.SecretRef) (upstream.SecretValue, error) {
			mu.Lock()
			defer mu.Unlock()
			causes = append(causes, upstream.CauseOf(ctx).RequestID)
			mu.Unlock()
			time.Sleep(time.Second)
			mu.Lock()
			value, err := constant(1)(ctx, r)
			return value, errors.Join(err, down)
		})
		c := open(t, up, cache.Options{Limits: cache.Limits{TTL: time.Minute, Pins: []cache.Pin{{Ref: ref("pinned")}}},
			Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
		by := func(id string) context.Context {
			return upstream.WithCause(t.Context(), upstream.Cause{RequestID: id})
		}
		logged := 0
		// took checks the causes of the calls since the last time, and returns what was logged.
		took := func(wait time.Duration, want ...string) string {
			t.Helper()
			time.Sleep(wait)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			slices.Sort(causes)
			failIf(t, !slices.Equal(causes, want), "the causes are %q, want %q", causes, want)
			causes = nil
			lines := log.String()[logged:]
			logged += len(lines)
			return lines
		}

		start(t, c) // the declared secret is fetched, and refreshed before it expires
		lines := took(time.Minute, "", "")
		failIf(t, strings.Contains(lines, "request_id") || lines == "", "the background has causes:\n%s", lines)
		for _, id := range []string{"first", "second", "third"} {
			go c.Lookup(by(id), ref("app/db"))
			time.Sleep(time.Millisecond)
		}
		lines = took(2*time.Second, "first")
		failIf(t, strings.Count(lines, "request_id=first") != 1 || strings.Contains(lines, "second"), "log:\n%s", lines)
		// A call that has to start later has a cause of its own.
		go c.RefreshNow(by("fourth"), ref("app/db"))
		time.Sleep(time.Millisecond)
		go c.RefreshNow(by("fifth"), ref("app/db"))
		took(5*time.Second, "fifth", "fourth")
		go c.Report(by("sixth"), ref("app/db"))
		go c.LookupAll(by("seventh"), []upstream.SecretRef{ref("app/other")})
		took(2*time.Second, "seventh", "sixth")

		// An outage: the lookup that fails is in the line that says so.
		mu.Lock()
		down = upstream.ErrUnavailable
		mu.Unlock()
		refuses(t, upstream.ErrUnavailable)(c.Lookup(by("eighth"), ref("app/new")))
		lines = took(0, "eighth")
		failIf(t, !strings.Contains(lines, "level=WARN") || !strings.Contains(lines, "request_id=eighth"), "log:\n%s", lines)
	})
}
