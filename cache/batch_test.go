package cache_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
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
	failIf(t, n != m+1, "current is %s and previous is %s", answers[0].Value.VersionID, answers[1].Value.VersionID)
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
			ctx, stop := context.WithTimeout(t.Context(), time.Minute)
			defer stop()
			var others, readers sync.WaitGroup
			var rotations, read, moving atomic.Int64
			others.Go(func() {
				for i := 3; ctx.Err() == nil; i++ {
					fake.MustPut(t, "app/db", fmt.Sprint("v", i), fmt.Sprint(i))
					rotations.Add(1)
					time.Sleep(time.Duration(i%7) * 100 * time.Microsecond)
				}
			})
			others.Go(func() { // mixes the ages of the labels
				for i := 0; ctx.Err() == nil; i++ {
					_, _ = c.RefreshNow(ctx, pair[i%2])
					time.Sleep(time.Millisecond)
				}
			})
			for range 3 {
				readers.Go(func() {
					for ctx.Err() == nil && (rotations.Load() < 300 || read.Load() < 100) {
						answers, errs := c.LookupAll(ctx, pair)
						if err := errors.Join(errs...); err == nil {
							wantAdjacent(t, answers)
							read.Add(1)
						} else {
							failIf(t, !errors.Is(err, upstream.ErrUnavailable) && ctx.Err() == nil, "%v", err)
							moving.Add(1)
						}
					}
				})
			}
			readers.Wait()
			failIf(t, ctx.Err() != nil, "only %d pairs could be read", read.Load())
			stop()
			others.Wait()
			t.Logf("%d pairs, %d rotations, %d times too fast, %d calls", read.Load(), rotations.Load(), moving.Load(), fake.Calls(get))
		})
	}
}

func TestWarmPairCostsNothing(t *testing.T) {
	with(t, cache.Options{Limits: cache.Limits{TTL: time.Minute}}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		fake.MustPut(t, "app/db", "v2", "2")
		start(t, c)
		for second := range 600 {
			answers, errs := c.LookupAll(t.Context(), pair)
			must(t, errors.Join(errs...))
			wantAdjacent(t, answers)
			stopIf(t, second > 0 && answers[0].Freshness != upstream.Hit, "second %d: %s", second, answers[0].Freshness)
			time.Sleep(time.Second)
		}
		// Two reads of each to begin with, then one refresh of each per lifetime.
		wantCalls(t, fake, 1, 4+2*13)
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
		failIf(t, time.Since(begin) != 200*time.Millisecond, "took %s: not in parallel", time.Since(begin))
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
		failIf(t, answers[3].Freshness != upstream.Hit, "b is %s", answers[3].Freshness)
		failIf(t, answers[1].Value != answers[4].Value, "the same reference twice has two answers")
		if answers, errs := c.LookupAll(t.Context(), nil); len(answers) != 0 || len(errs) != 0 {
			t.Error("an empty batch has answers")
		}

		_, err := c.GetSecretValues(t.Context(), ref("a"), ref("none"))
		wantError(t, err, upstream.ErrNotFound)
		failIf(t, !strings.Contains(err.Error(), "none"), "the error does not name the reference: %v", err)
		values, err := c.GetSecretValues(t.Context(), ref("b"), ref("a"))
		failIf(t, err != nil || len(values) != 2 || values[0].SecretName != "b" || values[1].SecretName != "a", "%v %v", values, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, err = c.GetSecretValues(ctx, ref("slow"), ref("slow:ACSPrevious"))
		wantError(t, err, context.DeadlineExceeded)
	})
}

func TestThousandBatchesShareTheirCalls(t *testing.T) {
	with(t, cache.Options{}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		fake.MustPut(t, "app/db", "v2", "2")
		fake.Delay(get, 50*time.Millisecond)
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				answers, errs := c.LookupAll(t.Context(), pair)
				must(t, errors.Join(errs...))
				wantAdjacent(t, answers)
			})
		}
		wg.Wait()
		wantCalls(t, fake, 1, 6)
	})
}

func TestPairDuringAnOutage(t *testing.T) {
	with(t, cache.Options{Limits: cache.Limits{TTL: time.Minute}}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		fake.MustPut(t, "app/db", "v2", "2")

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
		_, err := c.GetSecretValues(t.Context(), pair...)
		must(t, err)
		fake.Fail(get, upstream.ErrThrottled)
		time.Sleep(2 * time.Minute)
		answers, errs := c.LookupAll(t.Context(), pair)
		for i, want := range []string{"3", "2"} {
			must(t, errs[i])
			wantAnswer(t, answers[i], want, upstream.Stale)
			failIf(t, answers[i].Reason != "Rejected.Throttling", "reason %q", answers[i].Reason)
		}
	})
}

// A refusal of the question, of which a value says that it is a good one, is an outage of labels
// that are asked for together as it is of each alone.
func TestPairWhoseQuestionIsRefused(t *testing.T) {
	with(t, cache.Options{Limits: cache.Limits{TTL: time.Minute}}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		fake.MustPut(t, "app/db", "v2", "2")
		_, err := c.GetSecretValues(t.Context(), pair...)
		must(t, err)
		time.Sleep(2 * time.Minute)
		fake.Fail(get, upstream.ErrInvalidParameter)
		for range 2 { // also once the failure is known
			answers, errs := c.LookupAll(t.Context(), pair)
			for i, want := range []string{"2", "first"} {
				must(t, errs[i])
				wantAnswer(t, answers[i], want, upstream.Stale)
				failIf(t, answers[i].Reason != "InvalidParameter", "reason %q", answers[i].Reason)
				wantAnswer(t, look(t, c, pair[i].String()), want, upstream.Stale)
			}
		}
		_, errs := c.LookupAll(t.Context(), []upstream.SecretRef{ref("none"), ref("none:ACSPrevious")})
		wantError(t, errs[0], upstream.ErrInvalidParameter)
		wantError(t, errs[1], upstream.ErrInvalidParameter)
	})
}
