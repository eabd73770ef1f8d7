package cache_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
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

func TestLookupFetchesOnceAndAgainAfterTheLifetime(t *testing.T) {
	with(t, cache.Options{Limits: cache.Limits{TTL: time.Minute}}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		bare := upstream.SecretRef{SecretName: "app/db"} // the same as ACSCurrent
		peek := func(r upstream.SecretRef, want bool) {
			t.Helper()
			_, ok := c.Peek(r)
			failIf(t, ok != want, "Peek(%s) is %v", r, ok)
		}
		peek(bare, false)
		wantAnswer(t, look(t, c, "app/db"), "first", upstream.Miss)
		peek(bare, true)
		peek(ref("app/db:ACSCurrent"), true)
		time.Sleep(time.Minute - 1)
		wantAnswer(t, look(t, c, "app/db"), "first", upstream.Hit)
		wantCalls(t, fake, 1)

		fake.MustPut(t, "app/db", "v2", "second")
		time.Sleep(time.Nanosecond)
		peek(bare, false)
		answer, err := c.Lookup(t.Context(), bare)
		must(t, err)
		wantAnswer(t, answer, "second", upstream.Miss)
		wantAnswer(t, look(t, c, "app/db"), "second", upstream.Hit)
		wantCalls(t, fake, 2)
	})
}

func TestUnchangedValueKeepsWhatIsDerived(t *testing.T) {
	with(t, cache.Options{Limits: cache.Limits{TTL: time.Minute}}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		before := look(t, c, "app/db")
		before.Derived.Store("prepared")
		time.Sleep(2 * time.Minute)
		asked := time.Now()
		after := look(t, c, "app/db")
		stopIf(t, after.Value != before.Value || after.Derived != before.Derived, "a refresh that found the same value replaced it")
		stopIf(t, fetchedAt(after).Before(asked), "a refresh did not make it younger")
		fake.MustPut(t, "app/db", "v2", "first")
		time.Sleep(2 * time.Minute)
		if changed := look(t, c, "app/db"); changed.Derived == before.Derived || changed.Derived.Load() != nil {
			t.Fatal("another version shares what was derived from the old one")
		}
	})
}

func TestThousandParallelMissesAreOneCall(t *testing.T) {
	with(t, cache.Options{}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		fake.Delay(get, 50*time.Millisecond)
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() { wantAnswer(t, look(t, c, "app/db"), "first", upstream.Miss) })
		}
		synctest.Wait()
		failIf(t, c.Stats().Waiting != 1000, "%d callers wait, want 1000", c.Stats().Waiting)
		wg.Wait()
		synctest.Wait() // a call ends after it is answered
		wantCalls(t, fake, 1)
		failFor(t, c.Stats(), func(s cache.Stats) bool { return s.Misses != 1000 || s.Waiting != 0 || s.Flights != 0 })
	})
}

func TestImpatientCallerFailsAloneAndAtOnce(t *testing.T) {
	with(t, cache.Options{}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		fake.Delay(get, time.Second)
		begin := time.Now()
		patient := make(chan upstream.Answer, 1)
		go func() {
			// The caller whose lookup starts the flight gives up.
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			_, err := c.Lookup(ctx, ref("app/db"))
			failIf(t, !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != 100*time.Millisecond, "impatient caller: %v after %s", err, time.Since(begin))
		}()
		synctest.Wait()
		go func() { patient <- look(t, c, "app/db") }()
		wantAnswer(t, <-patient, "first", upstream.Miss)
		failIf(t, time.Since(begin) != time.Second, "patient caller waited %s", time.Since(begin))
		wantCalls(t, fake, 1)

		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		refuses(t, context.Canceled)(c.Lookup(ctx, ref("other")))
		wantCalls(t, fake, 1)
	})
}

func TestHungUpstreamIsUnavailableNotACallersDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := upstreamtest.NewFake()
		defer fake.Block(get)()
		c := open(t, fake, cache.Options{FetchTimeout: 3 * time.Second})
		begin := time.Now()
		err := noValue(t, c, "app/db", upstream.ErrUnavailable)
		failIf(t, errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "3s") || time.Since(begin) != 3*time.Second, "%v after %s", err, time.Since(begin))
	})
}

