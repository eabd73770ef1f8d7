package endpoint_test

import (
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"secretagent/agent/endpoint"
	"secretagent/upstream"
)

// callersOf returns what is known of each caller.
func callersOf(r *rig) map[string]endpoint.CallerStats {
	all := map[string]endpoint.CallerStats{}
	for _, c := range r.srv.Callers() {
		all[c.Name] = c
	}
	return all
}

func TestCallersAreCounted(t *testing.T) {
	web, job := strings.Repeat("w", 32), strings.Repeat("j", 32)
	callers := []endpoint.Caller{
		{Name: "web", Tokens: []endpoint.Token{mustToken(t, web)}, Secrets: []string{"web/*"}},
		{Name: "job", Tokens: []endpoint.Token{mustToken(t, job)}, Secrets: []string{"*"}},
	}
	r := start(t, endpoint.Options{Callers: callers})
	a := answer(value("web/db", "v1", "x", upstream.ACSCurrent), upstream.Hit)
	r.putAnswer(a)
	r.store(value("web/new", "v1", "x", upstream.ACSCurrent))
	if got := callersOf(r); got["web"] != (endpoint.CallerStats{Name: "web"}) || len(got) != 2 {
		t.Fatalf("before anything: %+v", got)
	}

	c := r.dial(t)
	ask := func(target, token string, want int, header ...string) reply {
		t.Helper()
		header = append(header, "Host: localhost", "X-KMS-Token: "+token)
		c.send(request("GET", target, header...))
		got := c.receive("GET")
		if got.status != want {
			t.Fatalf("%s: %d %s", target, got.status, got.body)
		}
		return got
	}
	// One connection is used by both: hits that are still on the account of the connection
	// belong to the caller who made them.
	var etag string
	for range 5 {
		etag = ask("/v1/web/db", web, 200).header.Get("ETag")
	}
	if by, at := a.Derived.LastAsked(); by != "web" || time.Since(at) > time.Minute {
		t.Errorf("web/db was last asked for by %q at %v", by, at)
	}
	ask("/v1/web/new", web, 200)
	ask("/v1/web/db", web, 304, "If-None-Match: "+etag)
	ask("/v1/job/db", web, 403)
	ask("/secretsmanager/batch?secretId=web/db&secretId=job/db&secretId=web/new", web, 200)
	for range 3 {
		ask("/v1/web/db", job, 200)
	}
	if by, _ := a.Derived.LastAsked(); by != "job" {
		t.Errorf("web/db was last asked for by %q", by)
	}
	ask("/v1/web/absent", job, 404)
	got := callersOf(r)
	for name, want := range map[string]endpoint.CallerStats{
		"web": {Name: "web", Lookups: 5 + 1 + 1 + 2, Refusals: 2},
		"job": {Name: "job", Lookups: 3, Connections: 1},
	} {
		if got[name].LastSeen.IsZero() || time.Since(got[name].LastSeen) > time.Minute {
			t.Errorf("%s was last seen at %v", name, got[name].LastSeen)
		}
		want.LastSeen = got[name].LastSeen
		if got[name] != want {
			t.Errorf("got  %+v\nwant %+v", got[name], want)
		}
	}
	ask("/v1/web/db", strings.Repeat("x", 32), 403) // closes the connection, and is nobody's
	eventually(t, "the connection is gone", func() bool { return callersOf(r)["job"].Connections == 0 })
	if after := callersOf(r); after["job"].Lookups != 3 || after["web"].Lookups != 9 || after["job"].Refusals != 0 {
		t.Errorf("after the connection closed: %+v", after)
	}

	// A reload keeps the accounts of those who stay, and shows until when an old token counts.
	until := time.Now().Add(time.Hour).Truncate(time.Second)
	next := []endpoint.Caller{{Name: "web", Tokens: []endpoint.Token{mustToken(t, strings.Repeat("n", 32))}, Secrets: []string{"web/*"}}}
	r.setCallers(t, endpoint.WithOverlap(callers, next, until))
	after := callersOf(r)
	if len(after) != 1 || after["web"].Lookups != 9 || after["web"].Refusals != 2 || !after["web"].OldTokenUntil.Equal(until) {
		t.Errorf("after a reload: %+v", after)
	}
	if s := r.srv.Stats(); s.Hits+s.Misses+s.NotModified != 9+3 {
		t.Errorf("hits %d, misses %d, not modified %d: 12 values were answered", s.Hits, s.Misses, s.NotModified)
	}
}

// TestLookupsAreTimed: every one that is no hit, and a fixed share of the hits of each
// connection.
func TestLookupsAreTimed(t *testing.T) {
	var mu sync.Mutex
	timed := map[string]int{}
	r := start(t, endpoint.Options{Observe: func(result string, took time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		if timed[result]++; took < 0 || took > time.Minute {
			t.Errorf("a %s took %v", result, took)
		}
	}})
	r.put(value("app/db", "v1", "x", upstream.ACSCurrent))
	r.stored[refOf("app/stale", "ACSCurrent")] = answer(value("app/stale", "v1", "x", upstream.ACSCurrent), upstream.Stale)
	for i := range 3 {
		r.store(value(fmt.Sprintf("app/new%d", i), "v1", "x", upstream.ACSCurrent))
	}
	c := r.dial(t)
	for range 640 {
		c.ask("/v1/app/db")
	}
	for _, target := range []string{"/v1/app/new0", "/v1/app/new1", "/v1/app/new2", "/v1/app/absent", "/v1/app/stale", "/live"} {
		c.ask(target)
	}
	mu.Lock()
	defer mu.Unlock()
	if want := map[string]int{"hit": 10, "miss": 3, "error": 1, "stale": 1}; !maps.Equal(timed, want) {
		t.Errorf("timed %v, want %v", timed, want)
	}
}
