package kms

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strconv"
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
// through the same as in the full fleet. Figures are printed scaled back.
const (
	fleetAgents  = 10000
	fleetSecrets = 20
	fleetQuota   = 450
)

// ideal is how long the service needs for every secret of the fleet.
var ideal = fleetAgents * fleetSecrets * time.Second / fleetQuota

// fleetScale is how many times smaller the simulation is. The figures of the package
// documentation are those of FLEET_SCALE=20. The smaller the simulation, the more a burst of
// one agent weighs.
func fleetScale() int {
	if n, err := strconv.Atoi(os.Getenv("FLEET_SCALE")); err == nil && n > 0 {
		return n
	}
	return 50
}

// service is KMS as seen from afar: a token bucket that holds one second of calls.
type service struct {
	rate  float64
	begun time.Time

	mu      sync.Mutex
	down    bool
	tokens  float64
	last    time.Time
	seconds []tally
}

// tally counts the calls of one second.
type tally struct{ calls, throttled int }

func newService(rate float64) *service {
	now := time.Now()
	return &service{rate: rate, tokens: rate, begun: now, last: now}
}

func (s *service) setDown(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
}

// call answers after 5ms, or fails at once while the service is down.
func (s *service) call(ctx context.Context) outcome {
	if err := sleep(ctx, 5*time.Millisecond); err != nil {
		return outcome{err: err, quit: true}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	second := int(now.Sub(s.begun) / time.Second)
	for len(s.seconds) <= second {
		s.seconds = append(s.seconds, tally{})
	}
	s.seconds[second].calls++
	if s.down {
		return outcome{fault: true, err: &upstream.Error{Err: upstream.ErrUnavailable}}
	}
	s.tokens = min(s.tokens+now.Sub(s.last).Seconds()*s.rate, s.rate)
	s.last = now
	if s.tokens < 1 {
		s.seconds[second].throttled++
		return outcome{answered: true, err: &upstream.Error{Err: upstream.ErrThrottled, Code: "Rejected.Throttling"}}
	}
	s.tokens--
	return outcome{answered: true}
}

// load is what the service saw between two moments, scaled back to the full fleet.
type load struct {
	mean, peak, peak10 float64 // calls per second, on average and at most in 1s and in 10s
	throttled          float64 // share
	calls              int
}

func (l load) String() string {
	return fmt.Sprintf("%6.0f calls/s, at most %6.0f in a second and %6.0f over ten, %2.0f%% throttled", l.mean, l.peak, l.peak10, 100*l.throttled)
}

func (s *service) load(from, to time.Duration, scale int) load {
	s.mu.Lock()
	defer s.mu.Unlock()
	var l load
	first, last := int(from/time.Second), int(to/time.Second)
	throttled, window := 0, 0
	at := func(i int) tally {
		if i < len(s.seconds) {
			return s.seconds[i]
		}
		return tally{}
	}
	for i := first; i < last; i++ {
		c := at(i)
		l.calls += c.calls
		throttled += c.throttled
		window += c.calls
		if i-10 >= first {
			window -= at(i - 10).calls
		}
		l.peak = max(l.peak, float64(c.calls*scale))
		l.peak10 = max(l.peak10, float64(window*scale)/10)
	}
	l.mean = float64(l.calls*scale) / float64(last-first)
	if l.calls > 0 {
		l.throttled = float64(throttled) / float64(l.calls)
	}
	l.calls *= scale
	return l
}

// agent is one sidecar: a policy and a cache over it.
type simulatedAgent struct {
	cache  *cache.Cache
	policy *policy
	ref    []upstream.SecretRef
}

func (a *simulatedAgent) GetSecretValue(ctx context.Context, ref upstream.SecretRef) (upstream.SecretValue, error) {
	return upstream.SecretValue{SecretName: ref.SecretName, VersionID: "v1"}, a.policy.do(ctx, &call{
		op: "GetSecretValue", ref: ref, valueOnly: true, send: a.send,
	})
}

func (a *simulatedAgent) send(ctx context.Context, e *endpoint) outcome {
	return e.transport.(*simulatedTransport).call(ctx)
}

// simulatedTransport lets an endpoint lead to the service.
type simulatedTransport struct {
	http.RoundTripper // never used: calls do not get as far as HTTP
	*service
}

// fleet is all agents of a simulation.
type fleet struct {
	*service
	scale  int
	agents []*simulatedAgent
	stop   context.CancelFunc
	wg     sync.WaitGroup
}

func newFleet(t *testing.T, ttl time.Duration) *fleet {
	if raceDetector && os.Getenv("FLEET_SCALE") == "" {
		t.Skip("takes minutes under the race detector; set FLEET_SCALE to insist")
	}
	scale := fleetScale()
	return newFleetOf(t, fleetAgents/scale, fleetSecrets, scale, ttl)
}

func newFleetOf(t *testing.T, agents, secrets, scale int, ttl time.Duration) *fleet {
	f := &fleet{scale: scale}
	f.service = newService(fleetQuota / float64(f.scale))
	for range agents {
		opts, err := Options{Endpoints: []Endpoint{{Region: "cn-sim"}}, Credentials: StaticCredential("a", "b", "")}.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		e := newEndpoint(opts.Endpoints[0], 1)
		e.transport = &simulatedTransport{service: f.service}
		a := &simulatedAgent{policy: newPolicy(opts, []*endpoint{e})}
		limits := cache.Limits{TTL: ttl}
		for i := range secrets {
			ref := upstream.SecretRef{SecretName: upstream.SecretName(fmt.Sprintf("app/%d", i))}.WithDefaults()
			a.ref = append(a.ref, ref)
			limits.Pins = append(limits.Pins, cache.Pin{Ref: ref})
		}
		if a.cache, err = cache.New(a, cache.Options{Limits: limits, Logger: slog.New(slog.DiscardHandler)}); err != nil {
			t.Fatal(err)
		}
		f.agents = append(f.agents, a)
	}
	return f
}

// start starts all agents within window.
func (f *fleet) start(t *testing.T, window time.Duration) {
	ctx, cancel := context.WithCancel(context.Background())
	f.stop = func() { cancel(); f.wg.Wait() }
	for i, a := range f.agents {
		f.wg.Go(func() {
			if sleep(ctx, window*time.Duration(i)/time.Duration(len(f.agents))) != nil {
				return
			}
			_ = a.cache.Warm(ctx) // what fails is fetched by Run
			if err := a.cache.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
}

// missing returns how many secrets have no value, and stale how many are older than age.
func (f *fleet) state(age time.Duration) (missing, old int) {
	for _, a := range f.agents {
		missing += len(a.cache.Missing())
		for _, e := range a.cache.Entries() {
			if time.Since(e.FetchedAt) > age {
				old++
			}
		}
	}
	return missing, old
}

// drained waits until cond holds and returns how long it took, at most limit.
func drained(limit time.Duration, cond func() bool) time.Duration {
	begin := time.Now()
	for time.Since(begin) < limit && !cond() {
		time.Sleep(5 * time.Second)
	}
	return time.Since(begin)
}

func TestFleetRefreshesSpread(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		ttl       time.Duration
		throttled float64 // at most
	}{{15 * time.Minute, 0.05}, {5 * time.Minute, 0.5}} {
		synctest.Test(t, func(t *testing.T) {
			f := newFleet(t, c.ttl)
			f.start(t, 10*time.Minute)
			time.Sleep(25 * time.Minute)
			from := time.Since(f.begun)
			time.Sleep(20 * time.Minute)
			l := f.load(from, time.Since(f.begun), f.scale)
			missing, old := f.state(c.ttl)
			_, old2 := f.state(2 * c.ttl)
			all := len(f.agents) * fleetSecrets
			t.Logf("TTL %v: wants %.0f calls/s of %.0f: %v; %.1f%% of values are older than the TTL, %.1f%% than twice the TTL",
				c.ttl, fleetAgents*fleetSecrets/(0.875*c.ttl.Seconds()), float64(fleetQuota), l, 100*float64(old)/float64(all), 100*float64(old2)/float64(all))
			// A fleet that wants more than there is can leave a few agents unlucky for long.
			if missing > all/1000 || l.throttled > c.throttled || l.peak10 > 3*fleetQuota {
				t.Errorf("%d values missing, load %v", missing, l)
			}
			f.stop()
		})
	}
}

func TestFleetColdStartDrains(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 15*time.Minute)
		f.start(t, time.Second)
		took := drained(2*time.Hour, func() bool { missing, _ := f.state(time.Hour); return missing == 0 })
		l := f.load(0, took, f.scale)
		t.Logf("cold start: every value is there after %v (at the full quota: %v); %v", took.Round(time.Second), ideal.Round(time.Second), l)
		later := f.load(time.Minute, took, f.scale)
		t.Logf("after the first minute: %v", later)
		if took > 3*ideal || later.mean > 2*fleetQuota {
			t.Errorf("it took %v, the load after a minute is %v", took, later)
		}
		f.stop()
	})
}

