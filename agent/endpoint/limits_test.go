package endpoint_test

import (
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"secretagent/agent/endpoint"
	"secretagent/upstream"
)

// busyClients occupies n connections with lookups that do not return before release.
func busyClients(t *testing.T, r *rig, n int) (clients []*client, release func()) {
	t.Helper()
	entered, gate := make(chan struct{}, n), make(chan struct{})
	r.hook(func(context.Context, upstream.SecretRef) { entered <- struct{}{}; <-gate })
	for range n {
		c := r.dial(t)
		c.send(request("GET", "/v1/slow", hostLine, tokenLine))
		clients = append(clients, c)
		<-entered
	}
	return clients, func() { close(gate) }
}

func TestConnectionsRunOutWhileHealthAnswers(t *testing.T) {
	r := start(t, endpoint.Options{MaxConnections: 4})
	r.store(value("slow", "v1", "x", upstream.ACSCurrent))
	r.put(value("fast", "v1", "x", upstream.ACSCurrent))
	clients, release := busyClients(t, r, 4)
	if got := r.get(t, "/v1/fast"); got.status != 503 || got.code != "TooManyConnections" || !got.closed || got.header.Get("Retry-After") == "" {
		t.Errorf("beyond the limit: %d %s", got.status, got.code)
	}
	for range 10 {
		c := r.dial(t)
		c.send(request("GET", "/live", hostLine))
		if got := c.receive("GET"); got.status != 200 || !got.closed {
			t.Errorf("/live: %d", got.status)
		}
	}
	// Those who use up even what is kept for health make room for others.
	eventually(t, "the probes have left", func() bool { return r.srv.Stats().HealthConnections == 0 })
	var probes []*client
	for range 16 {
		probes = append(probes, r.dial(t))
	}
	eventually(t, "all are let in", func() bool { return r.srv.Stats().HealthConnections == 16 })
	if got := r.get(t, "/live"); got.status != 200 {
		t.Errorf("/live after a crowd of silent ones: %d", got.status)
	}
	if _, err := probes[0].tryReceive("GET"); err == nil {
		t.Error("the first of them got an answer nobody asked for")
	}
	for _, c := range probes {
		_ = c.nc.Close()
	}
	eventually(t, "they have left", func() bool { return r.srv.Stats().HealthConnections == 0 })
	release()
	for _, c := range clients {
		if got := c.receive("GET"); got.status != 200 {
			t.Errorf("a slow one: %d %s", got.status, got.code)
		}
	}
	if got := r.get(t, "/v1/fast"); got.status != 200 {
		t.Errorf("afterwards: %d %s", got.status, got.code)
	}
}

// twoCallers are one with the usual token and one with other.
func twoCallers(t testing.TB, other string) []endpoint.Caller {
	return []endpoint.Caller{
		{Name: "app", Tokens: []endpoint.Token{mustToken(t, token)}, Secrets: []string{"*"}},
		{Name: "other", Tokens: []endpoint.Token{mustToken(t, other)}, Secrets: []string{"*"}},
	}
}

