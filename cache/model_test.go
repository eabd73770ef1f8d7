package cache_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"secretagent/cache"
	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

// bubbled hides from rapid that it has a *testing.T, whose Deadline must not be asked for in
// a synctest bubble.
type bubbled struct{ *testing.T }

// The LRU is compared with a slice in order of use.
func TestEvictionOrderIsThatOfASlowModel(t *testing.T) {
	synctest.Test(t, func(outer *testing.T) {
		rapid.Check(bubbled{outer}, func(t *rapid.T) {
			const unit = 2000
			sizes := map[string]int{}
			up := fetchFunc(func(ctx context.Context, r upstream.SecretRef) (upstream.SecretValue, error) {
				return constant(sizes[string(r.SecretName)])(ctx, r)
			})
			limits := cache.Limits{
				TTL:        24 * time.Hour,
				MaxEntries: rapid.IntRange(1, 8).Draw(t, "maxEntries"),
				MaxBytes:   int64(rapid.IntRange(1, 20).Draw(t, "maxBytes") * unit),
			}
			c, err := cache.New(up, cache.Options{Limits: limits})
			must(t, err)
			defer c.Close()
			var model []string // least recently used first
			costs := map[string]int{}
			trim := func() {
				sum := 0
				for _, n := range model {
					sum += costs[n]
				}
				for len(model) > limits.MaxEntries || int64(sum) > limits.MaxBytes {
					sum -= costs[model[0]]
					model = model[1:]
				}
			}
			use := func(name string) {
				if i := slices.Index(model, name); i >= 0 {
					model = slices.Delete(model, i, i+1)
				}
				model = append(model, name)
			}
			for range rapid.IntRange(1, 60).Draw(t, "steps") {
				time.Sleep(time.Millisecond)
				name := fmt.Sprint("s", rapid.IntRange(0, 11).Draw(t, "name"))
				switch rapid.IntRange(0, 9).Draw(t, "op") {
				case 0:
					limits.MaxEntries = rapid.IntRange(1, 8).Draw(t, "newEntries")
					setLimits(t, c, limits)
					trim()
				case 1, 2:
					_, ok := c.Peek(ref(name))
					stopIf(t, ok != slices.Contains(model, name), "Peek(%s) = %v, the model holds %v", name, ok, model)
					if ok {
						use(name)
					}
				default:
					if _, known := sizes[name]; !known {
						sizes[name] = rapid.IntRange(1, 3*unit).Draw(t, "size")
					}
					answer, err := c.Lookup(context.Background(), ref(name))
					must(t, err)
					hit := slices.Contains(model, name)
					stopIf(t, hit != (answer.Freshness == upstream.Hit), "Lookup(%s) is a %s, the model holds %v", name, answer.Freshness, model)
					if hit {
						use(name)
						break
					}
					if size, kept := held(c)[name]; kept {
						costs[name] = size
						use(name)
						trim()
					} else {
						stopIf(t, int64(alone(t, up, name)) <= limits.MaxBytes, "%s was not kept although it fits", name)
					}
				}
				sum := 0
				for _, size := range held(c) {
					sum += size
				}
				got, want := slices.Sorted(maps.Keys(held(c))), slices.Sorted(slices.Values(model))
				stopIf(t, !slices.Equal(got, want), "held %v, want %v", got, want)
				s := c.Stats()
				stopIf(t, s.Entries != len(model) || s.Bytes != int64(sum), "sums are off: %+v, want %d entries and %d bytes", s, len(model), sum)
			}
		})
	})
}

// alone returns what the value of name costs in a cache that has room for it.
func alone(t *rapid.T, up cache.Upstream, name string) int {
	c, err := cache.New(up, cache.Options{})
	must(t, err)
	defer c.Close()
	_, err = c.Lookup(context.Background(), ref(name))
	must(t, err)
	return held(c)[name]
}

// held returns what is held :: name → its cost.
func held(c *cache.Cache) map[string]int {
	all := map[string]int{}
	for _, e := range c.Entries() {
		all[string(e.Ref.SecretName)] = e.Size
	}
	return all
}

// Every answer is checked against the history of the upstream: what it said, when, and
// whether it could be asked.
func TestAnswersAgreeWithTheHistoryOfTheUpstream(t *testing.T) {
	const ttl, maxStale, negativeTTL = time.Minute, 10 * time.Minute, 5 * time.Second
	// A round of checks ends after a day, which passes quickly in a bubble.
	for range scaled("CACHE_TEST_MODEL_ROUNDS", 10, 2) {
		synctest.Test(t, func(outer *testing.T) { rapid.Check(bubbled{outer}, answersAgree(outer, ttl, maxStale, negativeTTL)) })
	}
}