func TestFleetAfterAnOutage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 15*time.Minute)
		f.start(t, 10*time.Minute)
		time.Sleep(40 * time.Minute)
		f.setDown(true)
		down := time.Since(f.begun)
		time.Sleep(time.Hour)
		up := time.Since(f.begun)
		probes := f.load(down+time.Minute, up, f.scale)
		t.Logf("during an outage of an hour: %v", probes)
		f.setDown(false)
		restored := time.Now()
		took := drained(2*time.Hour, func() bool { _, old := f.state(time.Since(restored)); return old == 0 })
		l := f.load(up, up+took, f.scale)
		t.Logf("after it: every value is renewed after %v (at the full quota: %v); %v", took.Round(time.Second), ideal.Round(time.Second), l)
		if probes.mean > fleetQuota || l.peak10 > 4*fleetQuota || took > 3*ideal {
			t.Errorf("a herd: %v, %v, probes before it %v", took, l, probes)
		}
		f.stop()
	})
}

// One agent with 200 secrets due wants 15 calls per second of a service that grants it 5.
func TestThrottledAgentServesWhatItHolds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const secrets, granted = 200, 5
		f := newFleetOf(t, 1, secrets, 1, 15*time.Second)
		f.start(t, 0)
		time.Sleep(2 * time.Minute) // all are there and are being refreshed
		f.mu.Lock()
		f.rate, f.tokens = granted, 0
		f.mu.Unlock()
		from := time.Since(f.begun)

		a := f.agents[0]
		var lookups, stale int
		var longest time.Duration
		for range 60 {
			time.Sleep(time.Second)
			for _, ref := range a.ref {
				begin := time.Now()
				answer, err := a.cache.Lookup(t.Context(), ref)
				if err != nil {
					t.Fatalf("lookup: %v", err)
				}
				lookups++
				if answer.Freshness == upstream.Stale {
					stale++
				} else if answer.Freshness == upstream.Hit {
					longest = max(longest, time.Since(begin))
				}
			}
		}
		l := f.load(from, time.Since(f.begun), 1)
		t.Logf("granted %d calls/s: %v; %d lookups, none failed, %.0f%% stale, a fresh one waited %v at most",
			granted, l, lookups, 100*float64(stale)/float64(lookups), longest)
		if l.mean > 2*granted || l.mean < granted/2.0 || longest > 0 {
			t.Errorf("load %v, longest wait %v", l, longest)
		}
		f.stop()
	})
}

// sleep waits for d or until ctx is done.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
