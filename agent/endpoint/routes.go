package endpoint

import (
	"bytes"
	"context"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"secretagent/upstream"
)

// route is what a path asks for.
type route uint8

const (
	routeUnknown route = iota
	routeName          // {prefix}{name}
	routeGet
	routeBatch
	routeReport
	routeLive
	routeReady
	routeMetrics
	routeStatus
	routeVersions
	routePageFile
	routePageLink
	routePageOpen
	routeSignIn
	routeSignOut
)

// pingPath is what the AWS agent calls /live, and what its probes ask for.
const pingPath = "/ping"

// routeOf splits a request target, as it came over the wire, into route, name and query.
// fasthttp's own idea of the path is not used: it resolves dots and doubled slashes, which
// are ordinary characters of a secret name.
func (s *Server) routeOf(target []byte) (r route, name, query []byte) {
	path, query, _ := bytes.Cut(target, []byte{'?'})
	switch string(path) {
	case "/secretsmanager/get":
		return routeGet, nil, query
	case "/secretsmanager/batch":
		return routeBatch, nil, query
	case "/secretsmanager/report":
		return routeReport, nil, query
	case "/live", pingPath:
		return routeLive, nil, query
	case "/ready":
		return routeReady, nil, query
	case "/metrics":
		return routeMetrics, nil, query
	case "/status":
		return routeStatus, nil, query
	}
	if r := pageRoute(path); r != routeUnknown {
		return r, nil, query
	}
	if name, ok := bytes.CutPrefix(path, s.prefix); ok {
		return routeName, name, query
	}
	return routeUnknown, nil, query
}

// operations are the names that audit lines give to routes.
var operations = [...]string{
	routeUnknown: "",
	routeName:    "GetSecretValue",
	routeGet:     "GetSecretValue",
	routeBatch:   "BatchGetSecretValue",
	routeReport:  "ReportSecretValue",
	routeLive:    "Live",
	routeReady:   "Ready",
	routeMetrics: "Metrics",
	routeStatus:  "Status",

	routeVersions: "ListSecretVersionIds",
	routePageFile: "Page",
	routePageLink: "MakeLink",
	routePageOpen: "SignIn",
	routeSignIn:   "SignIn",
	routeSignOut:  "SignOut",
}

// dispatch takes a request through guard and route.
func (s *Server) dispatch(ctx *fasthttp.RequestCtx, c *conn) {
	target := ctx.Request.Header.RequestURI()
	var r route
	var query []byte
	known := c.memory.parsed && bytes.Equal(target, c.memory.target)
	if known {
		r = c.memory.route
	} else {
		r, _, query = s.routeOf(target)
	}
	c.op = operations[r]
	h, refused := s.guard(ctx, c, r)
	switch {
	case refused != allowed:
		s.refuse(ctx, c, refused)
		return
	case c.healthOnly && r != routeLive && r != routeReady:
		s.refuse(ctx, c, tooManyConnections)
		return
	case r == routeName, r == routeGet:
		if !known {
			if err := s.parse(c, target); err != nil {
				s.fail(ctx, c, upstream.SecretRef{}, err)
				return
			}
		}
		s.get(ctx, c, &h)
		return
	}
	c.forget()
	switch r {
	case routeBatch:
		s.batch(ctx, c, query)
	case routeReport:
		s.report(ctx, c, query)
	case routeUnknown:
		s.refuse(ctx, c, pathNotFound)
	case routePageFile, routePageLink, routePageOpen, routeSignIn, routeSignOut:
		s.page(ctx, c, r, query)
	case routeVersions:
		s.versions(ctx, c, query)
	default:
		s.observe(ctx, c, r, query)
	}
}

// get answers with the value that c.query asks for.
func (s *Server) get(ctx *fasthttp.RequestCtx, c *conn, h *seen) {
	ticket := c.resumed
	c.resumed = nil
	q := &c.query
	if !c.caller.may(q.ref.SecretName) {
		s.deny(ctx, c, q.ref)
		return
	}
	if !q.refresh {
		// The whole of a hit: nothing below this block runs for it.
		if a, ok := s.secrets.Peek(q.ref); ok {
			s.answer(ctx, c, h, &a, ticket)
			return
		}
	}
	ref := owned(q.ref)
	c.setPhase(busy)
	began := time.Now()
	lookup, cancel := s.lookupContext(c)
	var a upstream.Answer
	var err error
	if q.refresh {
		a, err = s.secrets.RefreshNow(lookup, ref)
	} else {
		a, err = s.secrets.Lookup(lookup, ref)
	}
	cancel()
	c.setPhase(active)
	s.timeLookup(&a, err, began)
	if err != nil {
		s.fail(ctx, c, ref, err)
		s.audit(c, ref, "", c.code)
		return
	}
	s.answer(ctx, c, h, &a, ticket)
}

