package endpoint

import (
	"bytes"
	"container/list"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"

	"secretagent/upstream"
)

// phase is what a connection is doing, as far as the sweep must know.
type phase uint32

const (
	fresh  phase = iota // accepted, nothing read yet (a TLS handshake counts as nothing)
	active              // between the first byte of a request and the last byte of its answer
	busy                // in a lookup, which has a timeout of its own
	idle                // between requests
	parked              // waiting for a change, see watch.go
)

// errGate stops reads while the reader's leftovers are collected, see [conn.drain].
var errGate = errors.New("connection is being parked")

// conn is one client connection. Fields without a remark belong to the goroutine that serves
// it, one at a time.
type conn struct {
	net.Conn // TLS included

	srv    *Server
	unix   bool
	peer   peer // who is on the other side of a unix socket
	number uint64

	// state is phase in the low 3 bits and a count of changes above, so that the sweep sees
	// that something happened without a clock in the request path.
	state    atomic.Uint32
	changes  uint32
	at       phase // the same for the goroutine itself
	answered bool  // the handler is done with a request

	// What it did and for whom, see account.go.
	hits    atomic.Uint64 // values answered from memory that are not settled
	account *account      // of the last caller; changed under table.mu
	timed   bool          // the current request is timed, since
	began   time.Time

	idPrefix [30]byte // of every request id of this connection
	idBuf    [36]byte
	idText   string // of idBuf, made when asked for
	requests uint64

	given int  // bytes that fasthttp was given since it last asked for the begin of a request
	ahead bool // these were once more than one request: where the next begins is not known any more

	pending []byte // bytes to serve before the socket's: a replayed request
	gate    bool
	handoff bool        // the connection left this goroutine: it is parked
	waiter  *waiter     // while handoff
	resumed *parkTicket // set while a replayed request is on its way to the handler

	scratch []byte // decoded parameters; strings of query may alias it
	age     []byte
	memory  memory
	repeats *repeater // nil: this connection has none

	// What the current request turned out to be.
	query       query
	traceparent []byte // as it was sent; memory of the request
	caller      *caller
	op          string
	status      int
	code        string // of an error

	remote string // who is on the other side; made when asked for

	trusted    atomic.Bool // has presented a valid token
	healthOnly bool        // came when all slots were taken

	// Guarded by table.mu.
	element   *list.Element // in table.untrusted
	counted   bool
	seenState uint32
	seenAt    time.Time
	moves     uint32 // changes of phase between the last two sweeps
	warned    bool
	looked    bool   // for an end that the reader may have missed, since the last change
	credited  uint64 // hits when the caller was last noted as seen
}

// peer is what the kernel says about the other end of a unix socket.
type peer struct {
	uid, gid uint32
	pid      int32
	known    bool
}

func (c *conn) setPhase(p phase) {
	c.changes++
	c.at = p
	c.state.Store(c.changes<<3 | uint32(p))
}

func (c *conn) phase() phase { return phase(c.state.Load() & 7) }

// Read serves pending bytes before those of the socket. It is also where a connection becomes
// idle and active, and where a repeated request is answered without fasthttp, see again.go.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.read(p)
	c.given += n
	return n, err
}

func (c *conn) read(p []byte) (int, error) {
	if len(c.pending) > 0 {
		n := copy(p, c.pending)
		clear(c.pending[:n]) // a token among them
		if c.pending = c.pending[n:]; len(c.pending) == 0 {
			c.pending = nil
		}
		return n, nil
	}
	if c.gate {
		return 0, errGate
	}
	between := false
	if c.answered {
		c.answered = false
		c.setPhase(idle)
		c.ahead = c.ahead || len(p) < c.srv.opts.MaxHeaderBytes // some of the buffer is in use
		between = !c.ahead
	}
	for {
		if between && c.repeats != nil && c.requests >= longLived {
			return c.repeats.read(p)
		}
		n, err := c.Conn.Read(p)
		if n > 0 && c.at != active {
			c.setPhase(active)
		}
		if !between || err != nil {
			return n, err
		}
		if answered, err := c.srv.answerAgain(c, p, n); !answered {
			return n, nil
		} else if err != nil {
			return 0, err
		}
		c.setPhase(idle)
	}
}

