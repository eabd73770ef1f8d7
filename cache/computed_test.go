package cache_test

import (
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"secretagent/cache"
	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

// TestComputedNamesAreNotLogged lets a value be the name of a secret that is not there, is there,
// changes, cannot be read, becomes too old, and is loaded from the sealed file. Once somebody
// asks for the same without computing it, the name is one like any other.
func TestComputedNamesAreNotLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const hidden = "MARKER"
		opts := sealedIn(t)
		opts.MaxStale = 5 * time.Minute
		var log upstreamtest.Buffer
		opts.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		var seen []upstream.SecretRef
		opts.Observe = func(f cache.Fetch) { seen = append(seen, f.Ref) }
		computed := upstream.SecretRef{SecretName: hidden, Computed: true}
		fake := upstreamtest.NewFake()
		fake.MustCreate(t, "app/db", "v1", "first")
		unnamed := func(c *cache.Cache) {
			t.Helper()
			entries := c.Entries()
			failIf(t, len(entries) != 1 || !entries[0].Ref.Computed, "entries: %+v", entries)
		}

		c := open(t, fake, opts)
		stop := start(t, c)
		_, cancel := c.Subscribe(computed)
		_, err := c.Lookup(t.Context(), computed)
		failIf(t, err == nil || strings.Contains(err.Error(), hidden), "missing: %v", err)
		fake.MustCreate(t, hidden, "v1", "x")
		time.Sleep(5 * time.Minute)
		_, err = c.Lookup(t.Context(), computed)
		must(t, err)
		fake.MustPut(t, hidden, "v2", "y")
		time.Sleep(5 * time.Minute)
		unnamed(c)
		cancel()
		stop()
		must(t, c.Close())

		fake.Fail(get, &upstream.Error{Err: upstream.ErrUnavailable, Message: "no way to " + hidden})
		c = open(t, fake, opts)
		unnamed(c)
		stop = start(t, c)
		_, cancel = c.Subscribe(computed)
		time.Sleep(time.Hour)
		_, err = c.Lookup(t.Context(), computed)
		failIf(t, err == nil, "a value that is too old is served")
		cancel()
		synctest.Wait() // a call is told after its waiters are
		for _, ref := range seen {
			failIf(t, !ref.Computed, "a call for %v", ref)
		}
		for _, told := range []string{"a secret changed", "a secret is available again", "could not be fetched", "too old to be served", "outcome=gone", "(a computed name)"} {
			failIf(t, !strings.Contains(log.String(), told), "%q is not told", told)
		}
		failIf(t, strings.Contains(log.String(), hidden), "the name shows:\n%s", log.String())

		_, _ = c.Lookup(t.Context(), upstream.SecretRef{SecretName: hidden})
		entries := c.Entries()
		failIf(t, len(entries) != 1 || entries[0].Ref.Computed || entries[0].Ref.String() != hidden+":ACSCurrent", "after a lookup by name: %+v", entries)
		stop()
	})
}
