package cache_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"secretagent/cache"
	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

// heldUntil returns what is held, and until when it is served, counted from the beginning of the bubble.
func heldUntil(c *cache.Cache) (text string) {
	begin := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, e := range c.Entries() {
		if e.VersionID != "" {
			text += fmt.Sprintf("%s until %s; ", e.Ref.SecretName, e.ServedUntil.Sub(begin))
		}
	}
	return text
}

// Nobody asks; still the end of MaxStale is told, to the second, in status, readiness, history,
// log and the sealed file.
func TestEndOfMaxStaleIsNoticedWhenItComes(t *testing.T) {
	opts := sealedIn(t)
	var log upstreamtest.Buffer
	opts.Logger = log.Logger()
	opts.Pins = []cache.Pin{{Ref: ref("app/db")}}
	with(t, opts, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		start(t, c)
		fill(t, fake, 2)
		look(t, c, "app/db")
		look(t, c, "s0")
		time.Sleep(10 * time.Second)
		look(t, c, "s1")
		synctest.Wait() // what a call says of the upstream is concluded after it is answered
		failIf(t, strings.Contains(heldUntil(c), "until 1h"), "it ends although nothing is wrong: %s", heldUntil(c))
		fake.Fail(get, upstream.ErrUnavailable)
		_, _ = c.RefreshNow(t.Context(), ref("s0"))
		synctest.Wait()
		failIf(t, strings.Count(heldUntil(c), "until 1h") != 3, "a call failed: %s", heldUntil(c))
		check := func(at time.Duration, want string, missing, records int) {
			t.Helper()
			time.Sleep(at - c.Pinned()[0].Age - time.Nanosecond)
			synctest.Wait()
			time.Sleep(time.Nanosecond)
			synctest.Wait()
			failIf(t, heldUntil(c) != want, "after %s: %q, want %q", at, heldUntil(c), want)
			failIf(t, len(c.Missing()) != missing, "after %s: missing %v", at, c.Missing())
			time.Sleep(settled)
			failIf(t, c.Stats().Sealed.Records != records, "after %s: %+v", at, c.Stats().Sealed)
		}
		for _, name := range []string{"s0", "s1", "app/db"} { // so that the upstream counts as down
			_, _ = c.RefreshNow(t.Context(), ref(name))
		}
		check(time.Hour, "app/db until 1h0m0s; s0 until 1h0m0s; s1 until 1h0m10s; ", 0, 1) // two seconds later
		check(time.Hour+5*time.Second, "s1 until 1h0m10s; ", 1, 1)
		check(time.Hour+12*time.Second, "", 1, 0)
		failIf(t, strings.Count(log.String(), "too old to be served") != 3, "log: %s", &log)
		failIf(t, !strings.Contains(told(c, "app/db"), "lapsed"), "history: %s", told(c, "app/db"))
	})
}

// The same when the time passes while the machine sleeps.
func TestEndOfMaxStaleWhileTheMachineSleeps(t *testing.T) {
	opts := cache.Options{Limits: cache.Limits{TTL: time.Minute, MaxStale: time.Hour, Pins: []cache.Pin{{Ref: ref("app/db")}}}}
	with(t, opts, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		start(t, c)
		look(t, c, "app/db")
		fake.Fail(get, upstream.ErrUnavailable)
		time.Sleep(2 * time.Minute)
		failIf(t, heldUntil(c) == "", "it is dropped too early")
		c.MoveClocks(time.Hour, 0)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		failIf(t, heldUntil(c) != "" || len(c.Missing()) != 1, "%s %v", heldUntil(c), c.Missing())
	})
}

// What is too old to be served in an outage is no loss while there is none.
func TestNothingLapsesWhileTheUpstreamIsWell(t *testing.T) {
	var log upstreamtest.Buffer
	opts := cache.Options{Limits: cache.Limits{TTL: time.Minute, MaxStale: time.Hour}, Logger: log.Logger()}
	with(t, opts, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		start(t, c)
		fill(t, fake, 1)
		look(t, c, "app/db")
		look(t, c, "s0")
		failOne(fake, "s0", upstream.ErrUnavailable)
		time.Sleep(2 * time.Minute)
		look(t, c, "s0") // fails alone
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		failIf(t, !strings.HasPrefix(heldUntil(c), "app/db until -") || strings.Contains(heldUntil(c), "s0"), "%s", heldUntil(c))
		failIf(t, strings.Count(log.String(), "too old to be served") != 1, "log: %s", &log)
	})
}

// A refresh comes before the end of freshness. That it fails takes nothing from what is left.
func TestFreshValueOutlivesAFailedRefresh(t *testing.T) {
	opts := cache.Options{Limits: cache.Limits{TTL: time.Hour, MaxStale: cache.Never, Pins: []cache.Pin{{Ref: ref("app/db")}}}}
	with(t, opts, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		start(t, c)
		look(t, c, "app/db")
		fake.Fail(get, upstream.ErrUnavailable)
		time.Sleep(time.Hour - time.Second)
		wantAnswer(t, look(t, c, "app/db"), "first", upstream.Hit)
		failIf(t, heldUntil(c) != "app/db until 1h0m0s; " || fake.Calls(get) < 2, "%s, %d calls", heldUntil(c), fake.Calls(get))
		time.Sleep(2 * time.Second)
		failIf(t, heldUntil(c) != "" || len(c.Missing()) != 1, "%s %v", heldUntil(c), c.Missing())
	})
}

// An upstream that refuses us because of the clock tells the time.
func TestUpstreamTellsTheTime(t *testing.T) {
	opts := sealedIn(t)
	synctest.Test(t, func(t *testing.T) { fillSealed(t, opts, 1) })
	date := time.Date(2000, 1, 1, 0, 50, 0, 0, time.UTC)
	skewed := fetchFunc(func(context.Context, upstream.SecretRef) (upstream.SecretValue, error) {
		return upstream.SecretValue{}, &upstream.Error{Err: upstream.ErrClockSkew, Date: date}
	})
	restart(t, time.Minute, opts, skewed, func(t *testing.T, c *cache.Cache, _ string) {
		failIf(t, c.Stats().ClockBehind != 0, "%+v", c.Stats())
		look(t, c, "s0")
		answer := look(t, c, "s0")
		wantAnswer(t, answer, "value-0", upstream.Stale)
		failIf(t, answer.Age != 50*time.Minute || answer.Reason != "ClockSkew" || c.Stats().ClockBehind != 49*time.Minute, "%+v, %s", answer, c.Stats().ClockBehind)
		time.Sleep(11 * time.Minute)
		noValue(t, c, "s0", upstream.ErrUnavailable)
	})
}
