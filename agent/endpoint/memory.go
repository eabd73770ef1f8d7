package endpoint

import (
	"bytes"
	"errors"

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
	who     *caller
	callers *callerSet   // under these callers,
	found   *callerToken // with this token, or by its peer alone when nil

	host  []byte // the last Host that was accepted
	token []byte // the last token that was accepted, under callers

	target []byte // the last target that c.query was parsed from; c.query may alias it
	route  route
	parsed bool // c.query is what target asks for
}

// passed reports whether a GET with this header block passes the guard because the last one
// with the same bytes did, and sets the caller.
func (c *conn) passed(headers []byte, set *callerSet) bool {
	m := &c.memory
	if m.callers != set || m.who == nil || !bytes.Equal(headers, m.headers) || len(headers) == 0 ||
		m.found != nil && m.found.expiredNow() {
		return false
	}
	c.caller = m.who
	return true
}

// remember notes that a GET with this header block passed the guard. Blocks with a condition
// or a trace are left out: what follows the guard must see those. So are those that end the
// connection or that another version of HTTP would read differently.
func (c *conn) remember(req *fasthttp.RequestHeader, h *seen) {
	m := &c.memory
	m.who = nil
	if headers := req.RawHeaders(); len(h.ifNoneMatch) == 0 && h.traces == 0 && len(headers) <= maxHeaders && req.IsHTTP11() && !req.ConnectionClose() {
		m.headers, m.who = append(m.headers[:0], headers...), c.caller
	}
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
