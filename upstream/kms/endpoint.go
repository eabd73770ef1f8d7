package kms

import (
	"net/http"
	"slices"
	"strings"
	"time"
)

const (
	// firstRest is how long an endpoint rests after its first failure, maxRest the longest.
	firstRest = time.Second
	maxRest   = time.Minute

	// A probe gets a quarter of the usual time when another endpoint can still answer, so
	// that a black hole costs the probing call little.
	probeShare = 4
	minProbe   = 250 * time.Millisecond
)

// endpoint is one configured endpoint and its health.
type endpoint struct {
	Endpoint
	name      string // for people: host or socket
	url       string
	valueOnly bool // a dedicated gateway
	transport http.RoundTripper
	health    *health
	offer     offer // nil: it cannot be watched
}

func newEndpoint(e Endpoint, maxConns int) *endpoint {
	ep := &endpoint{
		Endpoint: e, name: e.Host, url: e.Scheme + "://" + e.Host + "/", transport: newTransport(e, maxConns+1), // that of the watch
		health: &health{limit: 1, first: firstRest, longest: maxRest},
	}
	if e.Socket != "" {
		// The host is only a header here; a name that no resolver is asked for.
		ep.name, ep.url = e.Socket, "http://localhost/"
	}
	if name, ok := hostname(e.Host); ok {
		ep.valueOnly = strings.HasSuffix(strings.ToLower(name), gatewaySuffix)
	}
	return ep
}

// local reports whether the other side is our own agent.
func (e *endpoint) local() bool { return e.Socket != "" }

// onHost reports whether the other side is on this host: our own agent, or a relay.
func (e *endpoint) onHost() bool {
	name, _ := hostname(e.Host)
	return e.local() || isLoopback(name)
}

// route is the way of one call through the endpoints, in rounds: each is asked once before
// any is asked again.
type route struct {
	endpoints []*endpoint // those that serve the operation, preferred first
	asked     []bool      // in this round, beside endpoints
}

func newRoute(all []*endpoint, valueOnly bool) route {
	var r route
	for _, e := range all {
		if valueOnly || !e.valueOnly {
			r.endpoints = append(r.endpoints, e)
		}
	}
	r.asked = make([]bool, len(r.endpoints))
	return r
}

// roundOver reports whether every endpoint was asked in this round.
func (r route) roundOver() bool { return !slices.Contains(r.asked, false) }

// restart begins a new round with the preferred endpoint.
func (r route) restart() { clear(r.asked) }

// leg is one attempt of a call on one endpoint.
type leg struct {
	permit
	endpoint *endpoint
	timeout  time.Duration
}

// next chooses the endpoint of the next attempt:
//
//  1. the first in order that is ready, or whose rest is over and that is due for a probe;
//  2. else the one whose rest ends first: a troubled endpoint is better than none.
//
// The attempt gets timeout, or its share of the time left when other endpoints that are ready
// could still answer.
func (r route) next(now, deadline time.Time, timeout time.Duration) leg {
	if r.roundOver() {
		r.restart()
	}
	chosen, permitted, restsUntil := -1, permit{}, time.Time{}
	for i, e := range r.endpoints {
		if r.asked[i] {
			continue
		}
		p, ok := e.health.admit(now)
		if ok {
			chosen, permitted = i, p
			break
		}
		if _, until := e.health.at(now); chosen < 0 || until.Before(restsUntil) {
			chosen, permitted, restsUntil = i, p, until
		}
	}
	r.asked[chosen] = true
	shares := time.Duration(1)
	for i, e := range r.endpoints {
		if s, _ := e.health.at(now); s == ready && !r.asked[i] {
			shares++
		}
	}
	if shares > 1 && permitted.probe {
		timeout = max(timeout/probeShare, min(minProbe, timeout))
	}
	return leg{permit: permitted, endpoint: r.endpoints[chosen], timeout: min(timeout, deadline.Sub(now)/shares)}
}
