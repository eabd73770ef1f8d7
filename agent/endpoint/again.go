package endpoint

import (
	"bytes"
	"io"
	"strconv"

	"github.com/valyala/fasthttp"
)

const (
	againMethod   = "GET "
	againProtocol = " HTTP/1.1\r\n"
)

// longLived is after how many requests a connection gets a repeater. What asks less often is
// better served without: a repeater can be late to notice that its client left.
const longLived = 16

// answerAgain answers the request in buf[:n] at once when it is a hit for one value and its
// headers are, byte for byte, those of the last request of this connection that passed the
// guard. For anything else it reports false and leaves no trace: the request then takes the
// way through fasthttp, whose answer this one must equal. The rest of buf is used as scratch,
// as the contract of io.Reader allows; a value does not stay in it.
//
// It may only be called when buf[:n] is all that has been read and not been answered. An error
// means that the answer could not be written.
func (s *Server) answerAgain(c *conn, buf []byte, n int) (answered bool, err error) {
	target, ok := s.sameHeaders(c, buf[:n])
	if !ok || s.stopping.Load() || c.healthOnly || c.requests+1 >= uint64(s.opts.MaxRequestsPerConnection) {
		return false, nil
	}
	requests, trace := c.requests, c.traceparent
	defer func() {
		if recover() != nil { // what panics here does so again in the handler, which reports it
			answered, err = false, nil
		}
		if !answered {
			c.requests = requests
		}
	}()
	c.begin()
	c.traceparent = trace
	m := &c.memory
	if !m.parsed || !bytes.Equal(target, m.target) {
		if s.parse(c, target) != nil {
			return false, nil
		}
	}
	q := &c.query
	if q.refresh || !m.who.may(q.ref.SecretName) {
		return false, nil
	}
	a, ok := s.secrets.Peek(q.ref)
	if !ok {
		return false, nil
	}
	p := s.preparedOf(&a, q.format)
	b, err := p.wanted(a.Value, q)
	if err != nil {
		return false, nil
	}
	c.caller, c.op, c.status = m.who, operations[m.route], fasthttp.StatusOK
	// First, as everywhere: whoever has an answer finds it counted and audited.
	s.countHit(c, &a)
	s.audit(c, q.ref, a.Value.VersionID, a.Freshness.String())
	out := c.appendHit(buf[:0], p, b, ageAt(s.clock.Load(), &a))
	if fits := len(out)+len(b.data) <= cap(buf); fits {
		out = append(out, b.data...)
		_, err = c.Conn.Write(out)
		clear(out)
	} else if _, err = c.Conn.Write(out); err == nil {
		_, err = c.Conn.Write(b.data)
	}
	if err != nil {
		return true, io.EOF // the client is gone: nobody is left to tell
	}
	return true, nil
}

// sameHeaders returns the target of a request that is complete, has no body, and passes the
// guard because its headers did before.
func (s *Server) sameHeaders(c *conn, request []byte) (target []byte, ok bool) {
	rest, ok := bytes.CutPrefix(request, []byte(againMethod))
	if !ok {
		return nil, false
	}
	i := len(rest) - len(c.memory.headers)
	if i <= len(againProtocol) || string(rest[i-len(againProtocol):i]) != againProtocol {
		return nil, false
	}
	if !c.passed(rest[i:], s.callers.Load()) {
		return nil, false
	}
	target = rest[:i-len(againProtocol)]
	for _, b := range target {
		if b <= ' ' || b >= 0x7f || b == '#' {
			return nil, false // let fasthttp say what it makes of that
		}
	}
	return target, true
}

// appendHit appends status line and headers of a hit.
func (c *conn) appendHit(out []byte, p *prepared, b *body, age int64) []byte {
	out = append(out, "HTTP/1.1 200 OK\r\nContent-Type: "...)
	out = append(out, b.contentType...)
	out = append(out, "\r\nX-Request-Id: "...)
	out = append(out, c.idBuf[:]...)
	out = append(out, "\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nX-Cache: hit\r\nETag: "...)
	out = append(out, p.etag[:]...)
	out = append(out, "\r\nAge: "...)
	out = strconv.AppendInt(out, age, 10)
	out = append(out, "\r\nContent-Length: "...)
	out = strconv.AppendInt(out, int64(len(b.data)), 10)
	return append(out, "\r\n\r\n"...)
}
