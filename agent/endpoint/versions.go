package endpoint

import (
	"context"

	"github.com/valyala/fasthttp"

	"secretagent/upstream"
)

// versions answers with the versions of one secret, where the backend is one that tells them.
func (s *Server) versions(ctx *fasthttp.RequestCtx, c *conn) {
	ref := owned(upstream.SecretRef{SecretName: c.query.ref.SecretName})
	if !c.caller.sees(ref.SecretName) {
		s.deny(ctx, c, ref)
		return
	}
	if s.opts.Versions == nil {
		s.refuse(ctx, c, pathNotFound)
		return
	}
	var list any
	var err error
	s.whileBusy(c, func(lookup context.Context) { list, err = s.opts.Versions(lookup, ref.SecretName) })
	if err != nil {
		s.fail(ctx, c, ref, err)
		return
	}
	s.showJSON(ctx, c, list)
}
