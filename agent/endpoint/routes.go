package endpoint

import (
	"bytes"
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"secretagent/upstream"
	"secretagent/upstream/slots"
)

// route is what a path asks for.
type route struct {
	op     string // as audit lines name it
	params param  // that it takes
	many   bool   // secretId may be repeated
	loose  bool   // parameters that it does not know are ignored
	named  bool   // the path ends with the name of a secret
	health bool   // needs no token, and is answered when all connections are busy
	forAll bool   // answered whoever asks, from where, and with what parameters

	methods methods // that it takes; 0: GET
	format  Format  // of answers to requests that name none; 0: that of the family

	page        bool // part of the status page: not there when that is off
	forBrowsers bool // needs no token
	forOperator bool // open to the operator, see operator.go
	noOthers    bool // and to nobody else
	forSessions bool // open to the session of a browser
	fromPage    bool // only the page itself may ask

	handle func(*Server, *fasthttp.RequestCtx, *conn)
}

var (
	routeUnknown = &route{}
	routeName    = &route{op: "GetSecretValue", params: paramsOfValue, named: true, handle: (*Server).get}      // {prefix}{name}
	routeFile    = &route{op: "Page", format: FormatKMS, page: true, forBrowsers: true, handle: (*Server).file} // of the status page
)

// routes are those with a path of their own, whatever the family.
var routes = map[string]*route{
	"/secretsmanager/get":     {op: "GetSecretValue", params: paramSecretID | paramsOfValue, handle: (*Server).get},
	"/secretsmanager/batch":   {op: "BatchGetSecretValue", format: FormatKMS, params: paramSecretID, many: true, handle: (*Server).batch},
	"/secretsmanager/report":  {op: "ReportSecretValue", format: FormatKMS, params: paramSecretID | paramVersionStage, methods: methodPost, handle: (*Server).report},
	"/secretsmanager/changed": {op: "ReportSecretChange", format: FormatKMS, params: paramSecretID, methods: methodPost, handle: (*Server).changed},
	"/live":                   {op: "Live", format: FormatKMS, health: true, handle: (*Server).live},
	"/ping":                   {op: "Live", format: FormatAWS, health: true, forAll: true, handle: (*Server).ping},
	"/ready":                  {op: "Ready", format: FormatKMS, health: true, handle: (*Server).ready},
	"/metrics":                {op: "Metrics", format: FormatKMS, handle: (*Server).metrics},
	"/":                       {op: "Page", format: FormatKMS, page: true, forBrowsers: true, handle: (*Server).home},
	"/reload":                 {op: "Reload", format: FormatKMS, methods: methodPost, forOperator: true, noOthers: true, handle: (*Server).reload},
	"/status":                 {op: "Status", format: FormatKMS, forSessions: true, forOperator: true, handle: (*Server).status},
	"/status/versions":        {op: "ListSecretVersionIds", format: FormatKMS, params: paramSecretID, forSessions: true, forOperator: true, handle: (*Server).versions},
	"/status/link":            {op: "MakeLink", format: FormatKMS, methods: methodPost, page: true, handle: (*Server).makeLink},
	"/status/open":            {op: "SignIn", format: FormatKMS, params: paramCode, page: true, forBrowsers: true, handle: (*Server).openLink},
	"/status/sign-in":         {op: "SignIn", format: FormatKMS, methods: methodPost, page: true, forBrowsers: true, fromPage: true, handle: (*Server).signIn},
	"/status/sign-out":        {op: "SignOut", format: FormatKMS, methods: methodPost, page: true, forBrowsers: true, fromPage: true, handle: (*Server).signOut},
}

// dispatch takes a request through family, guard and route.
func (s *Server) dispatch(ctx *fasthttp.RequestCtx, c *conn) {
	req := &ctx.Request.Header
	var h headers
	s.look(&h, req)
	path, raw, _ := bytes.Cut(req.RequestURI(), []byte{'?'})
	f, r, name := s.familyOf(&h, path)
	c.op, c.query.list = r.op, h.method == methodList
	refused := s.guard(ctx, c, r, &h)
	c.query.format = s.formatOf(f, r, c.caller)
	switch {
	case refused != allowed:
	case c.Spare() && !r.health:
		refused = tooManyConnections
	case r == routeUnknown || r.page && !s.opts.StatusPage:
		refused = pathNotFound
	case f.refuse != nil:
		refused = f.refuse(h)
	}
	if refused != allowed {
		c.query.format = formatIn(raw, c.query.format)
		s.refuse(ctx, c, refused)
		return
	}
	if r.page || r.forSessions {
		setPageHeaders(ctx)
	}
	if r.health && c.caller == nil {
		// A probe comes back when it likes; its slot is worth more.
		ctx.Response.Header.SetConnectionClose()
	}
	if err := s.parse(c, f, r, name, raw); err != nil {
		s.fail(ctx, c, upstream.SecretRef{}, err)
		return
	}
	r.handle(s, ctx, c)
}

