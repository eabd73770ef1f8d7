package endpoint_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"secretagent/agent/endpoint"
	"secretagent/upstream"
)

const (
	webToken   = "web-token-0123456789"
	batchToken = "batch-token-0123456789"
)

func callerWith(t testing.TB, name string, globs []string, tokens ...string) endpoint.Caller {
	c := endpoint.Caller{Name: name, Secrets: globs}
	for _, text := range tokens {
		c.Tokens = append(c.Tokens, mustToken(t, text))
	}
	return c
}

func status(t testing.TB, r *rig, target, token string) int {
	t.Helper()
	c := r.dial(t)
	defer c.nc.Close()
	c.send(request("GET", target, hostLine, "X-KMS-Token: "+token))
	return c.receive("GET").status
}

func TestCallersReadWhatTheirGlobsSay(t *testing.T) {
	r := start(t, endpoint.Options{Callers: []endpoint.Caller{
		callerWith(t, "web", []string{"web/*", "shared/db-?", "exact"}, webToken),
		callerWith(t, "batch", []string{"*/batch", "a*b*c"}, batchToken, "batch-second-token-0123"),
	}})
	for _, name := range []string{"web/db", "web/a/b/c", "web/", "web", "shared/db-1", "shared/db-12", "shared/db-", "exact", "exactly", "x/batch", "a/b/batch", "batch",
		"abc", "aXbYc", "aXbYcZ", "ab"} {
		r.put(value(name, "v1", "x", upstream.ACSCurrent))
	}
	may := map[string]string{
		"web/db": webToken, "web/a/b/c": webToken, "web/": webToken, "shared/db-1": webToken, "exact": webToken,
		"x/batch": batchToken, "a/b/batch": batchToken, "abc": batchToken, "aXbYc": batchToken,
	}
	for ref := range r.held {
		for _, token := range []string{webToken, batchToken} {
			want := 403
			if may[string(ref.SecretName)] == token {
				want = 200
			}
			if got := status(t, r, "/v1/"+string(ref.SecretName), token); got != want {
				t.Errorf("%s with %s: %d, want %d", ref.SecretName, token, got, want)
			}
		}
	}
	if got := status(t, r, "/v1/abc", "batch-second-token-0123"); got != 200 {
		t.Errorf("the second token of a caller: %d", got)
	}
}

func TestDeniedNamesLookAlike(t *testing.T) {
	r := start(t, endpoint.Options{Callers: []endpoint.Caller{callerWith(t, "web", []string{"web/*"}, token)}})
	r.put(value("other/exists", "v1", marker, upstream.ACSCurrent))
	a, b := r.get(t, "/v1/other/exists"), r.get(t, "/v1/other/does-not")
	a.header.Del("X-Request-Id")
	b.header.Del("X-Request-Id")
	if fmt.Sprint(a.status, a.header, a.json(t)["Message"]) != fmt.Sprint(b.status, b.header, b.json(t)["Message"]) || len(a.body) != len(b.body) {
		t.Errorf("one can tell which exists:\n%v %s\n%v %s", a.header, a.body, b.header, b.body)
	}
	if n := r.lookups.Load() + r.refreshes.Load(); n != 0 {
		t.Errorf("%d lookups for denied names", n)
	}
}

