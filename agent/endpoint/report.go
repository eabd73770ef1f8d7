package endpoint

import (
	"strings"

	"github.com/valyala/fasthttp"

	"secretagent/upstream"
)

// report takes note that an application found a value useless, say because a database refused
// it, and answers with the version that is current now: {"SecretName","VersionId","RequestId"}.
// The cache decides whether that costs a call: however many clients complain, the backend is
// asked at a limited rate.
func (s *Server) report(ctx *fasthttp.RequestCtx, c *conn, raw []byte) {
	ref, err := s.parseReport(c, raw)
	if err != nil {
		s.fail(ctx, c, upstream.SecretRef{}, err)
		return
	}
	if !c.caller.may(ref.SecretName) {
		s.deny(ctx, c, ref)
		return
	}
	c.setPhase(busy)
	lookup, cancel := s.lookupContext(c)
	a, err := s.secrets.Report(lookup, ref)
	cancel()
	c.setPhase(active)
	s.stats.reports.Add(1)
	s.see(c)
	if err != nil {
		s.fail(ctx, c, ref, err)
		s.audit(c, ref, "", c.code)
		return
	}
	s.setValueHeaders(ctx, c, &a, s.preparedOf(&a, s.opts.Format))
	ctx.Response.Header.SetContentTypeBytes(contentTypeJSON)
	b := append([]byte(nil), `{"SecretName":"`...) // validated: nothing needs escaping
	b = append(b, ref.SecretName...)
	b = append(b, `","VersionId":`...)
	b = appendJSONString(b, string(a.Value.VersionID))
	b = append(b, `,"RequestId":"`...)
	b = append(b, c.idBuf[:]...)
	ctx.Response.SetBodyRaw(append(b, "\"}\n"...))
	c.status = fasthttp.StatusOK
	s.audit(c, ref, a.Value.VersionID, a.Freshness.String())
}

func (s *Server) parseReport(c *conn, raw []byte) (upstream.SecretRef, error) {
	p := params{c: c, route: routeReport, rest: raw}
	var id, stage string
	for {
		kind, value, err := p.next()
		if err != nil {
			return upstream.SecretRef{}, err
		}
		switch kind {
		case 0:
			ref, err := parseRef(strings.Clone(id), strings.Clone(stage))
			return ref.WithDefaults(), err
		case paramSecretID:
			id = value
		case paramVersionStage:
			stage = value
		}
	}
}
