package endpoint

import (
	"bytes"
	"context"
	"time"

	"github.com/valyala/fasthttp"
	"golang.org/x/sync/semaphore"

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
	var room batchRoom
	if len(may) > 0 {
		s.whileBusy(c, func(lookup context.Context) {
			answers, failures = s.secrets.LookupAll(lookup, may)
			room.take(lookup, s, c, s.batchSize(answers, failures))
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

// batchSize returns about what a batch of these answers takes until it is encoded: its text, and
// the values that have not been encoded before.
func (s *Server) batchSize(answers []upstream.Answer, failures []error) (n int64) {
	for i := range answers {
		n += formOverhead
		if failures[i] != nil {
			continue
		}
		if size := s.preparedOf(&answers[i]).sizeOf(FormatKMS, ""); size > 0 {
			n += int64(size)
		} else {
			n += 2 * int64(answers[i].Value.SecretData.Len()+formOverhead)
		}
	}
	return n
}

// batchRoom is the part of the memory of all batches that one takes.
type batchRoom struct {
	pools []*semaphore.Weighted // what it is taken from: the share of its caller, the memory of all
	bytes int64
}

// take waits for room for n bytes, which is given back when the answer is with the client, and
// sets c.written when it has it. It has not when ctx ends first; room that is free is taken even
// then. A caller beside others has half of all at most, so that its clients, which need not read,
// keep nobody else out.
func (r *batchRoom) take(ctx context.Context, s *Server, c *conn, n int64) {
	r.bytes = min(n, s.opts.MaxBatchBytes)
	wanted := []*semaphore.Weighted{s.batches}
	if len(s.callers.Load().callers) > 1 {
		r.bytes = min(n, s.opts.MaxBatchBytes/2)
		wanted = []*semaphore.Weighted{c.caller.account.batches, s.batches}
	}
	for _, pool := range wanted {
		if !pool.TryAcquire(r.bytes) && pool.Acquire(ctx, r.bytes) != nil {
			r.giveBack(r.bytes)
			return
		}
		r.pools = append(r.pools, pool)
	}
	c.written = func() { r.giveBack(r.bytes) }
}

// shrink gives back what is not needed for n bytes.
func (r *batchRoom) shrink(n int64) {
	if n < r.bytes {
		r.giveBack(r.bytes - n)
		r.bytes = n
	}
}

func (r *batchRoom) giveBack(n int64) {
	for _, pool := range r.pools {
		pool.Release(n)
	}
}
