package endpoint

import (
	"bytes"
	"encoding/json"
	"slices"

	"github.com/valyala/fasthttp"

	"secretagent/upstream"
)

// Readiness says whether everything that was declared is there: every secret fetched, every
// template rendered.
type Readiness struct {
	Ready    bool
	Problems []Problem `json:",omitempty"`
}

// Problem is one thing that is missing.
type Problem struct {
	Subject string // what is missing, such as "secret demo/db" or "template app.env"

	// SecretName is set when the problem is about one secret. Only callers who may read it
	// see the problem.
	SecretName upstream.SecretName `json:"-"`

	Reason string // why, without values
}

// observe answers the routes that give out no values. A client without a token learns from
// /ready that something is missing, but not what: names are for callers.
func (s *Server) observe(ctx *fasthttp.RequestCtx, c *conn, r route) {
	s.see(c)
	s.setCommonHeaders(ctx, c)
	if c.caller == nil && r != routeStatus {
		// A probe comes back when it likes; its slot is worth more.
		ctx.Response.Header.SetConnectionClose()
	}
	switch {
	case r == routeLive && bytes.HasPrefix(ctx.Request.Header.RequestURI(), []byte(pingPath)):
		ctx.Response.Header.SetContentTypeBytes(contentTypeText)
		ctx.Response.SetBodyString("healthy")
	case r == routeLive:
		setJSON(ctx, []byte("{\"Live\":true}\n"))
	case r == routeReady:
		ready := s.readiness(c)
		if !ready.Ready {
			ctx.Response.SetStatusCode(fasthttp.StatusServiceUnavailable)
		}
		setJSON(ctx, encode(ready))
	case r == routeStatus && s.wantsPage(&ctx.Request.Header):
		s.page(ctx, c, r, "")
	case r == routeStatus && s.opts.Status != nil:
		s.showJSON(ctx, c, s.opts.Status(Viewer{Caller: c.caller.Name, All: c.caller.all, May: c.caller.may}))
	case r == routeMetrics && s.opts.Metrics != nil:
		var buf bytes.Buffer
		if err := s.opts.Metrics(&buf); err != nil {
			s.opts.Logger.Error("metrics cannot be gathered", "err", err, "hint", hintDefect)
			s.refuse(ctx, c, internalFailure)
			return
		}
		ctx.Response.Header.SetContentType("text/plain; version=0.0.4; charset=utf-8")
		ctx.Response.SetBodyRaw(buf.Bytes())
	default:
		s.refuse(ctx, c, pathNotFound)
	}
}

// showJSON answers with v.
func (s *Server) showJSON(ctx *fasthttp.RequestCtx, c *conn, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		s.opts.Logger.Error("an answer cannot be encoded", "err", err, "hint", hintDefect)
		s.refuse(ctx, c, internalFailure)
		return
	}
	setJSON(ctx, append(b, '\n'))
}

// readiness returns what c may know of it.
func (s *Server) readiness(c *conn) Readiness {
	ready := Readiness{Ready: true}
	if s.opts.Ready != nil {
		ready = s.opts.Ready()
	}
	ready.Ready = ready.Ready && !s.stopping.Load()
	ready.Problems = slices.DeleteFunc(slices.Clone(ready.Problems), func(p Problem) bool {
		return c.caller == nil || p.SecretName != "" && !c.caller.may(p.SecretName)
	})
	return ready
}
