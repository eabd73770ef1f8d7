package endpoint

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/valyala/fasthttp"

	"secretagent/upstream"
	"secretagent/upstream/slots"
)

// conn is one client connection. Fields without a remark belong to the goroutine that serves
// it, one at a time.
type conn struct {
	net.Conn // TLS included
	slots.Slot

	unix      bool
	trusted   bool // has presented a valid token
	detaching bool // no reads from the socket, see [conn.detach]
	requests  uint64
	id        [36]byte // of the current request; its last six digits count those of the connection
	age       [20]byte // scratch of setCacheHeaders
	request
	account *account // of the last caller

	peer   peer // who is on the other side of a unix socket
	number uint64
	remote string // who is on the other side, in words; made when asked for

	written   func() // called when the answer is with the client, or will never be; nil: nobody waits
	pending   []byte // bytes to serve before the socket's: a replayed request
	waiter    *waiter
	waitUntil time.Time // the most that the request may wait that is replayed next; zero: none is
}

// request is what the current request of a connection turned out to be.
type request struct {
	ifNoneMatch []byte // headers, as they were sent; memory of the request
	traceparent []byte
	caller      *caller
	token       *callerToken // that the caller presented; nil: known by its peer alone
	op          string
	status      int
	code        string    // of an error
	began       time.Time // zero: it is not timed
	query       query
	scratch     []byte // decoded parameters; strings of the query may alias it; the rest serves for an audit line
}

// peer is what the kernel says about the other end of a unix socket.
type peer struct {
	slots.Peer
	known bool
}

func peerOf(nc net.Conn) peer {
	p, known := slots.PeerOf(nc)
	return peer{p, known}
}

// follow sets the phase of a connection as fasthttp serves it.
func follow(nc net.Conn, state fasthttp.ConnState) {
	switch state {
	case fasthttp.StateActive:
		nc.(*conn).SetPhase(slots.Active)
	case fasthttp.StateIdle:
		c := nc.(*conn)
		c.SetPhase(slots.Idle)
		c.finish()
	}
}

// finish tells who waits for it that the answer needs no memory any more.
func (c *conn) finish() {
	if done := c.written; done != nil {
		c.written = nil
		done()
	}
}

// Read serves pending bytes before those of the socket.
func (c *conn) Read(p []byte) (int, error) {
	switch {
	case len(c.pending) > 0:
		n := copy(p, c.pending)
		clear(c.pending[:n]) // a token among them
		if c.pending = c.pending[n:]; len(c.pending) == 0 {
			c.pending = nil
		}
		return n, nil
	case c.detaching:
		return 0, io.EOF
	}
	return c.Conn.Read(p)
}

// detach returns what r, a buffered reader above c, holds, without touching the socket.
func (c *conn) detach(r io.Reader) ([]byte, error) {
	c.detaching = true
	defer func() { c.detaching = false }()
	held, err := io.ReadAll(r)
	return bytes.Clone(held), err // cut to size
}

// setNumber gives the connection its number and with it its request ids: version 8 UUIDs of
// process (60 bits), connection (38 bits) and request (24 bits).
func (c *conn) setNumber(n, process uint64) {
	c.number = n
	copy(c.id[:], fmt.Sprintf("%08x-%04x-8%03x-%04x-%06x", process>>32, process>>16&0xffff, process&0xfff, 0x8000|n>>24&0x3fff, n&0xffffff))
}

// begin prepares for the next request.
func (c *conn) begin() {
	c.requests++
	n := c.requests
	c.request = request{scratch: c.scratch[:0], query: query{format: FormatKMS}} // for what cannot be read at all
	hex.Encode(c.id[30:], []byte{byte(n >> 16), byte(n >> 8), byte(n)})
}

// trace returns the trace that the client is in. It is parsed when asked for: most hits leave
// no line behind.
func (c *conn) trace() upstream.TraceParent {
	t, _ := upstream.ParseTraceParent(bytes.Trim(c.traceparent, " \t"))
	return t
}

// cause returns the current request as the cause of what it sets off.
func (c *conn) cause() upstream.Cause {
	return upstream.Cause{RequestID: string(c.id[:]), Trace: c.trace()}
}

// origin tells apart who is on the other side, before a token does.
func (c *conn) origin() string {
	if c.peer.known {
		return fmt.Sprintf("uid=%d", c.peer.UID)
	}
	return slots.Origin(c.Conn.RemoteAddr())
}

// from describes the other side for log and audit.
func (c *conn) from() string {
	if c.remote == "" {
		switch {
		case c.peer.known:
			c.remote = c.peer.String()
		case c.unix:
			c.remote = "unix"
		default:
			c.remote = c.Conn.RemoteAddr().String()
		}
	}
	return c.remote
}
