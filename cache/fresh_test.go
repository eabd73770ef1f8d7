package cache_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"secretagent/cache"
	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

// A value in use is refreshed at 80 to 95 percent of its lifetime, and earlier, at 50 to 65,
// when the upstream is slow.
func TestWarmLookupNeverWaits(t *testing.T) {
	for _, tc := range []struct {
		ttl, took, step   time.Duration
		fewest, mostCalls int
	}{
		{time.Minute, 2 * time.Second, time.Second, 60, 77},
		{10 * time.Second, 3500 * time.Millisecond, 100 * time.Millisecond, 540, 726},
	} {
		with(t, cache.Options{Limits: cache.Limits{TTL: tc.ttl}}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
			fake.Delay(get, tc.took)
			start(t, c)
			begin := time.Now()
			for look(t, c, "app/db"); time.Since(begin) < time.Hour; time.Sleep(tc.step) {
				if time.Since(begin)%(10*time.Minute) < tc.step {
					fake.MustPut(t, "app/db", fmt.Sprint("v", time.Now().UnixNano()), time.Now().String())
				}
				asked := time.Now()
				answer := look(t, c, "app/db")
				stopIf(t, answer.Freshness != upstream.Hit || time.Since(asked) != 0 || answer.Age >= tc.ttl, "%s after %s, %s old", answer.Freshness, time.Since(asked), answer.Age)
			}
			wantCalls(t, fake, tc.fewest, tc.mostCalls)
		})
	}
}

func TestSecretNobodyAsksForExpires(t *testing.T) {
	with(t, cache.Options{Limits: cache.Limits{TTL: time.Minute}}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		start(t, c)
		look(t, c, "app/db")
		time.Sleep(time.Hour)
		wantCalls(t, fake, 1)

		// Asked for after its refresh was skipped but before it expires: refreshed then.
		look(t, c, "app/db")
		time.Sleep(58 * time.Second)
		wantAnswer(t, look(t, c, "app/db"), "first", upstream.Hit)
		synctest.Wait()
		wantCalls(t, fake, 3)
		time.Sleep(30 * time.Second)
		wantAnswer(t, look(t, c, "app/db"), "first", upstream.Hit)
	})
}

func TestRefreshesAreSpreadAndBounded(t *testing.T) {
	const n = 200
	var pins []cache.Pin
	for i := range n {
		pins = append(pins, cache.Pin{Ref: ref(fmt.Sprint("s", i))})
	}
	with(t, cache.Options{Limits: cache.Limits{TTL: 100 * time.Second, Pins: pins}}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		for _, p := range pins {
			fake.MustCreate(t, string(p.Ref.SecretName), "v1", "x")
		}
		must(t, c.Warm(t.Context()))
		fake.Delay(get, 500*time.Millisecond)
		start(t, c)
		time.Sleep(79 * time.Second)
		wantCalls(t, fake, n)
		most := 0 // at once
		for range 20 {
			before := fake.Calls(get)
			for range 10 {
				time.Sleep(100 * time.Millisecond)
				most = max(most, fake.Running(get))
			}
			failIf(t, fake.Calls(get)-before > n/4, "%d of %d refreshes in one second", fake.Calls(get)-before, n)
		}
		wantCalls(t, fake, 2*n)
		failIf(t, most != 8, "%d calls at once, want 8", most)
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
			with(t, cache.Options{Limits: cache.Limits{TTL: time.Minute, MaxStale: time.Hour}}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
				start(t, c)
				fetched := fetchedAt(look(t, c, "app/db"))
				if outage.err != nil {
					fake.Fail(get, outage.err)
				} else {
					defer fake.Block(get)()
				}
				waits := 0
				for time.Since(fetched) < time.Hour-3*time.Second {
					begin := time.Now()
					answer := look(t, c, "app/db")
					if time.Since(fetched) < time.Minute {
						wantAnswer(t, answer, "first", upstream.Hit)
					} else {
						wantAnswer(t, answer, "first", upstream.Stale)
						failIf(t, answer.Reason != outage.reason, "reason %q, want %q", answer.Reason, outage.reason)
					}
					failIf(t, !fetchedAt(answer).Equal(fetched), "an outage made the value younger")
					waited := time.Since(begin)
					failIf(t, waited > 2*time.Second, "a lookup waited %s although a value is held", waited)
					if waited > 0 {
						waits++ // while the first call is still expected to answer
					}
					time.Sleep(7 * time.Second)
				}
				failIf(t, waits > 2, "%d lookups waited during one outage", waits)
				wantCalls(t, fake, 60, 260) // about two tries a minute, not one per lookup
				time.Sleep(time.Minute)
				err := noValue(t, c, "app/db", upstream.ErrUnavailable)
				since := fetched.UTC().Format(time.RFC3339)
				failIf(t, !strings.Contains(err.Error(), since) || !strings.Contains(err.Error(), "1h0m0s"), "the error does not say since when (%s): %v", since, err)
			})
		})
	}
}

