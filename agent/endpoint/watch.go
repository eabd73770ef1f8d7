package endpoint

import (
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/valyala/fasthttp"

	"secretagent/upstream"
)

// A client that waits costs as little as can be. Its connection is taken away from fasthttp,
// whose buffers go back to their pools, and a small goroutine blocks in a read of one byte:
//
//  1. the handler finds that the client's ETag is still right, joins the hub of the reference,
//     looks once more, and asks fasthttp to hand the connection over;
//  2. what fasthttp had read beyond this request is collected;
//  3. the waiter reads until the client leaves, the wait is over, or the hub wakes it by
//     moving the read deadline into the past;
//  4. the request is served again from its bytes, through guard and lookup, and is parked
//     again with what is left of its time if nothing relevant changed.

// waiter is one parked connection.
type waiter struct {
	conn     *conn
	ref      upstream.SecretRef
	request  []byte // as it came over the wire
	deadline time.Time
	leftover []byte // bytes of the next request
	detached chan struct{}
	err      error // of detaching

	mu    sync.Mutex
	woken bool
	armed bool // blocked in a read, or about to be
}

// park takes the connection out of fasthttp's hands until the value may have changed. It
// returns false when the request is to be answered now; it may have been answered already, with
// a refusal.
func (s *Server) park(ctx *fasthttp.RequestCtx, c *conn, p *prepared) bool {
	now, until := time.Now(), c.waitUntil
	if until.IsZero() {
		until = now.Add(c.query.wait)
	}
	if s.stopping.Load() || !now.Before(until) {
		return false
	}
	w := &waiter{conn: c, ref: owned(c.query.ref), deadline: until, detached: make(chan struct{})}
	// 1.
	if !s.hubs.join(w) || !s.table.Park(&c.Slot) {
		s.hubs.leave(w)
		if !s.stopping.Load() {
			s.refuse(ctx, c, tooManyWaiters)
		}
		return false
	}
	if a, ok := s.secrets.Peek(w.ref); ok && s.preparedOf(&a).etag != p.etag {
		w.wake() // it changed before we had joined
	}
	h := &ctx.Request.Header
	w.request = slices.Concat(h.Method(), []byte(" "), h.RequestURI(), []byte(" "), h.Protocol(), []byte("\r\n"), h.RawHeaders())
	s.stats.waits.Add(1)
	c.waiter = w
	ctx.HijackSetNoResponse(true)
	ctx.Hijack(func(nc net.Conn) {
		// 2.
		w.leftover, w.err = c.detach(nc)
		close(w.detached)
	})
	return true
}

// wait blocks until there is a reason to answer, and then serves the connection on. It runs on
// a goroutine of its own, whose stack is as small as they come.
func (s *Server) wait(w *waiter) {
	c := w.conn
	gone := w.err != nil
	// 3.
	if !gone && len(w.leftover) == 0 && w.arm() {
		var next [1]byte
		n, err := c.Conn.Read(next[:])
		w.leftover = append(w.leftover, next[:n]...)
		gone = n == 0 && !os.IsTimeout(err)
	}
	s.hubs.leave(w)
	c.waiter = nil
	if gone || c.Conn.SetReadDeadline(time.Time{}) != nil {
		s.release(c)
		return
	}
	// 4.
	c.waitUntil = w.deadline
	if len(w.leftover) > 0 { // the client's next request ends its wait
		c.waitUntil = time.Now()
	}
	c.pending = append(w.request, w.leftover...)
	s.table.Unpark(&c.Slot)
	s.serveConn(c)
}

// arm prepares the read that ends at the deadline; false when the waiter was woken already.
func (w *waiter) arm() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.woken {
		return false
	}
	w.armed = true
	return w.conn.Conn.SetReadDeadline(w.deadline) == nil
}

// wake makes the waiter look again. It does not block.
func (w *waiter) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.woken = true
	if w.armed {
		w.conn.StopReading()
	}
}

// hubs connects waiters to the cache: one subscription and one goroutine per reference that is
// waited for, however many clients wait.
type hubs struct {
	secrets Secrets
	mu      sync.Mutex
	byRef   map[upstream.SecretRef]*hub
	closed  bool
	wg      sync.WaitGroup
}

type hub struct {
	waiters map[*waiter]struct{}
	cancel  func()
	done    chan struct{}
}

// join adds w to the hub of its reference; false after wakeAll, and when the cache takes no more
// subscriptions.
func (hs *hubs) join(w *waiter) bool {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if hs.closed {
		return false
	}
	h := hs.byRef[w.ref]
	if h == nil {
		changed, cancel := hs.secrets.Subscribe(w.ref)
		if changed == nil {
			cancel()
			return false
		}
		h = &hub{waiters: map[*waiter]struct{}{}, cancel: cancel, done: make(chan struct{})}
		hs.byRef[w.ref] = h
		hs.wg.Go(func() { hs.listen(h, changed) })
	}
	h.waiters[w] = struct{}{}
	return true
}

// leave takes w out; it is not woken afterwards.
func (hs *hubs) leave(w *waiter) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	h := hs.byRef[w.ref]
	if h == nil {
		return
	}
	delete(h.waiters, w) // it may not be there, where others are
	if len(h.waiters) == 0 {
		delete(hs.byRef, w.ref)
		h.cancel()
		close(h.done)
	}
}

// listen wakes the waiters of h whenever the cache rings.
func (hs *hubs) listen(h *hub, changed <-chan struct{}) {
	for {
		select {
		case _, ok := <-changed:
			hs.mu.Lock()
			for w := range h.waiters {
				w.wake()
			}
			hs.mu.Unlock()
			if !ok { // the cache rings no more; waits end by their deadlines
				return
			}
		case <-h.done:
			return
		}
	}
}

// wakeAll wakes everybody and lets nobody join any more.
func (hs *hubs) wakeAll() {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	hs.closed = true
	for _, h := range hs.byRef {
		for w := range h.waiters {
			w.wake()
		}
	}
}
