package cache_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"secretagent/cache"
	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

func TestWarmLookupNeverWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := upstreamtest.NewFake()
		fake.MustCreate(t, "app/db", "v0", "0")
		fake.Delay(get, 2*time.Second) // slow, but not down
		c := open(t, fake, cache.Options{Limits: cache.Limits{TTL: time.Minute}})
		start(t, c)
		look(t, c, "app/db")
		for i := range 3600 {
			if i%600 == 300 {
				fake.MustPut(t, "app/db", fmt.Sprint("v", i), fmt.Sprint(i))
			}
			begin := time.Now()
			answer := look(t, c, "app/db")
			if answer.Freshness != upstream.Hit || time.Since(begin) != 0 {
				t.Fatalf("second %d: %s after %s", i, answer.Freshness, time.Since(begin))
			}
			if age := time.Since(answer.FetchedAt); age >= time.Minute {
				t.Fatalf("second %d: a hit is %s old", i, age)
			}
			time.Sleep(time.Second)
		}
		// Once per lifetime, at 80 to 95 percent of it.
		if calls := fake.Calls(get); calls < 60 || calls > 77 {
			t.Errorf("%d calls in an hour", calls)
		}
	})
}

func TestSlowUpstreamIsAskedEarlier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ttl, took = 10 * time.Second, 3500 * time.Millisecond
		fake := upstreamtest.NewFake()
		fake.MustCreate(t, "app/db", "v0", "0")
		fake.Delay(get, took)
		c := open(t, fake, cache.Options{Limits: cache.Limits{TTL: ttl}})
		start(t, c)
		look(t, c, "app/db")
		for i := range 6000 {
			begin := time.Now()
			if answer := look(t, c, "app/db"); answer.Freshness != upstream.Hit || time.Since(begin) != 0 {
				t.Fatalf("after %s: %s after %s", time.Duration(i)*100*time.Millisecond, answer.Freshness, time.Since(begin))
			}
			time.Sleep(100 * time.Millisecond)
		}
		// At 50 to 65 percent of the lifetime, and no earlier.
		if calls := fake.Calls(get); calls < 90 || calls > 121 {
			t.Errorf("%d calls in 600 s", calls)
		}
	})
}

func TestSecretNobodyAsksForExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := upstreamtest.NewFake()
		fake.MustCreate(t, "app/db", "v1", "x")
		c := open(t, fake, cache.Options{Limits: cache.Limits{TTL: time.Minute}})
		start(t, c)
		look(t, c, "app/db")
		time.Sleep(time.Hour)
		wantCalls(t, fake, 1)

		// Asked for after its refresh was skipped but before it expires: refreshed then.
		look(t, c, "app/db")
		time.Sleep(58 * time.Second)
		wantAnswer(t, look(t, c, "app/db"), "x", upstream.Hit)
		synctest.Wait()
		wantCalls(t, fake, 3)
		time.Sleep(30 * time.Second)
		wantAnswer(t, look(t, c, "app/db"), "x", upstream.Hit)
	})
}

func TestRefreshesAreSpreadAndBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 200
		fake := upstreamtest.NewFake()
		var pins []cache.Pin
		for i := range n {
			name := fmt.Sprintf("s%03d", i)
			fake.MustCreate(t, name, "v1", "x")
			pins = append(pins, cache.Pin{Ref: ref(name)})
		}
		c := open(t, fake, cache.Options{Limits: cache.Limits{TTL: 100 * time.Second, Pins: pins}})
		if err := c.Warm(t.Context()); err != nil {
			t.Fatal(err)
		}
		fake.Delay(get, 500*time.Millisecond)
		var mu sync.Mutex
		var moments []time.Duration
		most := 0
		begin := time.Now()
		fake.Intercept(func(context.Context, string, upstream.SecretRef) error {
			mu.Lock()
			defer mu.Unlock()
			moments = append(moments, time.Since(begin))
			most = max(most, fake.Running(get))
			return nil
		})
		start(t, c)
		time.Sleep(99 * time.Second)
		synctest.Wait()
		if len(moments) != n {
			t.Fatalf("%d refreshes, want %d", len(moments), n)
		}
		perSecond := map[int]int{}
		for _, m := range moments {
			if m < 80*time.Second || m > 98*time.Second {
				t.Errorf("a refresh at %s", m)
			}
			perSecond[int(m/time.Second)]++
		}
		for s, count := range perSecond {
			if count > n/4 {
				t.Errorf("%d of %d refreshes in second %d", count, n, s)
			}
		}
		if most != 8 {
			t.Errorf("%d refreshes at once, want 8", most)
		}
	})
}

