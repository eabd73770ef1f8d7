package endpoint

import (
	"bytes"
	"errors"
	"strings"

	"github.com/valyala/fasthttp"
)

// How much of a request a connection remembers.
const (
	maxTarget  = 512
	maxHeaders = 1 << 10
)

// memory is what a connection knows from its previous requests. Clients that keep a
// connection open ask the same over and over; comparing bytes with those of the last time
// saves parsing and checking the headers, hashing the token and decoding the target again. It
// holds no value. Nothing in it grants anything: each part is the result of a pure function of
// bytes that this same client sent, and of the set of callers, and counts only for the same
// bytes under the same set.
type memory struct {
	headers []byte // the last header block that passed the guard with a GET,
	trace   span   // where its traceparent is, which may differ from request to request,
	who     *caller
	callers *callerSet   // under these callers,
	found   *callerToken // with this token, or by its peer alone when nil

	host  []byte // the last Host that was accepted
	token []byte // the last token that was accepted, under callers

	target []byte // the last target that c.query was parsed from; c.query may alias it
	route  route
	parsed bool // c.query is what target asks for
}

// span is a part of a block of bytes; empty when its ends are equal.
type span struct{ from, to int }

// passed reports whether a GET with this header block passes the guard because the last one
// with the same bytes did, and sets caller and trace.
func (c *conn) passed(headers []byte, set *callerSet) bool {
	m := &c.memory
	if m.callers != set || m.who == nil || len(headers) != len(m.headers) || len(headers) == 0 || m.found != nil && m.found.expiredNow() {
		return false
	}
	trace := headers[m.trace.from:m.trace.to]
	if !bytes.Equal(headers[:m.trace.from], m.headers[:m.trace.from]) || !bytes.Equal(headers[m.trace.to:], m.headers[m.trace.to:]) || !plainTrace(trace) {
		return false
	}
	c.caller, c.traceparent = m.who, trace
	return true
}

// remember notes that a GET with this header block passed the guard. Blocks with a condition
// are left out: what follows the guard must see it. So are those that end the connection, that
// another version of HTTP would read differently, or whose trace is none.
func (c *conn) remember(req *fasthttp.RequestHeader, h *seen) {
	m := &c.memory
	m.who = nil
	headers := req.RawHeaders()
	if len(h.ifNoneMatch) > 0 || len(headers) > maxHeaders || !req.IsHTTP11() || req.ConnectionClose() {
		return
	}
	trace, ok := traceIn(headers, h)
	if !ok {
		return
	}
	m.headers, m.trace, m.who = append(m.headers[:0], headers...), trace, c.caller
}

// traceIn returns where in headers the value of the traceparent is; ok is false when there is
// one that is not plain, or more than one.
func traceIn(headers []byte, h *seen) (at span, ok bool) {
	if h.traces == 0 {
		return span{}, true
	}
	begin := 0
	for line := range bytes.Lines(headers) {
		if name, value, _ := bytes.Cut(line, []byte(":")); strings.EqualFold(view(name), headerTraceparent) {
			value = bytes.TrimRight(value, "\r\n")
			at.to = begin + len(name) + 1 + len(value)
			value = bytes.TrimLeft(value, " ")
			at.from = at.to - len(value)
			return at, h.traces == 1 && len(value) == traceLen && plainTrace(value) && bytes.Equal(value, h.traceparent)
		}
		begin += len(line)
	}
	return span{}, false
}

// headerTraceparent is in canonical form.
const headerTraceparent = "Traceparent"

// traceLen is how long a traceparent of version 00 is.
const traceLen = len("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")

// plainTrace reports whether b consists of what a traceparent consists of. No such bytes mean
// anything else in a header.
func plainTrace(b []byte) bool {
	for _, c := range b {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') && c != '-' {
			return false
		}
	}
	return true
}

// errNoValue says that a target asks for something else than one value.
var errNoValue = errors.New("no request for one value")

// parse fills c.query with what the target of a request for one value asks for.
func (s *Server) parse(c *conn, target []byte) error {
	m := &c.memory
	c.forget()
	remember := len(target) <= maxTarget
	if remember {
		m.target = append(m.target[:0], target...)
		target = m.target
	}
	r, name, raw := s.routeOf(target)
	if r != routeName && r != routeGet {
		return errNoValue
	}
	c.query = query{}
	if err := s.parseGet(c, &c.query, r, name, raw); err != nil {
		return err
	}
	c.query.ref = c.query.ref.WithDefaults()
	m.route, m.parsed = r, remember
	return nil
}

// forget makes the scratch buffer free for another request.
func (c *conn) forget() {
	c.memory.parsed = false
	c.scratch = c.scratch[:0]
}