// handled notes that fasthttp has passed req on. When it was given just that, it has written all
// answers before it reads on, and what it reads is a request from its first byte on. When it was
// given more, as from a client that sends the next request before it has the answer, what it reads
// may be the body of a request whose headers it holds: from then on nothing is answered without it.
func (c *conn) handled(req *fasthttp.RequestHeader) {
	c.answered = true
	length := len(req.Method()) + len(" ") + len(req.RequestURI()) + len(" ") + len(req.Protocol()) + len("\r\n") + len(req.RawHeaders())
	c.ahead = c.ahead || c.given != length
	c.given = 0
}

// cut closes the connection under whoever serves it. Unlike Close it has no farewell for a client
// of TLS, which waits for seconds when the client does not read; and it may be called under table.mu.
func (c *conn) cut() {
	nc := c.Conn
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	_ = nc.Close()
}

// stopReading makes a read fail that waits now, or the next one. What is answered goes on.
func (c *conn) stopReading() { _ = c.Conn.SetReadDeadline(time.Unix(1, 0)) }

// setNumber gives the connection its number and with it the prefix of its request ids: a
// version 8 UUID of process (60 bits), connection (38 bits) and request (24 bits).
func (c *conn) setNumber(n uint64, process [8]byte) {
	c.number = n
	var u [13]byte
	copy(u[:8], process[:])
	u[6] = u[6]&0x0f | 0x80
	u[7] = process[7]
	binary.BigEndian.PutUint16(u[8:], 0x8000|uint16(n>>24)&0x3fff)
	u[10], u[11], u[12] = byte(n>>16), byte(n>>8), byte(n)
	var h [26]byte
	hex.Encode(h[:], u[:])
	b := c.idPrefix[:0]
	for _, part := range [][]byte{h[:8], h[8:12], h[12:16], h[16:20]} {
		b = append(append(b, part...), '-')
	}
	copy(c.idPrefix[len(b):], h[20:])
}

// begin prepares for the next request.
func (c *conn) begin() {
	c.requests++
	copy(c.idBuf[:], c.idPrefix[:])
	const digits = "0123456789abcdef"
	for i, n := 35, c.requests; i >= 30; i, n = i-1, n>>4 {
		c.idBuf[i] = digits[n&15]
	}
	c.idText = ""
	c.traceparent = nil
	c.caller, c.op, c.status, c.code = nil, "", 0, ""
	c.startClock()
}

// requestID returns the id of the current request.
func (c *conn) requestID() string {
	if c.idText == "" {
		c.idText = string(c.idBuf[:])
	}
	return c.idText
}

// trace returns the trace that the client is in. It is parsed when asked for: most hits leave
// no line behind.
func (c *conn) trace() upstream.TraceParent {
	t, _ := upstream.ParseTraceParent(bytes.Trim(c.traceparent, " \t"))
	return t
}

// cause returns the current request as the cause of what it sets off.
func (c *conn) cause() upstream.Cause {
	return upstream.Cause{RequestID: c.requestID(), Trace: c.trace()}
}

// ageAt returns how long ago the backend confirmed a value, in seconds.
func ageAt(now int64, a *upstream.Answer) int64 {
	return max(now-a.FetchedAt.UnixNano(), 0) / int64(time.Second)
}

// setAge sets the Age header of an answer.
func (c *conn) setAge(ctx *fasthttp.RequestCtx, seconds int64) {
	c.age = strconv.AppendInt(c.age[:0], seconds, 10)
	ctx.Response.Header.SetCanonical(headerAge, c.age)
}

// from describes the other side for log and audit.
func (c *conn) from() string {
	if c.remote == "" {
		switch {
		case c.peer.known:
			c.remote = "uid=" + strconv.FormatUint(uint64(c.peer.uid), 10) + " gid=" + strconv.FormatUint(uint64(c.peer.gid), 10) +
				" pid=" + strconv.FormatInt(int64(c.peer.pid), 10)
		case c.unix:
			c.remote = "unix"
		default:
			c.remote = c.Conn.RemoteAddr().String()
		}
	}
	return c.remote
}

// drain returns what r, a buffered reader above c, holds without touching the socket.
func (c *conn) drain(r net.Conn, limit int) ([]byte, error) {
	c.gate = true
	defer func() { c.gate = false }()
	var left []byte
	buf := make([]byte, 512)
	for {
		n, err := r.Read(buf)
		left = append(left, buf[:n]...)
		switch {
		case errors.Is(err, errGate):
			return left, nil
		case err != nil:
			return nil, err
		case len(left) > limit:
			return nil, errors.New("more is buffered than a buffer holds")
		}
	}
}
