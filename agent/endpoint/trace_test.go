package endpoint_test

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"testing"

	"secretagent/agent/endpoint"
	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

const (
	traceID    = "0af7651916cd43dd8448eb211c80319c"
	spanID     = "b7ad6b7169203331"
	traceLine  = "traceparent: 00-" + traceID + "-" + spanID + "-01"
	otherTrace = "1af7651916cd43dd8448eb211c80319c"
	otherLine  = "Traceparent: 00-" + otherTrace + "-" + spanID + "-00"
)

// auditLine is what the tests of traces look at.
type auditLine struct {
	Caller, Operation, SecretName, VersionId, Outcome, RequestId, TraceId, SpanId string
	Status                                                                        int
}

func auditLines(t testing.TB, text string) (lines []auditLine) {
	t.Helper()
	for line := range strings.Lines(text) {
		var l auditLine
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		lines = append(lines, l)
	}
	return lines
}

// startAudited serves with an audit log, and returns what that writes to.
func startAudited(t *testing.T) (*rig, *upstreamtest.Buffer) {
	t.Helper()
	out := &upstreamtest.Buffer{}
	return start(t, endpoint.Options{Audit: endpoint.NewAuditLog(out, 0)}), out
}

// TestTraceIsFollowed asks in every way there is, and finds request and trace in the audit
// lines, in the log lines and with the call to the backend.
func TestTraceIsFollowed(t *testing.T) {
	r, out := startAudited(t)
	r.put(value("held", "v1", marker, upstream.ACSCurrent))
	r.store(value("fetched", "v1", marker, upstream.ACSCurrent))
	r.fail("down", &upstream.Error{Err: upstream.ErrUnavailable, Message: "nobody answers"})
	var mu sync.Mutex
	var causes []upstream.Cause
	r.hook(func(ctx context.Context, _ upstream.SecretRef) {
		mu.Lock()
		defer mu.Unlock()
		causes = append(causes, upstream.CauseOf(ctx))
	})
	for _, test := range []struct {
		what, method, target string
		status               int
		calls                bool // reaches the cache beyond a hit
		logged               bool
	}{
		{"hit", "GET", "/v1/held", 200, false, false},
		{"miss", "GET", "/v1/fetched", 200, true, false},
		{"refresh", "GET", "/v1/held?refreshNow=true", 200, true, false},
		{"batch", "GET", "/secretsmanager/batch?secretId=held&secretId=fetched", 200, true, false},
		{"report", "POST", "/secretsmanager/report?secretId=held", 200, true, false},
		{"outage", "GET", "/v1/down", 503, true, true},
	} {
		for _, traced := range []bool{true, false} {
			begin, beginLog := len(out.String()), len(r.log.String())
			mu.Lock()
			causes = nil
			mu.Unlock()
			lines := []string{hostLine, tokenLine}
			if traced {
				lines = append(lines, traceLine, "tracestate: vendor=whatever")
			}
			c := r.dial(t)
			c.send(request(test.method, test.target, lines...))
			got := c.receive(test.method)
			if got.status != test.status {
				t.Fatalf("%s: %d %s", test.what, got.status, got.body)
			}
			id := got.header.Get("X-Request-Id")
			wantTrace, wantSpan := "", ""
			if traced {
				wantTrace, wantSpan = traceID, spanID
			}
			audited := auditLines(t, out.String()[begin:])
			if len(audited) == 0 {
				t.Errorf("%s: no audit line", test.what)
			}
			for _, l := range audited {
				if l.RequestId != id || l.TraceId != wantTrace || l.SpanId != wantSpan {
					t.Errorf("%s, traced %v: audit line %+v, request %s", test.what, traced, l, id)
				}
			}
			mu.Lock()
			if (len(causes) == 1) != test.calls {
				t.Errorf("%s: %d calls", test.what, len(causes))
			}
			for _, cause := range causes {
				if cause.RequestID != id || cause.Trace.IsZero() == traced || traced && !strings.Contains(cause.Trace.String(), traceID) {
					t.Errorf("%s, traced %v: the backend hears of %+v", test.what, traced, cause)
				}
			}
			mu.Unlock()
			if log := r.log.String()[beginLog:]; (log != "") != test.logged || test.logged &&
				(!strings.Contains(log, "request_id="+id) || strings.Contains(log, "trace_id="+traceID+" span_id="+spanID) != traced) {
				t.Errorf("%s, traced %v: log %q", test.what, traced, log)
			}
		}
	}
}