// TestACallerCannotTakeTheShareOfAnother: one that fills all connections with lookups that do not
// end, or all places of waiting clients, keeps no other out.
func TestACallerCannotTakeTheShareOfAnother(t *testing.T) {
	other := strings.Repeat("fedcba9876543210", 4)
	otherLine := "X-KMS-Token: " + other
	t.Run("connections", func(t *testing.T) {
		r := start(t, endpoint.Options{MaxConnections: 4, Callers: twoCallers(t, other)})
		r.store(value("slow", "v1", "x", upstream.ACSCurrent))
		r.put(value("fast", "v1", "x", upstream.ACSCurrent))
		_, release := busyClients(t, r, 4)
		defer release()
		if got := r.get(t, "/v1/fast"); got.status != 503 || got.code != "TooManyConnections" {
			t.Errorf("the caller that has all: %d %s", got.status, got.code)
		}
		var clients []*client
		for range 2 {
			c := r.dial(t)
			clients = append(clients, c)
			c.send(request("GET", "/v1/fast", hostLine, otherLine))
			if got := c.receive("GET"); got.status != 200 || got.closed {
				t.Errorf("another caller: %d %s, closed %v", got.status, got.code, got.closed)
			}
		}
		if s := r.srv.Stats(); s.Connections != 4 || s.Evicted != 2 {
			t.Errorf("%d connections, %d evicted", s.Connections, s.Evicted)
		}
		for _, c := range clients { // they are there to stay
			c.send(request("GET", "/v1/fast", hostLine, otherLine))
			if got := c.receive("GET"); got.status != 200 {
				t.Errorf("again: %d %s", got.status, got.code)
			}
		}
		if log := r.log.String(); !strings.Contains(log, "all connections are taken") || !strings.Contains(log, "caller=app") {
			t.Errorf("log:\n%s", log)
		}
	})
	t.Run("waiting", func(t *testing.T) {
		inBubble(t, endpoint.Options{MaxWaiters: 4, MaxWait: time.Hour, Callers: twoCallers(t, other)}, func(t *testing.T, r *rig) {
			r.put(value("a", "v1", "x", upstream.ACSCurrent))
			tag := "If-None-Match: " + r.get(t, "/v1/a").header.Get("ETag")
			wait := func(token string) *client {
				c := r.dial(t)
				c.send(request("GET", "/v1/a?wait=1h", hostLine, token, tag))
				synctest.Wait()
				return c
			}
			for range 4 {
				wait(tokenLine)
			}
			if got := wait(tokenLine).receive("GET"); got.status != 503 || got.code != "TooManyWaiters" {
				t.Errorf("the caller that has all: %d %s", got.status, got.code)
			}
			first, second := wait(otherLine), wait(otherLine)
			if got := wait(otherLine).receive("GET"); got.status != 503 {
				t.Errorf("beyond a half: %d %s", got.status, got.code)
			}
			if s := r.srv.Stats(); s.Waiting != 4 || s.Evicted != 2 {
				t.Errorf("%d wait, %d evicted", s.Waiting, s.Evicted)
			}
			r.put(value("a", "v2", "y", upstream.ACSCurrent))
			for _, c := range []*client{first, second} {
				if got := c.receive("GET"); got.status != 200 || !strings.Contains(got.body, `"v2"`) {
					t.Errorf("after the change: %d %s", got.status, got.body)
				}
			}
		})
	})
}

func TestIdleClientsMakeRoom(t *testing.T) {
	inBubble(t, endpoint.Options{MaxConnections: 3, IdleTimeout: time.Hour}, func(t *testing.T, r *rig) {
		r.put(value("a", "v1", "x", upstream.ACSCurrent))
		ask := func(c *client) *client {
			if got := c.ask("/v1/a"); got.status != 200 {
				t.Fatalf("%d %s", got.status, got.code)
			}
			return c
		}
		clients := []*client{ask(r.dial(t)), ask(r.dial(t)), ask(r.dial(t))}
		time.Sleep(5 * time.Second)
		ask(clients[0])
		ask(clients[2])
		ask(r.dial(t)) // in place of the one that rested
		if s := r.srv.Stats(); s.Evicted != 1 || s.Connections > 3 {
			t.Errorf("%d evicted, %d open", s.Evicted, s.Connections)
		}
		if _, err := clients[1].tryReceive("GET"); err == nil {
			t.Error("the one that rested got an answer nobody asked for")
		}
		ask(clients[0])
		ask(clients[2])
	})
}