func TestStaleLookupWaitsOnceForADeadUpstream(t *testing.T) {
	with(t, cache.Options{Limits: cache.Limits{TTL: time.Minute}}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		start(t, c)
		look(t, c, "app/db")
		release := fake.Block(get)
		time.Sleep(10 * time.Minute) // nobody asks: it expires
		begin := time.Now()
		wantAnswer(t, look(t, c, "app/db"), "first", upstream.Stale)
		failIf(t, time.Since(begin) != 2*time.Second, "the first lookup waited %s", time.Since(begin))
		time.Sleep(9 * time.Second) // the call fails by its own timeout
		begin = time.Now()
		for range 100 {
			wantAnswer(t, look(t, c, "app/db"), "first", upstream.Stale)
		}
		failIf(t, time.Since(begin) > 2*time.Second, "the next waited %s", time.Since(begin))
		release()
		time.Sleep(45 * time.Second)
		wantAnswer(t, look(t, c, "app/db"), "first", upstream.Hit)
	})
}

func TestNever(t *testing.T) {
	with(t, cache.Options{Limits: cache.Limits{TTL: time.Minute, MaxStale: cache.Never, NegativeTTL: cache.Never}}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		for range 3 { // no refusal is remembered
			noValue(t, c, "none", upstream.ErrNotFound)
		}
		wantCalls(t, fake, 3)
		look(t, c, "app/db")
		fake.Fail(get, upstream.ErrUnavailable)
		time.Sleep(time.Minute)
		noValue(t, c, "app/db", upstream.ErrUnavailable) // nothing stale is served
	})
}

func TestGoneIsAnAnswerThatDropsTheValue(t *testing.T) {
	for _, gone := range []error{upstream.ErrNotFound, upstream.ErrPendingDeletion, upstream.ErrAccessDenied} {
		t.Run(gone.Error(), func(t *testing.T) {
			with(t, cache.Options{Limits: cache.Limits{TTL: time.Minute}}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
				start(t, c)
				bell, cancel := c.Subscribe(ref("app/db"))
				defer cancel()
				look(t, c, "app/db")
				synctest.Wait() // the bell rings after the answer
				rung(bell)
				fake.Fail(get, gone)
				<-bell // a refresh ahead of expiry finds out
				noValue(t, c, "app/db", gone)
				fake.Fail(get, upstream.ErrUnavailable)
				time.Sleep(10 * time.Minute)
				_, err := c.Lookup(t.Context(), ref("app/db"))
				failIf(t, err == nil, "a dropped value came back")
				fake.Fail(get, nil)
				<-bell // it appears again
				wantAnswer(t, look(t, c, "app/db"), "first", upstream.Hit)
			})
		})
	}
}

// What the upstream answers that is neither a value nor one of the answers that mean gone is an
// outage of that secret, whose reason is the code of the upstream.
func TestWhatIsNoValueIsAnOutageOfThatSecret(t *testing.T) {
	answers := map[string]error{}
	for _, code := range []string{"InvalidAccountStatus", "InvalidRegionId.NotFound", "Forbidden.ProhibitedByServiceOverdue", "Forbidden.DKMSInstanceStateInvalid", "HTTP410", "InvalidParameter"} {
		answers[code] = &upstream.Error{Code: code, Err: upstream.FromCode(code, 403)}
	}
	answers["InvalidAnswer"] = nil
	for code, answer := range answers {
		with(t, cache.Options{Limits: cache.Limits{TTL: time.Minute}}, func(t *testing.T, fake *upstreamtest.Fake, _ *cache.Cache) {
			empty := false
			c := open(t, fetchFunc(func(ctx context.Context, r upstream.SecretRef) (upstream.SecretValue, error) {
				v, err := fake.GetSecretValue(ctx, r)
				if empty {
					v.SecretData = upstream.SecretData{}
				}
				return v, err
			}), cache.Options{Limits: cache.Limits{TTL: time.Minute}})
			start(t, c)
			bell, cancel := c.Subscribe(ref("app/db"))
			defer cancel()
			look(t, c, "app/db")
			synctest.Wait()
			rung(bell)
			fill(t, fake, 1)
			empty = answer == nil
			fake.Fail(get, answer)
			time.Sleep(time.Minute)
			for range 3 {
				stale := look(t, c, "app/db")
				wantAnswer(t, stale, "first", upstream.Stale)
				failIf(t, stale.Reason != code, "the reason is %s, want %s", stale.Reason, code)
				time.Sleep(time.Minute)
			}
			failFor(t, c.Stats(), func(s cache.Stats) bool { return s.Stale[code] != 3 })
			failIf(t, c.Entries()[0].LastError != code, "%+v", c.Entries()[0])
			failIf(t, rung(bell), "a value that is no other rings")

			// Where nothing is held there is nothing to serve, and the client is right or wrong as before.
			_, err := c.Lookup(t.Context(), ref("s0"))
			failIf(t, (upstream.Status(err) < 500) != (code == "InvalidParameter"), "%v is answered with %d", err, upstream.Status(err))
			_, err = c.Lookup(t.Context(), upstream.SecretRef{SecretName: "app/db", VersionID: "a b"})
			failIf(t, upstream.Code(err) != "InvalidParameter", "a client's own mistake: %v", err)
		})
	}
}

