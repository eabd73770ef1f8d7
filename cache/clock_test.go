package cache_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"secretagent/cache"
	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

// moveClocks lets the machine sleep and sets the wall clock. To fall asleep and to wake up takes
// time that the monotonic clock counts.
func moveClocks(c *cache.Cache, slept, set time.Duration) {
	c.MoveClocks(slept, set)
	time.Sleep(time.Millisecond)
}

// What the monotonic clock does not count makes values older, at the first lookup after it; what
// is done to the wall clock never makes them younger.
func TestTimeThatTheMonotonicClockDoesNotCount(t *testing.T) {
	const hour = time.Hour
	for name, tc := range map[string]struct {
		moves [][2]time.Duration // slept, set
		older time.Duration
	}{
		"the machine slept":                        {[][2]time.Duration{{hour, 0}}, hour},
		"it slept and the clock was set back":      {[][2]time.Duration{{hour, -2 * hour}}, hour},
		"it slept and the clock was set ahead":     {[][2]time.Duration{{hour, hour}}, 2 * hour},
		"it napped often":                          {[][2]time.Duration{{hour / 9000, 0}, {hour / 9000, 0}, {hour / 9000, 0}}, 3 * hour / 9000},
		"a virtual machine was paused":             {[][2]time.Duration{{0, hour}}, hour},
		"the clock was set back":                   {[][2]time.Duration{{0, -hour}}, 0},
		"the clock was set back and put right":     {[][2]time.Duration{{0, -hour}, {0, hour}}, 0},
		"it was set back before the machine slept": {[][2]time.Duration{{0, -hour}, {hour, 0}}, hour},
		"it was set back, and ahead by more":       {[][2]time.Duration{{0, -hour}, {0, 2 * hour}}, hour},
		"it was corrected a little":                {[][2]time.Duration{{0, hour / 4000}, {0, -hour / 4000}}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			with(t, cache.Options{Limits: cache.Limits{TTL: 10 * hour}}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
				look(t, c, "app/db")
				began := time.Now()
				for _, move := range tc.moves {
					before := look(t, c, "app/db").Age
					moveClocks(c, move[0], move[1])
					failIf(t, look(t, c, "app/db").Age < before, "a value became younger")
				}
				got := look(t, c, "app/db").Age - time.Since(began)
				failIf(t, got.Round(time.Second) != tc.older.Round(time.Second), "the value is older by %s, want %s", got, tc.older)
				wantCalls(t, fake, 1)
			})
		})
	}
}

func TestValueIsNotFreshAfterSleep(t *testing.T) {
	with(t, cache.Options{Limits: cache.Limits{TTL: time.Hour, MaxStale: 10 * time.Hour}}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		look(t, c, "app/db")
		moveClocks(c, 2*time.Hour, 0)
		_, ok := c.Peek(ref("app/db"))
		stopIf(t, ok, "an old value is taken for fresh")
		fake.Fail(get, upstream.ErrUnavailable)
		stale := look(t, c, "app/db")
		wantAnswer(t, stale, "first", upstream.Stale)
		failIf(t, stale.Age < 2*time.Hour, "it is said to be %s old", stale.Age)
		moveClocks(c, 8*time.Hour, 0)
		noValue(t, c, "app/db", upstream.ErrUnavailable)
	})
}

// Timers stand still while a machine sleeps. What became due meanwhile is refreshed soon after
// it woke up, also when nobody asks.
func TestRefreshAfterSleep(t *testing.T) {
	opts := cache.Options{Limits: cache.Limits{TTL: time.Hour, Pins: []cache.Pin{{Ref: ref("app/db")}}}}
	for name, set := range map[string]time.Duration{"": 0, "clock set back": -2 * time.Hour} {
		with(t, opts, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
			start(t, c)
			synctest.Wait()
			moveClocks(c, 2*time.Hour, set)
			time.Sleep(10 * time.Second)
			synctest.Wait()
			failIf(t, fake.Calls(get) != 2, "%s: %d calls, want a refresh", name, fake.Calls(get))
		})
	}
}

// restart starts a cache on the file of opts, in a bubble whose clock is at `at` after the
// beginning of all bubbles.
func restart(t *testing.T, at time.Duration, opts cache.Options, up cache.Upstream, fn func(t *testing.T, c *cache.Cache, log string)) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(at)
		var log upstreamtest.Buffer
		opts.Logger = log.Logger()
		c := open(t, up, opts)
		defer c.Close()
		fn(t, c, log.String())
	})
}

