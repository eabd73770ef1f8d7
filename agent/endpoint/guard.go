package endpoint

import (
	"bytes"
	"net/netip"
	"strings"
	"time"

	"github.com/valyala/fasthttp"
)

// seen is what one pass over the headers finds.
type seen struct {
	token       []byte
	tokens      int  // token headers
	ambiguous   bool // two token headers that differ
	forwarded   bool
	crossOrigin bool
	ifNoneMatch []byte
	traceparent []byte
	traces      int // traceparent headers
}

// guard decides whether a request may go on, in this order:
//
//  1. method: the path must support it, a GET has no body, and nobody could disagree with us
//     about where the request ends;
//  2. forwarded headers: the client must be on this host;
//  3. Host: it must be ours, so that no foreign name can be rebound to us;
//  4. Origin and Sec-Fetch-Site: no page may ask through its visitor's browser, but for the
//     parts of the status page that page itself, whose forms nothing else may send;
//  5. token, or the peer's uid and gid, or for the status alone the session of a browser.
//
// It returns the caller in c.caller; nil for a health request that presents no valid token, and
// for a browser that is not signed in.
func (s *Server) guard(ctx *fasthttp.RequestCtx, c *conn, r route) (seen, refusal) {
	// 1.
	req := &ctx.Request.Header
	get, post := req.IsGet(), req.IsPost()
	if r.posts() && !post || !r.posts() && !get && (r != routeUnknown || !post) {
		setAllow(ctx, r)
		return seen{}, methodNotAllowed
	}
	set := s.callers.Load()
	if get && c.passed(req.RawHeaders(), set) {
		return seen{}, allowed // 1 to 5 are functions of the same bytes, see where they are remembered
	}
	length, chunked := framing(req.RawHeaders())
	if n := req.ContentLength(); get && (n > 0 || n == -1 || chunked) || length && chunked {
		return seen{}, malformedRequest
	}
	h := s.scan(req)
	if h.traces == 1 {
		c.traceparent = h.traceparent
	}
	// 2.
	if h.forwarded {
		return h, forwardedRequest
	}
	// 3.
	if host := req.Host(); !bytes.Equal(host, c.memory.host) || len(host) == 0 {
		if !s.hostAllowed(host, c.unix) {
			return h, hostNotAllowed
		}
		c.memory.host = append(c.memory.host[:0], host...)
	}
	// 4.
	if (h.crossOrigin || r.fromPage()) && !(r.forBrowsers() && sameOrigin(req, c)) {
		return h, originNotAllowed
	}
	// 5.
	who, refused := authenticate(c, &h, set)
	lent := refused == tokenMissing
	if lent {
		if who, refused = s.admitBrowser(req, c, r, set); who == nil && refused == allowed {
			return h, allowed
		}
	}
	if refused != allowed {
		if r == routeLive || r == routeReady {
			return h, allowed
		}
		return h, refused
	}
	c.caller = who
	if !lent && c.account != who.account {
		s.settle(c, who.account)
	}
	if !c.trusted.Load() {
		s.table.trust(c)
	}
	if get && !lent && !h.crossOrigin { // a session counts for the status alone, an origin for the page
		c.remember(req, &h)
	}
	return h, allowed
}

// framing reports which headers of a block say where the body ends. With both of them, others
// on the way may have come to another conclusion than we.
func framing(headers []byte) (length, chunked bool) {
	for line := range bytes.Lines(headers) {
		name, _, _ := bytes.Cut(line, []byte(":"))
		switch len(name) {
		case len("Content-Length"):
			length = length || strings.EqualFold(string(name), "Content-Length")
		case len("Transfer-Encoding"):
			chunked = chunked || strings.EqualFold(string(name), "Transfer-Encoding")
		}
	}
	return length, chunked
}

func setAllow(ctx *fasthttp.RequestCtx, r route) {
	allow := "GET"
	if r.posts() {
		allow = "POST"
	}
	ctx.Response.Header.Set("Allow", allow)
}

