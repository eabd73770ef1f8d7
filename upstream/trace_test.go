package upstream_test

import (
	"bytes"
	"context"
	"log/slog"
	"regexp"
	"strings"
	"testing"

	"secretagent/upstream"
)

const sampleTrace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

func TestParseTraceParent(t *testing.T) {
	for header, want := range map[string]string{ // "": ignored
		sampleTrace: sampleTrace,
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
		// Flags that are not defined are not passed on.
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-ff": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03",
		// Later versions count as far as they look like ours, and are passed on as ours.
		"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01":               sampleTrace,
		"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-may-come": sampleTrace,
		"fe-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-":              sampleTrace,
		"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01.what-may-not":  "",
		"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0":                "",

		"": "",
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-": "",
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01 ": "",
		" 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01": "",
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331":     "",
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1":   "",
		"ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01":  "",
		"0-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01x":  "",
		".0-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01":  "",
		"00-00000000000000000000000000000000-b7ad6b7169203331-01":  "",
		"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01":  "",
		"00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01":  "",
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333x-01":  "",
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0x":  "",
		"00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01":  "",
		"00-0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331-01":  "",
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331_01":  "",
	} {
		got, ok := upstream.ParseTraceParent([]byte(header))
		if got.String() != want || ok != (want != "") || ok == got.IsZero() {
			t.Errorf("%q: %q, %v, want %q", header, got, ok, want)
		}
	}
}

// Whatever is accepted is a header of ours when it is written, and means the same when it is
// read again; what follows the common part of a later version is never repeated.
func FuzzParseTraceParent(f *testing.F) {
	f.Add(sampleTrace)
	f.Add("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-may-come")
	f.Add("00-00000000000000000000000000000000-b7ad6b7169203331-01")
	form := regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-0[0-3]$`)
	f.Fuzz(func(t *testing.T, header string) {
		got, ok := upstream.ParseTraceParent([]byte(header))
		if !ok {
			if !got.IsZero() {
				t.Fatalf("%q: refused, and yet %v", header, got)
			}
			return
		}
		if s := got.String(); !form.MatchString(s) || s[3:52] != header[3:52] {
			t.Fatalf("%q: %q", header, s)
		}
		if again, ok := upstream.ParseTraceParent([]byte(got.String())); !ok || again != got {
			t.Fatalf("%q: %v became %v", header, got, again)
		}
	})
}

func TestParseTraceParentAllocatesNothing(t *testing.T) {
	header := []byte(sampleTrace)
	if n := testing.AllocsPerRun(100, func() { upstream.ParseTraceParent(header) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestCause(t *testing.T) {
	trace, _ := upstream.ParseTraceParent([]byte(sampleTrace))
	var log bytes.Buffer
	line := func(c upstream.Cause) string {
		log.Reset()
		ctx := upstream.WithCause(t.Context(), c)
		slog.New(slog.NewTextHandler(&log, nil)).Info("x", "a", 1, upstream.CauseOf(ctx).Attr(), "b", 2)
		_, after, _ := strings.Cut(log.String(), "msg=x ")
		return strings.TrimSpace(after)
	}
	for want, c := range map[string]upstream.Cause{
		"a=1 b=2":                {},
		"a=1 request_id=r-1 b=2": {RequestID: "r-1"},
		"a=1 request_id=r-1 trace_id=0af7651916cd43dd8448eb211c80319c span_id=b7ad6b7169203331 b=2": {RequestID: "r-1", Trace: trace},
	} {
		if got := line(c); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if ctx := context.Background(); upstream.WithCause(ctx, upstream.Cause{}) != ctx {
		t.Error("no cause makes a context")
	}
}

func TestRequestIDs(t *testing.T) {
	form := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	seen := map[string]bool{}
	for range 1000 {
		id := upstream.NewRequestID()
		if !form.MatchString(id) || seen[id] {
			t.Fatalf("%q", id)
		}
		seen[id] = true
	}
}
