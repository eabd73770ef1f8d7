package endpoint_test

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"secretagent/agent/endpoint"
	"secretagent/upstream"
	"secretagent/upstream/slots"
	"secretagent/upstream/upstreamtest"
)

// startMonitor serves a monitor until the test ends. Its metrics are who sees them, and whether that
// is all of them; it is not ready, because of a secret.
func startMonitor(t testing.TB, callers ...endpoint.Caller) *rig {
	t.Helper()
	r := &rig{log: &upstreamtest.Buffer{}}
	srv, err := endpoint.NewMonitor(endpoint.MonitorOptions{
		Callers: callers,
		Ready: func() endpoint.Readiness {
			return endpoint.Readiness{Problems: []endpoint.Problem{{Subject: "secret web/db", Secrets: []upstream.SecretName{"web/db"}, Reason: "it is not there"}}}
		},
		Metrics: func(w io.Writer, v endpoint.Viewer) error {
			_, err := fmt.Fprintf(w, "caller=%s all=%t web=%t\n", v.Caller, v.All, v.May("web/db"))
			return err
		},
		Logger: r.logger(),
	})
	must(t, err)
	r.run(t, srv)
	return r
}

// scraper is who holds the token.
func scraper(t testing.TB) endpoint.Caller {
	return endpoint.Caller{Name: "metrics", Tokens: []endpoint.Token{mustToken(t, token)}, Metrics: true}
}