// Secrets that are refused, however many, are no outage of the others: these are still asked for.
func TestRefusedSecretsAreNoOutageOfTheUpstream(t *testing.T) {
	for name, refusal := range map[string]error{
		"refused": upstream.ErrRefused, "key": upstream.ErrKeyNotFound, "unsupported": upstream.ErrUnsupported, "limit": upstream.ErrLimitExceeded,
		"invalid answer": &upstream.Error{Err: upstream.ErrUnavailable, Code: upstream.CodeInvalidAnswer},
	} {
		with(t, cache.Options{Limits: cache.Limits{TTL: time.Minute}}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
			names := fill(t, fake, 5)
			for _, s := range names {
				look(t, c, s)
			}
			time.Sleep(time.Minute)
			fake.Fail(get, refusal)
			for _, s := range names {
				wantAnswer(t, look(t, c, s), "x", upstream.Stale)
			}
			failIf(t, c.Stats().Outage != "", "%s: the upstream is said to be down: %s", name, c.Stats().Outage)
			fake.Fail(get, nil)
			wantAnswer(t, look(t, c, "app/db"), "first", upstream.Miss)
			// What is no answer does not end an outage either; a refusal does.
			fake.Fail(get, upstream.ErrUnavailable)
			for range 3 {
				_, _ = c.RefreshNow(t.Context(), ref("app/db"))
				for _, s := range names {
					_, _ = c.RefreshNow(t.Context(), ref(s))
				}
			}
			fake.Fail(get, refusal)
			_, _ = c.RefreshNow(t.Context(), ref("app/db"))
			failIf(t, (c.Stats().Outage != "") != (name == "invalid answer"), "%s in an outage: %q", name, c.Stats().Outage)
		})
	}
}

// What the service wants to be left alone stays so when the outage of others ends.
func TestEndOfAnOutageLeavesAloneWhatIsToBeLeftAlone(t *testing.T) {
	pins := []cache.Pin{{Ref: ref("app/db")}}
	with(t, cache.Options{Limits: cache.Limits{TTL: time.Minute, Pins: pins}}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		look(t, c, "app/db")
		var calls atomic.Int64
		fake.Intercept(func(_ context.Context, _ string, r upstream.SecretRef) error {
			if r.SecretName != "app/db" {
				return nil
			}
			calls.Add(1)
			return &upstream.Error{Err: upstream.ErrThrottled, RetryAfter: 4 * time.Minute}
		})
		names := fill(t, fake, 3)
		_, _ = c.RefreshNow(t.Context(), ref("app/db"))
		fake.Fail(get, upstream.ErrUnavailable)
		for _, s := range names {
			_, _ = c.RefreshNow(t.Context(), ref(s))
		}
		failIf(t, c.Stats().Outage == "", "there is no outage")
		fake.Fail(get, nil)
		_, _ = c.RefreshNow(t.Context(), ref("s0"))
		failIf(t, c.Stats().Outage != "", "the outage has not ended: %s", c.Stats().Outage)
		start(t, c)
		time.Sleep(4*time.Minute - time.Second)
		synctest.Wait()
		failIf(t, calls.Load() != 1, "%d calls before it may be asked for again", calls.Load()-1)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		failIf(t, calls.Load() != 2, "%d calls afterwards, want one", calls.Load()-1)
	})
}