// A clock that is hours behind at the start destroys nothing and makes nothing young: ages count
// from the newest time in the file.
func TestStartWithAClockThatIsBehind(t *testing.T) {
	const hour = time.Hour
	opts := sealedIn(t)
	opts.MaxStale = 10 * hour
	synctest.Test(t, func(t *testing.T) { // s0 was confirmed at 100 h, and s1 at 95
		time.Sleep(95 * hour)
		fake := upstreamtest.NewFake()
		c := open(t, fake, opts)
		stop := start(t, c)
		fake.MustCreate(t, "s1", "v1", "value-1")
		look(t, c, "s1")
		time.Sleep(5 * hour)
		fake.MustCreate(t, "s0", "v1", "value-0")
		look(t, c, "s0")
		stop()
	})
	file := readFile(t, opts.Sealed.Path)
	restart(t, hour, opts, fetchFunc(down), func(t *testing.T, c *cache.Cache, log string) {
		failIf(t, !strings.Contains(log, "level=WARN") || !strings.Contains(log, "code=ClockSkew") || !strings.Contains(log, "behind=99h0m0s"), "the log does not say it: %s", log)
		failIf(t, c.Stats().ClockBehind != 99*hour, "%+v", c.Stats())
		stop := start(t, c)
		for i, age := range []time.Duration{0, 5 * hour} {
			answer := look(t, c, fmt.Sprint("s", i))
			wantAnswer(t, answer, fmt.Sprint("value-", i), upstream.Stale)
			failIf(t, answer.Reason != "ClockSkew" || answer.Age.Round(time.Minute) != age, "s%d: %s, %s old", i, answer.Reason, answer.Age)
		}
		// Once it is put right, the time that the machine was off counts, and no more.
		moveClocks(c, 0, 101*hour)
		answer := look(t, c, "s1")
		failIf(t, answer.Reason == "ClockSkew" || answer.Age.Round(time.Minute) != 7*hour, "%s, %s old", answer.Reason, answer.Age)
		time.Sleep(3*hour + time.Minute)
		noValue(t, c, "s1", upstream.ErrUnavailable)
		stop()
	})
	// The time goes on in the file: a clock that is behind at each start makes nothing immortal.
	writeFile(t, opts.Sealed.Path, file)
	for range 3 {
		restart(t, hour, opts, fetchFunc(down), func(t *testing.T, c *cache.Cache, _ string) {
			stop := start(t, c)
			time.Sleep(3 * hour)
			stop()
		})
	}
	restart(t, hour, opts, fetchFunc(down), func(t *testing.T, c *cache.Cache, log string) {
		age := look(t, c, "s0").Age
		failIf(t, age < 8*hour || age > 9*hour, "s0 is said to be %s old", age)
		failIf(t, c.Stats().Sealed.TooOld != 0 || c.Stats().Sealed.Loaded != 1, "%+v", c.Stats().Sealed) // s1 has left it
	})
	// What the upstream says is not put in doubt.
	up := upstreamtest.NewFake()
	restart(t, hour, opts, up, func(t *testing.T, c *cache.Cache, _ string) {
		up.MustCreate(t, "s0", "v2", "second")
		wantAnswer(t, look(t, c, "s0"), "second", upstream.Miss)
		failIf(t, c.Stats().ClockBehind != 0, "%+v", c.Stats())
	})
}

// A clean end writes what time it is, unless that was written not long ago.
func TestFileTellsTheTimeOfTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, slept := range []time.Duration{0, 10 * time.Minute} {
			opts := sealedIn(t)
			fillSealed(t, opts, 1)
			c := open(t, fetchFunc(down), opts)
			stop := start(t, c)
			time.Sleep(settled)
			before := readFile(t, opts.Sealed.Path)
			moveClocks(c, slept, 0)
			stop()
			failIf(t, bytes.Equal(before, readFile(t, opts.Sealed.Path)) != (slept == 0), "after %s: rewritten %v", slept, slept == 0)
		}
	})
}

