package upstream

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
)

// TraceParentHeader is the header that carries a [TraceParent].
const TraceParentHeader = "traceparent"

// TraceParent says which span of which distributed trace a request belongs to, as W3C Trace
// Context defines it. The zero value means none. Nothing here makes spans of its own: what a
// client sent is written to logs and passed on as it is.
type TraceParent struct {
	TraceID [16]byte
	SpanID  [8]byte // of the caller; the specification calls it parent-id
	Flags   byte    // sampled and random; others are dropped
}

// The flags that are defined; a sender must leave all others zero.
const knownFlags = 0x01 | 0x02

// ParseTraceParent reads the value of a traceparent header. It returns false for whatever
// the specification tells receivers to ignore: another form, upper case, an id of zeros only,
// version ff, or version 00 with something behind it. Of later versions it reads the part
// that all versions share.
func ParseTraceParent(header []byte) (TraceParent, bool) {
	const length = len("00-0123456789abcdef0123456789abcdef-0123456789abcdef-00")
	var t TraceParent
	var version, flags [1]byte
	if len(header) < length || header[2] != '-' || header[35] != '-' || header[52] != '-' ||
		!unhex(version[:], header[:2]) || !unhex(t.TraceID[:], header[3:35]) ||
		!unhex(t.SpanID[:], header[36:52]) || !unhex(flags[:], header[53:55]) {
		return TraceParent{}, false
	}
	switch {
	case version[0] == 0xff,
		version[0] == 0 && len(header) != length,
		len(header) > length && header[length] != '-',
		t.TraceID == [16]byte{},
		t.SpanID == [8]byte{}:
		return TraceParent{}, false
	}
	t.Flags = flags[0] & knownFlags
	return t, true
}

// unhex decodes lower-case digits, two for each byte of dst.
func unhex(dst, src []byte) bool {
	_, err := hex.Decode(dst, src)
	return err == nil && !bytes.ContainsAny(src, "ABCDEF")
}

// IsZero reports whether there is no trace.
func (t TraceParent) IsZero() bool { return t == TraceParent{} }

// String returns the header that passes t on, in version 00; "" when there is no trace.
func (t TraceParent) String() string {
	if t.IsZero() {
		return ""
	}
	return fmt.Sprintf("00-%x-%x-%02x", t.TraceID, t.SpanID, t.Flags)
}

// Cause is the request of a client that makes a backend work: it lets the log of a call be
// found from the request and the other way round. The zero value means that no request is
// the cause, as with a refresh in the background.
type Cause struct {
	RequestID string
	Trace     TraceParent
}

// NewRequestID returns a random UUID in lower case, as the KMS API identifies requests.
func NewRequestID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

type causeKey struct{}

// WithCause returns a context that carries c to the backend.
func WithCause(ctx context.Context, c Cause) context.Context {
	if c == (Cause{}) {
		return ctx
	}
	return context.WithValue(ctx, causeKey{}, c)
}

// CauseOf returns what ctx carries; the zero Cause when there is none.
func CauseOf(ctx context.Context) Cause {
	c, _ := ctx.Value(causeKey{}).(Cause)
	return c
}

// Attr returns c for a log line: request_id, trace_id and span_id, as far as they are known.
// It has no name of its own, so that handlers put its members beside the others of the line.
func (c Cause) Attr() slog.Attr {
	var attrs []slog.Attr
	if c.RequestID != "" {
		attrs = append(attrs, slog.String("request_id", c.RequestID))
	}
	if !c.Trace.IsZero() {
		attrs = append(attrs, slog.String("trace_id", hex.EncodeToString(c.Trace.TraceID[:])),
			slog.String("span_id", hex.EncodeToString(c.Trace.SpanID[:])))
	}
	return slog.Attr{Value: slog.GroupValue(attrs...)}
}
