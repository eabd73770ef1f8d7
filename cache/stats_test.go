package cache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"secretagent/cache"
	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

// A marked secret goes through everything and is found nowhere but in its answer.
func TestNothingLeaks(t *testing.T) {
	const marker = "correct-horse-battery-staple"
	synctest.Test(t, func(t *testing.T) {
		var log, text upstreamtest.Buffer
		opts := sealedIn(t)
		opts.Logger = slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		note := func(x ...any) { fmt.Fprintf(&text, "%v %+v %#v\n", x, x, x) }
		opts.Observe = func(f cache.Fetch) { note(f, f.Outcome) }
		opts.Pins = []cache.Pin{{Ref: ref("app/db")}}
		opts.MaxEntries = 2
		fake := upstreamtest.NewFake()
		for i, name := range []string{"app/db", "b", "c", "d"} {
			fake.MustCreate(t, name, "v1", fmt.Sprint(marker, i))
		}
		c := open(t, fake, opts)
		lookups := func(names ...string) {
			for _, name := range names {
				answer, err := c.Lookup(t.Context(), ref(name))
				note(answer, err)
			}
		}
		stop := start(t, c)
		bell, cancel := c.Subscribe(ref("app/db"))
		defer cancel()
		lookups("app/db", "b", "c", "d", "none", "b")
		for _, err := range []error{upstream.ErrThrottled, errors.New("odd"), upstream.ErrInvalidParameter, upstream.ErrAccessDenied} {
			fake.FailNext(get, 1, err)
			answer, err := c.RefreshNow(t.Context(), ref("b"))
			note(answer, err)
		}
		fake.MustPut(t, "app/db", "v2", marker+"2")
		c.Invalidate("app/db")
		<-bell
		answers, errs := c.LookupAll(t.Context(), append(pair, ref("none"), ref("d")))
		note(answers, errs)
		value, err := c.GetSecretValue(t.Context(), ref("app/db"))
		note(value, err)
		fake.Fail(get, upstream.ErrUnavailable)
		time.Sleep(2 * time.Hour)
		lookups("app/db", "d")
		note(c.Stats(), c.Entries(), c.Missing(), opts)
		fake.Fail(get, nil)
		time.Sleep(time.Minute)
		stop()
		note(c)

		for what, got := range map[string]string{"logs": log.String(), "formatted answers, errors and statistics": text.String()} {
			failIf(t, strings.Contains(got, marker), "the secret is in %s:\n%s", what, got)
			failIf(t, got == "", "no %s", what)
		}
		files, _ := filepath.Glob(filepath.Join(filepath.Dir(opts.Sealed.Path), "..", "*", "*"))
		failIf(t, len(files) != 3, "files: %v", files) // sealed file, its lock, keyring
		for _, path := range files {
			failIf(t, bytes.Contains(readFile(t, path), []byte(marker)), "the secret is in %s", path)
		}
	})
}

func TestObserveSeesEveryCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := upstreamtest.NewFake()
		fake.MustCreate(t, "app/db", "v1", "first")
		fake.Delay(get, 100*time.Millisecond)
		var mu sync.Mutex
		var seen []string
		c := open(t, fake, cache.Options{
			Limits: cache.Limits{TTL: time.Minute},
			Observe: func(f cache.Fetch) {
				failIf(t, f.Duration != 100*time.Millisecond || f.Ref != ref("app/db"), "%+v", f)
				mu.Lock()
				defer mu.Unlock()
				seen = append(seen, fmt.Sprintf("%s:%v", f.Outcome, f.Background))
			},
		})
		look(t, c, "app/db")
		refresh := func() {
			_, _ = c.RefreshNow(context.Background(), ref("app/db"))
			synctest.Wait() // the waiters are woken before the observer is told
		}
		synctest.Wait()
		refresh()
		fake.MustPut(t, "app/db", "v2", "second")
		refresh()
		for _, err := range []error{upstream.ErrThrottled, upstream.ErrInvalidParameter, upstream.ErrAccessDenied} {
			fake.FailNext(get, 1, err)
			refresh()
		}
		refresh()
		look(t, c, "app/db")
		stop := start(t, c)
		time.Sleep(70 * time.Second)
		stop()
		want := "first:false unchanged:false changed:false failed:false refused:false gone:false first:false unchanged:true"
		failIf(t, strings.Join(seen, " ") != want, "saw  %s\nwant %s", seen, want)
		counts := map[cache.Outcome]uint64{cache.First: 2, cache.Changed: 1, cache.Unchanged: 2, cache.Gone: 1, cache.Refused: 1, cache.Failed: 1}
		failIf(t, !maps.Equal(c.Stats().Fetches, counts), "%+v", c.Stats().Fetches)
	})
}

func TestEntriesTellWhatIsHeldAndWhatFailed(t *testing.T) {
	with(t, cache.Options{Limits: cache.Limits{TTL: time.Minute, Pins: []cache.Pin{{Ref: ref("b")}}}}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		fake.MustCreate(t, "b", "v1", "x")
		_, cancel := c.Subscribe(ref("b"))
		defer cancel()
		begin := time.Now().Round(0)
		look(t, c, "b")
		_, _ = c.Lookup(t.Context(), ref("a"))
		time.Sleep(time.Second)
		fake.FailNext(get, 1, upstream.ErrThrottled)
		_, _ = c.RefreshNow(t.Context(), ref("b"))

		all := c.Entries()
		stopIf(t, len(all) != 2, "%+v", all)
		next, size := all[1].NextRefresh, all[1].Size
		failIf(t, size == 0 || next.Before(time.Now()) || next.After(time.Now().Add(2*time.Second)), "%d bytes, refreshed at %s", size, next)
		want := []cache.EntryStatus{
			{Ref: ref("a"), LastError: "Forbidden.ResourceNotFound", LastCause: "no such secret", LastErrorAt: begin, Failures: 1},
			{Ref: ref("b"), VersionID: "v1", VersionStages: []upstream.VersionStage{"ACSCurrent"}, Size: size, Pinned: true, Subscribers: 1,
				Fresh: true, FetchedAt: begin, Age: time.Second, FreshUntil: begin.Add(time.Minute), ServedUntil: begin.Add(24 * time.Hour), NextRefresh: next,
				LastError: "Rejected.Throttling", LastErrorAt: begin.Add(time.Second), Failures: 1, History: all[1].History},
		}
		failIf(t, fmt.Sprint(all) != fmt.Sprint(want), "got  %+v\nwant %+v", all, want)
		want[1].History = nil
		failIf(t, fmt.Sprint(c.Pinned()) != fmt.Sprint(want[1:]), "pinned: %+v", c.Pinned())
	})
}
