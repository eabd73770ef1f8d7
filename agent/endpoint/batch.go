package endpoint

import (
	"fmt"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"secretagent/upstream"
)

// batch answers several references from one consistent moment, in the shape of
// BatchGetSecretValue: {"SecretValues":[…],"Errors":[{SecretName,VersionStage,Code,HttpStatus,Message}]}.
// Each value is what GetSecretValue answers. A reference that fails does not fail the others,
// so the status is 200 as soon as the request itself is right.
func (s *Server) batch(ctx *fasthttp.RequestCtx, c *conn, raw []byte) {
	c.timed = false // that is for lookups of one secret
	refs, err := s.parseBatch(c, raw)
	if err != nil {
		s.fail(ctx, c, upstream.SecretRef{}, err)
		return
	}
	may := make([]upstream.SecretRef, 0, len(refs))
	for _, ref := range refs {
		if c.caller.may(ref.SecretName) {
			may = append(may, ref)
		}
	}
	var answers []upstream.Answer
	var failures []error
	if len(may) > 0 {
		c.setPhase(busy)
		lookup, cancel := s.lookupContext(c)
		answers, failures = s.secrets.LookupAll(lookup, may)
		cancel()
		c.setPhase(active)
	}

	var values, errs []byte
	var worst *upstream.Answer
	for _, ref := range refs {
		if !c.caller.may(ref.SecretName) {
			s.countRefusal(c, nameNotAllowed)
			row := &refusals[nameNotAllowed]
			errs = appendBatchError(errs, ref, failure{status: row.status, code: row.code, message: row.message})
			c.status = row.status
			s.audit(c, ref, "", row.code)
			continue
		}
		a, err := &answers[0], failures[0]
		answers, failures = answers[1:], failures[1:]
		if err != nil {
			f := failureOf(err)
			s.stats.fail(f.code)
			if f.defect {
				s.opts.Logger.Error("lookup failed", "secret", ref.String(), "err", err, c.cause().Attr(), "hint", hintDefect)
			}
			errs = appendBatchError(errs, ref, f)
			c.status = f.status
			s.audit(c, ref, "", f.code)
			continue
		}
		if len(values) > 0 {
			values = append(values, ',')
		}
		values = append(values, trimNewline(s.preparedOf(a, FormatKMS).bodyOf(a.Value, FormatKMS).data)...)
		if worst == nil || a.Freshness > worst.Freshness || a.Freshness == worst.Freshness && a.FetchedAt.Before(worst.FetchedAt) {
			worst = a
		}
		s.countValue(c, a)
		c.status = fasthttp.StatusOK
		s.audit(c, ref, a.Value.VersionID, a.Freshness.String())
	}
	s.stats.batches.Add(1)

	b := make([]byte, 0, len(values)+len(errs)+128)
	b = append(b, `{"SecretValues":[`...)
	b = append(b, values...)
	b = append(b, `],"Errors":[`...)
	b = append(b, errs...)
	b = append(b, `],"RequestId":"`...)
	b = append(b, c.idBuf[:]...)
	b = append(b, "\"}\n"...)
	s.setCommonHeaders(ctx, c)
	if worst != nil {
		// Age and X-Cache describe the worst of the values.
		c.setAge(ctx, ageAt(time.Now().UnixNano(), worst))
		ctx.Response.Header.SetCanonical(headerXCache, xCache[min(worst.Freshness, upstream.Stale)])
		if worst.Freshness == upstream.Stale && worst.Reason != "" {
			ctx.Response.Header.SetCanonical(headerXCacheReason, []byte(worst.Reason))
		}
	}
	ctx.Response.Header.SetContentTypeBytes(contentTypeJSON)
	ctx.Response.SetBodyRaw(b)
}

func (s *Server) parseBatch(c *conn, raw []byte) ([]upstream.SecretRef, error) {
	p := params{c: c, route: routeBatch, rest: raw, repeated: paramSecretID}
	var refs []upstream.SecretRef
	for {
		kind, value, err := p.next()
		if err != nil {
			return nil, err
		}
		if kind == 0 {
			break
		}
		if len(refs) == s.opts.MaxBatch {
			return nil, upstream.InvalidParameter("secretId", fmt.Sprintf("at most %d are allowed", s.opts.MaxBatch))
		}
		ref, err := upstream.ParseSecretRef(strings.Clone(value))
		if err != nil {
			return nil, err
		}
		refs = append(refs, ref.WithDefaults())
	}
	if len(refs) == 0 {
		return nil, upstream.MissingParameter("secretId")
	}
	return refs, nil
}

func appendBatchError(b []byte, ref upstream.SecretRef, f failure) []byte {
	if len(b) > 0 {
		b = append(b, ',')
	}
	// Name and label have been validated: nothing in them needs escaping.
	b = fmt.Appendf(b, `{"SecretName":"%s","VersionStage":"%s","Code":"%s","HttpStatus":%d,"Message":`,
		ref.SecretName, ref.VersionStage, f.code, f.status)
	return append(appendJSONString(b, f.message), '}')
}

func trimNewline(b []byte) []byte {
	if n := len(b); n > 0 && b[n-1] == '\n' {
		return b[:n-1]
	}
	return b
}
