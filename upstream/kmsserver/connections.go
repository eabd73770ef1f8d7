package kmsserver

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/valyala/fasthttp"

	"secretagent/upstream/slots"
)

// conn is a connection of a client.
type conn struct {
	net.Conn
	slots.Slot
}

// follow sets the phase of a connection as fasthttp serves it.
func follow(nc net.Conn, state fasthttp.ConnState) {
	switch state {
	case fasthttp.StateActive:
		nc.(*conn).SetPhase(slots.Active)
	case fasthttp.StateIdle:
		nc.(*conn).SetPhase(slots.Idle)
	}
}

// connections knows every listener and connection of a server. Those of one access cannot take
// the slots of the other.
type connections struct {
	tables [2]*slots.Table // by Access

	mu        sync.Mutex
	listeners map[net.Listener]struct{}
	sweeping  bool
	stopping  bool
	done      chan struct{} // closed at shutdown: ends the sweep
	wg        sync.WaitGroup
}

func newConnections(l *limits, notice func(Access, slots.Notice)) *connections {
	c := &connections{listeners: map[net.Listener]struct{}{}, done: make(chan struct{})}
	for access, watchers := range [...]int{Signed: l.Watchers, Trusted: 0} {
		c.tables[access] = slots.New(slots.Limits{Open: l.Connections, Parked: watchers, Total: l.Connections + watchers}, func(n slots.Notice) { notice(Access(access), n) })
	}
	return c
}

// add begins to serve a listener; false after the shutdown has begun.
func (c *connections) add(ln net.Listener, l *limits) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopping {
		return false
	}
	c.listeners[ln] = struct{}{}
	c.wg.Add(1)
	if !c.sweeping {
		c.sweeping = true
		c.wg.Go(func() { c.sweep(l.ClientTimeout, l.IdleTimeout) })
	}
	return true
}

// remove ends what add began.
func (c *connections) remove(ln net.Listener) {
	_ = ln.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.listeners, ln)
	c.wg.Done()
}

// serve answers the requests of a new connection with server.
func (c *connections) serve(nc net.Conn, access Access, server *fasthttp.Server) {
	table, client := c.tables[access], &conn{Conn: nc}
	if !table.Add(&client.Slot, nc, slots.Origin(nc.RemoteAddr())) {
		_ = nc.Close()
		return
	}
	c.wg.Go(func() {
		defer table.Remove(&client.Slot)
		_ = server.ServeConn(client) // the error is that of the connection
		_ = nc.Close()
	})
}

// sweep ends connections that are stuck, until the shutdown.
func (c *connections) sweep(request, idle time.Duration) {
	ticker := time.NewTicker(max(min(time.Second, request/4, idle/4), time.Millisecond))
	defer ticker.Stop()
	for {
		select {
		case now := <-ticker.C:
			for _, t := range c.tables {
				t.Sweep(now, request, idle)
			}
		case <-c.done:
			return
		}
	}
}

func (c *connections) closing() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stopping
}

// drain closes listeners and idle connections and waits for the busy ones. When ctx ends first,
// it closes these as well and returns false.
func (c *connections) drain(ctx context.Context) bool {
	c.mu.Lock()
	if !c.stopping {
		c.stopping = true
		close(c.done)
	}
	for ln := range c.listeners {
		_ = ln.Close()
	}
	c.mu.Unlock()
	for _, t := range c.tables {
		t.Stop()
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.wg.Wait()
	}()
	return slots.Drain(ctx, ended, c.tables[:]...)
}
