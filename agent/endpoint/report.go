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

// changed takes note that a client has changed a secret in the backend by other ways than this
// agent, as the command line does, and answers {"SecretName","RequestId"}.
func (s *Server) changed(ctx *fasthttp.RequestCtx, c *conn) {
	ref := owned(c.query.ref)
	if !c.caller.may(ref.SecretName) {
		s.deny(ctx, c, ref)
		return
	}
	s.stats.reports.Add(1)
	if err := s.secrets.Changed(ref.SecretName); err != nil {
		s.fail(ctx, c, ref, err)
		s.audit(c, ref, "", c.code)
		return
	}
	setJSON(ctx, encode(struct {
		SecretName upstream.SecretName
		RequestId  string
	}{ref.SecretName, string(c.id[:])}))
	c.status = fasthttp.StatusOK
	s.audit(c, ref, "", "changed")
}
