package endpoint

import (
	"context"

	"github.com/valyala/fasthttp"

	"secretagent/upstream"
)

// VersionList is what GET /status/versions says about one secret.
type VersionList struct {
	SecretName upstream.SecretName
	Versions   []upstream.SecretVersion // oldest first, those without a label included
	Omitted    int                      `json:",omitzero"` // older ones, left out
}

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
	list, err := s.listVersions(c, ref.SecretName)
	if err != nil {
		s.fail(ctx, c, ref, err)
		return
	}
	s.showJSON(ctx, c, list)
}

// listVersions asks the backend, which tells versions, for those of a secret.
func (s *Server) listVersions(c *conn, name upstream.SecretName) (list VersionList, err error) {
	s.whileBusy(c, func(lookup context.Context) { list, err = s.opts.Versions(lookup, name) })
	return list, err
}