// lookupContext returns the context of what the current request asks of the cache.
func (s *Server) lookupContext(c *conn) (context.Context, context.CancelFunc) {
	return context.WithTimeout(upstream.WithCause(s.base, c.cause()), s.opts.LookupTimeout)
}

// answer writes a value, a 304, or parks the connection until there is something to write.
func (s *Server) answer(ctx *fasthttp.RequestCtx, c *conn, h *seen, a *upstream.Answer, ticket *parkTicket) {
	q := &c.query
	p := s.preparedOf(a, q.format)
	if len(h.ifNoneMatch) > 0 && etagMatches(h.ifNoneMatch, p.etag[:]) {
		if q.wait > 0 && s.park(ctx, c, q, p, ticket) {
			return
		}
		if c.code == "" { // not refused
			s.answerNotModified(ctx, c, q, a, p)
		}
		return
	}
	b, err := p.wanted(a.Value, q)
	if err != nil {
		if err == errNoField {
			s.refuse(ctx, c, fieldNotFound)
		} else {
			s.fail(ctx, c, q.ref, err)
		}
		s.audit(c, q.ref, a.Value.VersionID, c.code)
		return
	}
	s.setValueHeaders(ctx, c, a, p)
	ctx.Response.Header.SetContentTypeBytes(b.contentType)
	ctx.Response.SetBodyRaw(b.data)
	s.countValue(c, a)
	c.status = fasthttp.StatusOK
	s.audit(c, q.ref, a.Value.VersionID, a.Freshness.String())
}

func (s *Server) answerNotModified(ctx *fasthttp.RequestCtx, c *conn, q *query, a *upstream.Answer, p *prepared) {
	s.setValueHeaders(ctx, c, a, p)
	ctx.Response.SetStatusCode(fasthttp.StatusNotModified)
	s.stats.notModified.Add(1)
	s.countSlow(c, a)
	c.status = fasthttp.StatusNotModified
	s.audit(c, q.ref, a.Value.VersionID, "not-modified")
}

// deny answers a caller without rights on a name. No lookup is made, so nothing about the
// answer depends on whether the name exists.
func (s *Server) deny(ctx *fasthttp.RequestCtx, c *conn, ref upstream.SecretRef) {
	s.refuse(ctx, c, nameNotAllowed)
	if s.opts.Audit != nil {
		if ok, suppressed := s.auditRefusal(&c.caller.account.denials); ok {
			s.opts.Audit.write(s.record(c, ref, "", c.code, suppressed))
		}
	}
}

// owned returns ref with strings of its own.
func owned(ref upstream.SecretRef) upstream.SecretRef {
	return upstream.SecretRef{
		SecretName:   upstream.SecretName(strings.Clone(string(ref.SecretName))),
		VersionID:    upstream.VersionID(strings.Clone(string(ref.VersionID))),
		VersionStage: upstream.VersionStage(strings.Clone(string(ref.VersionStage))),
	}
}

// The headers that answers carry.
var (
	headerRequestID    = []byte("X-Request-Id")
	headerCacheControl = []byte("Cache-Control")
	headerNoSniff      = []byte("X-Content-Type-Options")
	headerETag         = []byte("ETag")
	headerAge          = []byte("Age")
	headerXCache       = []byte("X-Cache")
	headerXCacheReason = []byte("X-Cache-Reason")
	headerRetryAfter   = []byte("Retry-After")

	noStore       = []byte("no-store")
	noSniff       = []byte("nosniff")
	retryAfterOne = []byte("1")
	xCache        = [...][]byte{upstream.Hit: []byte("hit"), upstream.Miss: []byte("miss"), upstream.Stale: []byte("stale")}

	contentTypeJSON   = []byte("application/json")
	contentTypeText   = []byte("text/plain; charset=utf-8")
	contentTypeBinary = []byte("application/octet-stream")
)

func (s *Server) setCommonHeaders(ctx *fasthttp.RequestCtx, c *conn) {
	h := &ctx.Response.Header
	h.SetCanonical(headerRequestID, c.idBuf[:])
	h.SetCanonical(headerCacheControl, noStore)
	h.SetCanonical(headerNoSniff, noSniff)
}

func (s *Server) setValueHeaders(ctx *fasthttp.RequestCtx, c *conn, a *upstream.Answer, p *prepared) {
	s.setCommonHeaders(ctx, c)
	h := &ctx.Response.Header
	h.SetCanonical(headerETag, p.etag[:])
	now := s.clock.Load() // a hit can be a second off
	if a.Freshness != upstream.Hit {
		now = time.Now().UnixNano()
	}
	c.setAge(ctx, ageAt(now, a))
	h.SetCanonical(headerXCache, xCache[min(a.Freshness, upstream.Stale)])
	if a.Freshness == upstream.Stale && a.Reason != "" {
		h.SetCanonical(headerXCacheReason, []byte(a.Reason))
	}
}