func TestUpstreamCallsAreBounded(t *testing.T) {
	with(t, cache.Options{MaxFetches: 4, FetchTimeout: time.Hour}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		fake.Delay(get, time.Second)
		var wg sync.WaitGroup
		for i := range 20 {
			name := fmt.Sprintf("s%d", i)
			fake.MustCreate(t, name, "v1", "x")
			wg.Go(func() { look(t, c, name) })
		}
		wg.Wait()
		failIf(t, fake.MaxRunning(get) != 4, "%d calls at once, want 4", fake.MaxRunning(get))
	})
}

func TestWaitForASlotIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := upstreamtest.NewFake()
		defer fake.Block(get)()
		c := open(t, fake, cache.Options{MaxFetches: 1, FetchTimeout: time.Second})
		for range 2 {
			go func() { _, _ = c.Lookup(t.Context(), ref("first")) }()
		}
		synctest.Wait()
		begin := time.Now()
		noValue(t, c, "second", upstream.ErrUnavailable)
		failIf(t, time.Since(begin) != time.Second, "waited %s for a slot", time.Since(begin))
	})
}

func TestInvalidReferenceIsRefusedWithoutACall(t *testing.T) {
	with(t, cache.Options{}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		bad := upstream.SecretRef{SecretName: "a b"}
		_, looked := c.Lookup(t.Context(), bad)
		_, refreshed := c.RefreshNow(t.Context(), bad)
		_, reported := c.Report(t.Context(), bad)
		_, together := c.GetSecretValues(t.Context(), bad, ref("x"))
		for _, err := range []error{looked, refreshed, reported, together} {
			wantError(t, err, upstream.ErrInvalidParameter)
		}
		bell, cancel := c.Subscribe(bad)
		cancel()
		failIf(t, rung(bell), "it rings")
		wantCalls(t, fake, 1) // the lookup of x
		failIf(t, len(c.Entries()) != 1, "entries: %v", c.Entries())
	})
}

func TestAnnouncedChangeIsVisibleToTheNextLookup(t *testing.T) {
	with(t, cache.Options{}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		fake.OnChange(c.Invalidate)
		wantAnswer(t, look(t, c, "app/db"), "first", upstream.Miss)
		fake.MustPut(t, "app/db", "v2", "second")
		_, ok := c.Peek(ref("app/db"))
		stopIf(t, ok, "Peek gives out what was announced to have changed")
		wantAnswer(t, look(t, c, "app/db"), "second", upstream.Miss)
		wantAnswer(t, look(t, c, "app/db:ACSPrevious"), "first", upstream.Miss)
		fake.MustDelete(t, "app/db")
		noValue(t, c, "app/db", upstream.ErrNotFound)
		fake.MustCreate(t, "app/db", "v1", "third") // the remembered refusal is void as well
		wantAnswer(t, look(t, c, "app/db"), "third", upstream.Miss)
	})
}

func TestAChangeOfAnySecretIsOneOfEach(t *testing.T) {
	with(t, cache.Options{}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		fake.MustCreate(t, "app/x", "v1", "first")
		for _, name := range []string{"app/db", "app/x"} {
			look(t, c, name)
			fake.MustPut(t, name, "v2", "second")
		}
		noValue(t, c, "app/new", upstream.ErrNotFound)
		fake.MustCreate(t, "app/new", "v2", "second")
		c.Invalidate(upstream.AnySecret)
		for _, name := range []string{"app/db", "app/x", "app/new"} {
			wantAnswer(t, look(t, c, name), "second", upstream.Miss)
		}
	})
}

// A client that has changed a secret is believed, within the limit of what clients may force, and
// says nothing of the upstream as a whole.
func TestAClientTellsOfItsChange(t *testing.T) {
	with(t, cache.Options{ForcedPerSecond: 1, ForcedBurst: 2}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		look(t, c, "app/db")
		fake.MustPut(t, "app/db", "v2", "second")
		must(t, c.Changed("acs:kms:cn-x:1:secret/app/db"))
		wantAnswer(t, look(t, c, "app/db"), "second", upstream.Miss)
		noValue(t, c, "app/new", upstream.ErrNotFound)
		fake.MustCreate(t, "app/new", "v1", "first")
		must(t, c.Changed("app/new"))
		wantAnswer(t, look(t, c, "app/new"), "first", upstream.Miss)
		wantError(t, c.Changed("app/db"), upstream.ErrThrottled)
		wantAnswer(t, look(t, c, "app/db"), "second", upstream.Hit)
		time.Sleep(time.Second)
		must(t, c.Changed("app/db"))
	})
}

