package endpoint

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"

	"github.com/valyala/fasthttp"

	"secretagent/upstream"
)

// headers is what one pass over the headers of a request finds, and its method.
type headers struct {
	method      methods
	token       []byte
	tokens      int  // token headers
	ambiguous   bool // two token headers that differ
	aws         bool // the header is there that only applications of the AWS agent send
	wrap        bool // the answer is to be wrapped, as only Vault can
	forwarded   bool
	crossOrigin bool
	ifNoneMatch []byte
	traceparent []byte // as it was sent; nil when there is none, or more than one
	traces      int    // traceparent headers
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
//
// No family may be let past any of it: what differs is only how a refusal looks. One path is open
// to everybody, as it is at the AWS agent, because it says the same to all and about nothing: /ping
// passes 2. to 4., without a caller.
func (s *Server) guard(ctx *fasthttp.RequestCtx, c *conn, r *route, h *headers) *refusal {
	req := &ctx.Request.Header
	if refused := guardMethod(ctx, r, h.method); refused != allowed { // 1.
		return refused
	}
	c.ifNoneMatch, c.traceparent = h.ifNoneMatch, h.traceparent
	switch {
	case r.forAll && (h.forwarded || h.crossOrigin || !s.hostAllowed(req.Host(), c.unix)):
		return allowed // as nobody
	case h.forwarded: // 2.
		return forwardedRequest
	case !s.hostAllowed(req.Host(), c.unix): // 3.
		return hostNotAllowed
	case (h.crossOrigin || r.fromPage) && !(r.forBrowsers && sameOrigin(req, c)): // 4.
		return originNotAllowed
	}
	return s.identify(req, c, r, h) // 5.
}

// look finds out what the headers of a request say.
func (s *Server) look(h *headers, req *fasthttp.RequestHeader) {
	h.method = methodOf(req)
	for name, value := range req.All() {
		s.note(h, name, value)
	}
}

// methods is a set of methods.
type methods uint8

const (
	methodGet methods = 1 << iota
	methodHead
	methodPost
	methodPut
	methodList // of Vault

	withBody = methodPost | methodPut
)

// methodNames are the names of the bits, in their order.
var methodNames = [...]string{"GET", "HEAD", "POST", "PUT", "LIST"}

// methodOf returns the method of a request; 0: one that nothing here takes.
func methodOf(req *fasthttp.RequestHeader) methods {
	if req.IsGet() { // nearly always
		return methodGet
	}
	if i := slices.Index(methodNames[:], view(req.Method())); i >= 0 {
		return 1 << i
	}
	return 0
}

// String lists the methods as the Allow header does.
func (m methods) String() string {
	var names []string
	for i, name := range methodNames {
		if m&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}

// guardMethod refuses other methods than those of the route, and what others on the way to us
// may have read otherwise than we do.
func guardMethod(ctx *fasthttp.RequestCtx, r *route, method methods) *refusal {
	req := &ctx.Request.Header
	takes := r.methods
	if takes == 0 {
		takes = methodGet
	}
	if method&takes == 0 && (r != routeUnknown || method != methodPost) {
		ctx.Response.Header.Set("Allow", takes.String())
		return methodNotAllowed
	}
	length, encoding := framing(req.RawHeaders())
	if n := req.ContentLength(); method&withBody == 0 && (n > 0 || encoding) || length && encoding {
		return malformedRequest
	}
	return allowed
}

// framing reports which headers of a block say where the body ends: fasthttp tells of one of
// them only.
func framing(block []byte) (length, encoding bool) {
	for len(block) > 0 {
		line := block
		if i := bytes.IndexByte(block, '\n'); i >= 0 {
			line, block = block[:i], block[i+1:]
		} else {
			block = nil
		}
		if len(line) == 0 {
			continue
		}
		switch line[0] | 0x20 {
		case 'c':
			length = length || named(line, "Content-Length:")
		case 't':
			encoding = encoding || named(line, "Transfer-Encoding:")
		}
	}
	return length, encoding
}

// named reports whether a line of the headers begins with name, in any case.
func named(line []byte, name string) bool {
	return len(line) >= len(name) && line[0]|0x20 == name[0]|0x20 && strings.EqualFold(view(line[:len(name)]), name)
}

// note looks at one header. fasthttp has put the names in canonical form, except those that
// contain a space, which match nothing here but are caught as forwarded all the same.
func (s *Server) note(h *headers, name, value []byte) {
	switch string(name) {
	case "Forwarded", "Via", "X-Real-Ip":
		h.forwarded = true
	case "Origin":
		h.crossOrigin = true
	case "Sec-Fetch-Site":
		h.crossOrigin = h.crossOrigin || string(value) != "none" && string(value) != "same-origin"
	case "If-None-Match":
		h.ifNoneMatch = value
	case "X-Aws-Parameters-Secrets-Token":
		h.aws = true
	case "X-Vault-Wrap-Ttl":
		h.wrap = true
	case "Traceparent":
		if h.traceparent = nil; h.traces == 0 {
			h.traceparent = value
		}
		h.traces++
	default:
		h.forwarded = h.forwarded || named(name, "X-Forwarded")
	}
	for _, own := range s.tokenHeaders {
		if string(own) == string(name) {
			h.ambiguous = h.ambiguous || h.tokens > 0 && !bytes.Equal(h.token, value)
			h.tokens++
			h.token = value
		}
	}
}

// identify finds out who asks.
func (s *Server) identify(req *fasthttp.RequestHeader, c *conn, r *route, h *headers) *refusal {
	set := s.callers.Load()
	who, refused := authenticate(c, h, set)
	lent := refused == tokenMissing
	if r.forOperator && h.tokens == 0 && isOperator(c) {
		who, refused, lent = s.operator, allowed, false
	} else if r.noOthers {
		who, refused = nil, operatorOnly
	} else if lent {
		who, refused = s.admitBrowser(req, c, r, set)
	}
	switch {
	case refused != allowed && r.health:
		return allowed
	case refused != allowed || who == nil:
		return refused
	}
	c.caller = who
	account := who.account
	account.see(s.clock.Load())
	if lent { // a session opens the status alone: the connection is nobody's
		account = c.account
	}
	if !c.trusted || c.account != account {
		s.claim(c, account)
	}
	return allowed
}

// hostAllowed reports whether host, with or without port, means this host: a loopback name or
// address, or one that was configured. On a unix socket a name without a dot will do as well:
// clients must send something, and no such name can be rebound. It allocates nothing for a
// host in lower case.
func (s *Server) hostAllowed(hostport []byte, unix bool) bool {
	host, ok := withoutPort(view(hostport))
	if !ok {
		return false
	}
	if s.hosts[host] || s.hosts[lower(host)] {
		return true
	}
	if !strings.ContainsAny(host, ".:%[]") {
		return unix && host != ""
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback() && ip.Zone() == ""
}

// withoutPort returns host without the port after it and the brackets around it.
func withoutPort(host string) (string, bool) {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && (strings.IndexByte(host, ':') == i || host[i-1] == ']') {
		for _, digit := range host[i+1:] {
			if digit < '0' || digit > '9' {
				return "", false
			}
		}
		host = host[:i]
	}
	if strings.HasPrefix(host, "[") {
		return host[1:max(len(host)-1, 1)], strings.HasSuffix(host, "]")
	}
	return host, true
}

// lower is strings.ToLower for ASCII, so that no letter of another alphabet becomes one of ours.
func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}

// noteRefusal writes a refusal to log and audit, at a bounded rate: a client that is refused
// must not be able to fill a disk.
func (s *Server) noteRefusal(c *conn, r *refusal) {
	switch r {
	case forwardedRequest, hostNotAllowed, originNotAllowed, tokenMissing, bearerMissing, tokenInvalid, linkInvalid, peerNotAllowed, nameNotAllowed:
	default:
		return
	}
	if ok, suppressed := s.logLimit.allow(); ok {
		name := ""
		if c.caller != nil {
			name = c.caller.Name
		}
		s.opts.Logger.Warn("request refused", "code", r.code, "caller", name, "from", c.from(),
			c.cause().Attr(), "suppressed", suppressed, "hint", r.message)
	}
	if r != nameNotAllowed { // a denied name is audited with the name, see deny
		s.auditRefusal(c, upstream.SecretRef{}, &s.strangers)
	}
}