func TestOutageServesTheLastGoodValueWithinItsBound(t *testing.T) {
	outages := map[string]struct {
		err    error
		reason string
	}{
		"throttled":           {upstream.ErrThrottled, "Rejected.Throttling"},
		"internal failure":    {upstream.ErrInternal, "InternalFailure"},
		"unavailable":         {upstream.ErrUnavailable, "ServiceUnavailableTemporary"},
		"credentials expired": {upstream.ErrUnauthenticated, "InvalidAccessKeyId.NotFound"},
		"a foreign error":     {errors.New("connection reset by peer"), "InternalFailure"},
		"hang":                {nil, "ServiceUnavailableTemporary"},
	}
	for name, outage := range outages {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fake := upstreamtest.NewFake()
				fake.MustCreate(t, "app/db", "v1", "good")
				c := open(t, fake, cache.Options{Limits: cache.Limits{TTL: time.Minute, MaxStale: time.Hour}})
				start(t, c)
				fetched := look(t, c, "app/db").FetchedAt
				if outage.err != nil {
					fake.Fail(get, outage.err)
				} else {
					defer fake.Block(get)()
				}
				wantAnswer(t, look(t, c, "app/db"), "good", upstream.Hit)
				waits := 0
				for time.Since(fetched) < time.Hour-3*time.Second {
					begin := time.Now()
					answer := look(t, c, "app/db")
					waited := time.Since(begin)
					if time.Since(fetched) < time.Minute {
						wantAnswer(t, answer, "good", upstream.Hit)
					} else {
						wantAnswer(t, answer, "good", upstream.Stale)
						if answer.Reason != outage.reason {
							t.Fatalf("reason %q, want %q", answer.Reason, outage.reason)
						}
					}
					if !answer.FetchedAt.Equal(fetched) {
						t.Fatal("an outage made the value younger")
					}
					if waited > 2*time.Second {
						t.Fatalf("a lookup waited %s although a value is held", waited)
					}
					if waited > 0 {
						waits++ // while the first call is still expected to answer
					}
					time.Sleep(7 * time.Second)
				}
				if waits > 2 {
					t.Errorf("%d lookups waited during one outage", waits)
				}
				// About two tries a minute, not one per lookup.
				if calls := fake.Calls(get); calls < 60 || calls > 260 {
					t.Errorf("%d calls in an hour of outage", calls)
				}
				time.Sleep(time.Minute)
				_, err := c.Lookup(t.Context(), ref("app/db"))
				wantError(t, err, upstream.ErrUnavailable)
				if since := fetched.UTC().Format(time.RFC3339); !strings.Contains(err.Error(), since) || !strings.Contains(err.Error(), "1h0m0s") {
					t.Errorf("the error does not say since when (%s): %v", since, err)
				}
			})
		})
	}
}

func TestStaleLookupsDoNotWaitForADeadUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := upstreamtest.NewFake()
		fake.MustCreate(t, "app/db", "v1", "good")
		c := open(t, fake, cache.Options{Limits: cache.Limits{TTL: time.Minute}})
		start(t, c)
		look(t, c, "app/db")
		release := fake.Block(get)
		time.Sleep(10 * time.Minute) // nobody asks: it expires
		begin := time.Now()
		wantAnswer(t, look(t, c, "app/db"), "good", upstream.Stale)
		if waited := time.Since(begin); waited != 2*time.Second {
			t.Errorf("the first lookup waited %s, want Patience", waited)
		}
		time.Sleep(9 * time.Second) // the call fails by its own timeout
		for range 100 {
			begin := time.Now()
			wantAnswer(t, look(t, c, "app/db"), "good", upstream.Stale)
			if waited := time.Since(begin); waited > 2*time.Second {
				t.Fatalf("a lookup waited %s", waited)
			}
		}
		release()
		time.Sleep(45 * time.Second)
		wantAnswer(t, look(t, c, "app/db"), "good", upstream.Hit)
	})
}

func TestNeverStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := upstreamtest.NewFake()
		fake.MustCreate(t, "app/db", "v1", "good")
		c := open(t, fake, cache.Options{Limits: cache.Limits{TTL: time.Minute, MaxStale: cache.Never}})
		look(t, c, "app/db")
		fake.Fail(get, upstream.ErrUnavailable)
		time.Sleep(time.Minute)
		_, err := c.Lookup(t.Context(), ref("app/db"))
		wantError(t, err, upstream.ErrUnavailable)
	})
}

func TestGoneIsAnAnswerThatDropsTheValue(t *testing.T) {
	for _, gone := range []error{upstream.ErrNotFound, upstream.ErrPendingDeletion, upstream.ErrAccessDenied} {
		t.Run(gone.Error(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fake := upstreamtest.NewFake()
				fake.MustCreate(t, "app/db", "v1", "good")
				c := open(t, fake, cache.Options{Limits: cache.Limits{TTL: time.Minute}})
				start(t, c)
				bell, cancel := c.Subscribe(ref("app/db"))
				defer cancel()
				look(t, c, "app/db")
				synctest.Wait() // the bell rings after the answer
				rung(bell)
				fake.Fail(get, gone)
				<-bell // a refresh ahead of expiry finds out
				_, err := c.Lookup(t.Context(), ref("app/db"))
				wantError(t, err, gone)
				fake.Fail(get, upstream.ErrUnavailable)
				time.Sleep(10 * time.Minute)
				_, err = c.Lookup(t.Context(), ref("app/db"))
				if err == nil {
					t.Fatal("a dropped value came back")
				}
				fake.Fail(get, nil)
				<-bell // it appears again
				wantAnswer(t, look(t, c, "app/db"), "good", upstream.Hit)
			})
		})
	}
}

func TestOtherRefusalIsReturnedAndForgetsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := upstreamtest.NewFake()
		fake.MustCreate(t, "app/db", "v1", "good")
		c := open(t, fake, cache.Options{Limits: cache.Limits{TTL: time.Minute}})
		look(t, c, "app/db")
		time.Sleep(time.Minute)
		fake.Fail(get, upstream.ErrInvalidParameter)
		_, err := c.Lookup(t.Context(), ref("app/db"))
		wantError(t, err, upstream.ErrInvalidParameter)
		time.Sleep(time.Minute)
		fake.Fail(get, upstream.ErrThrottled)
		wantAnswer(t, look(t, c, "app/db"), "good", upstream.Stale)
	})
}

func TestRefusalsAreRememberedBriefly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := upstreamtest.NewFake()
		c := open(t, fake, cache.Options{Limits: cache.Limits{NegativeTTL: 5 * time.Second}})
		for range 100 {
			_, err := c.Lookup(t.Context(), ref("none"))
			wantError(t, err, upstream.ErrNotFound)
		}
		wantCalls(t, fake, 1)
		time.Sleep(5 * time.Second)
		fake.MustCreate(t, "none", "v1", "x")
		wantAnswer(t, look(t, c, "none"), "x", upstream.Miss)
		if s := c.Stats(); s.Negative != 100 || s.Remembered != 0 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestRememberedRefusalsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := upstreamtest.NewFake()
		fake.MustCreate(t, "good", "v1", "x")
		c := open(t, fake, cache.Options{})
		look(t, c, "good")
		for i := range 5000 {
			_, _ = c.Lookup(t.Context(), ref(fmt.Sprintf("none%d", i)))
			_, _ = c.Lookup(t.Context(), upstream.SecretRef{SecretName: "good", VersionID: upstream.VersionID(fmt.Sprintf("none%d", i))})
		}
		if s := c.Stats(); s.Remembered > 1024 || s.Entries != 1 {
			t.Errorf("stats %+v", s)
		}
		if got := len(c.Entries()); got > 1025 {
			t.Errorf("%d entries are kept", got)
		}
		wantAnswer(t, look(t, c, "good"), "x", upstream.Hit)
	})
}

func TestNegativeTTLCanBeSwitchedOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := upstreamtest.NewFake()
		c := open(t, fake, cache.Options{Limits: cache.Limits{NegativeTTL: cache.Never}})
		for range 3 {
			_, err := c.Lookup(t.Context(), ref("none"))
			wantError(t, err, upstream.ErrNotFound)
		}
		wantCalls(t, fake, 3)
	})
}

func TestUpstreamMayAskToBeLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := upstreamtest.NewFake()
		fake.MustCreate(t, "app/db", "v1", "x")
		c := open(t, fake, cache.Options{Limits: cache.Limits{TTL: time.Minute, Pins: []cache.Pin{{Ref: ref("app/db")}}}})
		look(t, c, "app/db")
		start(t, c)
		fake.Fail(get, &upstream.Error{Err: upstream.ErrThrottled, RetryAfter: 3 * time.Minute})
		time.Sleep(3 * time.Minute)
		wantCalls(t, fake, 2)
		time.Sleep(time.Minute)
		wantCalls(t, fake, 3)
	})
}

func TestOutageIsNotHammeredAndItsEndIsNoStampede(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 500
		fake := upstreamtest.NewFake()
		for i := range n {
			fake.MustCreate(t, fmt.Sprintf("s%03d", i), "v1", "x")
		}
		c := open(t, fake, cache.Options{Limits: cache.Limits{TTL: time.Minute}})
		start(t, c)
		all := func() {
			for i := range n {
				look(t, c, fmt.Sprintf("s%03d", i))
			}
		}
		all()
		all()
		fake.Fail(get, upstream.ErrUnavailable)
		time.Sleep(2 * time.Minute)
		before := fake.Calls(get)
		for range 60 {
			begin := time.Now()
			all()
			if waited := time.Since(begin); waited != 0 {
				t.Fatalf("lookups waited %s during an outage", waited)
			}
			time.Sleep(10 * time.Second)
		}
		if calls := fake.Calls(get) - before; calls > 40 {
			t.Errorf("%d calls in ten minutes of outage for %d secrets", calls, n)
		}
		if s := c.Stats(); s.Outage != "ServiceUnavailableTemporary" || s.Stale["ServiceUnavailableTemporary"] < 60*n {
			t.Errorf("stats %+v", s)
		}

		fake.Fail(get, nil)
		for c.Stats().Outage != "" {
			time.Sleep(100 * time.Millisecond)
		}
		worst := 0
		for range 20 {
			before := fake.Calls(get)
			time.Sleep(time.Second)
			worst = max(worst, fake.Calls(get)-before)
		}
		if worst > n/5 {
			t.Errorf("%d refreshes in one second after the outage", worst)
		}
		for i := range n {
			wantAnswer(t, look(t, c, fmt.Sprintf("s%03d", i)), "x", upstream.Hit)
		}
	})
}

func TestOneFailingSecretDoesNotHurtTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := upstreamtest.NewFake()
		fake.MustCreate(t, "good", "v1", "x")
		fake.MustCreate(t, "bad", "v1", "x")
		c := open(t, fake, cache.Options{Limits: cache.Limits{TTL: 20 * time.Second}})
		start(t, c)
		look(t, c, "bad")
		look(t, c, "good")
		fake.Intercept(func(_ context.Context, _ string, r upstream.SecretRef) error {
			if r.SecretName == "bad" {
				return upstream.ErrInternal
			}
			return nil
		})
		for range 600 {
			if a := look(t, c, "good"); a.Freshness != upstream.Hit {
				t.Fatalf("the good secret is %s", a.Freshness)
			}
			look(t, c, "bad")
			time.Sleep(time.Second)
		}
	})
}

func TestColdMissDuringAnOutageFailsAndRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := upstreamtest.NewFake()
		fake.MustCreate(t, "app/db", "v1", "x")
		fake.Fail(get, upstream.ErrUnavailable)
		c := open(t, fake, cache.Options{})
		for range 1000 {
			_, err := c.Lookup(t.Context(), ref("app/db"))
			wantError(t, err, upstream.ErrUnavailable)
		}
		if calls := fake.Calls(get); calls > 1 {
			t.Errorf("%d calls at once", calls)
		}
		fake.Fail(get, nil)
		time.Sleep(5 * time.Second)
		wantAnswer(t, look(t, c, "app/db"), "x", upstream.Miss)
	})
}