// TestAMonitorAnswersThreePathsAlone sends what others on the network may send.
func TestAMonitorAnswersThreePathsAlone(t *testing.T) {
	const (
		elsewhere = "Host: 10.244.0.7:9102"
		mesh      = "X-Forwarded-Proto: https"
		bearer    = "Authorization: Bearer " + token
		someone   = "caller= all=false web=false\n"
		holder    = "caller=metrics all=true web=true\n"
	)
	open, closed := startMonitor(t), startMonitor(t, scraper(t))
	type exchange struct {
		name   string
		raw    string
		status int
		code   string
		body   string // empty: any
	}
	both := []exchange{
		{"liveness", request("GET", "/live", elsewhere), 200, "", "{\"Live\":true}\n"},
		{"liveness through a mesh", request("GET", "/live", elsewhere, mesh, "Via: 1.1 proxy"), 200, "", ""},
		{"readiness without names", request("GET", "/ready", elsewhere), 503, "", "{\"Ready\":false}\n"},
		{"readiness without names for who has the token", request("GET", "/ready", elsewhere, bearer), 503, "", "{\"Ready\":false}\n"},
		{"metrics in another case", request("GET", "/Metrics", elsewhere, bearer), 404, "PathNotFound", ""},
		{"metrics with a slash", request("GET", "/metrics/", elsewhere, bearer), 404, "PathNotFound", ""},
		{"metrics, absolute", request("GET", "http://10.244.0.7/metrics", elsewhere, bearer), 404, "PathNotFound", ""},
		{"metrics by POST", request("POST", "/metrics", elsewhere, bearer, "Content-Length: 0"), 405, "MethodNotAllowed", ""},
		{"metrics by HEAD", request("HEAD", "/metrics", elsewhere, bearer), 405, "", ""},
		{"metrics with a body", request("GET", "/metrics", elsewhere, bearer, "Content-Length: 3") + "abc", 400, "MalformedRequest", ""},
		{"metrics with a parameter", request("GET", "/metrics?secretId=web/db", elsewhere, bearer), 400, "InvalidParameter", ""},
		{"metrics for a page", request("GET", "/metrics", elsewhere, bearer, "Origin: http://evil.example"), 403, "OriginNotAllowed", ""},
		{"health for a page", request("GET", "/live", elsewhere, "Sec-Fetch-Site: cross-site"), 403, "OriginNotAllowed", ""},
		{"a huge header", request("GET", "/metrics", elsewhere, "X-Junk: "+strings.Repeat("a", 9<<10)), 431, "HeaderTooLarge", ""},
		{"not HTTP", "\x16\x03\x01\x02\x00\r\n\r\n", 400, "MalformedRequest", ""},
	}
	for _, path := range []string{"/", "/v1/web/db", "/v1/secret/data/web/db", "/secretsmanager/get?secretId=web/db", "/secretsmanager/batch?secretId=web/db",
		"/systemsmanager/parameters/get?name=web/db", "/status", "/status/page.css", "/status/versions?secretId=web/db", "/status/open?code=x", "/ping",
		"/v1/sys/health", "/metrics/../v1/web/db", "/live%2f..%2fv1/web/db", "//metrics"} {
		for _, header := range []string{"Accept: */*", "X-Aws-Parameters-Secrets-Token: " + token} {
			both = append(both, exchange{path + " with " + header, request("GET", path, elsewhere, tokenLine, bearer, "X-Vault-Token: "+token, header), 404, "PathNotFound", ""})
		}
	}
	for _, path := range []string{"/secretsmanager/report?secretId=web/db", "/secretsmanager/changed?secretId=web/db", "/status/link", "/status/sign-in", "/status/sign-out"} {
		both = append(both, exchange{"POST " + path, request("POST", path, elsewhere, tokenLine, bearer, "Content-Length: 0"), 404, "PathNotFound", ""})
	}
	for _, method := range []string{"PUT", "DELETE", "OPTIONS", "LIST", "TRACE"} {
		both = append(both, exchange{method, request(method, "/v1/web/db", elsewhere, tokenLine, bearer), 405, "MethodNotAllowed", ""})
	}
	for _, s := range []struct {
		name      string
		rig       *rig
		exchanges []exchange
	}{
		{"without a token", open, append(slices.Clone(both),
			exchange{"metrics", request("GET", "/metrics", elsewhere, mesh), 200, "", someone},
			exchange{"metrics with some token", request("GET", "/metrics", elsewhere, bearer), 200, "", someone},
		)},
		{"with a token", closed, append(slices.Clone(both),
			exchange{"metrics", request("GET", "/metrics", elsewhere, bearer, mesh), 200, "", holder},
			exchange{"metrics, as spelled elsewhere", request("GET", "/metrics", elsewhere, "authorization: bearer  "+token), 200, "", holder},
			exchange{"metrics without the token", request("GET", "/metrics", elsewhere), 403, "TokenMissing", ""},
			exchange{"metrics with the header of the endpoint", request("GET", "/metrics", elsewhere, tokenLine), 403, "TokenMissing", ""},
			exchange{"metrics with a wrong token", request("GET", "/metrics", elsewhere, bearer+"0"), 403, "TokenInvalid", ""},
			exchange{"metrics with the token alone", request("GET", "/metrics", elsewhere, "Authorization: "+token), 403, "TokenInvalid", ""},
			exchange{"metrics with another scheme", request("GET", "/metrics", elsewhere, "Authorization: Basic "+token), 403, "TokenInvalid", ""},
			exchange{"metrics with an empty token", request("GET", "/metrics", elsewhere, "Authorization: Bearer"), 403, "TokenInvalid", ""},
			exchange{"metrics with two tokens that differ", request("GET", "/metrics", elsewhere, bearer, bearer+"0"), 403, "TokenInvalid", ""},
		)},
	} {
		for _, e := range s.exchanges {
			c := s.rig.dial(t)
			c.send(e.raw)
			got := c.receive(strings.SplitN(e.raw, " ", 2)[0])
			if got.status != e.status || got.code != e.code || e.body != "" && got.body != e.body {
				t.Errorf("%s, %s: %d %q, want %d %q\n%s", s.name, e.name, got.status, got.code, e.status, e.code, got.body)
			}
			if got.status != 200 && strings.Contains(got.body, "web/db") || strings.Contains(got.body, token) {
				t.Errorf("%s, %s: the answer tells %s", s.name, e.name, got.body)
			}
		}
		if log := s.rig.log.String(); strings.Contains(log, token) || strings.Contains(log, "web/db") {
			t.Errorf("%s: the log tells:\n%s", s.name, log)
		}
		if s := s.rig.srv.Stats(); s.Panics > 0 {
			t.Errorf("%d panics", s.Panics)
		}
	}
}

