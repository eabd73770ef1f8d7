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
	room := batchRoom{s: s, bytes: min(int64(len(may))*batchValueBytes, s.opts.MaxBatchBytes)}
	if len(may) > 0 {
		s.whileBusy(c, func(lookup context.Context) {
			if room.take(lookup, c) {
				answers, failures = s.secrets.LookupAll(lookup, may)
			}
		})
		if c.written == nil {
			s.refuse(ctx, c, tooManyBatches)
			return
		}
	}

	size := 0
	var values [][]byte
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
				value := bytes.TrimSuffix(s.batchValue(c, ref, a), []byte("\n"))
				values = append(values, value)
				size += len(value) + 1
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
	b := make([]byte, 0, len(`{"SecretValues":[`)+size+len("],")+len(rest))
	b = append(b, `{"SecretValues":[`...)
	for i, value := range values {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, value...)
	}
	b = append(b, "],"...)
	setJSON(ctx, append(b, rest[len("{"):]...))
	room.shrink(int64(len(b)))
}

// batchValue returns one value of a batch, and counts and audits it.
func (s *Server) batchValue(c *conn, ref upstream.SecretRef, a *upstream.Answer) []byte {
	b, _ := s.preparedOf(a).body(a.Value, FormatKMS, "") // only fields can be missing
	s.countValue(c, a)
	c.status = fasthttp.StatusOK
	s.audit(c, ref, a.Value.VersionID, a.Freshness.String())
	return b.data
}

// batchValueBytes is what one secret of a batch is taken to need until the batch is encoded: the
// largest value, its answer, and its part of the batch.
const batchValueBytes = 96 << 10

// batchRoom is the part of the memory of all batches that one takes.
type batchRoom struct {
	s     *Server
	bytes int64
}

// take waits for the room, which is given back when the answer is with the client; false when
// ctx ends first.
func (r *batchRoom) take(ctx context.Context, c *conn) bool {
	if r.s.batches.Acquire(ctx, r.bytes) != nil {
		return false
	}
	c.written = func() { r.s.batches.Release(r.bytes) }
	return true
}

// shrink gives back what is not needed for n bytes.
func (r *batchRoom) shrink(n int64) {
	if n < r.bytes {
		r.s.batches.Release(r.bytes - n)
		r.bytes = n
	}
}
