//go:build unix

package endpoint_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"secretagent/agent/endpoint"
	"secretagent/agent/listen"
	"secretagent/upstream"
)

const hit = "GET /v1/a HTTP/1.1\r\n" + hostLine + "\r\n" + tokenLine + "\r\n\r\n"

// both starts a server on a loopback port and on a unix socket, for a test of each.
func both(t *testing.T, opts endpoint.Options, test func(t *testing.T, r *rig, connect func() *client)) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			r := start(t, opts)
			r.put(value("a", "v1", "x", upstream.ACSCurrent))
			addr := r.addr
			if network == "unix" {
				addr = socketPath(t)
				ln, err := listen.Open(listen.UnixOptions{Path: addr})
				if err != nil {
					t.Fatal(err)
				}
				r.serve(t, ln)
			}
			test(t, r, func() *client { return dial(t, network, addr) })
		})
	}
}

// settled makes c a connection whose repeated requests a repeater answers.
func settled(t testing.TB, c *client) *client {
	t.Helper()
	for range 40 {
		c.send(hit)
		if got := c.receive("GET"); got.status != 200 || got.header.Get("X-Cache") != "hit" {
			t.Fatalf("%d %s", got.status, got.code)
		}
	}
	return c
}

// TestClientThatClosesItsSide closes it at once after a request, so that the server often reads
// both together, and waits for the server to close the other.
func TestClientThatClosesItsSide(t *testing.T) {
	both(t, endpoint.Options{}, func(t *testing.T, r *rig, connect func() *client) {
		var wg sync.WaitGroup
		for range 50 {
			c := settled(t, connect())
			wg.Go(func() {
				_, err := io.WriteString(c.nc, hit)
				if half, ok := c.nc.(interface{ CloseWrite() error }); err != nil || !ok || half.CloseWrite() != nil {
					t.Errorf("cannot close one side: %v", err)
					return
				}
				if got, err := c.tryReceive("GET"); err != nil || got.status != 200 {
					t.Errorf("%d %v", got.status, err)
				}
				if got, err := c.tryReceive("GET"); !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("it does not end: %v %+v", err, got)
				}
			})
		}
		wg.Wait()
		if s := r.srv.Stats(); s.TimedOut != 0 {
			t.Errorf("%d of them timed out", s.TimedOut)
		}
	})
}

// TestRepeaterHandsOver asks for other things in between: those take the full way, and the
// connection is as good afterwards.
func TestRepeaterHandsOver(t *testing.T) {
	both(t, endpoint.Options{}, func(t *testing.T, r *rig, connect func() *client) {
		r.store(value("slow", "v1", "y", upstream.ACSCurrent))
		c := settled(t, connect())
		tag := r.get(t, "/v1/a").header.Get("Etag")
		for range 3 {
			c.send(request("GET", "/v1/none", hostLine, tokenLine))
			if got := c.receive("GET"); got.status != 404 {
				t.Fatalf("missing: %d", got.status)
			}
			c.send(request("GET", "/v1/slow", hostLine, tokenLine))
			if got := c.receive("GET"); got.status != 200 || got.header.Get("X-Cache") != "miss" {
				t.Fatalf("a miss: %d", got.status)
			}
			c.send(request("GET", "/v1/a?wait=50ms", hostLine, tokenLine, "If-None-Match: "+tag))
			if got := c.receive("GET"); got.status != 304 {
				t.Fatalf("a wait: %d", got.status)
			}
			c.send(strings.Repeat(hit, 3) + hit[:20]) // pipelined, and a part of the next
			for range 3 {
				c.receive("GET")
			}
			c.send(hit[20:])
			if got := c.receive("GET"); got.status != 200 {
				t.Fatalf("in two pieces: %d", got.status)
			}
			settled(t, c)
		}
		c.send("garbage\r\n\r\n")
		if got := c.receive("GET"); got.status != 400 || !got.closed {
			t.Errorf("garbage: %d", got.status)
		}
	})
}

func TestRepeaterMeetsTimeouts(t *testing.T) {
	both(t, endpoint.Options{RequestTimeout: 80 * time.Millisecond, IdleTimeout: 200 * time.Millisecond}, func(t *testing.T, r *rig, connect func() *client) {
		half := settled(t, connect())
		half.send(hit[:30])
		if got := half.receive("GET"); got.status != 408 || !got.closed {
			t.Errorf("half a request: %d", got.status)
		}
		idle := settled(t, connect())
		began := time.Now()
		if _, err := idle.tryReceive("GET"); err == nil || time.Since(began) < 100*time.Millisecond || time.Since(began) > 5*time.Second {
			t.Errorf("the idle one: %v after %v", err, time.Since(began))
		}
	})
}

// TestRepeaterWhoseClientDoesNotRead fills the socket with answers, one request at a time, and
// looks at how the server gets rid of the connection, and that others are served meanwhile.
func TestRepeaterWhoseClientDoesNotRead(t *testing.T) {
	both(t, endpoint.Options{RequestTimeout: 200 * time.Millisecond}, func(t *testing.T, r *rig, connect func() *client) {
		r.put(value("a", "v1", strings.Repeat("x", 20<<10), upstream.ACSCurrent))
		c := settled(t, connect())
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() {
			for ctx.Err() == nil {
				if _, err := io.WriteString(c.nc, hit); err != nil {
					return
				}
				time.Sleep(100 * time.Microsecond) // so that each is read alone
			}
		}()
		eventually(t, "it is cut off", func() bool {
			if got := r.get(t, "/v1/a"); got.status != 200 {
				t.Errorf("another client: %d", got.status)
			}
			return r.srv.Stats().TimedOut > 0 && r.srv.Stats().Connections <= 1
		})
	})
}

func TestRepeaterShutsDown(t *testing.T) {
	both(t, endpoint.Options{}, func(t *testing.T, r *rig, connect func() *client) {
		var wg sync.WaitGroup
		for range 8 {
			c := settled(t, connect())
			wg.Go(func() { // as long as it is answered
				answer := make([]byte, 4096)
				for {
					if _, err := io.WriteString(c.nc, hit); err != nil {
						return
					}
					if _, err := c.nc.Read(answer); err != nil {
						return
					}
				}
			})
		}
		time.Sleep(20 * time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := r.srv.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		wg.Wait()
	})
}

// TestRepeaterFollowsRevocation takes away the token that a settled connection uses.
func TestRepeaterFollowsRevocation(t *testing.T) {
	both(t, endpoint.Options{}, func(t *testing.T, r *rig, connect func() *client) {
		c := settled(t, connect())
		if err := r.srv.SetCallers([]endpoint.Caller{endpoint.DefaultCaller(mustToken(t, strings.Repeat("f", 64)))}); err != nil {
			t.Fatal(err)
		}
		c.send(hit)
		if got := c.receive("GET"); got.status != 403 {
			t.Errorf("%d", got.status)
		}
	})
}

// TestClientThatLeaves goes away without a word.
func TestClientThatLeaves(t *testing.T) {
	both(t, endpoint.Options{}, func(t *testing.T, r *rig, connect func() *client) {
		for i := range 50 {
			c := settled(t, connect())
			if i%2 == 0 {
				c.send(hit)
			}
			if tcp, ok := c.nc.(*net.TCPConn); ok && i%3 == 0 {
				_ = tcp.SetLinger(0)
			}
			_ = c.nc.Close()
		}
		eventually(t, "none is left", func() bool { return r.srv.Stats().Connections == 0 })
	})
}
