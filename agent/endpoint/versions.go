package endpoint

import (
	"context"
	"encoding/json"

	"github.com/valyala/fasthttp"

	"secretagent/upstream"
)

// versions answers with the versions of one secret, where the backend is one that tells them.
func (s *Server) versions(ctx *fasthttp.RequestCtx, c *conn, raw []byte) {
	p := params{c: c, route: routeVersions, rest: raw}
	_, id, err := p.next()
	if err == nil {
		_, _, err = p.next() // there is at most one
	}
	var ref upstream.SecretRef
	if err == nil {
		ref, err = parseRef(id, "")
	}
	ref = owned(ref)
	s.setPageHeaders(ctx, c)
	if err != nil {
		s.fail(ctx, c, upstream.SecretRef{}, err)
		return
	}
	if !c.caller.may(ref.SecretName) {
		s.deny(ctx, c, ref)
		return
	}
	if s.opts.Versions == nil {
		s.refuse(ctx, c, pathNotFound)
		return
	}
	c.setPhase(busy)
	lookup, cancel := context.WithTimeout(s.base, s.opts.LookupTimeout)
	list, err := s.opts.Versions(lookup, ref.SecretName)
	cancel()
	c.setPhase(active)
	if err != nil {
		s.fail(ctx, c, ref, err)
		return
	}
	b, err := json.Marshal(list)
	if err != nil {
		s.opts.Logger.Error("versions cannot be encoded", "err", err, "hint", hintDefect)
		s.refuse(ctx, c, internalFailure)
		return
	}
	ctx.Response.Header.SetContentTypeBytes(contentTypeJSON)
	ctx.Response.SetBodyRaw(append(b, '\n'))
}