func TestTimeouts(t *testing.T) {
	opts := endpoint.Options{RequestTimeout: 10 * time.Second, IdleTimeout: 30 * time.Second, LookupTimeout: time.Hour, MaxWait: time.Hour}
	inBubble(t, opts, func(t *testing.T, r *rig) {
		r.put(value("a", "v1", "x", upstream.ACSCurrent))
		r.store(value("slow", "v1", "x", upstream.ACSCurrent))
		began := time.Now()
		within := func(what string, limit time.Duration) { // a few sweeps late at most
			t.Helper()
			if took := time.Since(began); took < limit || took > limit+3*time.Second {
				t.Errorf("%s: after %v", what, took)
			}
		}
		silent := r.dial(t)
		unended := r.dial(t) // its lines have other ends
		unended.send("GET /v1/a HTTP/1.1\n" + hostLine + "\n\n")
		slow := r.dial(t)
		slow.send("GET /v1/a HTTP/1.1\r\nHost:")
		go func() { // drips, so that every read makes progress
			for {
				if _, err := io.WriteString(slow.nc, "a"); err != nil {
					return
				}
				time.Sleep(100 * time.Millisecond)
			}
		}()
		if got := slow.receive("GET"); got.status != 408 || got.code != "RequestTimeout" || !got.closed {
			t.Errorf("the slow one: %d %s", got.status, got.code)
		}
		if got := unended.receive("GET"); got.status != 408 {
			t.Errorf("other ends of lines: %d", got.status)
		}
		within("the slow ones", opts.RequestTimeout)
		_ = slow.nc.Close()
		if _, err := silent.tryReceive("GET"); err == nil {
			t.Error("the silent one got an answer")
		}
		within("the silent one", opts.RequestTimeout)

		idle := r.dial(t)
		idle.ask("/v1/a")
		began = time.Now()
		if _, err := idle.tryReceive("GET"); err == nil {
			t.Error("the idle one got an answer")
		}
		within("the idle one", opts.IdleTimeout)
		if n := r.srv.Stats().TimedOut; n != 4 {
			t.Errorf("%d timeouts counted", n)
		}

		// Neither a lookup nor a wait is a request that takes too long.
		r.hook(func(context.Context, upstream.SecretRef) { time.Sleep(40 * time.Second) })
		if got := r.get(t, "/v1/slow"); got.status != 200 {
			t.Errorf("a slow lookup: %d", got.status)
		}
		tag := r.get(t, "/v1/a").header.Get("Etag")
		if got := r.get(t, "/v1/a?wait=40s", "If-None-Match: "+tag); got.status != 304 {
			t.Errorf("a wait: %d", got.status)
		}
		// A client that does not read what it asked for.
		r.dial(t).send(request("GET", "/v1/a", hostLine, tokenLine))
		began = time.Now()
		eventually(t, "it is cut off", func() bool { return r.srv.Stats().Connections == 0 })
		within("the one that does not read", opts.RequestTimeout)
	})
}

func TestPipelining(t *testing.T) {
	r := start(t, endpoint.Options{})
	r.put(value("a", "v1", "x", upstream.ACSCurrent))
	c := r.dial(t)
	c.send(strings.Repeat(request("GET", "/v1/a", hostLine, tokenLine), 50) + request("GET", "/v1/none", hostLine, tokenLine) + "garbage\r\n\r\n" +
		request("GET", "/v1/a", hostLine, tokenLine))
	ids := map[string]bool{}
	for range 50 {
		got := c.receive("GET")
		if got.status != 200 {
			t.Fatalf("%d %s", got.status, got.code)
		}
		ids[got.header.Get("X-Request-Id")] = true
	}
	if len(ids) != 50 {
		t.Errorf("%d request ids for 50 requests", len(ids))
	}
	if got := c.receive("GET"); got.status != 404 {
		t.Errorf("%d", got.status)
	}
	if got := c.receive("GET"); got.status != 400 || !got.closed {
		t.Errorf("garbage: %d", got.status)
	}
	if got, err := c.tryReceive("GET"); err == nil {
		t.Errorf("behind the garbage: %d", got.status)
	}

	// A client that closes its side at once gets its answer, and then an end.
	half := r.dial(t)
	half.send(request("GET", "/v1/a", hostLine, tokenLine))
	must(t, half.nc.(*net.TCPConn).CloseWrite())
	if got := half.receive("GET"); got.status != 200 {
		t.Errorf("with one side closed: %d", got.status)
	}
	if _, err := half.tryReceive("GET"); err == nil {
		t.Error("with one side closed there is a second answer")
	}
}

func TestRequestsPerConnection(t *testing.T) {
	r := start(t, endpoint.Options{MaxRequestsPerConnection: 3})
	r.put(value("a", "v1", "x", upstream.ACSCurrent))
	c := r.dial(t)
	for i := 1; i <= 3; i++ {
		if got := c.ask("/v1/a"); got.status != 200 || got.closed != (i == 3) {
			t.Errorf("request %d: %d, closed %v", i, got.status, got.closed)
		}
	}
}