func TestFlightFromBeforeAnAnnouncementCannotInstallItsResult(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, fresh := make(chan struct{}), make(chan struct{})
		calls := 0
		up := fetchFunc(func(_ context.Context, r upstream.SecretRef) (upstream.SecretValue, error) {
			calls++
			value := upstream.SecretValue{SecretName: r.SecretName, VersionID: upstream.VersionID(fmt.Sprint("v", calls)), SecretData: upstream.NewSecretData([]byte(fmt.Sprint(calls)))}
			if calls == 1 {
				<-old
			} else {
				<-fresh
			}
			return value, nil
		})
		c := open(t, up, cache.Options{})
		early, late := make(chan upstream.Answer, 1), make(chan upstream.Answer, 1)
		go func() { early <- look(t, c, "app/db") }()
		synctest.Wait()
		c.Invalidate("app/db") // the first call may already have read the old value
		go func() { late <- look(t, c, "app/db") }()
		synctest.Wait()
		close(old)
		wantAnswer(t, <-early, "1", upstream.Miss) // asked before the change: either answer is right
		synctest.Wait()
		_, ok := c.Peek(ref("app/db"))
		stopIf(t, ok, "the result of a call from before the announcement is served as fresh")
		close(fresh)
		wantAnswer(t, <-late, "2", upstream.Miss)
		wantAnswer(t, look(t, c, "app/db"), "2", upstream.Hit)
		failIf(t, calls != 2, "%d calls", calls)
	})
}

// Who has seen the result of such a call is not served an older value when the upstream fails afterwards.
func TestFlightFromBeforeAnAnnouncementIsTheLastGoodValue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls, second := 0, make(chan struct{})
		c := open(t, fetchFunc(func(_ context.Context, r upstream.SecretRef) (upstream.SecretValue, error) {
			switch calls++; calls {
			case 2:
				<-second
			case 3:
				return upstream.SecretValue{}, upstream.ErrUnavailable
			}
			return upstream.SecretValue{SecretName: r.SecretName, VersionID: "v", SecretData: upstream.NewSecretData([]byte(fmt.Sprint(calls)))}, nil
		}), cache.Options{})
		start(t, c)
		wantAnswer(t, look(t, c, "app/db"), "1", upstream.Miss)
		bell, cancel := c.Subscribe(ref("app/db"))
		defer cancel()
		c.Invalidate("app/db")
		early := make(chan upstream.Answer, 1)
		go func() { early <- look(t, c, "app/db") }()
		synctest.Wait()
		rung(bell)
		c.Invalidate("app/db") // of a change that the second call may have missed
		close(second)
		synctest.Wait()
		wantAnswer(t, <-early, "2", upstream.Miss)
		wantAnswer(t, look(t, c, "app/db"), "2", upstream.Stale)
		failIf(t, !rung(bell), "the bell does not ring")
		failIf(t, calls != 3, "%d calls", calls)
	})
}

func TestAnnouncementRefreshesAndRings(t *testing.T) {
	with(t, cache.Options{}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		fake.OnChange(c.Invalidate)
		start(t, c)
		bell, cancel := c.Subscribe(ref("app/db"))
		defer cancel()
		look(t, c, "app/db")
		synctest.Wait()
		rung(bell) // the first value may ring

		begin := time.Now()
		fake.MustPut(t, "app/db", "v2", "second")
		<-bell
		wantAnswer(t, look(t, c, "app/db"), "second", upstream.Hit)
		failIf(t, time.Since(begin) != 0, "the bell rang after %s", time.Since(begin))

		c.Invalidate("app/db") // a false alarm
		c.Invalidate("unknown")
		synctest.Wait()
		failIf(t, rung(bell), "the bell rang although nothing changed")
		wantAnswer(t, look(t, c, "app/db"), "second", upstream.Hit)

		fake.MustDelete(t, "app/db")
		<-bell
		noValue(t, c, "app/db", upstream.ErrNotFound)
	})
}

func TestVolleyOfAnnouncementsCoalesces(t *testing.T) {
	with(t, cache.Options{}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		start(t, c)
		look(t, c, "app/db")
		fake.Delay(get, time.Second)
		for range 1000 {
			c.Invalidate("app/db")
		}
		time.Sleep(10 * time.Second)
		wantCalls(t, fake, 1, 3)
	})
}

