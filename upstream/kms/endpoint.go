package kms

import (
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"secretagent/upstream"
)

const (
	// firstRest is how long an endpoint rests after its first failure. The rest doubles with
	// each failed probe, up to maxRest.
	firstRest = time.Second
	maxRest   = time.Minute

	// A probe gets a quarter of the usual time when another endpoint can still answer, so
	// that a black hole costs the probing call little.
	probeShare = 4
	minProbe   = 250 * time.Millisecond
)

// endpoint is one configured endpoint and what is known of its health.
type endpoint struct {
	Endpoint
	name      string // for people: host or socket
	domain    string // for the SDK: host and port
	scheme    string
	valueOnly bool // a dedicated gateway
	transport http.RoundTripper

	mu          sync.Mutex
	failures    int // in a row
	restUntil   time.Time
	probing     bool
	lastSuccess time.Time
	lastFailure string // code or class, never a text of the other side
}

func newEndpoint(e Endpoint, maxConns int) *endpoint {
	ep := &endpoint{Endpoint: e, name: e.Host, domain: e.Host, scheme: e.Scheme, transport: newTransport(e, maxConns)}
	if e.Socket != "" {
		// The host is only a header here; a name that no resolver is asked for.
		ep.name, ep.domain, ep.scheme = e.Socket, "localhost", "http"
	}
	if name, err := hostname(e.Host); err == nil {
		ep.valueOnly = strings.HasSuffix(strings.ToLower(name), gatewaySuffix)
	}
	return ep
}

// local reports whether the other side is our own agent.
func (e *endpoint) local() bool { return e.Socket != "" }

// available reports whether e may be asked now: it is not resting, or its rest is over and
// nobody probes it yet, in which case the caller becomes the probe.
func (e *endpoint) available(now time.Time) (ok, probe bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.failures == 0:
		return true, false
	case now.Before(e.restUntil) || e.probing:
		return false, false
	default:
		e.probing = true
		return true, true
	}
}

// healthy is available without the promise to probe.
func (e *endpoint) healthy() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.failures == 0
}

func (e *endpoint) restingUntil() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.restUntil
}

// report notes how an attempt on e ended. Attempts that began before the present rest say
// nothing new: eight calls that fail together are one failure.
func (e *endpoint) report(t turn, out outcome, now time.Time, logger *slog.Logger) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if t.probe {
		e.probing = false
	}
	switch {
	case out.fault:
		e.lastFailure = upstream.Code(out.err)
		if e.failures > 0 && !t.probe && t.started.Before(e.restUntil) {
			return
		}
		rest := min(firstRest<<min(e.failures, 10), maxRest)
		rest = rest/2 + rand.N(rest/2+1) // a fleet must not probe in step
		e.failures++
		e.restUntil = now.Add(rest)
		logger.Warn("endpoint rests", "endpoint", e.name, "failures", e.failures, "retry_in", rest.Round(time.Millisecond), "err", out.err,
			"hint", "it is tried again; check the endpoint and the way to it")
	case out.answered:
		if e.failures > 0 {
			logger.Info("endpoint is back", "endpoint", e.name, "failures", e.failures)
		}
		e.failures, e.restUntil, e.lastSuccess = 0, time.Time{}, now
	}
}

// turn is one attempt of a call on one endpoint.
type turn struct {
	endpoint *endpoint
	timeout  time.Duration
	started  time.Time
	probe    bool
}

// tour is the way of one call through the endpoints, in rounds: each is asked once before
// any is asked again.
type tour struct {
	endpoints []*endpoint // those that serve the operation, preferred first
	asked     []bool      // in this round, beside endpoints
}

func newTour(all []*endpoint, valueOnly bool) *tour {
	t := &tour{}
	for _, e := range all {
		if valueOnly || !e.valueOnly {
			t.endpoints = append(t.endpoints, e)
		}
	}
	t.asked = make([]bool, len(t.endpoints))
	return t
}

// open reports whether an endpoint is left that was not asked in this round.
func (t *tour) open() bool {
	for _, asked := range t.asked {
		if !asked {
			return true
		}
	}
	return false
}

// stay begins a new round with the preferred endpoint: what was asked last works, it only
// wants to be asked later.
func (t *tour) stay() { clear(t.asked) }

// next chooses the endpoint of the next attempt:
//
//  1. the first in order that is healthy, or whose rest is over and that is due for a probe;
//  2. else the one whose rest ends first: a troubled endpoint is better than none.
//
// The attempt gets timeout, or its share of the time left when other healthy endpoints could
// still answer.
func (t *tour) next(now, deadline time.Time, timeout time.Duration) turn {
	if !t.open() {
		t.stay()
	}
	chosen, probe := -1, false
	for i, e := range t.endpoints {
		if t.asked[i] {
			continue
		}
		if ok, due := e.available(now); ok {
			chosen, probe = i, due
			break
		}
		if chosen < 0 || e.restingUntil().Before(t.endpoints[chosen].restingUntil()) {
			chosen = i
		}
	}
	t.asked[chosen] = true
	others := 0
	for i, e := range t.endpoints {
		if !t.asked[i] && e.healthy() {
			others++
		}
	}
	left := deadline.Sub(now)
	if others > 0 {
		left /= time.Duration(others + 1)
		if probe {
			timeout = max(timeout/probeShare, min(minProbe, timeout))
		}
	}
	return turn{endpoint: t.endpoints[chosen], timeout: min(timeout, left), started: now, probe: probe}
}
