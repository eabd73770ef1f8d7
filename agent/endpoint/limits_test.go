package endpoint_test

import (
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"secretagent/agent/endpoint"
	"secretagent/upstream"
)

// busyClients occupies n connections with lookups that do not return before release.
func busyClients(t *testing.T, r *rig, n int) (clients []*client, release func()) {
	t.Helper()
	entered, gate := make(chan struct{}, n), make(chan struct{})
	r.mu.Lock()
	r.onFetch = func(context.Context, upstream.SecretRef) { entered <- struct{}{}; <-gate }
	r.mu.Unlock()
	for range n {
		c := dial(t, "tcp", r.addr)
		c.send(request("GET", "/v1/slow", hostLine, tokenLine))
		clients = append(clients, c)
		<-entered
	}
	return clients, func() { close(gate) }
}

func TestConnectionsRunOutWhileHealthAnswers(t *testing.T) {
	r := start(t, endpoint.Options{MaxConnections: 4, HealthConnections: 2})
	r.store(value("slow", "v1", "x", upstream.ACSCurrent))
	r.put(value("fast", "v1", "x", upstream.ACSCurrent))
	clients, release := busyClients(t, r, 4)
	if got := r.get(t, "/v1/fast"); got.status != 503 || got.code != "TooManyConnections" || !got.closed || got.header.Get("Retry-After") == "" {
		t.Errorf("beyond the limit: %d %s", got.status, got.code)
	}
	for range 10 {
		c := dial(t, "tcp", r.addr)
		c.send(request("GET", "/live", hostLine))
		if got := c.receive("GET"); got.status != 200 || !got.closed {
			t.Errorf("/live: %d", got.status)
		}
	}
	// Those who use up even what is kept for health are told on the door.
	a, b := dial(t, "tcp", r.addr), dial(t, "tcp", r.addr)
	eventually(t, "both are let in", func() bool { return r.srv.Stats().HealthConnections == 2 })
	c := dial(t, "tcp", r.addr)
	if got := c.receive("GET"); got.status != 503 || got.code != "TooManyConnections" {
		t.Errorf("at the door: %d %s", got.status, got.code)
	}
	_, _ = a.nc.Close(), b.nc.Close()
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

// TestFloodOfConnections opens far more connections than there are slots, none with a token.
// A client that has shown its token keeps its connection, and new clients get in.
func TestFloodOfConnections(t *testing.T) {
	n := 10_000
	if testing.Short() {
		n = 1000
	}
	for name, bytes := range map[string]string{
		"that stay silent":        "",
		"that never finish":       "GET /v1/a HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ",
		"that have a wrong token": request("GET", "/v1/a", hostLine, "X-KMS-Token: "+strings.Repeat("f", 64)),
		"that send garbage":       strings.Repeat("\x00\xff garbage \r\n\r\n", 50),
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, endpoint.Options{MaxConnections: 50})
			r.put(value("a", "v1", "x", upstream.ACSCurrent))
			honest := dial(t, "tcp", r.addr)
			ask := func(c *client) {
				t.Helper()
				c.send(request("GET", "/v1/a", hostLine, tokenLine))
				if got := c.receive("GET"); got.status != 200 {
					t.Fatalf("an honest client: %d %s", got.status, got.code)
				}
			}
			ask(honest)
			var open []net.Conn
			for i := range n {
				nc, err := net.Dial("tcp", r.addr)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.WriteString(nc, bytes)
				open = append(open, nc)
				if len(open) > 500 { // the server closed it long ago; spare our own descriptors
					_ = open[0].Close()
					open = open[1:]
				}
				if i%(n/20) == 0 {
					ask(honest)
					ask(dial(t, "tcp", r.addr))
				}
			}
			if s := r.srv.Stats(); s.Connections > 50 {
				t.Errorf("%d connections", s.Connections)
			}
			for _, nc := range open {
				_ = nc.Close()
			}
			ask(honest)
		})
	}
}

func TestIdleClientsMakeRoom(t *testing.T) {
	r := start(t, endpoint.Options{MaxConnections: 3})
	r.put(value("a", "v1", "x", upstream.ACSCurrent))
	var clients []*client
	for range 4 {
		c := dial(t, "tcp", r.addr)
		c.send(request("GET", "/v1/a", hostLine, tokenLine))
		if got := c.receive("GET"); got.status != 200 {
			t.Fatalf("%d %s", got.status, got.code)
		}
		time.Sleep(5 * time.Millisecond) // the server needs a moment to see that it is idle
		clients = append(clients, c)
	}
	if s := r.srv.Stats(); s.Evicted != 1 || s.Connections > 3 {
		t.Errorf("%d evicted, %d open", s.Evicted, s.Connections)
	}
	if _, err := clients[0].tryReceive("GET"); err == nil {
		t.Error("the first got an answer nobody asked for")
	}
	for _, c := range clients[1:] {
		c.send(request("GET", "/v1/a", hostLine, tokenLine))
		if got := c.receive("GET"); got.status != 200 {
			t.Errorf("%d %s", got.status, got.code)
		}
	}
}

