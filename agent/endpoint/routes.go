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

	// What follows is also for browsers.
	routeStatus
	routeVersions
	routePageFile
	routePageLink
	routePageOpen
	routeSignIn
	routeSignOut
)

// routes is what there is to know about each route.
var routes = [...]struct {
	op          string // as audit lines name it
	params      param  // that it takes
	post        bool   // takes POST, and nothing else
	forBrowsers bool   // a browser asks without a token
	fromPage    bool   // only the page itself may ask
}{
	routeUnknown:  {},
	routeName:     {op: "GetSecretValue", params: paramsOfValue},
	routeGet:      {op: "GetSecretValue", params: paramSecretID | paramsOfValue},
	routeBatch:    {op: "BatchGetSecretValue", params: paramSecretID},
	routeReport:   {op: "ReportSecretValue", params: paramSecretID | paramVersionStage, post: true},
	routeLive:     {op: "Live"},
	routeReady:    {op: "Ready"},
	routeMetrics:  {op: "Metrics"},
	routeStatus:   {op: "Status"},
	routeVersions: {op: "ListSecretVersionIds", params: paramSecretID},
	routePageFile: {op: "Page", forBrowsers: true},
	routePageLink: {op: "MakeLink", post: true},
	routePageOpen: {op: "SignIn", params: paramCode, forBrowsers: true},
	routeSignIn:   {op: "SignIn", post: true, forBrowsers: true, fromPage: true},
	routeSignOut:  {op: "SignOut", post: true, forBrowsers: true, fromPage: true},
}

// pingPath is what the AWS agent calls /live, and what its probes ask for.
const pingPath = "/ping"

// paths are the routes of all paths but those with a name, and but the files of the page.
var paths = map[string]route{
	"/secretsmanager/get":    routeGet,
	"/secretsmanager/batch":  routeBatch,
	"/secretsmanager/report": routeReport,
	"/live":                  routeLive,
	pingPath:                 routeLive,
	"/ready":                 routeReady,
	"/metrics":               routeMetrics,
	"/status":                routeStatus,
	"/status/versions":       routeVersions,
	"/status/link":           routePageLink,
	"/status/open":           routePageOpen,
	"/status/sign-in":        routeSignIn,
	"/status/sign-out":       routeSignOut,
}

// routeOf splits a request target, as it came over the wire, into route, name and query.
// fasthttp's own idea of the path is not used: it resolves dots and doubled slashes, which
// are ordinary characters of a secret name.
func (s *Server) routeOf(target []byte) (r route, name, query []byte) {
	path, query, _ := bytes.Cut(target, []byte{'?'})
	if name, ok := bytes.CutPrefix(path, s.prefix); ok {
		return routeName, name, query
	}
	if r, ok := paths[string(path)]; ok {
		return r, nil, query
	}
	if _, ok := pageFile(path); ok {
		return routePageFile, nil, query
	}
	return routeUnknown, nil, query
}

// dispatch takes a request through guard and route.
func (s *Server) dispatch(ctx *fasthttp.RequestCtx, c *conn) {
	r, name, raw := s.routeOf(ctx.Request.Header.RequestURI())
	c.op = routes[r].op
	if refused := s.guard(ctx, c, r); refused != allowed {
		s.refuse(ctx, c, refused)
		return
	}
	if c.healthOnly && r != routeLive && r != routeReady {
		s.refuse(ctx, c, tooManyConnections)
		return
	}
	if r == routeUnknown {
		s.refuse(ctx, c, pathNotFound)
		return
	}
	if r >= routeStatus {
		s.setPageHeaders(ctx, c)
	}
	var q query
	if err := s.parse(c, r, name, raw, &q); err != nil {
		s.fail(ctx, c, upstream.SecretRef{}, err)
		return
	}
	switch r {
	case routeName, routeGet:
		s.get(ctx, c, &q)
	case routeBatch:
		s.batch(ctx, c, &q)
	case routeReport:
		s.report(ctx, c, &q)
	case routeVersions:
		s.versions(ctx, c, &q)
	case routeLive, routeReady, routeMetrics, routeStatus:
		s.observe(ctx, c, r)
	default:
		s.page(ctx, c, r, q.code)
	}
}

// get answers with the value that q asks for.
func (s *Server) get(ctx *fasthttp.RequestCtx, c *conn, q *query) {
	if !c.caller.may(q.ref.SecretName) {
		s.deny(ctx, c, q.ref)
		return
	}
	if !q.refresh {
		// The whole of a hit.
		if a, ok := s.secrets.Peek(q.ref); ok {
			s.answer(ctx, c, q, &a)
			return
		}
	}
	s.fetch(ctx, c, q)
}