// TestTraceThatIsNoTrace sends headers that the specification tells us to ignore; none is an
// error, and none leaves anything behind.
func TestTraceThatIsNoTrace(t *testing.T) {
	r, out := startAudited(t)
	r.put(value("held", "v1", marker, upstream.ACSCurrent))
	c := r.dial(t)
	for _, test := range []struct {
		lines []string
		want  string
	}{
		{nil, ""},
		{[]string{traceLine}, traceID},
		{[]string{traceLine}, traceID}, // the same bytes again
		{[]string{"traceparent: 00-" + otherTrace + "-" + spanID + "-01"}, otherTrace},
		{[]string{"traceparent: 00-" + strings.Repeat("0", 32) + "-" + spanID + "-01"}, ""},
		{[]string{traceLine}, traceID},
		{nil, ""},
		{[]string{otherLine}, otherTrace},
		{[]string{"TRACEPARENT:\t00-" + traceID + "-" + spanID + "-01 \t"}, traceID},
		{[]string{traceLine, otherLine}, ""},
		{[]string{traceLine, traceLine}, ""},
		{[]string{"traceparent:"}, ""},
		{[]string{"traceparent: " + marker}, ""},
		{[]string{"traceparent: ff-" + traceID + "-" + spanID + "-01"}, ""},
		{[]string{"traceparent: cc-" + traceID + "-" + spanID + "-01-" + marker}, traceID},
		{[]string{"trace-parent: 00-" + traceID + "-" + spanID + "-01"}, ""},
		{[]string{"tracestate: " + strings.Repeat("a=b,", 400)}, ""},
		{nil, ""},
	} {
		begin := len(out.String())
		c.send(request("GET", "/v1/held", append([]string{hostLine, tokenLine}, test.lines...)...))
		if got := c.receive("GET"); got.status != 200 {
			t.Fatalf("%q: %d %s", test.lines, got.status, got.body)
		}
		if l := auditLines(t, out.String()[begin:]); len(l) != 1 || l[0].TraceId != test.want || (l[0].SpanId != "") != (test.want != "") {
			t.Errorf("%q: %+v", test.lines, l)
		}
	}
	if strings.Contains(out.String()+r.log.String(), marker) {
		t.Error("text of a header is repeated")
	}
}

func TestTraceOfRefusals(t *testing.T) {
	r, out := startAudited(t)
	c := r.dial(t)
	c.send(request("GET", "/v1/held", hostLine, "X-KMS-Token: wrong", traceLine))
	got := c.receive("GET")
	l := auditLines(t, out.String())
	if len(l) != 1 || l[0].Outcome != "TokenInvalid" || l[0].TraceId != traceID || l[0].SpanId != spanID {
		t.Errorf("%+v", l)
	}
	if log := r.log.String(); !strings.Contains(log, "request_id="+got.header.Get("X-Request-Id")+" trace_id="+traceID+" span_id="+spanID) {
		t.Errorf("log %q", log)
	}
}

// TestTraceOfAWait follows a client that waits for a change and gets it.
func TestTraceOfAWait(t *testing.T) {
	r, out := startAudited(t)
	r.put(value("a", "v1", "first", upstream.ACSCurrent))
	c := r.dial(t)
	tag := c.ask("/v1/a").header.Get("Etag")
	c.send(request("GET", "/v1/a?wait=30s", hostLine, tokenLine, traceLine, "If-None-Match: "+tag))
	eventually(t, "the client waits", func() bool { return r.srv.Stats().Waiting == 1 })
	r.put(value("a", "v2", "second", upstream.ACSCurrent))
	if got := c.receive("GET"); got.status != 200 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	if l := auditLines(t, out.String()); len(l) != 2 || l[0].TraceId != "" || l[1].TraceId != traceID {
		t.Errorf("%+v", l)
	}
}