func TestTokensOverlap(t *testing.T) {
	old := []endpoint.Caller{callerWith(t, "web", []string{"a"}, webToken)}
	r := start(t, endpoint.Options{Callers: old})
	r.put(value("a", "v1", "x", upstream.ACSCurrent))
	next := []endpoint.Caller{callerWith(t, "web", []string{"a"}, batchToken)}
	set := func(callers []endpoint.Caller) { t.Helper(); r.setCallers(t, callers) }
	overlapping := endpoint.WithOverlap(old, next, time.Now().Add(time.Hour))
	set(overlapping)
	if a, b := status(t, r, "/v1/a", webToken), status(t, r, "/v1/a", batchToken); a != 200 || b != 200 {
		t.Errorf("in the overlap: old %d, new %d", a, b)
	}
	set(endpoint.WithOverlap(old, next, time.Now().Add(-time.Second)))
	if a, b := status(t, r, "/v1/a", webToken), status(t, r, "/v1/a", batchToken); a != 403 || b != 200 {
		t.Errorf("after it: old %d, new %d", a, b)
	}
	// A second change does not prolong what is ending.
	third := endpoint.WithOverlap(endpoint.WithOverlap(old, next, time.Now().Add(-time.Second)), []endpoint.Caller{callerWith(t, "web", []string{"a"}, "third-token-0123456789")}, time.Now().Add(time.Hour))
	set(third)
	if a, b, c := status(t, r, "/v1/a", webToken), status(t, r, "/v1/a", batchToken), status(t, r, "/v1/a", "third-token-0123456789"); a != 403 || b != 200 || c != 200 {
		t.Errorf("two changes: %d %d %d", a, b, c)
	}
	if n := len(third[0].Tokens); n != 2 {
		t.Errorf("the third change keeps %d tokens: the one that has ended is still there", n)
	}
	// Back to the first token: it is not expired by its own past.
	set(endpoint.WithOverlap(next, old, time.Now().Add(-time.Second)))
	if a := status(t, r, "/v1/a", webToken); a != 200 {
		t.Errorf("the token that came back: %d", a)
	}
	if len(next[0].Tokens) != 1 || len(old[0].Tokens) != 1 {
		t.Error("WithOverlap changed its arguments")
	}
	// What cannot be used changes nothing.
	if _, err := r.srv.PrepareCallers(nil); err == nil {
		t.Error("no callers at all were taken")
	}
	if a := status(t, r, "/v1/a", webToken); a != 200 {
		t.Errorf("after a refused change: %d", a)
	}
}

// TestATokenThatIsSeenHalfWrittenStillOverlaps: between the old token and the new one the caller
// is shut out, because its file was empty, once or for long.
func TestATokenThatIsSeenHalfWrittenStillOverlaps(t *testing.T) {
	hour := time.Now().Add(time.Hour)
	shutOut := callerWith(t, "web", []string{"a"}, webToken)
	shutOut.Tokens, shutOut.ShutOut = nil, "its file is empty"
	old := []endpoint.Caller{callerWith(t, "web", []string{"a"}, webToken), callerWith(t, "job", []string{"a"}, "the-token-of-a-job-01")}
	empty := []endpoint.Caller{shutOut, old[1]}
	whole := []endpoint.Caller{callerWith(t, "web", []string{"a"}, batchToken), old[1]}
	r := start(t, endpoint.Options{Callers: old})
	r.put(value("a", "v1", "x", upstream.ACSCurrent))
	want := func(when string, callers []endpoint.Caller, oldToken, newToken int) {
		t.Helper()
		r.setCallers(t, callers)
		if a, b := status(t, r, "/v1/a", webToken), status(t, r, "/v1/a", batchToken); a != oldToken || b != newToken {
			t.Errorf("%s: old %d, new %d, want %d, %d", when, a, b, oldToken, newToken)
		}
	}
	seen := endpoint.WithOverlap(old, empty, hour)
	want("empty", seen, 403, 403)
	if until := r.srv.Callers()[0].OldTokenUntil; !until.IsZero() {
		t.Errorf("a caller that is shut out has a token until %v", until)
	}
	seen = endpoint.WithOverlap(seen, empty, hour.Add(time.Hour))
	want("still empty", seen, 403, 403)
	want("written", endpoint.WithOverlap(seen, whole, hour.Add(2*time.Hour)), 200, 200)
	if until := r.srv.Callers()[0].OldTokenUntil; !until.Equal(hour) {
		t.Errorf("the old token counts until %v, want %v", until, hour)
	}
	want("the same again", endpoint.WithOverlap(seen, old, hour), 200, 403)
	want("too late", endpoint.WithOverlap(endpoint.WithOverlap(old, empty, time.Now().Add(-time.Second)), whole, hour), 403, 200)

	// A token that somebody else has by then is no longer this caller's.
	others := []endpoint.Caller{shutOut, callerWith(t, "job", []string{"b"}, webToken)}
	taken := endpoint.WithOverlap(seen, others, hour)
	if n := len(taken[0].Tokens); n != 0 {
		t.Errorf("a caller that is shut out keeps %d tokens of another", n)
	}
	// Nor does one keep any whose file holds the token of another.
	shared := endpoint.WithOverlap(old, []endpoint.Caller{callerWith(t, "web", []string{"a"}, "the-token-of-a-job-01"), old[1]}, hour)
	if n := len(shared[0].Tokens); n != 0 || shared[0].ShutOut == "" {
		t.Errorf("a caller with the token of another keeps %d tokens, shut out: %q", n, shared[0].ShutOut)
	}
}