func TestRefusalsAreRememberedBriefly(t *testing.T) {
	with(t, cache.Options{Limits: cache.Limits{NegativeTTL: 5 * time.Second}}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		for range 100 {
			noValue(t, c, "none", upstream.ErrNotFound)
		}
		wantCalls(t, fake, 1)
		time.Sleep(5 * time.Second)
		fake.MustCreate(t, "none", "v1", "x")
		wantAnswer(t, look(t, c, "none"), "x", upstream.Miss)
		failFor(t, c.Stats(), func(s cache.Stats) bool { return s.Negative != 100 || s.Remembered != 0 })
	})
}

func TestRememberedRefusalsAreBounded(t *testing.T) {
	with(t, cache.Options{}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		fake.MustCreate(t, "good", "v1", "x")
		look(t, c, "good")
		for i := range 5000 {
			_, _ = c.Lookup(t.Context(), ref(fmt.Sprintf("none%d", i)))
			_, _ = c.Lookup(t.Context(), upstream.SecretRef{SecretName: "good", VersionID: upstream.VersionID(fmt.Sprintf("none%d", i))})
		}
		failFor(t, c.Stats(), func(s cache.Stats) bool { return s.Remembered > 1024 || s.Entries != 1 })
		failIf(t, len(c.Entries()) > 1025, "%d entries are kept", len(c.Entries()))
		wantAnswer(t, look(t, c, "good"), "x", upstream.Hit)
	})
}

func TestUpstreamMayAskToBeLeftAlone(t *testing.T) {
	with(t, cache.Options{Limits: cache.Limits{TTL: time.Minute, Pins: []cache.Pin{{Ref: ref("app/db")}}}}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
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
	with(t, cache.Options{Limits: cache.Limits{TTL: time.Minute}}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		const n = 500
		names := fill(t, fake, n)
		start(t, c)
		all := func() {
			begin := time.Now()
			for _, name := range names {
				look(t, c, name)
			}
			failIf(t, time.Since(begin) != 0, "lookups waited %s", time.Since(begin))
		}
		all()
		all()
		fake.Fail(get, upstream.ErrUnavailable)
		time.Sleep(2 * time.Minute)
		before := fake.Calls(get)
		for range 60 {
			all()
			time.Sleep(10 * time.Second)
		}
		wantCalls(t, fake, before, before+40) // in ten minutes
		failFor(t, c.Stats(), func(s cache.Stats) bool {
			return s.Outage != "ServiceUnavailableTemporary" || s.Stale["ServiceUnavailableTemporary"] < 60*n
		})

		fake.Fail(get, nil)
		for c.Stats().Outage != "" {
			time.Sleep(100 * time.Millisecond)
		}
		for range 20 {
			before := fake.Calls(get)
			time.Sleep(time.Second)
			failIf(t, fake.Calls(get)-before > n/5, "%d refreshes in one second after the outage", fake.Calls(get)-before)
		}
		for _, name := range names {
			wantAnswer(t, look(t, c, name), "x", upstream.Hit)
		}
	})
}

// Nobody asks, so that nothing but the refreshes finds out. A call that takes its time does not
// keep the next probe waiting once it has failed.
func TestWhatNoCallGetsThroughToIsTriedEverySecond(t *testing.T) {
	for _, n := range []int{1, 20} {
		limits := cache.Limits{TTL: 2 * time.Second}
		for i := range n {
			limits.Pins = append(limits.Pins, cache.Pin{Ref: ref(fmt.Sprint("s", i))})
		}
		with(t, cache.Options{Limits: limits}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
			fill(t, fake, n)
			fake.Delay(get, 100*time.Millisecond)
			start(t, c)
			time.Sleep(10 * time.Second)
			fake.Fail(get, &upstream.Error{Err: upstream.ErrUnavailable, Unreached: true})
			time.Sleep(2 * time.Second)
			for range 75 {
				before := fake.Calls(get)
				time.Sleep(2 * time.Second)
				made := fake.Calls(get) - before
				failIf(t, made < 1 || made > 4, "%d calls in two seconds", made)
			}
			fake.Fail(get, nil)
			back := time.Now()
			time.Sleep(2 * time.Second)
			for _, e := range c.Entries() {
				failIf(t, e.FetchedAt.Before(back), "%s was not refreshed since the return", e.Ref)
			}
		})
	}
}

func TestOneFailingSecretDoesNotHurtTheOthers(t *testing.T) {
	with(t, cache.Options{Limits: cache.Limits{TTL: 20 * time.Second}}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		fill(t, fake, 1)
		start(t, c)
		look(t, c, "s0")
		look(t, c, "app/db")
		failOne(fake, "s0", upstream.ErrInternal)
		for range 600 {
			wantAnswer(t, look(t, c, "app/db"), "first", upstream.Hit)
			look(t, c, "s0")
			time.Sleep(time.Second)
		}
	})
}

