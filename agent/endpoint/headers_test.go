package endpoint_test

import (
	"regexp"
	"testing"
	"time"

	"secretagent/agent/endpoint"
	"secretagent/upstream"
)

// TestEveryValueSaysHowItCame holds that every answer about a value, of whatever kind, says
// its age, how the cache came by it and, when it is stale, why; and that no answer may be
// stored.
func TestEveryValueSaysHowItCame(t *testing.T) {
	r := start(t, endpoint.Options{})
	r.put(value("fresh", "v1", `{"k":"x"}`, upstream.ACSCurrent))
	r.store(value("missed", "v1", `{"k":"x"}`, upstream.ACSCurrent))
	stale := answer(value("stale", "v1", `{"k":"x"}`, upstream.ACSCurrent), upstream.Stale)
	stale.Reason, stale.Age = "Rejected.Throttling", 90*time.Second
	r.mu.Lock()
	r.stored[refOf("stale", "ACSCurrent")] = stale
	r.mu.Unlock()
	tag := r.get(t, "/v1/stale").header.Get("Etag")
	freshTag := r.get(t, "/v1/fresh").header.Get("Etag")
	for _, c := range []struct {
		method, target, ifNoneMatch string
		status                      int
		state, reason, age          string
	}{
		{"GET", "/v1/fresh", "", 200, "hit", "", "0"},
		{"GET", "/v1/fresh", freshTag, 304, "hit", "", "0"},
		{"GET", "/v1/fresh?wait=20ms", freshTag, 304, "hit", "", "0"},
		{"GET", "/v1/fresh?wait=20ms", `"other"`, 200, "hit", "", "0"},
		{"GET", "/v1/missed", "", 200, "miss", "", "0"},
		{"GET", "/v1/missed?refreshNow=1", "", 200, "miss", "", "0"},
		{"GET", "/v1/stale", "", 200, "stale", "Rejected.Throttling", "90"},
		{"GET", "/v1/stale?field=k", "", 200, "stale", "Rejected.Throttling", "90"},
		{"GET", "/v1/stale?format=aws", "", 200, "stale", "Rejected.Throttling", "90"},
		{"GET", "/v1/stale?format=vault", "", 200, "stale", "Rejected.Throttling", "90"},
		{"GET", "/v1/stale?format=raw", "", 200, "stale", "Rejected.Throttling", "90"},
		{"GET", "/secretsmanager/get?secretId=stale", "", 200, "stale", "Rejected.Throttling", "90"},
		{"GET", "/v1/stale", tag, 304, "stale", "Rejected.Throttling", "90"},
		{"GET", "/v1/stale?wait=20ms", tag, 304, "stale", "Rejected.Throttling", "90"},
		{"GET", "/secretsmanager/batch?secretId=fresh", "", 200, "hit", "", "0"},
		{"GET", "/secretsmanager/batch?secretId=fresh&secretId=stale&secretId=missed", "", 200, "stale", "Rejected.Throttling", "90"},
		{"POST", "/secretsmanager/report?secretId=stale", "", 200, "stale", "Rejected.Throttling", "90"},
		{"POST", "/secretsmanager/report?secretId=missed", "", 200, "miss", "", "0"},
	} {
		header := []string{hostLine, tokenLine}
		if c.ifNoneMatch != "" {
			header = append(header, "If-None-Match: "+c.ifNoneMatch)
		}
		if c.method == "POST" {
			header = append(header, "Content-Length: 0")
		}
		conn := r.dial(t)
		conn.send(request(c.method, c.target, header...))
		got := conn.receive(c.method)
		_ = conn.nc.Close()
		h := got.header
		age := regexp.MustCompile("^" + c.age + "$|^[0-9]$")
		if c.age != "0" {
			age = regexp.MustCompile("^(90|9[1-9]|1[0-9][0-9])$")
		}
		if got.status != c.status || h.Get("X-Cache") != c.state || h.Get("X-Cache-Reason") != c.reason || !age.MatchString(h.Get("Age")) ||
			h.Get("Cache-Control") != "no-store" || h.Get("X-Request-Id") == "" {
			t.Errorf("%s %s (%s): %d %v", c.method, c.target, c.ifNoneMatch, got.status, h)
		}
	}
}
