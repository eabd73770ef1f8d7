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

// startWaiting lets a client wait for a change of the secret a, and returns its tag as well.
func startWaiting(t *testing.T, r *rig) (c *client, tag string) {
	t.Helper()
	r.put(value("a", "v1", "first", upstream.ACSCurrent))
	c = r.dial(t)
	tag = c.ask("/v1/a").header.Get("Etag")
	sendWait(t, r, c, tag)
	return c, tag
}

func sendWait(t *testing.T, r *rig, c *client, tag string) {
	t.Helper()
	c.send(request("GET", "/v1/a?wait=5m", hostLine, tokenLine, "If-None-Match: "+tag))
	eventually(t, "the client waits", func() bool { return r.srv.Stats().Waiting == 1 && r.subscribers() == 1 })
}

func TestWaitEndsWithTheChange(t *testing.T) {
	r := start(t, endpoint.Options{})
	c, _ := startWaiting(t, r)
	for i := 2; i <= 4; i++ { // again and again on one connection
		if n := r.srv.Stats().Connections; n != 0 {
			t.Errorf("a waiting client counts as a connection: %d", n)
		}
		r.put(value("a", fmt.Sprint("v", i), "next", upstream.ACSCurrent))
		got := c.receive("GET")
		if got.status != 200 || got.json(t)["VersionId"] != fmt.Sprint("v", i) {
			t.Fatalf("%d %s", got.status, got.body)
		}
		sendWait(t, r, c, got.header.Get("Etag"))
	}
	// And with the secret itself.
	r.mu.Lock()
	delete(r.held, refOf("a", "ACSCurrent"))
	for ch := range r.subs {
		ch <- struct{}{}
	}
	r.mu.Unlock()
	if got := c.receive("GET"); got.status != 404 {
		t.Errorf("%d %s", got.status, got.body)
	}
	eventually(t, "nobody is subscribed any more", func() bool { return r.subscribers() == 0 })
	r.put(value("a", "v9", "again", upstream.ACSCurrent))
	if got := c.ask("/v1/a"); got.status != 200 {
		t.Errorf("after waiting: %d", got.status)
	}
}

func TestWaitThatEndsWithoutChange(t *testing.T) {
	inBubble(t, endpoint.Options{}, func(t *testing.T, r *rig) {
		r.put(value("a", "v1", "x", upstream.ACSCurrent))
		tag := r.get(t, "/v1/a").header.Get("Etag")
		for _, ring := range []bool{false, true} { // a ring for nothing does not end the wait
			began := time.Now()
			if ring {
				time.AfterFunc(time.Second, func() { r.put(value("a", "v1", "x", upstream.ACSCurrent)) })
			}
			got := r.get(t, "/v1/a?wait=30s", "If-None-Match: "+tag)
			if took := time.Since(began); got.status != 304 || got.header.Get("Etag") != tag || took != 30*time.Second {
				t.Errorf("%d after %v", got.status, took)
			}
		}
		// Nothing to wait for: answered at once.
		began := time.Now()
		for _, header := range []string{"If-None-Match: \"other\"", "X-Nothing: 1"} {
			if got := r.get(t, "/v1/a?wait=30s", header); got.status != 200 || time.Since(began) > 0 {
				t.Errorf("%s: %d after %v", header, got.status, time.Since(began))
			}
		}
	})
}

func TestWaiterPassesTheGuardAgain(t *testing.T) {
	r := start(t, endpoint.Options{})
	c, _ := startWaiting(t, r)
	r.setCallers(t, []endpoint.Caller{endpoint.DefaultCaller(mustToken(t, "a-token-that-replaced-the-other"))})
	r.put(value("a", "v2", marker, upstream.ACSCurrent))
	if got := c.receive("GET"); got.status != 403 || got.code != "TokenInvalid" || strings.Contains(got.body, marker) {
		t.Errorf("%d %s", got.status, got.body)
	}
}

func TestWaitingClientThatLeaves(t *testing.T) {
	r := start(t, endpoint.Options{})
	c, _ := startWaiting(t, r)
	_ = c.nc.Close()
	eventually(t, "the slot is free again", func() bool { return r.srv.Stats().Waiting == 0 && r.subscribers() == 0 })
}

func TestRequestBehindAWaitingOne(t *testing.T) {
	r := start(t, endpoint.Options{})
	c, tag := startWaiting(t, r)
	r.put(value("b", "v7", "y", upstream.ACSCurrent))
	wait := request("GET", "/v1/a?wait=5m", hostLine, tokenLine, "If-None-Match: "+tag)
	next := request("GET", "/v1/b", hostLine, tokenLine)
	c.send(next)
	for i := range 3 {
		if got := c.receive("GET"); got.status != 304 {
			t.Errorf("%d: the waiting request: %d", i, got.status)
		}
		if got := c.receive("GET"); got.status != 200 || got.json(t)["VersionId"] != "v7" {
			t.Errorf("%d: the next request: %d %s", i, got.status, got.body)
		}
		if c = r.dial(t); i == 0 {
			c.send(wait + next) // in one packet
		} else { // cut in half
			waits := r.srv.Stats().Waits
			c.send(wait + next[:20])
			eventually(t, "it has waited", func() bool { return r.srv.Stats().Waits > waits })
			c.send(next[20:])
		}
	}
}

func TestShutdownWakesWaiters(t *testing.T) {
	r := start(t, endpoint.Options{})
	_, tag := startWaiting(t, r)
	var clients []*client
	for range 10 {
		c := r.dial(t)
		c.send(request("GET", "/v1/a?wait=5m", hostLine, tokenLine, "If-None-Match: "+tag))
		clients = append(clients, c)
	}
	eventually(t, "all wait", func() bool { return r.srv.Stats().Waiting == len(clients)+1 })
	ctx, cancel := context.WithTimeout(context.Background(), patience)
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
	n := 2000
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
		must(t, err)
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
	r.put(value("a", "v2", "y", upstream.ACSCurrent))
	for _, c := range clients {
		c.br = newReader(c.nc)
		if got := c.receive("GET"); got.status != 200 || got.json(t)["VersionId"] != "v2" {
			t.Fatalf("%d %s", got.status, got.body)
		}
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}