// TestTheTokenOfAMonitorCanChange: it comes, is another one, and goes while the monitor answers.
func TestTheTokenOfAMonitorCanChange(t *testing.T) {
	r := startMonitor(t)
	other := strings.Repeat("fedcba9876543210", 4)
	want := func(header string, status int) {
		t.Helper()
		if got := r.get(t, "/metrics", header); got.status != status {
			t.Errorf("%q: %d, want %d", header, got.status, status)
		}
	}
	want("Accept: */*", 200)
	r.setCallers(t, []endpoint.Caller{scraper(t)})
	want("Accept: */*", 403)
	want("Authorization: Bearer "+token, 200)
	next := scraper(t)
	next.Tokens = []endpoint.Token{mustToken(t, other)}
	r.setCallers(t, []endpoint.Caller{next})
	want("Authorization: Bearer "+token, 403)
	want("Authorization: Bearer "+other, 200)
	r.setCallers(t, nil)
	want("Accept: */*", 200)
}

// TestAttacksOnAMonitor lets attackers on the network do what they do while an orchestrator probes
// and Prometheus scrapes: all of these are answered, and what is open is bounded.
func TestAttacksOnAMonitor(t *testing.T) {
	crowd, enough := 1000, 20
	if testing.Short() {
		crowd, enough = 300, 5
	}
	scrape := "Authorization: Bearer " + token
	for _, attack := range []struct {
		name string
		run  func(a *arena)
	}{
		{"slow headers", func(a *arena) { a.crowd(crowd/4, "GET /metrics HTTP/1.1\r\nHost: a\r\nX-Slow: ", "x") }},
		{"idle connections", func(a *arena) { a.crowd(crowd, "", "") }},
		{"connections that come and go", func(a *arena) {
			a.flood(8, func() {
				if nc := a.open(); nc != nil {
					_ = nc.Close()
				}
			})
		}},
		{"garbage", func(a *arena) { a.flood(8, func() { a.ask(strings.Repeat("\x00\xff garbage \r\n\r\n", 100)) }) }},
		{"guesses", func(a *arena) {
			a.flood(8, func() { a.ask(request("GET", "/metrics", hostLine, "Authorization: Bearer "+strings.Repeat("f", 64))) })
		}},
		{"probes", func(a *arena) { a.flood(8, func() { a.ask(request("GET", "/ready", hostLine)) }) }},
	} {
		t.Run(attack.name, func(t *testing.T) {
			a := &arena{t: t, r: startMonitor(t, scraper(t)), stop: make(chan struct{}), unfolded: make(chan struct{}), answers: map[string]int{}}
			ended := make(chan struct{})
			go func() { defer close(ended); attack.run(a) }()
			<-a.unfolded
			for range enough {
				a.newcomer("/live", "Accept: */*")
				a.newcomer("/metrics", scrape)
				if n := a.r.srv.Stats(); n.Connections > endpoint.MonitorConnections || n.HealthConnections > slots.Spares {
					t.Errorf("%d connections and %d beyond", n.Connections, n.HealthConnections)
				}
			}
			close(a.stop)
			<-ended
			if n := a.r.srv.Stats(); n.Panics > 0 {
				t.Errorf("%d panics", n.Panics)
			}
		})
	}
}

// TestScrapesWithoutATokenAreLimited: they cost much more than a lookup. The token lifts that.
func TestScrapesWithoutATokenAreLimited(t *testing.T) {
	open := startMonitor(t).dial(t)
	ask := func(c *client, header string) reply {
		c.send(request("GET", "/metrics", hostLine, header))
		return c.receive("GET")
	}
	for range 20 {
		if got := ask(open, "Accept: */*"); got.status != 200 {
			t.Fatalf("at first: %d %s", got.status, got.code)
		}
	}
	eventually(t, "one too many", func() bool {
		got := ask(open, "Accept: */*")
		return got.status == 429 && got.code == "TooManyScrapes"
	})
	closed := startMonitor(t, scraper(t)).dial(t)
	for range 60 {
		if got := ask(closed, "Authorization: Bearer "+token); got.status != 200 {
			t.Fatalf("with the token: %d %s", got.status, got.code)
		}
	}
}