// A clock that is ahead at the start makes values look too old. The file stays until there is
// something newer, and until the clock may have been put right.
func TestStartWithAClockThatIsAhead(t *testing.T) {
	opts := sealedIn(t)
	synctest.Test(t, func(t *testing.T) { fillSealed(t, opts, 2) })
	before := readFile(t, opts.Sealed.Path)
	restart(t, 1000*time.Hour, opts, fetchFunc(down), func(t *testing.T, c *cache.Cache, log string) {
		failIf(t, strings.Contains(log, "level=ERROR") || !strings.Contains(log, "too old to be served") || !strings.Contains(log, "too_old=2"), "log: %s", log)
		failFor(t, c.Stats().Sealed, func(s cache.SealedStats) bool { return s.TooOld != 2 || s.Refused != 0 || s.Loaded != 0 })
		stop := start(t, c)
		noValue(t, c, "s0", upstream.ErrUnavailable)
		time.Sleep(10 * time.Hour)
		stop()
		failIf(t, !bytes.Equal(before, readFile(t, opts.Sealed.Path)), "the file was rewritten")
	})
	synctest.Test(t, func(t *testing.T) { wantSurvivors(t, opts, 2, 2) })
}

// A wall clock that is set ahead during an outage makes values look too old. The file stays until
// the upstream answers, so that a restart with the right clock has them.
func TestAClockThatIsSetAheadLeavesTheFile(t *testing.T) {
	opts := sealedIn(t)
	synctest.Test(t, func(t *testing.T) { fillSealed(t, opts, 2) })
	for name, slept := range map[string]time.Duration{"set ahead": 0, "slept": 10 * time.Hour} {
		file := readFile(t, opts.Sealed.Path)
		up := upstreamtest.NewFake()
		up.Fail(get, upstream.ErrUnavailable)
		restart(t, time.Minute, opts, up, func(t *testing.T, c *cache.Cache, _ string) {
			stop := start(t, c)
			look(t, c, "s0")
			look(t, c, "s1")
			time.Sleep(settled)
			before := readFile(t, opts.Sealed.Path)
			moveClocks(c, slept, 10*time.Hour-slept)
			noValue(t, c, "s0", upstream.ErrUnavailable)
			time.Sleep(30 * time.Minute)
			stop()
			failIf(t, heldUntil(c) != "", "%s: it is held: %s", name, heldUntil(c))
			failIf(t, bytes.Equal(before, readFile(t, opts.Sealed.Path)) != (slept == 0), "%s: rewritten %v", name, slept == 0)
		})
		want := 2
		if slept > 0 {
			want = 0
		}
		restart(t, 40*time.Minute, opts, fetchFunc(down), func(t *testing.T, c *cache.Cache, _ string) {
			failIf(t, c.Stats().Sealed.Loaded != want, "%s: %d values survive, want %d", name, c.Stats().Sealed.Loaded, want)
		})
		writeFile(t, opts.Sealed.Path, file)
	}
	// The first answer has it written, with what lapsed meanwhile left out.
	up := upstreamtest.NewFake()
	up.Fail(get, upstream.ErrUnavailable)
	restart(t, time.Minute, opts, up, func(t *testing.T, c *cache.Cache, _ string) {
		stop := start(t, c)
		look(t, c, "s0")
		look(t, c, "s1")
		moveClocks(c, 0, 10*time.Hour)
		noValue(t, c, "s0", upstream.ErrUnavailable)
		time.Sleep(time.Minute)
		up.Fail(get, nil)
		up.MustCreate(t, "s0", "v1", "value-0")
		look(t, c, "s0")
		time.Sleep(time.Minute)
		failIf(t, c.Stats().Sealed.Records != 1 || c.Stats().Sealed.Pending != 0, "%+v", c.Stats().Sealed)
		stop()
	})
}

// What the upstream says is gone leaves the file, also when it seemed too old at the start.
func TestWhatIsGoneLeavesAFileThatSeemsTooOld(t *testing.T) {
	for name, refusal := range map[string]error{"deleted": upstream.ErrNotFound, "denied": upstream.ErrAccessDenied} {
		opts := sealedIn(t)
		synctest.Test(t, func(t *testing.T) { fillSealed(t, opts, 2) })
		up := upstreamtest.NewFake()
		up.Fail(get, refusal)
		restart(t, 1000*time.Hour, opts, up, func(t *testing.T, c *cache.Cache, _ string) {
			stop := start(t, c)
			noValue(t, c, "s0", refusal)
			stop()
		})
		restart(t, 0, opts, fetchFunc(down), func(t *testing.T, c *cache.Cache, _ string) {
			failIf(t, c.Stats().Sealed.Loaded+c.Stats().Sealed.TooOld != 0, "%s: %+v", name, c.Stats().Sealed)
		})
	}
}