func TestRotationSeenByOneLabelExpiresTheOthers(t *testing.T) {
	with(t, cache.Options{}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		fake.MustPut(t, "app/db", "v2", "second")
		wantAnswer(t, look(t, c, "app/db"), "second", upstream.Miss)
		wantAnswer(t, look(t, c, "app/db:ACSPrevious"), "first", upstream.Miss)
		fake.MustPut(t, "app/db", "v3", "third") // not announced
		gives(t, "third", upstream.Miss)(c.RefreshNow(t.Context(), ref("app/db")))
		wantAnswer(t, look(t, c, "app/db:ACSPrevious"), "second", upstream.Miss)
	})
}

func TestOversizedValueIsAnsweredButNotKept(t *testing.T) {
	with(t, cache.Options{Limits: cache.Limits{MaxBytes: 10000}}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		fake.MustCreate(t, "small", "v1", "x")
		fake.MustCreate(t, "big", "v1", strings.Repeat("x", 20000))
		look(t, c, "small")
		look(t, c, "big")
		wantAnswer(t, look(t, c, "small"), "x", upstream.Hit)
		failFor(t, c.Stats(), func(s cache.Stats) bool { return s.Entries != 1 || s.Oversized != 1 || s.Evictions != 0 })
		failIf(t, look(t, c, "big").Freshness != upstream.Miss, "the big value was kept")
	})
}

func TestValidateNamesEveryProblem(t *testing.T) {
	opts := cache.Options{
		Limits: cache.Limits{
			TTL: -time.Second, MaxStale: -2, NegativeTTL: -5, MaxEntries: -1, MaxBytes: -1,
			Pins: []cache.Pin{{Ref: upstream.SecretRef{SecretName: "a b"}}, {Ref: ref("x")}, {Ref: upstream.SecretRef{SecretName: "x"}, TTL: -1}},
		},
		FetchTimeout: -1, MaxFetches: -1, ForcedPerSecond: -1, ForcedBurst: -1,
		Sealed: &cache.Sealed{MaxBytes: -1},
	}
	wantKeys := func(err error, want string) {
		t.Helper()
		var problems upstream.OptionErrors
		stopIf(t, !errors.As(err, &problems), "%v", err)
		var keys []string
		for _, p := range problems {
			keys = append(keys, p.Key)
		}
		failIf(t, strings.Join(keys, " ") != want, "got  %s\nwant %s", strings.Join(keys, " "), want)
	}
	limits := "ttl maxEntries maxBytes maxStale negativeTTL pins[0].name pins[2].name pins[2].ttl"
	all := limits + " fetchTimeout maxFetches forcedRefresh.perSecond forcedRefresh.burst sealed.maxBytes sealed.path sealed.keyring"
	wantKeys(opts.Validate(), all)
	_, err := cache.New(upstreamtest.NewFake(), opts)
	wantKeys(err, all)
	_, err = open(t, upstreamtest.NewFake(), cache.Options{}).PrepareLimits(opts.Limits)
	wantKeys(err, limits)
	if _, err := cache.New(nil, cache.Options{}); err == nil {
		t.Error("a cache without an upstream")
	}

	dir := t.TempDir()
	foreign := filepath.Join(dir, "foreign")
	must(t, os.WriteFile(foreign, []byte("password"), 0o600))
	for want, opts := range map[string]cache.Options{
		"": {Limits: cache.Limits{TTL: time.Second, MaxStale: cache.Never, NegativeTTL: cache.Never}, Sealed: &cache.Sealed{Path: dir + "/a", Keyring: dir + "/b"}},
		"negativeTTL: 2s: must not be longer than cache.ttl, 1s":                                  {Limits: cache.Limits{TTL: time.Second, NegativeTTL: 2 * time.Second}},
		"pins[1].name: a:ACSCurrent: is declared twice: keep one":                                 {Limits: cache.Limits{Pins: []cache.Pin{{Ref: upstream.SecretRef{SecretName: "a"}}, {Ref: ref("a")}}}},
		"sealed.path: ./a: is also the keyring":                                                   {Sealed: &cache.Sealed{Path: "./a", Keyring: "a"}},
		"sealed.keyring: " + foreign + ": is not a Tink keyset in JSON; put a good copy in place": {Sealed: &cache.Sealed{Path: "a", Keyring: foreign}},
		"forcedRefresh.perSecond: +Inf: must be a finite number":                                  {ForcedPerSecond: math.Inf(1)},
	} {
		failIf(t, fmt.Sprint(opts.Validate()) != cmp.Or(want, "<nil>"), "got  %s\nwant %s", fmt.Sprint(opts.Validate()), want)
	}
	if names, _ := os.ReadDir(dir); len(names) != 1 {
		t.Errorf("Validate made %v", names)
	}
}

func TestRunEndsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := upstreamtest.NewFake()
		fake.MustCreate(t, "held", "v1", "x")
		defer fake.Block("nothing")()
		c := open(t, fake, cache.Options{Limits: cache.Limits{TTL: time.Minute}})
		stop := start(t, c)
		look(t, c, "held")
		release := fake.Block(get)
		defer release()
		waiting := make(chan error, 1)
		go func() {
			_, err := c.Lookup(t.Context(), ref("other"))
			waiting <- err
		}()
		synctest.Wait()
		if err := c.Run(t.Context()); err == nil {
			t.Error("Run twice is no error")
		}
		begin := time.Now()
		stop()
		failIf(t, time.Since(begin) != 0, "stopping took %s", time.Since(begin))
		wantError(t, <-waiting, upstream.ErrUnavailable)
		wantAnswer(t, look(t, c, "held"), "x", upstream.Hit)
		noValue(t, c, "third", upstream.ErrUnavailable)
		time.Sleep(2 * time.Minute)
		wantAnswer(t, look(t, c, "held"), "x", upstream.Stale)
	})
}

func TestRunReportsCallsThatDoNotEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		deaf := make(chan struct{})
		c, err := cache.New(fetchFunc(func(context.Context, upstream.SecretRef) (upstream.SecretValue, error) {
			<-deaf
			return upstream.SecretValue{}, upstream.ErrInternal
		}), cache.Options{})
		must(t, err)
		go func() { _, _ = c.Lookup(context.Background(), ref("x")) }()
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := c.Run(ctx); err == nil || !strings.Contains(err.Error(), "did not return") {
			t.Errorf("Run: %v", err)
		}
		close(deaf)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestAnyoneMayCallAnythingAtAnyTime(t *testing.T) {
	fake := upstreamtest.NewFake()
	names := []string{"a", "b", "c", "d"}
	for _, n := range names {
		fake.MustCreate(t, n, "v0", "0")
	}
	c := open(t, fake, cache.Options{
		Limits:          cache.Limits{TTL: 2 * time.Millisecond, NegativeTTL: time.Millisecond, MaxEntries: 3},
		ForcedPerSecond: 1e6, ForcedBurst: 1000,
	})
	fake.OnChange(c.Invalidate)
	stop := start(t, c)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	each := func(fn func(i int, name string)) {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				fn(i, names[i%len(names)])
			}
		})
	}
	each(func(i int, name string) {
		fake.MustPut(t, name, fmt.Sprint("v", i+1), fmt.Sprint(i))
		time.Sleep(time.Millisecond)
	})
	for range 2 {
		each(func(_ int, name string) { _, _ = c.Lookup(ctx, ref(name)) })
		each(func(_ int, name string) { c.Peek(ref(name)) })
	}
	each(func(_ int, name string) { _, _ = c.RefreshNow(ctx, ref(name)) })
	each(func(_ int, name string) { _, _ = c.Report(ctx, ref(name)) })
	each(func(_ int, name string) {
		c.LookupAll(ctx, []upstream.SecretRef{ref(name), ref(name + ":ACSPrevious"), ref("none")})
	})
	each(func(_ int, name string) { c.Invalidate(upstream.SecretName(name)); time.Sleep(time.Millisecond) })
	each(func(_ int, name string) {
		bell, cancel := c.Subscribe(ref(name), ref(name+":Other"))
		rung(bell)
		cancel()
		cancel()
	})
	each(func(i int, name string) {
		limits := cache.Limits{TTL: time.Duration(1+i%3) * time.Millisecond, MaxEntries: 1 + i%5, NegativeTTL: time.Millisecond}
		if i%2 == 0 {
			limits.Pins = []cache.Pin{{Ref: ref(name)}}
		}
		setLimits(t, c, limits)
	})
	each(func(int, string) { c.Stats(); c.Entries(); c.Missing(); _ = c.Warm(ctx) })
	each(func(i int, name string) {
		fake.FailNext(get, 1, []error{upstream.ErrThrottled, upstream.ErrAccessDenied, upstream.ErrInvalidParameter}[i%3])
		time.Sleep(time.Millisecond)
	})
	wg.Wait()
	stop()
	failFor(t, c.Stats(), func(s cache.Stats) bool {
		return s.Flights != 0 || s.Waiting != 0 || s.Subscriptions != 0 || s.Entries < 0 || s.Bytes < 0 || s.PinnedBytes < 0
	})
}
