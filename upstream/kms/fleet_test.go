//go:build !race

package kms

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"secretagent/cache"
	"secretagent/upstream"
)

// The simulation runs the real policy of this package (budget, breaker, retry, endpoints) and
// the real cache in virtual time against a virtual service. It is scaled down: fleetScale
// times fewer agents share a quota that is fleetScale times smaller, so that each agent lives
// through the same as in the full fleet. Figures are scaled back. The smaller the simulation,
// the more a burst of one agent weighs: those of the package documentation have a scale of 20.
const (
	fleetAgents  = 10000
	fleetSecrets = 20
	fleetQuota   = 450
	fleetScale   = 50
	quota        = fleetQuota / float64(fleetScale)
)

// service is KMS as seen from afar: a token bucket that holds one second of calls.
type service struct {
	mu      sync.Mutex
	down    bool
	begun   time.Time
	last    time.Time
	tokens  float64
	seconds []struct{ calls, throttled int }
}

func (s *service) setDown(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
}

// call answers after 5ms, or fails then while the service is down.
func (s *service) call(ctx context.Context, _ *endpoint) outcome {
	if err := sleep(ctx, 5*time.Millisecond); err != nil {
		return outcome{err: err, quit: true}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for int(now.Sub(s.begun)/time.Second) >= len(s.seconds) {
		s.seconds = append(s.seconds, struct{ calls, throttled int }{})
	}
	second := &s.seconds[len(s.seconds)-1]
	second.calls++
	if s.down {
		return broken
	}
	s.tokens = min(s.tokens+now.Sub(s.last).Seconds()*quota, quota)
	s.last = now
	if s.tokens < 1 {
		second.throttled++
		return throttled
	}
	s.tokens--
	return grantedOut
}

// load returns what the service saw since a moment: calls per second on average and at most
// over ten, and the share that was throttled.
func (s *service) load(since time.Time) (mean, peak, refused float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	first := int(since.Sub(s.begun) / time.Second)
	calls, throttled, window := 0, 0, 0
	for i := first; i < len(s.seconds); i++ {
		calls += s.seconds[i].calls
		throttled += s.seconds[i].throttled
		if window += s.seconds[i].calls; i-10 >= first {
			window -= s.seconds[i-10].calls
		}
		peak = max(peak, float64(window)/10)
	}
	return float64(calls) / time.Since(since).Seconds(), peak, float64(throttled) / float64(max(calls, 1))
}

// fleet is all agents of a simulation: each a policy and a cache over it.
type fleet struct {
	*service
	caches []*cache.Cache
}

// newFleet starts the agents within window. They stop when the test ends.
func newFleet(t *testing.T, ttl, window time.Duration) *fleet {
	now := time.Now()
	f := &fleet{service: &service{tokens: quota, begun: now, last: now}}
	limits := cache.Limits{TTL: ttl}
	for i := range fleetSecrets {
		ref := upstream.SecretRef{SecretName: upstream.SecretName(fmt.Sprintf("app/%d", i))}
		limits.Pins = append(limits.Pins, cache.Pin{Ref: ref.WithDefaults()})
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() { cancel(); running.Wait() })
	const agents = fleetAgents / fleetScale
	for i := range agents {
		p := testPolicy(t, nil, "cn-sim")
		c, err := cache.New(answering(func(ctx context.Context, ref upstream.SecretRef) error {
			return p.do(ctx, &call{request: request{op: "GetSecretValue", ref: ref, valueOnly: true}, send: f.service.call})
		}), cache.Options{Limits: limits, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		f.caches = append(f.caches, c)
		running.Go(func() {
			if sleep(ctx, window*time.Duration(i)/time.Duration(agents)) != nil {
				return
			}
			_ = c.Warm(ctx) // what fails is fetched by Run
			if err := c.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	return f
}

// wanting returns how many values are missing or were fetched before a moment.
func (f *fleet) wanting(since time.Time) (n int) {
	for _, c := range f.caches {
		n += len(c.Missing())
		for _, e := range c.Entries() {
			if e.FetchedAt.Before(since) {
				n++
			}
		}
	}
	return n
}

// complete waits until every value was fetched after a moment, two hours at most.
func (f *fleet) complete(since time.Time) {
	for begun := time.Now(); time.Since(begun) < 2*time.Hour && f.wanting(since) > 0; {
		time.Sleep(5 * time.Second)
	}
}

// TestFleet races with nothing that other tests do not race with, and so leaves the race detector
// out. It lets all agents share the quota: they spread their calls, a start of all in one
// second drains, an outage is followed by no herd, and too short a TTL is only late.
func TestFleet(t *testing.T) {
	if testing.Short() {
		t.Skip("it computes for seconds")
	}
	t.Parallel()
	const ideal = fleetAgents * fleetSecrets * time.Second / fleetQuota // what the service needs for everything
	run := func(name string, ttl, window time.Duration, story func(t *testing.T, f *fleet, check func(what string, since time.Time, mean, peak, refused float64))) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(t, ttl, window)
				story(t, f, func(what string, since time.Time, mean, peak, refused float64) {
					t.Helper()
					gotMean, gotPeak, gotRefused := f.load(since)
					t.Logf("%s: %.0f calls/s, at most %.0f over ten seconds, %.0f%% throttled", what, gotMean*fleetScale, gotPeak*fleetScale, 100*gotRefused)
					if gotMean > mean*quota || gotPeak > peak*quota || gotRefused > refused {
						t.Errorf("want at most %.0f on average, %.0f over ten seconds, %.0f%% throttled", mean*fleetQuota, peak*fleetQuota, 100*refused)
					}
				})
			})
		})
	}
	complete := func(t *testing.T, f *fleet, since time.Time) {
		t.Helper()
		f.complete(since)
		t.Logf("every value is there after %v (at the full quota: %v)", time.Since(since), ideal)
		if time.Since(since) > 3*ideal {
			t.Error("it took too long")
		}
	}
	type check = func(what string, since time.Time, mean, peak, refused float64)
	run("a start of all at once", 15*time.Minute, time.Second, func(t *testing.T, f *fleet, check check) {
		begun := time.Now()
		complete(t, f, begun)
		check("after the first minute", begun.Add(time.Minute), 2, 4, 1)
	})
	run("an outage", 15*time.Minute, 10*time.Minute, func(t *testing.T, f *fleet, check check) {
		time.Sleep(25 * time.Minute)
		steady := time.Now()
		time.Sleep(20 * time.Minute)
		check("steady", steady, 1, 3, 0.05)
		if n := f.wanting(steady.Add(5 * time.Minute)); n > 0 {
			t.Errorf("%d values are older than their TTL", n)
		}
		f.setDown(true)
		time.Sleep(time.Minute)
		down := time.Now()
		time.Sleep(time.Hour)
		check("down", down, 1, 4, 0)
		f.setDown(false)
		up := time.Now()
		complete(t, f, up)
		check("recovery", up, 2, 4, 1)
	})
	run("too short a TTL", 5*time.Minute, 10*time.Minute, func(t *testing.T, f *fleet, check check) {
		time.Sleep(25 * time.Minute)
		steady := time.Now()
		time.Sleep(20 * time.Minute)
		check("steady", steady, 2, 3, 0.5)
		// A fleet that wants more than there is can leave a few agents unlucky for long.
		if n := f.wanting(time.Time{}); n > fleetAgents*fleetSecrets/fleetScale/1000 {
			t.Errorf("%d values are missing", n)
		}
	})
}
