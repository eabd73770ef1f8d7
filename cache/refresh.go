package cache

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"secretagent/upstream"
)

// recoverySpread is the time over which refreshes that were held up are spread after an outage,
// and reachedSpread after one in which no call got through: nothing has piled up there.
const (
	recoverySpread = 15 * time.Second
	reachedSpread  = 250 * time.Millisecond
)

// maxRefreshes bounds the upstream calls that nobody waits for.
const maxRefreshes = 8

// stopGrace bounds how long [Cache.Close] waits for upstream calls that it cancelled.
const stopGrace = 5 * time.Second

// refreshAfter returns the age at which a value is refreshed: somewhere between 80 and 95
// percent of its lifetime, so that secrets fetched together are not refreshed together. When
// the call for the value took so long that twice that time may not be left then, it is earlier,
// by at most 30 percent of the lifetime: who waits for a slow upstream should be the refresh.
func refreshAfter(ttl, took time.Duration) int64 {
	age := float64(ttl) * (0.80 + 0.15*rand.Float64())
	early := 2*float64(took) - 0.05*float64(ttl) // 5 percent are always left
	return int64(age - min(max(0, early), 0.30*float64(ttl)))
}

// Run refreshes values before they expire and writes the sealed file behind the lookups. It
// returns after ctx ended, when the sealed file is flushed and closed and every upstream call
// has returned; an error says that some did not although they were cancelled. The cache
// serves what it holds afterwards and fetches nothing. Run may be called once.
func (c *Cache) Run(ctx context.Context) error {
	if !c.ran.CompareAndSwap(false, true) {
		return errors.New("cache: Run was called twice")
	}
	var sealed, refreshes sync.WaitGroup
	end := make(chan struct{})
	sealed.Go(func() { c.sealed.run(end) })
	sealed.Go(func() { c.watchTime(end) })
	c.dispatch(ctx, &refreshes)
	err := c.stopFlights()
	close(end)
	sealed.Wait()
	c.sealed.close()
	if err == nil { // or they wait for calls that do not return
		refreshes.Wait()
	}
	return err
}

// Close ends all fetching and closes the sealed file. Only a cache that was never run needs
// it. It may be called more than once.
func (c *Cache) Close() error {
	err := c.stopFlights()
	if !c.ran.Load() {
		c.sealed.close()
	}
	return err
}

// stopFlights cancels every upstream call and waits for them, within a bound.
func (c *Cache) stopFlights() error {
	c.calls.mu.Lock()
	c.endLife() // and no flight begins any more
	c.calls.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		c.calls.all.Wait()
		close(ended)
	}()
	grace := time.NewTimer(stopGrace)
	defer grace.Stop()
	select {
	case <-ended:
		return nil
	case <-grace.C:
		return errors.New("cache: upstream calls did not return after they were cancelled")
	}
}

// dispatch starts a refresh for every entry that is due, at most maxRefreshes at once.
func (c *Cache) dispatch(ctx context.Context, wg *sync.WaitGroup) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if wait := c.untilDue(); wait > 0 {
			timer.Reset(wait)
			select {
			case <-ctx.Done():
				return
			case <-c.due.wake:
			case <-timer.C:
			}
			continue
		}
		select {
		case <-ctx.Done():
			return
		case c.refreshes <- struct{}{}:
		}
		f := c.startRefresh()
		if f == nil {
			<-c.refreshes
			continue
		}
		wg.Go(func() {
			<-f.done
			<-c.refreshes
		})
	}
}

// untilDue returns how long nothing is to be done.
func (c *Cache) untilDue() time.Duration {
	due, ok := c.due.next()
	if !ok {
		return time.Hour
	}
	if _, until, down := c.outage.state(); down && due != urgent {
		due = max(due, until)
	}
	return time.Duration(due - c.now())
}

// startRefresh begins the refresh that is due first. It returns nil when there is nothing
// to wait for.
func (c *Cache) startRefresh() *flight {
	now := c.now()
	e, announced := c.due.pop(now)
	if e == nil {
		return nil
	}
	sh := c.lock(e.ref.SecretName)
	defer sh.unlock()
	if e.value != nil && !e.asked {
		sh.change(e)
		e.forgetDerived()
	}
	switch {
	case e.keep() == keptAlways:
	case e.value == nil:
		return nil // dropped since it was scheduled
	case !announced && !sh.wanted(e):
		e.idle = true // nobody asks for it: let it expire
		return nil
	}
	if e.flight != nil && sh.joinable(e, false) == e.flight {
		return nil // a lookup was faster; its end schedules the next refresh
	}
	f, err := sh.join(e, false, upstream.Cause{})
	if err != nil {
		c.due.set(e, now+int64(time.Second))
		return nil
	}
	f.background = true
	c.outage.begin(now, c.fetchTimeout)
	return f
}

// Warm fetches every declared secret that has no fresh value, in parallel within the bounds
// of the cache. It returns the failures joined, each naming its secret; [Cache.Run] goes on
// trying. A secret that can be served stale is no failure.
func (c *Cache) Warm(ctx context.Context) error {
	pins := c.limits.Load().Pins
	errs := make([]error, len(pins))
	var g errgroup.Group
	g.SetLimit(cap(c.slots))
	for i, p := range pins {
		g.Go(func() error {
			_, err := c.Lookup(ctx, p.Ref)
			errs[i] = named(p.Ref, err)
			return nil
		})
	}
	_ = g.Wait() // the functions return nil
	return errors.Join(errs...)
}

// MissingSecret is a declared secret without a value.
type MissingSecret struct {
	Ref upstream.SecretRef
	Err error // why; never nil
}

// Missing returns the declared secrets that could not be served now, in order of
// declaration. An empty result means that the cache is ready.
func (c *Cache) Missing() []MissingSecret {
	var missing []MissingSecret
	for _, p := range c.limits.Load().Pins {
		sh := c.lock(p.Ref.SecretName)
		e := sh.find(p.Ref)
		switch {
		case e == nil || e.value == nil && e.fail == nil:
			missing = append(missing, MissingSecret{p.Ref, &upstream.Error{Op: opGet, Ref: p.Ref, Message: "not fetched yet", Err: upstream.ErrUnavailable}})
		case e.value == nil:
			missing = append(missing, MissingSecret{p.Ref, sh.failureError(e)})
		case sh.ended(e, c.now()):
			missing = append(missing, MissingSecret{p.Ref, sh.tooOldError(e, c.clock.wall(e.fetchedAt))})
		}
		sh.unlock()
	}
	return missing
}
