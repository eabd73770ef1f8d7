package cache_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"secretagent/cache"
	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

// eventsOf returns the history of a reference, and how much of it was dropped.
func eventsOf(c *cache.Cache, name string) ([]cache.Event, int) {
	for _, e := range c.Entries() {
		if e.Ref == ref(name) {
			return e.History, e.HistoryDropped
		}
	}
	return nil, 0
}

// told returns the history of a reference in one line: kinds, versions and codes.
func told(c *cache.Cache, name string) string {
	events, _ := eventsOf(c, name)
	var words []string
	for _, ev := range events {
		words = append(words, strings.TrimSpace(fmt.Sprint(ev.Kind, " ", ev.VersionID, ev.Code)))
	}
	return strings.Join(words, ", ")
}

func TestHistoryTellsWhatHappened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := upstreamtest.NewFake()
		fake.MustCreate(t, "app/db", "v1", "1")
		c := open(t, fake, cache.Options{Limits: cache.Limits{
			TTL: time.Minute, MaxStale: time.Hour, Pins: []cache.Pin{{Ref: ref("app/db")}, {Ref: ref("not/there")}},
		}})
		start(t, c)
		synctest.Wait()
		time.Sleep(10 * time.Second)
		failIf(t, told(c, "app/db") != "version v1", "at first: %s", told(c, "app/db"))
		if events, _ := eventsOf(c, "not/there"); len(events) != 1 || events[0].Kind != cache.EventGone || events[0].Count < 2 ||
			!events[0].Last.After(events[0].First) {
			t.Errorf("a missing secret: %+v", events)
		}

		time.Sleep(5 * time.Minute)
		fake.MustPut(t, "app/db", "v2", "2")
		time.Sleep(5 * time.Minute)
		failIf(t, told(c, "app/db") != "version v1, version v2", "after a rotation: %s", told(c, "app/db"))

		fake.Fail(get, upstream.ErrUnavailable)
		down := time.Now()
		for range 600 {
			time.Sleep(time.Second)
			_, _ = c.Lookup(t.Context(), ref("app/db"))
		}
		events, _ := eventsOf(c, "app/db")
		stopIf(t, len(events) != 4 || events[2].Kind != cache.EventFailed || events[3].Kind != cache.EventStale, "an outage: %s", told(c, "app/db"))
		for _, ev := range events[2:] {
			failIf(t, ev.Count < 2 || ev.Code != upstream.Code(upstream.ErrUnavailable) || ev.First.Before(down) || time.Since(ev.Last) > 2*time.Minute, "of the outage: %+v", ev)
		}

		fake.Fail(get, nil)
		time.Sleep(10 * time.Minute)
		fake.Fail(get, upstream.ErrUnavailable)
		time.Sleep(10 * time.Minute)
		if events, _ := eventsOf(c, "app/db"); len(events) != 5 || events[4].Kind != cache.EventFailed || !events[4].First.After(events[2].Last) {
			t.Errorf("a second outage is a run of its own: %s", told(c, "app/db"))
		}
		time.Sleep(time.Hour)
		_, _ = c.Lookup(t.Context(), ref("app/db"))
		failIf(t, !strings.HasSuffix(told(c, "app/db"), "lapsed"), "after MaxStale: %s", told(c, "app/db"))
		fake.Fail(get, nil)
		time.Sleep(10 * time.Minute)
		failIf(t, !strings.HasSuffix(told(c, "app/db"), "lapsed, version v2"), "after the recovery: %s", told(c, "app/db"))
	})
}

func TestHistoryIsMadeOnlyForWhatIsWorthTelling(t *testing.T) {
	with(t, cache.Options{Limits: cache.Limits{TTL: time.Minute}}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		for range 3 {
			look(t, c, "app/db")
			_, _ = c.Lookup(t.Context(), ref("not/there"))
			time.Sleep(30 * time.Second)
		}
		failIf(t, c.Stats().Events != 0, "%d events of a calm life: %s", c.Stats().Events, told(c, "app/db"))
		fake.MustPut(t, "app/db", "v2", "2")
		time.Sleep(time.Minute)
		look(t, c, "app/db")
		failIf(t, told(c, "app/db") != "version v1, version v2", "the version before is part of a change: %s", told(c, "app/db"))
		if allocs := testing.AllocsPerRun(100, func() { c.Peek(ref("app/db")) }); allocs > 0 {
			t.Errorf("a hit allocates %v times", allocs)
		}
	})
}

func TestHistoryIsBounded(t *testing.T) {
	with(t, cache.Options{Limits: cache.Limits{TTL: time.Minute, MaxEntries: 1, Pins: []cache.Pin{{Ref: ref("app/db")}}}}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		start(t, c)
		for i := range 100 {
			time.Sleep(2 * time.Minute)
			fake.MustPut(t, "app/db", fmt.Sprint("v", i+2), fmt.Sprint(i+2))
		}
		time.Sleep(2 * time.Minute)
		events, dropped := eventsOf(c, "app/db")
		failIf(t, len(events) != 48 || dropped != 101-48 || events[47].VersionID != "v101" || c.Stats().Events != 48, "%d events and %d dropped, the last is %+v, in all %d", len(events), dropped, events[len(events)-1], c.Stats().Events)

		// What is evicted takes its history with it.
		fake.MustCreate(t, "b", "v1", "1")
		fake.MustCreate(t, "c", "v1", "1")
		look(t, c, "b")
		fake.Fail(get, upstream.ErrUnavailable)
		time.Sleep(2 * time.Minute)
		wantAnswer(t, look(t, c, "b"), "1", upstream.Stale)
		before := c.Stats().Events
		if events, _ := eventsOf(c, "b"); len(events) == 0 || before <= 48 {
			t.Fatalf("nothing is told of a stale answer")
		}
		fake.Fail(get, nil)
		time.Sleep(2 * time.Minute)
		look(t, c, "c")
		if events, _ := eventsOf(c, "b"); len(events) > 0 || c.Stats().Events > before {
			t.Errorf("%d events of an evicted secret, %d in all", len(events), c.Stats().Events)
		}
	})
}

func TestHistoryCountsOneVersionWhoseLabelsMove(t *testing.T) {
	with(t, cache.Options{Limits: cache.Limits{Pins: []cache.Pin{{Ref: ref("app/db")}}}}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		look(t, c, "app/db")
		fake.MustMove(t, "app/db", "Blue", "v1")
		c.Invalidate("app/db")
		if answer := look(t, c, "app/db"); len(answer.Value.VersionStages) != 2 {
			t.Fatalf("labels %v", answer.Value.VersionStages)
		}
		failIf(t, told(c, "app/db") != "version v1", "%s", told(c, "app/db"))
	})
}