func TestColdMissDuringAnOutageFailsAndRecovers(t *testing.T) {
	with(t, cache.Options{}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		fake.Fail(get, upstream.ErrUnavailable)
		for range 1000 {
			noValue(t, c, "app/db", upstream.ErrUnavailable)
		}
		wantCalls(t, fake, 1, 1)
		fake.Fail(get, nil)
		time.Sleep(5 * time.Second)
		wantAnswer(t, look(t, c, "app/db"), "first", upstream.Miss)
	})
}

func TestPinnedSecretsAreWarmKeptAndMissed(t *testing.T) {
	with(t, cache.Options{Limits: cache.Limits{
		TTL: time.Hour, MaxEntries: 1,
		Pins: []cache.Pin{{Ref: ref("app/db"), TTL: time.Minute}, {Ref: ref("late")}, {Ref: ref("s0")}},
	}}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		names := fill(t, fake, 10)
		failOne(fake, "s0", upstream.ErrAccessDenied)
		fake.Delay(get, 100*time.Millisecond)
		missing := func(want ...error) {
			t.Helper()
			got := c.Missing()
			stopIf(t, len(got) != len(want), "missing: %+v", got)
			for i, m := range got {
				wantError(t, m.Err, want[i])
			}
		}
		missing(upstream.ErrUnavailable, upstream.ErrUnavailable, upstream.ErrUnavailable)
		begin := time.Now()
		err := c.Warm(t.Context())
		failIf(t, time.Since(begin) != 100*time.Millisecond, "warming took %s: not in parallel", time.Since(begin))
		wantError(t, err, upstream.ErrNotFound)
		wantError(t, err, upstream.ErrAccessDenied)
		failIf(t, !strings.Contains(err.Error(), "late") || !strings.Contains(err.Error(), "s0"), "the error does not name the secrets: %v", err)
		missing(upstream.ErrNotFound, upstream.ErrAccessDenied)
		failIf(t, c.Missing()[0].Ref != ref("late"), "%v", c.Missing())
		start(t, c)
		bell, cancel := c.Subscribe(ref("late"))
		defer cancel()
		fake.MustCreate(t, "late", "v1", "x")
		<-bell // found without anyone asking
		missing(upstream.ErrAccessDenied)

		// Pinned secrets do not count among the entries and survive a flood.
		for _, name := range names[1:] {
			look(t, c, name)
		}
		time.Sleep(10 * time.Minute)
		wantAnswer(t, look(t, c, "app/db"), "first", upstream.Hit)
		wantAnswer(t, look(t, c, "late"), "x", upstream.Hit)
		failFor(t, c.Stats(), func(s cache.Stats) bool { return s.Entries != 1 || s.Pinned != 3 || s.Evictions != 8 })
	})
}

func TestLimitsChangeAtRunTime(t *testing.T) {
	limits := cache.Limits{TTL: time.Hour, Pins: []cache.Pin{{Ref: ref("s0")}}}
	with(t, cache.Options{Limits: limits}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		names := fill(t, fake, 10)
		start(t, c)
		for _, name := range names {
			look(t, c, name)
		}
		time.Sleep(time.Nanosecond) // uses in the same instant have no order
		wantAnswer(t, look(t, c, "s1"), "x", upstream.Hit)

		limits.MaxEntries = 3
		setLimits(t, c, limits)
		failFor(t, c.Stats(), func(s cache.Stats) bool { return s.Entries != 3 || s.Pinned != 1 })
		wantAnswer(t, look(t, c, "s1"), "x", upstream.Hit) // used last

		time.Sleep(2 * time.Minute)
		changed := time.Now()
		limits.TTL = time.Minute
		limits.Pins = []cache.Pin{{Ref: ref("s5")}}
		setLimits(t, c, limits)
		// What is held is too old now. The refresh that begins at once may be faster than we are.
		if a, ok := c.Peek(ref("s1")); ok && fetchedAt(a).Before(changed) {
			t.Error("a shorter lifetime does not apply to what is held")
		}
		synctest.Wait()
		wantAnswer(t, look(t, c, "s5"), "x", upstream.Hit) // fetched because it is pinned now
		failFor(t, c.Stats(), func(s cache.Stats) bool { return s.Pinned != 1 || s.Entries > 3 })
		limits.MaxBytes = 1
		setLimits(t, c, limits)
		failFor(t, c.Stats(), func(s cache.Stats) bool { return s.Pinned != 1 || s.Entries != 0 || s.Bytes != 0 || s.PinnedBytes == 0 })
	})
}
