package cache_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"secretagent/cache"
	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

func TestRefreshNowBypassesWhatIsHeld(t *testing.T) {
	with(t, cache.Options{}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		look(t, c, "app/db")
		fake.MustPut(t, "app/db", "v2", "second")
		wantAnswer(t, look(t, c, "app/db"), "first", upstream.Hit)
		gives(t, "second", upstream.Miss)(c.RefreshNow(t.Context(), ref("app/db")))
		wantAnswer(t, look(t, c, "app/db"), "second", upstream.Hit)

		// A failure is returned, and the held value stays.
		fake.FailNext(get, 1, upstream.ErrUnavailable)
		refuses(t, upstream.ErrUnavailable)(c.RefreshNow(t.Context(), ref("app/db")))
		wantAnswer(t, look(t, c, "app/db"), "second", upstream.Hit)

		// "Gone" is no failure.
		fake.MustDelete(t, "app/db")
		refuses(t, upstream.ErrNotFound)(c.RefreshNow(t.Context(), ref("app/db")))
		noValue(t, c, "app/db", upstream.ErrNotFound)

		// It passes remembered refusals, too.
		fake.MustCreate(t, "app/db", "v3", "third")
		gives(t, "third", upstream.Miss)(c.RefreshNow(t.Context(), ref("app/db")))
	})
}

func TestForcedRefreshesShareACallThatStartsAfterThem(t *testing.T) {
	with(t, cache.Options{ForcedPerSecond: 1, ForcedBurst: 1}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		fake.Delay(get, time.Second)
		go func() { look(t, c, "app/db") }() // reads the first version, slowly
		synctest.Wait()
		time.Sleep(500 * time.Millisecond)
		// The call under way may have read already; ours must not be answered by it.
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				answer, err := c.RefreshNow(t.Context(), ref("app/db"))
				failIf(t, err != nil || answer.Age > time.Second, "answered by a call %s ago: %v", answer.Age, err)
			})
		}
		wg.Wait()
		wantCalls(t, fake, 2)
	})
}

func TestForcedRefreshesAreLimited(t *testing.T) {
	with(t, cache.Options{ForcedPerSecond: 2, ForcedBurst: 5}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		throttled := 0
		for range 1000 { // ten seconds
			if _, err := c.RefreshNow(t.Context(), ref("app/db")); err != nil {
				wantError(t, err, upstream.ErrThrottled)
				var detail *upstream.Error
				stopIf(t, !errors.As(err, &detail) || detail.RetryAfter != 500*time.Millisecond, "no RetryAfter: %+v", detail)
				throttled++
			}
			time.Sleep(10 * time.Millisecond)
		}
		failIf(t, fake.Calls(get) < 23 || fake.Calls(get) > 25 || throttled != 1000-fake.Calls(get), "%d calls and %d refused, want 2 a second and a burst of 5", fake.Calls(get), throttled)
		failFor(t, c.Stats(), func(s cache.Stats) bool { return s.Throttled != uint64(throttled) })
		wantAnswer(t, look(t, c, "app/db"), "first", upstream.Hit)
	})
}

func TestReportCausesOneRefreshHoweverManyComplain(t *testing.T) {
	with(t, cache.Options{}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		look(t, c, "app/db")
		fake.MustPut(t, "app/db", "v2", "second")
		fake.Delay(get, 100*time.Millisecond)
		complain := func(n int, want string) {
			t.Helper()
			var wg sync.WaitGroup
			for i := range n {
				wg.Go(func() {
					time.Sleep(time.Duration(i) * time.Millisecond)
					answer, err := c.Report(t.Context(), ref("app/db"))
					failIf(t, err != nil || string(answer.Value.SecretData.Reveal()) != want, "%d: %v %v, want %s", i, answer.Value, err, want)
				})
			}
			wg.Wait()
		}
		complain(1000, "second")
		wantCalls(t, fake, 2)
		fake.MustPut(t, "app/db", "v3", "third")
		time.Sleep(8 * time.Second)
		complain(1, "second") // too soon: answered with what is held
		wantCalls(t, fake, 2)
		time.Sleep(2 * time.Second)
		complain(10, "third")
		wantCalls(t, fake, 3)
	})
}

func TestReportAnswersWithWhatIsHeldWhenItCannotAsk(t *testing.T) {
	with(t, cache.Options{ForcedPerSecond: 0.001, ForcedBurst: 2}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		// Nothing was given out: a complaint is a lookup and forces nothing.
		gives(t, "first", upstream.Miss)(c.Report(t.Context(), ref("app/db")))
		fake.FailNext(get, 1, upstream.ErrUnavailable)
		gives(t, "first", upstream.Hit)(c.Report(t.Context(), ref("app/db")))
		gives(t, "first", upstream.Miss)(c.RefreshNow(t.Context(), ref("app/db")))

		time.Sleep(time.Minute)
		calls := fake.Calls(get)
		gives(t, "first", upstream.Hit)(c.Report(t.Context(), ref("app/db"))) // over the limit of forced calls
		wantCalls(t, fake, calls)

		refuses(t, upstream.ErrNotFound)(c.Report(t.Context(), ref("none")))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		refuses(t, context.Canceled)(c.Report(ctx, ref("app/db")))
	})
}

func TestForcedCallsOfManySecretsShareOneLimit(t *testing.T) {
	with(t, cache.Options{ForcedPerSecond: 1, ForcedBurst: 10}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		for _, name := range fill(t, fake, 100) {
			look(t, c, name)
			_, _ = c.RefreshNow(t.Context(), ref(name))
			_, _ = c.Report(t.Context(), ref(name))
		}
		wantCalls(t, fake, 100+10)
	})
}
