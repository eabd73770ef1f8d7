package endpoint

import (
	"bytes"
	"io"
	"log/slog"

	"github.com/valyala/fasthttp"
	"golang.org/x/time/rate"

	"secretagent/upstream"
)

// MonitorConnections is how many connections a monitor has open at most.
const MonitorConnections = 64

// The rate of scrapes by clients without a token, of all together. Gathering the numbers costs a
// thousand times what a lookup costs, and must not take the processor from these.
const scrapesPerSecond, scrapesAtOnce = 10, 20

// MonitorOptions configures the server that [NewMonitor] returns. The zero value is usable.
type MonitorOptions struct {
	// Callers are who may see the metrics that their rights allow. With none, everybody sees what
	// needs no right. See [Server.PrepareCallers].
	Callers []Caller

	// As in [Options].
	Ready   func() Readiness
	Metrics func(w io.Writer, v Viewer) error
	Logger  *slog.Logger
}

// monitorRoutes are all that a monitor answers.
var monitorRoutes = map[string]*route{
	"/live":    routes["/live"],
	"/ready":   routes["/ready"],
	"/metrics": routes["/metrics"],
}

// NewMonitor returns a server for those who watch the agent from other hosts: Prometheus and the
// probes of an orchestrator. It answers
//
//	GET /live, /ready   health, to everybody, without a name of anything
//	GET /metrics        numbers; with callers only to these, by Authorization: Bearer TOKEN
//
// and nothing else: it holds no secret and no cache. Its connections and limits are its own, so
// that nobody who reaches only the monitor takes anything from the applications of this host.
//
// It starts no goroutine and opens no listener. The error names every option at fault.
func NewMonitor(opts MonitorOptions) (*Server, error) {
	s, err := newServer(nil, Options{
		Callers: opts.Callers, Ready: opts.Ready, Metrics: opts.Metrics, Logger: opts.Logger,
		TokenHeaders: []string{"Authorization"}, MaxConnections: MonitorConnections, monitor: true,
	})
	if err == nil {
		s.scrapes = rate.NewLimiter(scrapesPerSecond, scrapesAtOnce)
	}
	return s, err
}

// dispatchMonitor takes a request through the guard of a monitor and its route. The checks come in
// this order:
//
//  1. method, as of the endpoint: nobody could disagree with us about where the request ends;
//  2. path: one of three;
//  3. Origin and Sec-Fetch-Site: no page may ask through its visitor's browser;
//  4. for the metrics the token, where one is asked for.
//
// Host and forwarding headers are not looked at: clients come by the address of a pod or the name of
// a service, also through a mesh, and who reaches the listener may see what it shows.
func (s *Server) dispatchMonitor(ctx *fasthttp.RequestCtx, c *conn) {
	req := &ctx.Request.Header
	var h headers
	s.look(&h, req)
	path, raw, _ := bytes.Cut(req.RequestURI(), []byte{'?'})
	r := monitorRoutes[string(path)]
	if r == nil {
		r = routeUnknown
	}
	c.op = r.op
	refused := guardMethod(ctx, r, h.method) // 1.
	switch {
	case refused != allowed:
	case r == routeUnknown: // 2.
		refused = pathNotFound
	case h.crossOrigin: // 3.
		refused = originNotAllowed
	case r.health:
		ctx.Response.Header.SetConnectionClose() // see dispatch
	default:
		refused = s.admitScrape(req, c, r, &h) // 4.
	}
	if refused != allowed {
		s.refuse(ctx, c, refused)
		return
	}
	if err := s.parse(c, familyKMS, r, nil, raw); err != nil {
		s.fail(ctx, c, upstream.SecretRef{}, err)
		return
	}
	r.handle(s, ctx, c)
}

// admitScrape finds out who wants to see the metrics.
func (s *Server) admitScrape(req *fasthttp.RequestHeader, c *conn, r *route, h *headers) *refusal {
	open := len(s.callers.Load().callers) == 0
	if !open {
		h.token = bearer(h.token)
		if refused := s.identify(req, c, r, h); refused == tokenMissing {
			return bearerMissing
		} else if refused != allowed {
			return refused
		}
	}
	switch {
	case c.Spare():
		return tooManyConnections
	case open && !s.scrapes.Allow():
		return tooManyScrapes
	}
	return allowed
}

// bearer returns the token of an Authorization header; nil when it holds another kind of credential.
func bearer(value []byte) []byte {
	scheme, token, _ := bytes.Cut(value, []byte{' '})
	if !bytes.EqualFold(scheme, []byte("Bearer")) {
		return nil
	}
	return bytes.TrimSpace(token)
}