func TestPanicIsAnAnswer(t *testing.T) {
	r := start(t, endpoint.Options{})
	r.put(value("a", "v1", "x", upstream.ACSCurrent))
	r.hook(func(context.Context, upstream.SecretRef) { panic("value " + marker) })
	if got := r.get(t, "/v1/broken"); got.status != 500 || got.code != "InternalFailure" || !got.closed {
		t.Errorf("%d %s", got.status, got.code)
	}
	if got := r.get(t, "/v1/a"); got.status != 200 {
		t.Errorf("afterwards: %d", got.status)
	}
	if s := r.srv.Stats(); s.Panics != 1 || s.Refused["InternalFailure"] != 1 {
		t.Errorf("%+v", s)
	}
	if log := r.log.String(); !strings.Contains(log, "panicked") || strings.Contains(log, marker) {
		t.Errorf("log:\n%s", log)
	}
}

func TestStats(t *testing.T) {
	r := start(t, endpoint.Options{})
	r.put(value("a", "v1", "x", upstream.ACSCurrent))
	r.store(value("b", "v1", "x", upstream.ACSCurrent))
	c := r.dial(t)
	for range 5 {
		c.ask("/v1/a")
	}
	tag := r.get(t, "/v1/a").header.Get("Etag")
	r.get(t, "/v1/a", "If-None-Match: "+tag)
	r.get(t, "/v1/b")
	r.get(t, "/v1/none")
	r.get(t, "/v1/a?foo=1")
	r.get(t, "/v1/a", "X-Forwarded-For: 1.2.3.4")
	s := r.srv.Stats()
	if s.Hits != 6 || s.Misses != 1 || s.NotModified != 1 || s.Failed["Forbidden.ResourceNotFound"] != 1 || s.Failed["InvalidParameter"] != 1 || s.Refused["ForwardedRequest"] != 1 {
		t.Errorf("%+v", s)
	}
	_ = c.nc.Close()
	eventually(t, "all have left", func() bool { return r.srv.Stats().Connections == 0 })
	if s := r.srv.Stats(); s.Hits != 6 {
		t.Errorf("%d hits after the connections ended", s.Hits)
	}
}

// TestClientsHaveABoundTogether: connections and waiting clients share what the process may have
// open. One that rests makes room; when all wait, others are let in for health alone.
func TestClientsHaveABoundTogether(t *testing.T) {
	inBubble(t, endpoint.Options{MaxConnections: 3, MaxWaiters: 4, MaxClients: 4, MaxWait: time.Hour}, func(t *testing.T, r *rig) {
		r.put(value("a", "v1", "x", upstream.ACSCurrent))
		tag := r.get(t, "/v1/a").header.Get("ETag")
		wait := func(all int) {
			r.dial(t).send(request("GET", "/v1/a?wait=1h", hostLine, tokenLine, "If-None-Match: "+tag))
			eventually(t, "they wait", func() bool { return r.srv.Stats().Waiting == all })
		}
		for i := range 3 {
			wait(i + 1)
		}
		if got := r.dial(t).ask("/v1/a"); got.status != 200 {
			t.Fatalf("%d %s", got.status, got.code)
		}
		time.Sleep(5 * time.Second) // that one rests
		wait(4)
		if s := r.srv.Stats(); s.Waiting != 4 || s.Evicted != 1 {
			t.Errorf("%d wait, %d evicted", s.Waiting, s.Evicted)
		}
		if got := r.get(t, "/live"); got.status != 200 {
			t.Errorf("health: %d %s", got.status, got.code)
		}
		if got := r.get(t, "/v1/a"); got.status != 503 || got.code != "TooManyConnections" {
			t.Errorf("one more: %d %s", got.status, got.code)
		}
		if n := r.srv.Stats().Waiting; n != 4 {
			t.Errorf("%d still wait", n)
		}
	})
}

// TestABatchThatAsksTheUpstreamHoldsNoOtherUp: what an outage makes slow takes no memory yet, and
// is answered when the time for lookups is over as long as there is room.
func TestABatchThatAsksTheUpstreamHoldsNoOtherUp(t *testing.T) {
	opts := endpoint.Options{MaxBatchBytes: 100 << 10, LookupTimeout: 10 * time.Second, RequestTimeout: time.Hour}
	inBubble(t, opts, func(t *testing.T, r *rig) {
		r.put(value("a", "v1", strings.Repeat("x", 30_000), upstream.ACSCurrent))
		r.hook(func(ctx context.Context, _ upstream.SecretRef) { <-ctx.Done() })
		slow := r.dial(t)
		slow.send(request("GET", "/secretsmanager/batch?secretId=a&secretId=missing", hostLine, tokenLine))
		synctest.Wait()
		began := time.Now()
		if got := r.get(t, "/secretsmanager/batch?secretId=a&secretId=a:ACSCurrent"); got.status != 200 || time.Since(began) != 0 {
			t.Errorf("values that are held: %d %s after %v", got.status, got.code, time.Since(began))
		}
		if got := slow.receive("GET"); got.status != 200 || !strings.Contains(got.body, `"SecretValues":[{`) || time.Since(began) != opts.LookupTimeout {
			t.Errorf("the slow one: %d %.100s after %v", got.status, got.body, time.Since(began))
		}
	})
}

