package kmsserver

import (
	"context"
	"crypto/tls"
	"net"
	"sync"

	"github.com/valyala/fasthttp"
)

// connections knows every listener and connection of a server, so that a shutdown neither
// waits for clients that are idle nor cuts off those that are not. (The shutdown of fasthttp
// looks only every 100 ms, and counts a new connection as busy for five seconds.)
type connections struct {
	mu        sync.Mutex
	listeners map[net.Listener]struct{}
	open      map[net.Conn]bool // → a request is being read, handled or answered
	stopping  bool
	empty     chan struct{} // closed once it is stopping and nothing is open
	emptied   func()        // closes empty
}

func newConnections() *connections {
	empty := make(chan struct{})
	return &connections{listeners: map[net.Listener]struct{}{}, open: map[net.Conn]bool{},
		empty: empty, emptied: sync.OnceFunc(func() { close(empty) })}
}

func (c *connections) addListener(ln net.Listener) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopping {
		return false
	}
	c.listeners[ln] = struct{}{}
	return true
}

func (c *connections) removeListener(ln net.Listener) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = ln.Close()
	delete(c.listeners, ln)
	c.signalLocked()
}

// track is told by fasthttp about every change of a connection.
func (c *connections) track(conn net.Conn, state fasthttp.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch state {
	case fasthttp.StateClosed, fasthttp.StateHijacked:
		delete(c.open, conn)
		c.signalLocked()
		return
	case fasthttp.StateActive:
		c.open[conn] = true
	default:
		c.open[conn] = false
		if c.stopping {
			drop(conn)
		}
	}
}

func (c *connections) signalLocked() {
	if c.stopping && len(c.open) == 0 && len(c.listeners) == 0 {
		c.emptied()
	}
}

func (c *connections) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.open)
}

func (c *connections) closing() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stopping
}

// drain closes listeners and idle connections and waits for the busy ones. It returns false
// when ctx ended first.
func (c *connections) drain(ctx context.Context) bool {
	c.mu.Lock()
	c.stopping = true
	for ln := range c.listeners {
		_ = ln.Close()
	}
	for conn, busy := range c.open {
		if !busy {
			drop(conn)
		}
	}
	c.signalLocked()
	c.mu.Unlock()
	select {
	case <-c.empty:
		return true
	case <-ctx.Done():
		return false
	}
}

// closeAll closes every connection, busy or not.
func (c *connections) closeAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.open {
		drop(conn)
	}
}

// drop closes a connection without the farewell of TLS, which may wait for the peer.
func drop(conn net.Conn) {
	if secure, ok := conn.(*tls.Conn); ok {
		conn = secure.NetConn()
	}
	_ = conn.Close()
}
