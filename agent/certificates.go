package agent

import (
	"os"
	"time"

	"secretagent/agent/config"
	"secretagent/agent/listen"
)

// certificate is one that the agent shows or trusts, and when it ends.
type certificate struct {
	name    string // one of five, for metrics
	expires time.Time
}

// certificates returns those whose end is known.
func (a *Agent) certificates() []certificate {
	var list []certificate
	add := func(name string, expires time.Time) {
		if !expires.IsZero() {
			list = append(list, certificate{name, expires})
		}
	}
	for _, ln := range a.live.Load().serving {
		own, clients := expiryOf(ln.TLS())
		add("endpoint", own)
		add("endpoint-client-ca", clients)
	}
	for _, ln := range a.apiListeners {
		own, clients := expiryOf(ln.TLS())
		add("kms-api", own)
		add("kms-api-client-ca", clients)
	}
	if cloud := a.upstreamStatus().Alibaba; cloud != nil {
		add("upstream-ca", cloud.CAExpires)
	}
	return list
}

// expiryOf returns when certificate and client authorities of a listener end; zero without.
func expiryOf(t *listen.TLS) (own, clients time.Time) {
	if t == nil {
		return own, clients
	}
	return t.Expiry()
}

// caExpiry returns when the first of the authorities ends that endpoints are checked against;
// zero when they are those of the system. The client has read the files and found them right.
func caExpiry(endpoints []config.KMSEndpoint) (first time.Time) {
	for _, e := range endpoints {
		if e.CAFile == "" {
			continue
		}
		text, err := os.ReadFile(string(e.CAFile))
		if err != nil {
			continue
		}
		if end := listen.FirstExpiry(text); first.IsZero() || !end.IsZero() && end.Before(first) {
			first = end
		}
	}
	return first
}
