package endpoint

import (
	"cmp"
	"encoding/hex"
	"io"
	"strconv"
	"sync/atomic"
	"time"

	"secretagent/upstream"
)

// AuditLog writes one JSON object per line: who asked for what, when, and what they got. It
// never holds a value or a token.
//
//	{"Time":"2024-02-21T15:39:26.123Z","Caller":"web","From":"uid=1000 gid=1000 pid=77","Operation":"GetSecretValue",
//	 "SecretName":"app/db","VersionStage":"ACSCurrent","VersionId":"v2","Outcome":"hit","Status":200,"RequestId":"…"}
//
// Outcome is hit, miss, stale, not-modified, or the code of an error; about the status page it
// is link-made, signed-in or signed-out. TraceId and SpanId follow when the client sent a
// traceparent. Refusals are written at most about a hundred times a second for each caller, and
// for all who are none; Suppressed then says how many of the same origin were left out before.
type AuditLog struct {
	w      io.Writer
	sample int
	reads  atomic.Uint64
}

// NewAuditLog writes lines to w, one with each call. Requests wait for w, which must not block
// and must be safe for concurrent use, as a writer of package lines is. Of successful reads only
// one of sample is written, with 0 and 1 all; refusals and failures are always written.
func NewAuditLog(w io.Writer, sample int) *AuditLog { return &AuditLog{w: w, sample: sample} }

// audit writes a line about an answer, when auditing is on.
func (s *Server) audit(c *conn, ref upstream.SecretRef, version upstream.VersionID, outcome string) {
	s.auditAfter(c, ref, version, outcome, 0)
}

// auditRefusal writes a line about a refusal if l has room for it. Strangers and every caller
// have a limiter each, so that no flood hides what somebody else was refused.
func (s *Server) auditRefusal(c *conn, ref upstream.SecretRef, l *limiter) {
	if s.opts.Audit == nil {
		return
	}
	ok, suppressed := l.allow()
	if !ok {
		s.stats.auditDropped.Add(1)
		return
	}
	s.auditAfter(c, ref, "", c.code, suppressed)
}

// auditAfter writes a line, and how many of its kind were left out before.
func (s *Server) auditAfter(c *conn, ref upstream.SecretRef, version upstream.VersionID, outcome string, suppressed uint64) {
	l := s.opts.Audit
	if l == nil || l.sample > 1 && c.status < 400 && l.reads.Add(1)%uint64(l.sample) != 0 {
		return
	}
	used := len(c.scratch)
	line := c.appendAudit(c.scratch, ref, version, outcome, suppressed)
	_, _ = l.w.Write(line[used:]) // what is lost is counted there
	c.scratch = line[:used]
}

// appendAudit appends a line about the current request. Its texts have been validated or come
// from tables: none needs escaping, except that of the peer, which holds none that would.
func (c *conn) appendAudit(b []byte, ref upstream.SecretRef, version upstream.VersionID, outcome string, suppressed uint64) []byte {
	b = append(b, `{"Time":"`...)
	b = time.Now().UTC().AppendFormat(b, "2006-01-02T15:04:05.000Z")
	if c.caller != nil {
		b = appendText(b, `","Caller":"`, c.caller.Name)
	}
	b = appendText(b, `","From":"`, c.from())
	b = appendText(b, `","Operation":"`, c.op)
	b = appendText(b, `","SecretName":"`, string(ref.SecretName))
	b = appendText(b, `","VersionStage":"`, string(ref.VersionStage))
	b = appendText(b, `","VersionId":"`, cmp.Or(string(version), string(ref.VersionID)))
	b = appendText(b, `","Outcome":"`, outcome)
	b = append(b, `","Status":`...)
	b = strconv.AppendInt(b, int64(c.status), 10)
	b = append(b, `,"RequestId":"`...)
	b = append(b, c.id[:]...)
	if trace := c.trace(); !trace.IsZero() {
		b = append(b, `","TraceId":"`...)
		b = hex.AppendEncode(b, trace.TraceID[:])
		b = append(b, `","SpanId":"`...)
		b = hex.AppendEncode(b, trace.SpanID[:])
	}
	b = append(b, '"')
	if suppressed > 0 {
		b = append(b, `,"Suppressed":`...)
		b = strconv.AppendUint(b, suppressed, 10)
	}
	return append(b, '}', '\n')
}

// appendText appends key and value, or nothing when there is no value.
func appendText(b []byte, key, value string) []byte {
	if value == "" {
		return b
	}
	b = append(b, key...)
	return append(b, value...)
}