// get answers with the value that is asked for.
func (s *Server) get(ctx *fasthttp.RequestCtx, c *conn) {
	q := &c.query
	if !c.caller.may(q.ref.SecretName) {
		s.deny(ctx, c, q.ref)
		return
	}
	if !q.refresh {
		// The whole of a hit.
		a, ok := s.secrets.Peek(q.ref)
		if !ok && q.numbered {
			a, ok = s.peekLettered(c)
		}
		if ok {
			s.answer(ctx, c, &a)
			return
		}
	}
	s.fetch(ctx, c)
}

// fetch answers with a value that is not held, or not to be trusted.
func (s *Server) fetch(ctx *fasthttp.RequestCtx, c *conn) {
	q := &c.query
	ask := s.secrets.Lookup
	if q.refresh {
		ask = s.secrets.RefreshNow
	}
	q.ref = owned(q.ref)
	began := time.Now()
	a, err := s.lookup(c, ask, q.ref)
	if q.numbered && (errors.Is(err, upstream.ErrNotFound) || upstream.Outage(err)) {
		a, err = s.lookupLettered(c, ask, err)
	}
	if err != nil {
		s.opts.Observe("error", time.Since(began))
		s.fail(ctx, c, q.ref, err)
		s.audit(c, q.ref, "", c.code)
		return
	}
	if a.Freshness != upstream.Hit { // another caller was faster: those are timed by sample
		s.opts.Observe(a.Freshness.String(), time.Since(began))
	}
	s.answer(ctx, c, &a)
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
	c.SetPhase(slots.Busy)
	defer c.SetPhase(slots.Active)
	do(ctx)
}

// answer writes a value, a 304, or parks the connection until there is something to write.
func (s *Server) answer(ctx *fasthttp.RequestCtx, c *conn, a *upstream.Answer) {
	q := &c.query
	p := s.preparedOf(a)
	if match := c.ifNoneMatch; len(match) > 0 && etagMatches(match, p.etag[:]) {
		if q.wait > 0 && s.park(ctx, c, p) {
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
	setBody(ctx, b.contentType, b.data)
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

// setValueHeaders sets what answers about one value carry.
func (s *Server) setValueHeaders(ctx *fasthttp.RequestCtx, c *conn, a *upstream.Answer, p *prepared) {
	ctx.Response.Header.SetCanonical(headerETag, p.etag[:])
	s.setCacheHeaders(ctx, c, a)
}

// setCacheHeaders says how the cache came by a value, and how long ago the backend confirmed it.
func (s *Server) setCacheHeaders(ctx *fasthttp.RequestCtx, c *conn, a *upstream.Answer) {
	h := &ctx.Response.Header
	h.SetCanonical(headerAge, strconv.AppendInt(c.age[:0], int64(a.Age/time.Second), 10))
	h.SetCanonical(headerXCache, xCache[min(a.Freshness, upstream.Stale)])
	if a.Freshness == upstream.Stale && a.Reason != "" {
		h.SetCanonical(headerXCacheReason, []byte(a.Reason))
	}
}

// setBody makes b the body of an answer. A browser may guess what a body is, but not when it is
// said to be JSON (WHATWG MIME Sniffing, section 7): only the other answers have to forbid it. A
// header is what costs a hit most.
func setBody(ctx *fasthttp.RequestCtx, contentType, b []byte) {
	ctx.Response.Header.SetContentTypeBytes(contentType)
	if !bytes.Equal(contentType, contentTypeJSON) {
		ctx.Response.Header.SetCanonical(headerNoSniff, noSniff)
	}
	ctx.Response.SetBodyRaw(b)
}

// setJSON makes b, which is JSON, the body of an answer.
func setJSON(ctx *fasthttp.RequestCtx, b []byte) { setBody(ctx, contentTypeJSON, b) }
