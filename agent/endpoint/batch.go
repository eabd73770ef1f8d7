package endpoint

import (
	"bytes"
	"context"
	"time"

	"github.com/valyala/fasthttp"

	"secretagent/upstream"
)

// batchError is what a batch says of a reference without a value.
type batchError struct {
	SecretName   upstream.SecretName
	VersionStage upstream.VersionStage
	Code         string
	HttpStatus   int
	Message      string
}

// batch answers several references from one consistent moment, in the shape of
// BatchGetSecretValue: {"SecretValues":[…],"Errors":[{SecretName,VersionStage,Code,HttpStatus,Message}]}.
// Each value is what GetSecretValue answers. A reference that fails does not fail the others,
// so the status is 200 as soon as the request itself is right.
func (s *Server) batch(ctx *fasthttp.RequestCtx, c *conn) {
	c.began = time.Time{} // hits are timed for lookups of one secret
	may := make([]upstream.SecretRef, 0, len(c.query.batch))
	for _, ref := range c.query.batch {
		if c.caller.may(ref.SecretName) {
			may = append(may, ref)
		}
	}
	var answers []upstream.Answer
	var failures []error
	if len(may) > 0 {
		s.whileBusy(c, func(lookup context.Context) { answers, failures = s.secrets.LookupAll(lookup, may) })
	}

	var values []byte
	errs := []batchError{}
	var worst *upstream.Answer
	for _, ref := range c.query.batch {
		var f failure
		if !c.caller.may(ref.SecretName) {
			s.countRefusal(c, nameNotAllowed)
			f = failureBy(nameNotAllowed)
		} else {
			a, err := &answers[0], failures[0]
			answers, failures = answers[1:], failures[1:]
			if err == nil {
				values = append(values, bytes.TrimSuffix(s.batchValue(c, ref, a), []byte("\n"))...)
				values = append(values, ',')
				if worst == nil || a.Freshness > worst.Freshness || a.Freshness == worst.Freshness && a.Age > worst.Age {
					worst = a
				}
				continue
			}
			f = failureOf(err)
			s.stats.failed.add(f.code)
			if f.defect {
				s.logFailure(c, ref, &f, err)
			}
		}
		errs = append(errs, batchError{ref.SecretName, ref.VersionStage, f.code, f.status, f.message})
		c.status, c.code = f.status, f.code
		if f.refusal == nameNotAllowed {
			s.auditRefusal(c, ref, &c.caller.account.denials)
		} else {
			s.audit(c, ref, "", f.code)
		}
	}
	s.stats.batches.Add(1)

	if worst != nil { // Age and X-Cache describe the worst of the values
		s.setCacheHeaders(ctx, c, worst)
	}
	rest := encode(struct {
		Errors    []batchError
		RequestId string
	}{errs, string(c.id[:])})
	b := append([]byte(`{"SecretValues":[`), bytes.TrimSuffix(values, []byte(","))...)
	b = append(b, "],"...)
	setJSON(ctx, append(b, rest[len("{"):]...))
}

// batchValue returns one value of a batch, and counts and audits it.
func (s *Server) batchValue(c *conn, ref upstream.SecretRef, a *upstream.Answer) []byte {
	b, _ := s.preparedOf(a).body(a.Value, FormatKMS, "") // only fields can be missing
	s.countValue(c, a)
	c.status = fasthttp.StatusOK
	s.audit(c, ref, a.Value.VersionID, a.Freshness.String())
	return b.data
}
