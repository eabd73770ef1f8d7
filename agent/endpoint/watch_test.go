package endpoint_test

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"secretagent/agent/endpoint"
	"secretagent/upstream"
)

func TestEntityTags(t *testing.T) {
	r := start(t, endpoint.Options{})
	r.put(value("a", "v1", "x", upstream.ACSCurrent))
	tag := r.get(t, "/v1/a").header.Get("Etag")
	for _, header := range []string{tag, "W/" + tag, `"other", ` + tag, tag + `,"other"`, "*"} {
		got := r.get(t, "/v1/a", "If-None-Match: "+header)
		if got.status != 304 || got.body != "" || got.header.Get("Etag") != tag || got.header.Get("X-Cache") != "hit" || got.header.Get("Age") == "" {
			t.Errorf("%s: %d %q %v", header, got.status, got.body, got.header)
		}
	}
	for _, header := range []string{`"other"`, strings.Trim(tag, `"`), tag[:10], ""} {
		if got := r.get(t, "/v1/a", "If-None-Match: "+header); got.status != 200 {
			t.Errorf("%s: %d", header, got.status)
		}
	}
	tags := map[string]string{tag: "the first"}
	for what, v := range map[string]*upstream.SecretValue{
		"another version": value("a", "v2", "x", upstream.ACSCurrent), "other data": value("a", "v1", "y", upstream.ACSCurrent),
		"another label": value("a", "v1", "x", upstream.ACSCurrent, "Next"), "data moved into the version": value("a", "v1x", "", upstream.ACSCurrent),
	} {
		r.put(v)
		got := r.get(t, "/v1/a").header.Get("Etag")
		if other, seen := tags[got]; seen {
			t.Errorf("%s has the tag of %s", what, other)
		}
		tags[got] = what
	}
	// Another process, another key: a tag cannot be computed from a guess.
	other := start(t, endpoint.Options{})
	other.put(value("a", "v1", "x", upstream.ACSCurrent))
	if other.get(t, "/v1/a").header.Get("Etag") == tag {
		t.Error("the tag depends on the value alone")
	}
}