// scan reads the headers once. fasthttp has put names in canonical form, except those that
// contain a space, which match nothing here but are caught as forwarded all the same.
func (s *Server) scan(req *fasthttp.RequestHeader) seen {
	var h seen
	for k, v := range req.All() {
		switch k[0] | 0x20 {
		case 'x':
			if len(k) >= len("X-Forwarded") && strings.EqualFold(string(k[:len("X-Forwarded")]), "X-Forwarded") || string(k) == "X-Real-Ip" {
				h.forwarded = true
			}
		case 'f':
			h.forwarded = h.forwarded || string(k) == "Forwarded"
		case 'v':
			h.forwarded = h.forwarded || string(k) == "Via"
		case 'o':
			h.crossOrigin = h.crossOrigin || string(k) == "Origin"
		case 's':
			if string(k) == "Sec-Fetch-Site" && string(v) != "none" && string(v) != "same-origin" {
				h.crossOrigin = true
			}
		case 'i':
			if string(k) == "If-None-Match" {
				h.ifNoneMatch = v
			}
		case 't':
			if string(k) == headerTraceparent {
				h.traceparent = v
				h.traces++
			}
		}
		for _, name := range s.tokenHeaders {
			if len(k) == len(name) && string(k) == string(name) {
				if h.tokens > 0 && !bytes.Equal(h.token, v) {
					h.ambiguous = true
				}
				h.tokens++
				h.token = v
			}
		}
	}
	return h
}

// hostAllowed reports whether host, with or without port, means this host: a loopback name or
// address, or one that was configured. On a unix socket a name without a dot will do as well:
// clients must send something, and no such name can be rebound.
func (s *Server) hostAllowed(hostport []byte, unix bool) bool {
	host := lower(string(hostport))
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") && strings.Count(host, ":") == 1 ||
		i >= 0 && strings.HasPrefix(host, "[") && host[i-1] == ']' {
		for _, d := range host[i+1:] {
			if d < '0' || d > '9' {
				return false
			}
		}
		host = host[:i]
	}
	if h, ok := strings.CutPrefix(host, "["); ok {
		if host, ok = strings.CutSuffix(h, "]"); !ok {
			return false
		}
	}
	if host == "localhost" {
		return true
	}
	if _, ok := s.hosts[host]; ok {
		return true
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap().IsLoopback() && ip.Zone() == ""
	}
	return unix && host != "" && !strings.ContainsAny(host, ".:%[]")
}

// lower is strings.ToLower for ASCII, so that no letter of another alphabet becomes one of ours.
func lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// noteRefusal writes a refusal to log and audit, at a bounded rate: whoever is refused must
// not be able to fill a disk.
func (s *Server) noteRefusal(c *conn, r refusal) {
	switch r {
	case forwardedRequest, hostNotAllowed, originNotAllowed, tokenMissing, tokenInvalid, linkInvalid, peerNotAllowed, nameNotAllowed:
	default:
		return
	}
	if ok, suppressed := s.logLimit.allow(); ok {
		name := ""
		if c.caller != nil {
			name = c.caller.name
		}
		s.opts.Logger.Warn("request refused", "code", refusals[r].code, "caller", name, "from", c.from(),
			c.cause().Attr(), "suppressed", suppressed, "hint", refusals[r].message)
	}
	if s.opts.Audit != nil && r != nameNotAllowed { // a denied name is audited with the name, by its route
		if ok, suppressed := s.auditRefusal(&s.strangers); ok {
			s.opts.Audit.write(record{time: time.Now(), from: c.from(), op: c.op, outcome: refusals[r].code,
				status: refusals[r].status, requestID: c.idBuf[:], trace: c.trace(), suppressed: suppressed})
		}
	}
}

// auditRefusal reports whether l has room for another audit line, and how many were left out
// since the last. Strangers and every caller have a limiter each, so that no flood hides what
// somebody else was refused.
func (s *Server) auditRefusal(l *limiter) (ok bool, suppressed uint64) {
	if ok, suppressed = l.allow(); !ok {
		s.stats.auditDropped.Add(1)
	}
	return ok, suppressed
}
