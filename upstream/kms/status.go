package kms

import (
	"time"

	"secretagent/upstream"
)

// Status is a snapshot for people, also as JSON. It holds no value and no credential.
type Status struct {
	Endpoint   string `json:",omitzero"` // the one that answered last; empty: none yet
	Endpoints  []EndpointStatus
	Credential CredentialStatus
	Breaker    BreakerStatus
	Budget     BudgetStatus
	InFlight   int // attempts on their way
	Watch      WatchStatus
}

// WatchStatus says whether the endpoint in use tells of changes as they happen. While it does not,
// values are as fresh as the cache makes them.
type WatchStatus struct {
	State       string    // off: no endpoint offers it; on; broken: it is tried again
	Endpoint    string    `json:",omitzero"` // that is asked
	Since       time.Time `json:",omitzero"`
	LastFailure string    `json:",omitzero"` // code, while it is broken
	LastCause   string    `json:",omitzero"` // the same in words
	Changes     uint64    // told so far
}

// EndpointStatus is the health of one endpoint.
type EndpointStatus struct {
	Name          string    // host or socket
	Region        string    `json:",omitzero"`
	State         string    // ready, resting, or due: the next call probes it
	Failures      int       // in a row
	RestsUntil    time.Time `json:",omitzero"` // when the rest ends or, if due, ended; zero: it is ready
	LastSuccessAt time.Time `json:",omitzero"` // zero: never
	LastFailure   string    `json:",omitzero"` // code of the last failure; empty: never
	LastCause     string    `json:",omitzero"` // the same in words
}

// BreakerStatus is the state of the breaker.
type BreakerStatus struct {
	State string    // closed, open or half-open
	Until time.Time `json:",omitzero"` // when an open breaker lets a probe through
}

// BudgetStatus is the call budget as it is now.
type BudgetStatus struct {
	CallsPerSecond    float64   // at present
	MaxCallsPerSecond float64   // as configured
	Calls             float64   // that may start at once; negative while some wait
	PausedUntil       time.Time `json:",omitzero"` // as the service asked; zero: not paused

	Waiting     int     // attempts in line now
	Waits       uint64  // attempts that had to wait
	WaitSeconds float64 // all of them together
	Refused     uint64  // attempts whose turn would have come after their deadline
}

// Status returns the state of the client. It does not block on any call.
func (c *Client) Status() Status {
	now := time.Now()
	s := Status{
		Budget:   c.policy.budget.status(now),
		Breaker:  breakerStatus(c.policy.breaker.at(now)),
		InFlight: len(c.busy),
		Watch:    c.watch.get(),
	}
	if e := c.answered.Load(); e != nil {
		s.Endpoint = e.name
	}
	for _, e := range c.policy.endpoints {
		s.Endpoints = append(s.Endpoints, e.status(now))
	}
	if p, ok := c.policy.Credentials.(interface{ Status() CredentialStatus }); ok {
		s.Credential = p.Status()
	}
	return s
}

func breakerStatus(s state, until time.Time) BreakerStatus {
	b := BreakerStatus{State: [...]string{ready: "closed", resting: "open", due: "half-open"}[s]}
	if s == resting {
		b.Until = until
	}
	return b
}

func (e *endpoint) status(now time.Time) EndpointStatus {
	h := e.health
	h.mu.Lock()
	defer h.mu.Unlock()
	s := EndpointStatus{
		Name: e.name, Region: e.Region, State: [...]string{ready: "ready", resting: "resting", due: "due"}[h.stateLocked(now)],
		Failures: h.failures, RestsUntil: h.restsUntil, LastSuccessAt: h.lastSuccess,
	}
	if h.last.err != nil {
		s.LastFailure, s.LastCause = upstream.Reason(h.last.err), upstream.Explain(h.last.err)
	}
	return s
}

func (b *budget) status(now time.Time) BudgetStatus {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := BudgetStatus{CallsPerSecond: b.current, MaxCallsPerSecond: b.max, Calls: b.limiter.TokensAt(now),
		Waiting: b.waiting, Waits: b.waits, WaitSeconds: b.waited.Seconds(), Refused: b.refused}
	if b.pausedUntil.After(now) {
		s.PausedUntil = b.pausedUntil
	}
	return s
}
