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

	// Secrets are those that the problem is about. Only who may see all of them is told of it.
	Secrets []upstream.SecretName `json:"-"`

	Reason string // why, without values

	// Private is set when only who may see everything is told of the problem.
	Private bool `json:"-"`

	// NamesAny is set when the reason can name any secret. Who may not see everything is told
	// [HiddenReason] in its place.
	NamesAny bool `json:"-"`

	// Printed is set when the reason quotes what a program has printed about secrets. It is for
	// callers, not for everybody on the host.
	Printed bool `json:"-"`
}

// HiddenReason stands for a reason that may name secrets of others.
const HiddenReason = "the log says why"

// MayAll reports whether v may see every one of the secrets.
func (v Viewer) MayAll(secrets []upstream.SecretName) bool {
	return !slices.ContainsFunc(secrets, func(name upstream.SecretName) bool { return !v.May(name) })
}

// For returns what v may know of r.
func (r Readiness) For(v Viewer) Readiness {
	all := r.Problems
	r.Problems = make([]Problem, 0, len(all))
	for _, p := range all {
		if !v.All && p.Private || !v.MayAll(p.Secrets) {
			continue
		}
		if p.NamesAny && !v.All {
			p.Reason = HiddenReason
		}
		r.Problems = append(r.Problems, p)
	}
	return r
}

func (s *Server) live(ctx *fasthttp.RequestCtx, c *conn) {
	setJSON(ctx, []byte("{\"Live\":true}\n"))
}

// ping is what the AWS agent calls /live, and what its probes ask for.
func (s *Server) ping(ctx *fasthttp.RequestCtx, c *conn) {
	setBody(ctx, contentTypeText, []byte("healthy"))
}

// ready tells a client without a token that something is missing, but not what: names are for
// callers.
func (s *Server) ready(ctx *fasthttp.RequestCtx, c *conn) {
	ready := s.opts.Ready()
	ready.Ready = ready.Ready && !s.stopping.Load()
	if c.caller == nil {
		ready.Problems = nil
	} else {
		ready = ready.For(c.viewer(c.caller.Status))
	}
	if !ready.Ready {
		ctx.Response.SetStatusCode(fasthttp.StatusServiceUnavailable)
	}
	setJSON(ctx, encode(ready))
}

func (s *Server) metrics(ctx *fasthttp.RequestCtx, c *conn) {
	if s.opts.Metrics == nil {
		s.refuse(ctx, c, pathNotFound)
		return
	}
	var buf bytes.Buffer
	viewer := Viewer{May: func(upstream.SecretName) bool { return false }} // nobody in particular, at a monitor
	if c.caller != nil {
		viewer = c.viewer(c.caller.Metrics)
	}
	if err := s.opts.Metrics(&buf, viewer); err != nil {
		s.opts.Logger.Error("metrics cannot be gathered", "err", err, "hint", hintDefect)
		s.refuse(ctx, c, internalFailure)
		return
	}
	setBody(ctx, []byte("text/plain; version=0.0.4; charset=utf-8"), buf.Bytes())
}

// status answers browsers that want to show it with the page, and others with JSON.
func (s *Server) status(ctx *fasthttp.RequestCtx, c *conn) {
	switch {
	case s.wantsPage(&ctx.Request.Header) && c.caller == nil:
		s.showSignIn(ctx, "")
	case s.wantsPage(&ctx.Request.Header):
		s.showFile(ctx, "index.html")
	case s.opts.Status == nil:
		s.refuse(ctx, c, pathNotFound)
	default:
		s.showJSON(ctx, c, s.opts.Status(c.viewer(c.caller.Status)))
	}
}

// viewer returns the caller, who is known. all says that it has the right to see everything.
func (c *conn) viewer(all bool) Viewer {
	who := c.caller
	return Viewer{Caller: who.Name, All: all, May: func(name upstream.SecretName) bool { return all || who.may(name) }}
}

// showJSON answers with v, which is the status or a part of it.
func (s *Server) showJSON(ctx *fasthttp.RequestCtx, c *conn, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		s.opts.Logger.Error("status cannot be encoded", "err", err, "hint", hintDefect)
		s.refuse(ctx, c, internalFailure)
		return
	}
	setJSON(ctx, append(b, '\n'))
}