func TestPinnedSecretsAreWarmKeptAndMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := upstreamtest.NewFake()
		fake.MustCreate(t, "a", "v1", "x")
		fake.MustCreate(t, "denied", "v1", "x")
		fake.Delay(get, 100*time.Millisecond)
		fake.Intercept(func(_ context.Context, _ string, r upstream.SecretRef) error {
			if r.SecretName == "denied" {
				return upstream.ErrAccessDenied
			}
			return nil
		})
		c := open(t, fake, cache.Options{Limits: cache.Limits{
			TTL: time.Hour, MaxEntries: 1,
			Pins: []cache.Pin{{Ref: ref("a"), TTL: time.Minute}, {Ref: ref("late")}, {Ref: ref("denied")}},
		}})
		if got := c.Missing(); len(got) != 3 || got[0].Ref != ref("a") || !errors.Is(got[0].Err, upstream.ErrUnavailable) {
			t.Fatalf("missing before the start: %+v", got)
		}
		begin := time.Now()
		err := c.Warm(t.Context())
		if took := time.Since(begin); took != 100*time.Millisecond {
			t.Errorf("warming took %s: not in parallel", took)
		}
		wantError(t, err, upstream.ErrNotFound)
		wantError(t, err, upstream.ErrAccessDenied)
		if !strings.Contains(err.Error(), "late") || !strings.Contains(err.Error(), "denied") {
			t.Errorf("the error does not name the secrets: %v", err)
		}
		got := c.Missing()
		if len(got) != 2 || got[0].Ref != ref("late") || !errors.Is(got[0].Err, upstream.ErrNotFound) || !errors.Is(got[1].Err, upstream.ErrAccessDenied) {
			t.Fatalf("missing: %+v", got)
		}
		start(t, c)
		bell, cancel := c.Subscribe(ref("late"))
		defer cancel()
		fake.MustCreate(t, "late", "v1", "x")
		<-bell // found without anyone asking
		if got := c.Missing(); len(got) != 1 {
			t.Fatalf("missing: %+v", got)
		}

		// Pinned secrets do not count among the entries and survive a flood.
		for i := range 10 {
			name := fmt.Sprintf("flood%d", i)
			fake.MustCreate(t, name, "v1", "x")
			look(t, c, name)
		}
		time.Sleep(10 * time.Minute)
		wantAnswer(t, look(t, c, "a"), "x", upstream.Hit)
		wantAnswer(t, look(t, c, "late"), "x", upstream.Hit)
		if s := c.Stats(); s.Entries != 1 || s.Pinned != 3 || s.Evictions != 9 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestLimitsChangeAtRunTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := upstreamtest.NewFake()
		for i := range 10 {
			fake.MustCreate(t, fmt.Sprint("s", i), "v1", "x")
		}
		limits := cache.Limits{TTL: time.Hour, Pins: []cache.Pin{{Ref: ref("s0")}}}
		c := open(t, fake, cache.Options{Limits: limits})
		start(t, c)
		for i := range 10 {
			look(t, c, fmt.Sprint("s", i))
		}
		time.Sleep(time.Nanosecond) // uses in the same instant have no order
		wantAnswer(t, look(t, c, "s1"), "x", upstream.Hit)

		limits.MaxEntries = 3
		setLimits(t, c, limits)
		if s := c.Stats(); s.Entries != 3 || s.Pinned != 1 {
			t.Errorf("after fewer entries: %+v", s)
		}
		wantAnswer(t, look(t, c, "s1"), "x", upstream.Hit) // used last

		time.Sleep(2 * time.Minute)
		changed := time.Now()
		limits.TTL = time.Minute
		limits.Pins = []cache.Pin{{Ref: ref("s5")}}
		setLimits(t, c, limits)
		// What is held is too old now. The refresh that begins at once may be faster than we are.
		if a, ok := c.Peek(ref("s1")); ok && a.FetchedAt.Before(changed) {
			t.Error("a shorter lifetime does not apply to what is held")
		}
		synctest.Wait()
		wantAnswer(t, look(t, c, "s5"), "x", upstream.Hit) // fetched because it is pinned now
		if s := c.Stats(); s.Pinned != 1 || s.Entries > 3 {
			t.Errorf("after other pins: %+v", s)
		}
		limits.MaxBytes = 1
		setLimits(t, c, limits)
		if s := c.Stats(); s.Pinned != 1 || s.Entries != 0 || s.Bytes != 0 || s.PinnedBytes == 0 {
			t.Errorf("after no bytes: %+v", s)
		}
	})
}