// TestOneCallerLeavesHalfOfTheMemoryOfBatches: clients that do not read keep out those of their own
// caller only, until they leave.
func TestOneCallerLeavesHalfOfTheMemoryOfBatches(t *testing.T) {
	opts := endpoint.Options{MaxBatchBytes: 200 << 10, LookupTimeout: time.Second, RequestTimeout: time.Hour,
		Callers: []endpoint.Caller{callerWith(t, "web", []string{"a"}, webToken), callerWith(t, "job", []string{"a"}, batchToken)}}
	inBubble(t, opts, func(t *testing.T, r *rig) {
		r.put(value("a", "v1", strings.Repeat("x", 30_000), upstream.ACSCurrent))
		batch := func(token string) string {
			return request("GET", "/secretsmanager/batch?secretId=a&secretId=a&secretId=a", hostLine, "X-KMS-Token: "+token)
		}
		slow := []*client{r.dial(t), r.dial(t)}
		for _, c := range slow {
			c.send(batch(webToken))
			synctest.Wait() // the first has the room before the second asks
		}
		job := r.dial(t)
		for range 3 {
			job.send(batch(batchToken))
			if got := job.receive("GET"); got.status != 200 {
				t.Errorf("another caller: %d %s", got.status, got.code)
			}
		}
		if got := slow[0].receive("GET"); got.status != 200 {
			t.Errorf("the one that reads late: %d %s", got.status, got.code)
		}
		if got := slow[1].receive("GET"); got.status != 200 { // nobody has waited for a second
			t.Errorf("the one that waited for it: %d %s", got.status, got.code)
		}
		for range 2 { // all is given back
			slow[0].send(batch(webToken))
			if got := slow[0].receive("GET"); got.status != 200 {
				t.Errorf("afterwards: %d %s", got.status, got.code)
			}
		}
	})
}

// TestBatchesHaveABoundTogether: a batch takes its memory until its client has it. Others wait for
// as long as a lookup may take.
func TestBatchesHaveABoundTogether(t *testing.T) {
	opts := endpoint.Options{MaxBatchBytes: 100 << 10, LookupTimeout: time.Second, RequestTimeout: time.Hour}
	inBubble(t, opts, func(t *testing.T, r *rig) {
		for _, name := range []string{"a", "b", "c"} {
			r.put(value(name, "v1", strings.Repeat("x", 30_000), upstream.ACSCurrent))
		}
		batch := request("GET", "/secretsmanager/batch?secretId=a&secretId=b&secretId=c", hostLine, tokenLine)
		slow := r.dial(t)
		slow.send(batch) // and does not read yet
		synctest.Wait()
		second := r.dial(t)
		second.send(batch)
		if got := second.receive("GET"); got.status != 503 || got.code != "TooManyBatches" || got.header.Get("Retry-After") == "" {
			t.Errorf("beside one that is not read: %d %s", got.status, got.code)
		}
		if got := r.get(t, "/v1/a"); got.status != 200 {
			t.Errorf("a lookup: %d %s", got.status, got.code)
		}
		if got := slow.receive("GET"); got.status != 200 || strings.Count(got.body, `"SecretName"`) != 3 {
			t.Errorf("the slow one: %d %.100s", got.status, got.body)
		}
		for range 3 { // the room is given back each time, also by who leaves without reading
			second.send(batch)
			if got := second.receive("GET"); got.status != 200 {
				t.Errorf("afterwards: %d %s", got.status, got.code)
			}
			leaving := r.dial(t)
			leaving.send(batch)
			synctest.Wait()
			_ = leaving.nc.Close()
		}
	})
}
