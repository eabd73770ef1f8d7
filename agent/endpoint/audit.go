package endpoint

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"secretagent/upstream"
)

// How the audit log is written: lines are collected and written together, at the latest
// auditDelay after the first of them, or at once when auditBuffer bytes have come together.
const (
	auditDelay  = 100 * time.Millisecond
	auditBuffer = 64 << 10
)

// AuditOptions configures an [AuditLog].
type AuditOptions struct {
	// Sample writes only one of this many successful reads. 0 and 1 write all. Refusals and
	// failures are always written.
	Sample int

	// OnError is called when lines could not be written, once until writing works again. Nil
	// ignores it; see also [AuditLog.Failed].
	OnError func(error)

	// OnRecovery is called when writing works again, with the number of lines that were lost
	// since the log was opened. Nil ignores it.
	OnRecovery func(lost uint64)
}

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
//
// Lines are written within a tenth of a second, together. A process that is killed loses those
// of that time. When the file cannot be written, a full disk say, requests are served all the
// same; the lines are lost and counted, and [AuditOptions.OnError] is told. A line that was
// written in part is ended when writing works again.
type AuditLog struct {
	opts AuditOptions
	path string // empty: w is not ours to open

	reads  atomic.Uint64
	failed atomic.Uint64

	mu      sync.Mutex
	w       io.Writer
	file    *os.File
	buf     []byte
	pending bool // flushLater will be called
	broken  bool // the last write failed
	torn    bool // the file ends with a part of a line
	closed  bool
}

// OpenAuditLog appends to the file at path, creating it with mode 0600 when it is missing. The
// error says why that is not possible.
func OpenAuditLog(path string, opts AuditOptions) (*AuditLog, error) {
	l := &AuditLog{opts: opts, path: path}
	f, err := l.open()
	if err != nil {
		return nil, err
	}
	l.w, l.file = f, f
	return l, nil
}

// NewAuditLog writes to w, such as os.Stderr, and does not close it.
func NewAuditLog(w io.Writer, opts AuditOptions) *AuditLog {
	return &AuditLog{opts: opts, w: w}
}

func (l *AuditLog) open() (*os.File, error) {
	f, err := os.OpenFile(l.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	return f, nil
}

// Reopen writes what is collected to the old file and goes on with a new one of the same
// name, for log rotation. On error the old file stays in use. A log over a writer is only
// flushed.
func (l *AuditLog) Reopen() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errors.New("audit log: closed")
	}
	l.flushLocked()
	if l.path == "" {
		return nil
	}
	f, err := l.open()
	if err != nil {
		return err
	}
	_ = l.file.Close()
	l.w, l.file, l.torn = f, f, false
	return nil
}

// Failed returns how many lines were lost because they could not be written.
func (l *AuditLog) Failed() uint64 { return l.failed.Load() }

// Close writes what is collected and closes the file. Later lines are dropped.
func (l *AuditLog) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.flushLocked()
	l.closed = true
	if l.file != nil {
		return l.file.Close()
	}
	return nil
}

// flushLocked writes the buffer. What cannot be written is dropped: a growing backlog would
// only move the loss. A line that was cut short is ended before the next one.
func (l *AuditLog) flushLocked() {
	if len(l.buf) == 0 || l.closed {
		return
	}
	out := l.buf
	if l.torn {
		out = append([]byte("\n"), out...)
	}
	n, err := l.w.Write(out)
	if n > 0 {
		l.torn = out[n-1] != '\n'
	}
	if err != nil {
		l.failed.Add(uint64(bytes.Count(l.buf[max(0, n-(len(out)-len(l.buf))):], []byte("\n"))))
		if !l.broken && l.opts.OnError != nil {
			l.opts.OnError(fmt.Errorf("audit log: %w", err))
		}
	}
	if err == nil && l.broken && l.opts.OnRecovery != nil {
		l.opts.OnRecovery(l.failed.Load())
	}
	l.broken = err != nil
	l.buf = l.buf[:0]
}

// write adds the line that appendTo appends, about a request that ended with status.
func (l *AuditLog) write(status int, appendTo func([]byte) []byte) {
	if n := l.opts.Sample; n > 1 && status < 400 && l.reads.Add(1)%uint64(n) != 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.buf = appendTo(l.buf)
	if len(l.buf) >= auditBuffer {
		l.flushLocked()
		return
	}
	if !l.pending {
		l.pending = true
		time.AfterFunc(auditDelay, l.flushLater)
	}
}

func (l *AuditLog) flushLater() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending = false
	l.flushLocked()
}

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
	if s.opts.Audit != nil {
		s.opts.Audit.write(c.status, func(b []byte) []byte { return c.appendAudit(b, ref, version, outcome, suppressed) })
	}
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
