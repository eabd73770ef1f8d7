package endpoint

import (
	"github.com/valyala/fasthttp"

	"secretagent/upstream"
)

// report takes note that an application found a value useless, say because a database refused
// it, and answers with the version that is current now: {"SecretName","VersionId","RequestId"}.
// The cache decides whether that costs a call: however many clients complain, the backend is
// asked at a limited rate.
func (s *Server) report(ctx *fasthttp.RequestCtx, c *conn) {
	ref := owned(c.query.ref)
	if !c.caller.may(ref.SecretName) {
		s.deny(ctx, c, ref)
		return
	}
	a, err := s.lookup(c, s.secrets.Report, ref)
	s.stats.reports.Add(1)
	if err != nil {
		s.fail(ctx, c, ref, err)
		s.audit(c, ref, "", c.code)
		return
	}
	s.setValueHeaders(ctx, c, &a, s.preparedOf(&a))
	setJSON(ctx, encode(struct {
		SecretName upstream.SecretName
		VersionId  upstream.VersionID
		RequestId  string
	}{ref.SecretName, a.Value.VersionID, string(c.id[:])}))
	s.answered(ctx, c, fasthttp.StatusOK, ref, &a, a.Freshness.String())
}
