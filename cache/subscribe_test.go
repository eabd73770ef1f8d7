package cache_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"secretagent/cache"
	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

func TestSubscriberHearsWhatARefreshFinds(t *testing.T) {
	with(t, cache.Options{Limits: cache.Limits{TTL: time.Minute}}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		start(t, c)
		bell, cancel := c.Subscribe(ref("app/db"))
		look(t, c, "app/db")
		synctest.Wait()
		rung(bell)
		time.Sleep(time.Hour) // subscribed secrets are kept fresh though nobody asks
		failIf(t, rung(bell), "rung without a change")
		wantAnswer(t, look(t, c, "app/db"), "first", upstream.Hit)
		fake.MustPut(t, "app/db", "v2", "second")
		begin := time.Now()
		<-bell
		failIf(t, time.Since(begin) > time.Minute, "the bell rang after %s", time.Since(begin))
		wantAnswer(t, look(t, c, "app/db"), "second", upstream.Hit)

		cancel()
		cancel()
		failFor(t, c.Stats(), func(s cache.Stats) bool { return s.Subscriptions != 0 || s.Pinned != 0 || s.Entries != 1 })
		calls := fake.Calls(get)
		time.Sleep(time.Hour)
		wantCalls(t, fake, calls, calls+1)
	})
}

func TestBellRemembersOneRing(t *testing.T) {
	with(t, cache.Options{}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		fake.MustCreate(t, "a", "v0", "0")
		fake.MustCreate(t, "b", "v0", "0")
		fake.OnChange(c.Invalidate)
		start(t, c)
		bell, cancel := c.Subscribe(ref("a"), ref("b"), ref("a"))
		defer cancel()
		for i := range 10 {
			fake.MustPut(t, "a", fmt.Sprint("v", i+1), "x")
			fake.MustPut(t, "b", fmt.Sprint("v", i+1), "x")
			synctest.Wait() // nobody listens, nobody blocks
		}
		failIf(t, !rung(bell) || rung(bell), "want exactly one remembered ring")
	})
}

func TestSubscriberHearsOfASecretThatAppears(t *testing.T) {
	with(t, cache.Options{}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		start(t, c)
		bell, cancel := c.Subscribe(ref("late"))
		defer cancel()
		time.Sleep(10 * time.Minute)
		failIf(t, rung(bell), "rung for nothing")
		// The back-off for what does not exist is bounded.
		wantCalls(t, fake, 15, 60)
		fake.MustCreate(t, "late", "v1", "x")
		begin := time.Now()
		<-bell
		failIf(t, time.Since(begin) > 40*time.Second, "the bell rang after %s", time.Since(begin))
	})
}

func TestSubscribedSecretIsNotEvicted(t *testing.T) {
	with(t, cache.Options{Limits: cache.Limits{MaxEntries: 2}}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		_, cancel := c.Subscribe(ref("s0"))
		for _, name := range fill(t, fake, 5) {
			look(t, c, name)
		}
		wantAnswer(t, look(t, c, "s0"), "x", upstream.Hit)
		cancel()
		failFor(t, c.Stats(), func(s cache.Stats) bool { return s.Entries != 2 || s.Pinned != 0 })
	})
}

func TestSubscriptionsAreBounded(t *testing.T) {
	c := open(t, upstreamtest.NewFake(), cache.Options{})
	_, cancel := c.Subscribe(ref("a"))
	for range 9_999 {
		c.Subscribe(ref("a"))
	}
	bell, cancelNone := c.Subscribe(ref("b"))
	failIf(t, bell != nil, "one subscription more than 10,000 is granted")
	cancelNone()
	cancel()
	if bell, _ := c.Subscribe(ref("a")); bell == nil {
		t.Error("a cancelled subscription is not given back")
	}
	failFor(t, c.Stats(), func(s cache.Stats) bool { return s.Subscriptions != 10_000 || s.SubscriptionsRefused != 1 })
}

func TestThousandsWaitForOneChange(t *testing.T) {
	with(t, cache.Options{}, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		fake.OnChange(c.Invalidate)
		start(t, c)
		look(t, c, "app/db")
		const n = 5000
		heard := make(chan upstream.VersionID, n)
		for range n {
			bell, cancel := c.Subscribe(ref("app/db"))
			go func() {
				defer cancel()
				<-bell
				answer, _ := c.Peek(ref("app/db"))
				heard <- answer.Value.VersionID
			}()
		}
		fake.MustPut(t, "app/db", "v2", "second")
		for range n {
			if got := <-heard; got != "v2" {
				t.Fatalf("woken with %q", got)
			}
		}
		wantCalls(t, fake, 2)
	})
}