func TestTimeouts(t *testing.T) {
	r := start(t, endpoint.Options{RequestTimeout: 80 * time.Millisecond, IdleTimeout: 200 * time.Millisecond})
	r.put(value("a", "v1", "x", upstream.ACSCurrent))
	r.store(value("slow", "v1", "x", upstream.ACSCurrent))

	silent := dial(t, "tcp", r.addr)
	slow := dial(t, "tcp", r.addr)
	slow.send("GET /v1/a HTTP/1.1\r\nHost:")
	stop := make(chan struct{})
	go func() { // drips, so that every read makes progress
		for {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
				if _, err := io.WriteString(slow.nc, "a"); err != nil {
					return
				}
			}
		}
	}()
	if got := slow.receive("GET"); got.status != 408 || got.code != "RequestTimeout" || !got.closed {
		t.Errorf("the slow one: %d %s", got.status, got.code)
	}
	close(stop)
	if _, err := silent.tryReceive("GET"); err == nil {
		t.Error("the silent one got an answer")
	}
	idle := dial(t, "tcp", r.addr)
	idle.send(request("GET", "/v1/a", hostLine, tokenLine))
	idle.receive("GET")
	began := time.Now()
	if _, err := idle.tryReceive("GET"); err == nil || time.Since(began) < 100*time.Millisecond || time.Since(began) > 5*time.Second {
		t.Errorf("the idle one: %v after %v", err, time.Since(began))
	}
	// Neither a lookup nor a wait is a request that takes too long.
	r.mu.Lock()
	r.onFetch = func(context.Context, upstream.SecretRef) { time.Sleep(300 * time.Millisecond) }
	r.mu.Unlock()
	if got := r.get(t, "/v1/slow"); got.status != 200 {
		t.Errorf("a slow lookup: %d", got.status)
	}
	tag := r.get(t, "/v1/a").header.Get("Etag")
	if got := r.get(t, "/v1/a?wait=400ms", "If-None-Match: "+tag); got.status != 304 {
		t.Errorf("a wait: %d", got.status)
	}
	if r.srv.Stats().TimedOut < 3 {
		t.Errorf("%d timeouts counted", r.srv.Stats().TimedOut)
	}
}

// TestClientThatDoesNotRead fills the socket with answers until the server cannot write.
func TestClientThatDoesNotRead(t *testing.T) {
	r := start(t, endpoint.Options{RequestTimeout: 100 * time.Millisecond})
	r.put(value("big", "v1", strings.Repeat("x", 30<<10), upstream.ACSCurrent))
	c := dial(t, "tcp", r.addr)
	one := request("GET", "/v1/big", hostLine, tokenLine)
	go func() { _, _ = io.WriteString(c.nc, strings.Repeat(one, 5000)) }()
	eventually(t, "it is cut off", func() bool { return r.srv.Stats().TimedOut > 0 && r.srv.Stats().Connections == 0 })
}

func TestPipelining(t *testing.T) {
	r := start(t, endpoint.Options{})
	r.put(value("a", "v1", "x", upstream.ACSCurrent))
	c := dial(t, "tcp", r.addr)
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
}

func TestRequestsPerConnection(t *testing.T) {
	r := start(t, endpoint.Options{MaxRequestsPerConnection: 3})
	r.put(value("a", "v1", "x", upstream.ACSCurrent))
	c := dial(t, "tcp", r.addr)
	for i := 1; i <= 3; i++ {
		c.send(request("GET", "/v1/a", hostLine, tokenLine))
		if got := c.receive("GET"); got.status != 200 || got.closed != (i == 3) {
			t.Errorf("request %d: %d, closed %v", i, got.status, got.closed)
		}
	}
}

func TestPanicIsAnAnswer(t *testing.T) {
	r := start(t, endpoint.Options{})
	r.put(value("a", "v1", "x", upstream.ACSCurrent))
	r.mu.Lock()
	r.onFetch = func(context.Context, upstream.SecretRef) { panic("value " + marker) }
	r.mu.Unlock()
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
	c := dial(t, "tcp", r.addr)
	for range 5 {
		c.send(request("GET", "/v1/a", hostLine, tokenLine))
		c.receive("GET")
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
