package endpoint

import (
	"bufio"
	"context"
	"net"
	"strings"
	"testing"

	"github.com/valyala/fasthttp"

	"secretagent/upstream"
)

// held is a cache of one value, known by ref and by its version id.
type held struct {
	Secrets
	ref upstream.SecretRef
	a   upstream.Answer
}

func (h *held) Peek(ref upstream.SecretRef) (upstream.Answer, bool) {
	return h.a, ref == h.ref || ref == upstream.SecretRef{SecretName: h.ref.SecretName, VersionID: h.a.Value.VersionID}
}

func (h *held) Lookup(_ context.Context, ref upstream.SecretRef) (upstream.Answer, error) {
	if a, ok := h.Peek(ref); ok {
		return a, nil
	}
	return upstream.Answer{}, &upstream.Error{Err: upstream.ErrNotFound}
}

func (h *held) RefreshNow(ctx context.Context, ref upstream.SecretRef) (upstream.Answer, error) {
	return h.Lookup(ctx, ref)
}

func (h *held) Report(ctx context.Context, ref upstream.SecretRef) (upstream.Answer, error) {
	return h.Lookup(ctx, ref)
}

func (h *held) Changed(upstream.SecretName) error { return nil }

func (h *held) LookupAll(ctx context.Context, refs []upstream.SecretRef) ([]upstream.Answer, []error) {
	answers, errs := make([]upstream.Answer, len(refs)), make([]error, len(refs))
	for i, ref := range refs {
		answers[i], errs[i] = h.Lookup(ctx, ref)
	}
	return answers, errs
}

func (h *held) Subscribe(...upstream.SecretRef) (<-chan struct{}, func()) {
	return make(chan struct{}), func() {}
}

func newHeld(t testing.TB) (*Server, *conn) {
	t.Helper()
	token, err := NewToken([]byte(strings.Repeat("0123456789abcdef", 4)))
	if err != nil {
		t.Fatal(err)
	}
	v := &upstream.SecretValue{SecretName: "app/db", VersionID: "v1", VersionStages: []upstream.VersionStage{upstream.ACSCurrent},
		SecretData: upstream.NewSecretData([]byte(`{"username":"app","password":"first"}`)), SecretDataType: upstream.DataTypeText}
	s, err := New(&held{ref: upstream.SecretRef{SecretName: "app/db", VersionStage: upstream.ACSCurrent},
		a: upstream.Answer{Value: v, Derived: new(upstream.Derived)}}, Options{Callers: []Caller{DefaultCaller(token)}, MaxRequestsPerConnection: 16_000_000,
		VaultMounts: []VaultMount{{Path: "secret"}, {Path: "kv", Version: 1}}})
	if err != nil {
		t.Fatal(err)
	}
	a, b := net.Pipe()
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	c := &conn{Conn: a}
	c.setNumber(1, s.process)
	s.table.Add(&c.Slot, c.Conn, "test")
	return s, c
}

const hitTrace = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

// hitRequest returns a request as it is read from a connection.
func hitRequest(t testing.TB, c *conn, target string, lines ...string) *fasthttp.RequestCtx {
	t.Helper()
	ctx := &fasthttp.RequestCtx{}
	ctx.Init2(c, nil, false)
	lines = append(lines, "Host: 127.0.0.1:2025", "User-Agent: test", "Accept: */*", "X-KMS-Token: "+strings.Repeat("0123456789abcdef", 4), "\r\n")
	wire := "GET " + target + " HTTP/1.1\r\n" + strings.Join(lines, "\r\n")
	if err := ctx.Request.Read(bufio.NewReader(strings.NewReader(wire))); err != nil {
		t.Fatal(err)
	}
	return ctx
}

// TestKeptFormsAreBoundedBySize: every form is answered, whether or not there is room to keep it.
func TestKeptFormsAreBoundedBySize(t *testing.T) {
	v := &upstream.SecretValue{SecretName: "a", VersionID: "v1", SecretData: upstream.NewSecretData([]byte(`{"f":"` + strings.Repeat("x", 20_000) + `"}`))}
	a := &upstream.Answer{Value: v, Derived: new(upstream.Derived)}
	p := new(Server).preparedOf(a)
	for f := FormatKMS; f < numFormats; f++ {
		for _, field := range []string{"", "f"} {
			if b, err := p.body(v, f, field); err != nil || len(b.data) < 20_000 {
				t.Errorf("%v %s: %d bytes, %v", f, field, len(b.data), err)
			}
		}
	}
	if got, most := a.Derived.Size(), maxFormsSize*(v.SecretData.Size()+formOverhead)+8*preparedSize; got > most || got < most/2 {
		t.Errorf("%d bytes are kept, at most %d may be", got, most)
	}
	first, _ := p.body(v, FormatKMS, "")
	if again, _ := p.body(v, FormatKMS, ""); first != again {
		t.Error("the first form is not kept")
	}
}
