package cache_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"secretagent/cache"
	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

var pair = []upstream.SecretRef{ref("app/db"), ref("app/db:ACSPrevious")}

// wantAdjacent checks that a pair comes from one rotation: version n and version n-1.
func wantAdjacent(t testing.TB, answers []upstream.Answer) {
	t.Helper()
	n, _ := strconv.Atoi(string(answers[0].Value.VersionID[1:]))
	m, _ := strconv.Atoi(string(answers[1].Value.VersionID[1:]))
	if n != m+1 {
		t.Errorf("current is %s and previous is %s", answers[0].Value.VersionID, answers[1].Value.VersionID)
	}
}

// Two labels never mix two rotations, however fast a secret rotates and whatever other
// readers do to the cache.
func TestPairsAreNeverTorn(t *testing.T) {
	for name, announced := range map[string]bool{"announced": true, "silent": false} {
		t.Run(name, func(t *testing.T) {
			fake := upstreamtest.NewFake()
			fake.MustCreate(t, "app/db", "v1", "1")
			fake.MustPut(t, "app/db", "v2", "2")
			c := open(t, fake, cache.Options{
				Limits:          cache.Limits{TTL: 5 * time.Millisecond},
				ForcedPerSecond: 1e6, ForcedBurst: 1000,
			})
			if announced {
				fake.OnChange(c.Invalidate)
			}
			start(t, c)
			ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
			defer cancel()
			var wg sync.WaitGroup
			wg.Go(func() { // the rotator
				for i := 3; ctx.Err() == nil; i++ {
					fake.MustPut(t, "app/db", fmt.Sprint("v", i), fmt.Sprint(i))
					time.Sleep(time.Duration(i%7) * 100 * time.Microsecond)
				}
			})
			wg.Go(func() { // mixes the ages of the labels
				for i := 0; ctx.Err() == nil; i++ {
					_, _ = c.RefreshNow(ctx, pair[i%2])
					time.Sleep(time.Millisecond)
				}
			})
			var read, moving atomic.Int64
			for range 3 {
				wg.Go(func() {
					for ctx.Err() == nil {
						answers, errs := c.LookupAll(ctx, pair)
						if err := errors.Join(errs...); err != nil {
							if !errors.Is(err, upstream.ErrUnavailable) && ctx.Err() == nil {
								t.Error(err)
							}
							moving.Add(1)
							continue
						}
						wantAdjacent(t, answers)
						read.Add(1)
					}
				})
			}
			wg.Wait()
			t.Logf("%d pairs, %d times too fast, %d calls", read.Load(), moving.Load(), fake.Calls(get))
			if read.Load() < 20 {
				t.Errorf("only %d pairs could be read", read.Load())
			}
		})
	}
}

func TestWarmPairCostsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := upstreamtest.NewFake()
		fake.MustCreate(t, "app/db", "v1", "1")
		fake.MustPut(t, "app/db", "v2", "2")
		c := open(t, fake, cache.Options{Limits: cache.Limits{TTL: time.Minute}})
		start(t, c)
		for second := range 600 {
			answers, errs := c.LookupAll(t.Context(), pair)
			if err := errors.Join(errs...); err != nil {
				t.Fatal(err)
			}
			wantAdjacent(t, answers)
			if second > 0 && answers[0].Freshness != upstream.Hit {
				t.Fatalf("second %d: %s", second, answers[0].Freshness)
			}
			time.Sleep(time.Second)
		}
		// Two reads of each to begin with, then one refresh of each per lifetime.
		if calls := fake.Calls(get); calls > 4+2*13 {
			t.Errorf("%d calls", calls)
		}
	})
}

func TestBatchAnswersInOrderAndEachByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := upstreamtest.NewFake()
		fake.Delay(get, 100*time.Millisecond)
		for _, n := range []string{"a", "b", "c"} {
			fake.MustCreate(t, n, "v1", n)
		}
		c := open(t, fake, cache.Options{})
		look(t, c, "b")
		begin := time.Now()
		bare := upstream.SecretRef{SecretName: "a"}
		answers, errs := c.LookupAll(t.Context(), []upstream.SecretRef{
			ref("c"), bare, ref("none"), ref("b"), ref("a"), ref("a:ACSPrevious"), {SecretName: "a", VersionStage: "not a label"},
		})
		if took := time.Since(begin); took != 200*time.Millisecond {
			t.Errorf("took %s: not in parallel", took)
		}
		for i, want := range []string{"c", "a", "", "b", "a", "", ""} {
			switch {
			case want != "" && (errs[i] != nil || string(answers[i].Value.SecretData.Reveal()) != want):
				t.Errorf("%d: %v %v", i, answers[i].Value, errs[i])
			case want == "" && errs[i] == nil:
				t.Errorf("%d: no error", i)
			}
		}
		wantError(t, errs[2], upstream.ErrNotFound)
		wantError(t, errs[5], upstream.ErrNotFound) // there is no previous version
		wantError(t, errs[6], upstream.ErrInvalidParameter)
		if answers[3].Freshness != upstream.Hit {
			t.Errorf("b is %s", answers[3].Freshness)
		}
		if answers[1].Value != answers[4].Value {
			t.Error("the same reference twice has two answers")
		}
		if answers, errs := c.LookupAll(t.Context(), nil); len(answers) != 0 || len(errs) != 0 {
			t.Error("an empty batch has answers")
		}

		_, err := c.GetSecretValues(t.Context(), ref("a"), ref("none"))
		wantError(t, err, upstream.ErrNotFound)
		if got := err.Error(); got == "" || !contains(got, "none") {
			t.Errorf("the error does not name the reference: %v", err)
		}
		values, err := c.GetSecretValues(t.Context(), ref("b"), ref("a"))
		if err != nil || len(values) != 2 || values[0].SecretName != "b" || values[1].SecretName != "a" {
			t.Errorf("%v %v", values, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, err = c.GetSecretValues(ctx, ref("slow"), ref("slow:ACSPrevious"))
		wantError(t, err, context.DeadlineExceeded)
	})
}

func TestThousandBatchesShareTheirCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := upstreamtest.NewFake()
		fake.MustCreate(t, "app/db", "v1", "1")
		fake.MustPut(t, "app/db", "v2", "2")
		fake.Delay(get, 50*time.Millisecond)
		c := open(t, fake, cache.Options{})
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				answers, errs := c.LookupAll(t.Context(), pair)
				if errors.Join(errs...) == nil {
					wantAdjacent(t, answers)
				} else {
					t.Error(errs)
				}
			})
		}
		wg.Wait()
		if calls := fake.Calls(get); calls > 6 {
			t.Errorf("%d calls", calls)
		}
	})
}

func TestPairDuringAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := upstreamtest.NewFake()
		fake.MustCreate(t, "app/db", "v1", "1")
		fake.MustPut(t, "app/db", "v2", "2")
		c := open(t, fake, cache.Options{Limits: cache.Limits{TTL: time.Minute}})

		// Held at different times, with a rotation between: nobody can say what belongs
		// together, and nobody does.
		look(t, c, "app/db:ACSPrevious")
		fake.MustPut(t, "app/db", "v3", "3")
		look(t, c, "app/db")
		time.Sleep(2 * time.Minute)
		fake.Fail(get, upstream.ErrUnavailable)
		_, errs := c.LookupAll(t.Context(), pair)
		wantError(t, errs[0], upstream.ErrUnavailable)
		wantError(t, errs[1], upstream.ErrUnavailable)
		wantAnswer(t, look(t, c, "app/db"), "3", upstream.Stale) // alone it is fine

		// Proven once, it is served through the next outage.
		fake.Fail(get, nil)
		time.Sleep(time.Minute)
		if _, err := c.GetSecretValues(t.Context(), pair...); err != nil {
			t.Fatal(err)
		}
		fake.Fail(get, upstream.ErrThrottled)
		time.Sleep(2 * time.Minute)
		answers, errs := c.LookupAll(t.Context(), pair)
		for i, want := range []string{"3", "2"} {
			if errs[i] != nil {
				t.Fatal(errs[i])
			}
			wantAnswer(t, answers[i], want, upstream.Stale)
			if answers[i].Reason != "Rejected.Throttling" {
				t.Errorf("reason %q", answers[i].Reason)
			}
		}
	})
}