// fetch answers with a value that is not held, or not to be trusted.
func (s *Server) fetch(ctx *fasthttp.RequestCtx, c *conn, q *query) {
	ask := s.secrets.Lookup
	if q.refresh {
		ask = s.secrets.RefreshNow
	}
	q.ref = owned(q.ref)
	began := time.Now()
	a, err := s.lookup(c, ask, q.ref)
	s.timeLookup(&a, err, began)
	if err != nil {
		s.fail(ctx, c, q.ref, err)
		s.audit(c, q.ref, "", c.code)
		return
	}
	s.answer(ctx, c, q, &a)
}

// lookup asks the cache what may take long: the sweep leaves the connection alone meanwhile.
func (s *Server) lookup(c *conn, ask func(context.Context, upstream.SecretRef) (upstream.Answer, error), ref upstream.SecretRef) (a upstream.Answer, err error) {
	s.whileBusy(c, func(ctx context.Context) { a, err = ask(ctx, ref) })
	return a, err
}

// whileBusy runs do with the context of what the current request asks of the backend.
func (s *Server) whileBusy(c *conn, do func(context.Context)) {
	ctx, cancel := context.WithTimeout(upstream.WithCause(s.base, c.cause()), s.opts.LookupTimeout)
	defer cancel()
	c.setPhase(busy)
	defer c.setPhase(active)
	do(ctx)
}

// answer writes a value, a 304, or parks the connection until there is something to write.
func (s *Server) answer(ctx *fasthttp.RequestCtx, c *conn, q *query, a *upstream.Answer) {
	p := s.preparedOf(a)
	if match := c.ifNoneMatch; len(match) > 0 && etagMatches(match, p.etag[:]) {
		if q.wait > 0 && s.park(ctx, c, q, p) {
			return
		}
		if c.code == "" { // not refused
			s.setValueHeaders(ctx, c, a, p)
			s.stats.notModified.Add(1)
			s.countAnswer(c, a)
			s.answered(ctx, c, fasthttp.StatusNotModified, q.ref, a, "not-modified")
		}
		return
	}
	b, err := p.body(a.Value, q.format, q.field)
	if err != nil {
		s.fail(ctx, c, q.ref, err)
		s.audit(c, q.ref, a.Value.VersionID, c.code)
		return
	}
	s.setValueHeaders(ctx, c, a, p)
	ctx.Response.Header.SetContentTypeBytes(b.contentType)
	ctx.Response.SetBodyRaw(b.data)
	s.countValue(c, a)
	s.answered(ctx, c, fasthttp.StatusOK, q.ref, a, a.Freshness.String())
}

// answered notes the end of a request that was answered about a value.
func (s *Server) answered(ctx *fasthttp.RequestCtx, c *conn, status int, ref upstream.SecretRef, a *upstream.Answer, outcome string) {
	c.status = status
	ctx.Response.SetStatusCode(status)
	s.audit(c, ref, a.Value.VersionID, outcome)
}

// deny answers a caller without rights on a name. No lookup is made, so nothing about the
// answer depends on whether the name exists.
func (s *Server) deny(ctx *fasthttp.RequestCtx, c *conn, ref upstream.SecretRef) {
	s.refuse(ctx, c, nameNotAllowed)
	s.auditRefusal(c, ref, &c.caller.account.denials)
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
	h.SetCanonical(headerRequestID, c.id[:])
	h.SetCanonical(headerCacheControl, noStore)
	h.SetCanonical(headerNoSniff, noSniff)
}

func (s *Server) setValueHeaders(ctx *fasthttp.RequestCtx, c *conn, a *upstream.Answer, p *prepared) {
	s.setCommonHeaders(ctx, c)
	ctx.Response.Header.SetCanonical(headerETag, p.etag[:])
	s.setCacheHeaders(ctx, c, a)
}

// setCacheHeaders says how the cache came by a value.
func (s *Server) setCacheHeaders(ctx *fasthttp.RequestCtx, c *conn, a *upstream.Answer) {
	now := s.clock.Load() // a hit can be a second off
	if a.Freshness != upstream.Hit {
		now = time.Now().UnixNano()
	}
	c.setAge(ctx, now, a)
	h := &ctx.Response.Header
	h.SetCanonical(headerXCache, xCache[min(a.Freshness, upstream.Stale)])
	if a.Freshness == upstream.Stale && a.Reason != "" {
		h.SetCanonical(headerXCacheReason, []byte(a.Reason))
	}
}

// setJSON makes b, which is JSON, the body of an answer.
func setJSON(ctx *fasthttp.RequestCtx, b []byte) {
	ctx.Response.Header.SetContentTypeBytes(contentTypeJSON)
	ctx.Response.SetBodyRaw(b)
}