func answersAgree(outer *testing.T, ttl, maxStale, negativeTTL time.Duration) func(t *rapid.T) {
	return func(t *rapid.T) {
		fake := upstreamtest.NewFake()
		c, err := cache.New(fake, cache.Options{Limits: cache.Limits{
			TTL: ttl, MaxStale: maxStale, NegativeTTL: negativeTTL, MaxEntries: rapid.IntRange(1, 4).Draw(t, "maxEntries"),
		}, ForcedPerSecond: 1e6, ForcedBurst: 1e6})
		must(t, err)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		running := rapid.Bool().Draw(t, "running")
		if running {
			go func() { done <- c.Run(ctx) }()
		}
		defer func() {
			cancel()
			if running {
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
			c.Close()
		}()
		h := &history{states: map[string][]state{}}
		puts := 0
		var outage error
		names := []string{"a", "b", "c"}
		for range rapid.IntRange(1, 50).Draw(t, "steps") {
			// Things of one moment have no order that the history could check.
			time.Sleep(time.Millisecond)
			name := rapid.SampledFrom(names).Draw(t, "name")
			switch rapid.IntRange(0, 9).Draw(t, "op") {
			case 0:
				puts++
				fake.MustPut(outer, name, fmt.Sprint("v", puts), fmt.Sprint("data", puts))
				h.add(name, fmt.Sprint("data", puts))
				if rapid.Bool().Draw(t, "announced") {
					c.Invalidate(upstream.SecretName(name))
					h.announced(name)
				}
			case 1:
				if h.now(name) != "" {
					fake.MustDelete(outer, name)
					h.add(name, "")
					c.Invalidate(upstream.SecretName(name))
					h.announced(name)
				}
			case 2:
				outage = rapid.SampledFrom([]error{nil, nil, upstream.ErrThrottled, upstream.ErrUnavailable, upstream.ErrUnauthenticated}).Draw(t, "outage")
				fake.Fail(get, outage)
				h.outages = append(h.outages, span{from: time.Now(), down: outage != nil})
			case 3, 4:
				time.Sleep(time.Duration(rapid.IntRange(1, 100).Draw(t, "tenths")) * 100 * time.Millisecond)
			case 5:
				time.Sleep(time.Duration(rapid.IntRange(1, 12).Draw(t, "minutes")) * time.Minute)
			case 6:
				answer, err := c.RefreshNow(context.Background(), ref(name))
				want := h.now(name)
				switch {
				case outage != nil:
					stopIf(t, !errors.Is(err, outage), "RefreshNow during an outage: %v", err)
				case want == "":
					stopIf(t, !errors.Is(err, upstream.ErrNotFound), "RefreshNow of nothing: %v", err)
				case err != nil || string(answer.Value.SecretData.Reveal()) != want:
					t.Fatalf("RefreshNow: %v %v, want %s", answer.Value, err, want)
				}
			default:
				answer, err := c.Lookup(context.Background(), ref(name))
				h.check(t, name, answer, err, ttl, maxStale, negativeTTL)
			}
		}
	}
}

// history is what was true upstream, and when it could be asked.
type history struct {
	states  map[string][]state // :: name → what it was from when on
	outages []span
}

type state struct {
	from      time.Time
	data      string // empty: does not exist
	announced time.Time
}

type span struct {
	from time.Time
	down bool
}

func (h *history) add(name, data string) {
	h.states[name] = append(h.states[name], state{from: time.Now(), data: data})
}

func (h *history) announced(name string) {
	s := h.states[name]
	s[len(s)-1].announced = time.Now()
}

func (h *history) now(name string) string {
	if s := h.states[name]; len(s) > 0 {
		return s[len(s)-1].data
	}
	return ""
}

// at returns what was true at t.
func (h *history) at(name string, t time.Time) string {
	data := ""
	for _, s := range h.states[name] {
		if !s.from.After(t) {
			data = s.data
		}
	}
	return data
}

// missing reports whether the secret did not exist at any moment since t.
func (h *history) missing(name string, t time.Time) bool {
	missing := h.at(name, t) == ""
	for _, s := range h.states[name] {
		missing = missing || s.data == "" && s.from.After(t)
	}
	return missing
}

// down reports whether the upstream was down at any moment since t.
func (h *history) down(t time.Time) bool {
	down := false
	for _, o := range h.outages {
		if o.from.Before(t) {
			down = o.down
		} else {
			down = down || o.down
		}
	}
	return down
}

func (h *history) check(t *rapid.T, name string, answer upstream.Answer, err error, ttl, maxStale, negativeTTL time.Duration) {
	now := time.Now()
	if err != nil {
		switch {
		case errors.Is(err, upstream.ErrNotFound):
			stopIf(t, !h.missing(name, now.Add(-negativeTTL)), "%s is said not to exist: %v", name, err)
			for _, s := range h.states[name] {
				stopIf(t, s.data != "" && !s.announced.IsZero() && h.now(name) == s.data, "%s is said not to exist after its creation was announced", name)
			}
		case upstream.Outage(err):
			stopIf(t, !h.down(now.Add(-time.Minute)), "%s fails without an outage: %v", name, err)
		default:
			t.Fatal(err)
		}
		return
	}
	data := string(answer.Value.SecretData.Reveal())
	age, fetched := answer.Age, now.Add(-answer.Age)
	stopIf(t, h.at(name, fetched) != data, "%s: %s was not true when it is said to have been fetched", name, data)
	switch answer.Freshness {
	case upstream.Miss:
		stopIf(t, data != h.now(name), "%s: fetched %s while %s is true", name, data, h.now(name))
	case upstream.Hit:
		stopIf(t, age >= ttl, "%s: a hit of age %s", name, age)
		for _, s := range h.states[name] {
			stopIf(t, s.announced.After(fetched) && data != s.data && s.data != h.at(name, fetched), "%s: a hit on %s after %q was announced", name, data, s.data)
		}
	case upstream.Stale:
		if age > maxStale || !h.down(fetched) || !strings.Contains("Rejected.Throttling ServiceUnavailableTemporary InvalidAccessKeyId.NotFound", answer.Reason) {
			t.Fatalf("%s: stale by %s because of %s", name, age, answer.Reason)
		}
	}
}
