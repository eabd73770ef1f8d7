package endpoint

import (
	"bytes"
	"encoding/json"

	"github.com/valyala/fasthttp"

	"secretagent/upstream"
)

// Readiness says whether everything that was declared is there: every secret fetched, every
// template rendered.
type Readiness struct {
	Ready    bool
	Problems []Problem
}

// Problem is one thing that is missing.
type Problem struct {
	Subject string // what is missing, such as "secret demo/db" or "template app.env"

	// SecretName is set when the problem is about one secret. Only callers who may read it
	// see the problem.
	SecretName upstream.SecretName `json:"-"`

	Reason string // why, without values
}

// observe answers the routes that give out no values. Whoever has no token learns from /ready
// that something is missing, but not what: names are for callers.
func (s *Server) observe(ctx *fasthttp.RequestCtx, c *conn, r route, raw []byte) {
	s.see(c)
	p := params{c: c, route: r, rest: raw}
	if _, _, err := p.next(); err != nil {
		s.fail(ctx, c, upstream.SecretRef{}, err)
		return
	}
	if r == routeStatus && s.wantsPage(&ctx.Request.Header) {
		s.page(ctx, c, r, nil)
		return
	}
	status := fasthttp.StatusOK
	contentType := contentTypeJSON
	var b []byte
	switch {
	case r == routeLive && bytes.HasPrefix(ctx.Request.Header.RequestURI(), []byte(pingPath)):
		b, contentType = []byte("healthy"), contentTypeText
	case r == routeLive:
		b = []byte("{\"Live\":true}\n")
	case r == routeReady:
		ready := s.readiness(c)
		if !ready.Ready {
			status = fasthttp.StatusServiceUnavailable
		}
		b = encode(struct {
			Ready    bool
			Problems []Problem `json:",omitempty"`
		}{ready.Ready, ready.Problems})
	case r == routeStatus && s.opts.Status != nil:
		var err error
		if b, err = json.Marshal(s.opts.Status(Viewer{Caller: c.caller.name, All: c.caller.all, May: c.caller.may})); err != nil {
			s.opts.Logger.Error("status cannot be encoded", "err", err, "hint", hintDefect)
			s.refuse(ctx, c, internalFailure)
			return
		}
		b = append(b, '\n')
	case r == routeMetrics && s.opts.Metrics != nil:
		var buf bytes.Buffer
		if err := s.opts.Metrics(&buf); err != nil {
			s.opts.Logger.Error("metrics cannot be gathered", "err", err, "hint", hintDefect)
			s.refuse(ctx, c, internalFailure)
			return
		}
		b, contentType = buf.Bytes(), []byte("text/plain; version=0.0.4; charset=utf-8")
	default:
		s.refuse(ctx, c, pathNotFound)
		return
	}
	s.setCommonHeaders(ctx, c)
	ctx.Response.SetStatusCode(status)
	ctx.Response.Header.SetContentTypeBytes(contentType)
	ctx.Response.SetBodyRaw(b)
	if r == routeStatus {
		s.setPageHeaders(ctx, c)
	}
	if c.caller == nil {
		// A probe comes back when it likes; its slot is worth more.
		ctx.Response.Header.SetConnectionClose()
	}
}

func (s *Server) readiness(c *conn) Readiness {
	ready := Readiness{Ready: true}
	if s.opts.Ready != nil {
		ready = s.opts.Ready()
	}
	if s.stopping.Load() {
		ready.Ready = false
	}
	if c.caller == nil {
		ready.Problems = nil
		return ready
	}
	var visible []Problem
	for _, p := range ready.Problems {
		if p.SecretName == "" || c.caller.may(p.SecretName) {
			visible = append(visible, p)
		}
	}
	ready.Problems = visible
	return ready
}