func TestWaitEndsWithTheChange(t *testing.T) {
	r := start(t, endpoint.Options{})
	r.put(value("a", "v1", "first", upstream.ACSCurrent))
	c := dial(t, "tcp", r.addr)
	c.send(request("GET", "/v1/a", hostLine, tokenLine))
	tag := c.receive("GET").header.Get("Etag")
	for i := 2; i <= 4; i++ { // again and again on one connection
		c.send(request("GET", "/v1/a?wait=30s", hostLine, tokenLine, "If-None-Match: "+tag))
		eventually(t, "the client waits", func() bool { return r.srv.Stats().Waiting == 1 && r.subscribers() == 1 })
		if n := r.srv.Stats().Connections; n != 0 {
			t.Errorf("a waiting client counts as a connection: %d", n)
		}
		began := time.Now()
		r.put(value("a", fmt.Sprint("v", i), "next", upstream.ACSCurrent))
		got := c.receive("GET")
		if got.status != 200 || got.json(t)["VersionId"] != fmt.Sprint("v", i) {
			t.Fatalf("%d %s", got.status, got.body)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
		tag = got.header.Get("Etag")
	}
	eventually(t, "nobody is subscribed any more", func() bool { return r.subscribers() == 0 })
	c.send(request("GET", "/v1/a", hostLine, tokenLine))
	if got := c.receive("GET"); got.status != 200 {
		t.Errorf("after waiting: %d", got.status)
	}
}

func TestWaitThatEndsWithoutChange(t *testing.T) {
	r := start(t, endpoint.Options{})
	r.put(value("a", "v1", "x", upstream.ACSCurrent))
	tag := r.get(t, "/v1/a").header.Get("Etag")
	began := time.Now()
	got := r.get(t, "/v1/a?wait=120ms", "If-None-Match: "+tag)
	if took := time.Since(began); got.status != 304 || got.header.Get("Etag") != tag || took < 100*time.Millisecond {
		t.Errorf("%d after %v", got.status, took)
	}
	// A ring for nothing does not end the wait.
	c := dial(t, "tcp", r.addr)
	began = time.Now()
	c.send(request("GET", "/v1/a?wait=200ms", hostLine, tokenLine, "If-None-Match: "+tag))
	eventually(t, "the client waits", func() bool { return r.srv.Stats().Waiting == 1 })
	r.put(value("a", "v1", "x", upstream.ACSCurrent))
	if got := c.receive("GET"); got.status != 304 || time.Since(began) < 150*time.Millisecond {
		t.Errorf("%d after %v", got.status, time.Since(began))
	}
	// Nothing to wait for: answered at once.
	for _, header := range []string{"If-None-Match: \"other\"", "X-Nothing: 1"} {
		if got := r.get(t, "/v1/a?wait=30s", header); got.status != 200 {
			t.Errorf("%s: %d", header, got.status)
		}
	}
}

func TestWaitEndsWithTheSecret(t *testing.T) {
	r := start(t, endpoint.Options{})
	r.put(value("a", "v1", "x", upstream.ACSCurrent))
	tag := r.get(t, "/v1/a").header.Get("Etag")
	c := dial(t, "tcp", r.addr)
	c.send(request("GET", "/v1/a?wait=30s", hostLine, tokenLine, "If-None-Match: "+tag))
	eventually(t, "the client waits", func() bool { return r.srv.Stats().Waiting == 1 })
	r.mu.Lock()
	delete(r.held, refOf("a", "ACSCurrent"))
	for ch := range r.subs {
		ch <- struct{}{}
	}
	r.mu.Unlock()
	if got := c.receive("GET"); got.status != 404 {
		t.Errorf("%d %s", got.status, got.body)
	}
}

func TestWaiterPassesTheGuardAgain(t *testing.T) {
	r := start(t, endpoint.Options{})
	r.put(value("a", "v1", "x", upstream.ACSCurrent))
	tag := r.get(t, "/v1/a").header.Get("Etag")
	c := dial(t, "tcp", r.addr)
	c.send(request("GET", "/v1/a?wait=30s", hostLine, tokenLine, "If-None-Match: "+tag))
	eventually(t, "the client waits", func() bool { return r.srv.Stats().Waiting == 1 })
	if err := r.srv.SetCallers([]endpoint.Caller{endpoint.DefaultCaller(mustToken(t, "a-token-that-replaced-the-other"))}); err != nil {
		t.Fatal(err)
	}
	r.put(value("a", "v2", marker, upstream.ACSCurrent))
	if got := c.receive("GET"); got.status != 403 || got.code != "TokenInvalid" || strings.Contains(got.body, marker) {
		t.Errorf("%d %s", got.status, got.body)
	}
}

func TestWaitingClientThatLeaves(t *testing.T) {
	r := start(t, endpoint.Options{})
	r.put(value("a", "v1", "x", upstream.ACSCurrent))
	tag := r.get(t, "/v1/a").header.Get("Etag")
	c := dial(t, "tcp", r.addr)
	c.send(request("GET", "/v1/a?wait=5m", hostLine, tokenLine, "If-None-Match: "+tag))
	eventually(t, "the client waits", func() bool { return r.srv.Stats().Waiting == 1 })
	_ = c.nc.Close()
	eventually(t, "the slot is free again", func() bool { return r.srv.Stats().Waiting == 0 && r.subscribers() == 0 })
}

func TestRequestBehindAWaitingOne(t *testing.T) {
	r := start(t, endpoint.Options{})
	r.put(value("a", "v1", "x", upstream.ACSCurrent))
	r.put(value("b", "v7", "y", upstream.ACSCurrent))
	tag := r.get(t, "/v1/a").header.Get("Etag")
	wait := request("GET", "/v1/a?wait=5m", hostLine, tokenLine, "If-None-Match: "+tag)
	next := request("GET", "/v1/b", hostLine, tokenLine)
	for name, send := range map[string]func(*client){
		"in one packet": func(c *client) { c.send(wait + next) },
		"in two":        func(c *client) { c.send(wait); time.Sleep(20 * time.Millisecond); c.send(next) },
		"cut in half":   func(c *client) { c.send(wait + next[:20]); time.Sleep(20 * time.Millisecond); c.send(next[20:]) },
	} {
		c := dial(t, "tcp", r.addr)
		send(c)
		if got := c.receive("GET"); got.status != 304 {
			t.Errorf("%s: the waiting request: %d", name, got.status)
		}
		if got := c.receive("GET"); got.status != 200 || got.json(t)["VersionId"] != "v7" {
			t.Errorf("%s: the next request: %d %s", name, got.status, got.body)
		}
	}
}

func TestShutdownWakesWaiters(t *testing.T) {
	r := start(t, endpoint.Options{})
	r.put(value("a", "v1", "x", upstream.ACSCurrent))
	tag := r.get(t, "/v1/a").header.Get("Etag")
	var clients []*client
	for range 10 {
		c := dial(t, "tcp", r.addr)
		c.send(request("GET", "/v1/a?wait=5m", hostLine, tokenLine, "If-None-Match: "+tag))
		clients = append(clients, c)
	}
	eventually(t, "all wait", func() bool { return r.srv.Stats().Waiting == len(clients) })
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := r.srv.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	for _, c := range clients {
		if got := c.receive("GET"); got.status != 304 || !got.closed {
			t.Errorf("%d, closed %v", got.status, got.closed)
		}
	}
}

// TestManyWaiters lets many clients wait, more than there may be connections, looks at what
// each costs, and wakes all with one change.
func TestManyWaiters(t *testing.T) {
	n := 5000
	if testing.Short() {
		n = 500
	}
	r := start(t, endpoint.Options{MaxConnections: 100, MaxWaiters: n})
	r.put(value("a", "v1", "x", upstream.ACSCurrent))
	tag := r.get(t, "/v1/a").header.Get("Etag")
	before := heap()
	var clients []*client
	for i := range n {
		nc, err := net.Dial("tcp", r.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		c := &client{t: t, nc: nc} // no reader yet: it would weigh more than what is measured
		clients = append(clients, c)
		c.send(request("GET", "/v1/a?wait=5m", hostLine, tokenLine, "If-None-Match: "+tag))
		if i%50 == 49 {
			eventually(t, "those so far wait", func() bool { return r.srv.Stats().Waiting == i+1 })
		}
	}
	each := (int(heap()) - int(before)) / n // what earlier tests leave behind may go meanwhile
	t.Logf("%d waiting clients cost %d bytes each, their own end included", n, each)
	if each > 8<<10 {
		t.Errorf("a waiting client costs %d bytes", each)
	}
	if n := r.subscribers(); n != 1 {
		t.Errorf("%d subscriptions for one reference", n)
	}
	extra := r.get(t, "/v1/a?wait=5m", "If-None-Match: "+tag)
	if extra.status != 503 || extra.code != "TooManyWaiters" || extra.header.Get("Retry-After") == "" {
		t.Errorf("one more: %d %s", extra.status, extra.code)
	}
	if got := r.get(t, "/v1/a"); got.status != 200 {
		t.Errorf("who does not wait: %d", got.status)
	}
	began := time.Now()
	r.put(value("a", "v2", "y", upstream.ACSCurrent))
	for _, c := range clients {
		c.br = newReader(c.nc)
		if got := c.receive("GET"); got.status != 200 || got.json(t)["VersionId"] != "v2" {
			t.Fatalf("%d %s", got.status, got.body)
		}
	}
	t.Logf("one change reached all in %v", time.Since(began))
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}
