package endpoint

import (
	"bytes"

	"github.com/valyala/fasthttp"
)

// maxRemembered bounds the request target that a connection remembers.
const maxRemembered = 512

// memory is what a connection knows from its previous requests. Clients that keep a
// connection open ask the same over and over; comparing a few bytes with those of the last
// time saves hashing the token, decoding the target and composing the headers again. It holds
// no value, and nothing in it grants anything: what it saves are pure functions of bytes that
// this same client sent, under the same set of callers.
type memory struct {
	host []byte // the last Host that was accepted

	token   []byte // the last token that was accepted,
	callers *callerSet
	found   *callerToken // and whose it is

	target []byte // the last target that c.query was parsed from; c.query may alias it
	parsed bool   // c.query is what target asks for

	// The headers of the last hit, but for its request id.
	header      fasthttp.ResponseHeader
	etag        [24]byte
	contentType *byte // of one of the three slices that content types are
	age         int64
	repeated    bool // header is filled: the same was answered twice in a row
}

// parse fills c.query with what the target of a request for one value asks for.
func (s *Server) parse(c *conn, target []byte) error {
	m := &c.memory
	if m.parsed && bytes.Equal(target, m.target) {
		return nil
	}
	c.forget()
	remember := len(target) <= maxRemembered
	if remember {
		m.target = append(m.target[:0], target...)
		target = m.target
	}
	r, name, raw := s.routeOf(target)
	c.query = query{}
	if err := s.parseGet(c, &c.query, r, name, raw); err != nil {
		return err
	}
	c.query.ref = c.query.ref.WithDefaults()
	m.parsed = remember
	return nil
}

// forget makes the scratch buffer free for another request.
func (c *conn) forget() {
	c.memory.parsed = false
	c.scratch = c.scratch[:0]
}

// setHitHeaders sets the headers of a hit.
func (s *Server) setHitHeaders(ctx *fasthttp.RequestCtx, c *conn, p *prepared, contentType []byte, age int64) {
	m := &c.memory
	h := &ctx.Response.Header
	same := m.age == age && m.contentType == &contentType[0] && m.etag == p.etag
	if same && m.repeated {
		m.header.SetCanonical(headerRequestID, c.idBuf[:])
		m.header.CopyTo(h)
		return
	}
	s.setCommonHeaders(ctx, c)
	h.SetCanonical(headerETag, p.etag[:])
	c.setAge(ctx, age)
	h.SetCanonical(headerXCache, xCacheHit)
	h.SetContentTypeBytes(contentType)
	if m.repeated = same; same {
		h.CopyTo(&m.header)
	}
	m.age, m.contentType, m.etag = age, &contentType[0], p.etag
}