func TestCallersChangeWhileServing(t *testing.T) {
	r := start(t, endpoint.Options{})
	r.put(value("a", "v1", "x", upstream.ACSCurrent))
	var wg sync.WaitGroup
	for range 4 {
		c := r.dial(t)
		wg.Go(func() {
			for range 200 {
				if got := c.ask("/v1/a"); got.status != 200 {
					t.Errorf("%d %s", got.status, got.code)
					return
				}
			}
		})
	}
	for i := range 200 {
		r.setCallers(t, []endpoint.Caller{endpoint.DefaultCaller(mustToken(t, token)), callerWith(t, "other", []string{"*"}, fmt.Sprintf("token-number-%08d", i))})
	}
	wg.Wait()
}

// TestEveryRequestIsJudgedByItself asks on one connection for things that look alike, for two
// callers, and changes values and rights in between.
func TestEveryRequestIsJudgedByItself(t *testing.T) {
	r := start(t, endpoint.Options{Callers: []endpoint.Caller{callerWith(t, "web", []string{"*"}, token), callerWith(t, "batch", []string{"b"}, batchToken)}})
	r.put(value("a", "v1", `{"k":"first"}`, upstream.ACSCurrent))
	r.put(value("b", "v1", `{"k":"of b"}`, upstream.ACSCurrent))
	c := r.dial(t)
	ask := func(target, token string, status int, contains string) reply {
		t.Helper()
		c.send(request("GET", target, hostLine, "X-KMS-Token: "+token))
		got := c.receive("GET")
		if got.status != status || !strings.Contains(got.body, contains) {
			t.Errorf("%s: %d %s", target, got.status, got.body)
		}
		return got
	}
	first := ask("/v1/a", token, 200, "first")
	ask("/v1/b", token, 200, "of b")
	ask("/v1/a?field=k", token, 200, "first")
	ask("/v1/a?field=x", token, 404, "FieldNotFound")
	ask("/v1/%61", token, 200, "SecretData")
	ask("/v1/%62", token, 200, "of b")
	ask("/v1/%61?foo=%62", token, 400, "foo")
	ask("/secretsmanager/batch?secretId=%62&secretId=%62", token, 200, "of b")
	ask("/v1/a", batchToken, 403, "NoPermission")
	ask("/v1/b", batchToken, 200, "of b")
	ask("/v1/"+strings.Repeat("x", 150)+"?versionStage="+strings.Repeat("y", 64)+"&format=aws", token, 400, "ResourceNotFound")
	r.put(value("a", "v2", `{"k":"second"}`, upstream.ACSCurrent))
	second := ask("/v1/a", token, 200, "second")
	for _, header := range []string{"Etag", "X-Request-Id"} {
		if first.header.Get(header) == second.header.Get(header) {
			t.Errorf("%s is the same after a change", header)
		}
	}
	r.setCallers(t, []endpoint.Caller{callerWith(t, "web", []string{"b"}, token)})
	ask("/v1/a", token, 403, "Forbidden.NoPermission")
	ask("/v1/b", batchToken, 403, "TokenInvalid")
}
