package kmsserver_test

import (
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"testing"

	"secretagent/upstream"
	"secretagent/upstream/kmsserver"
)

// TestAttacksOfMany lets a crowd take every connection of the signed listener, and more. A client
// that behaves is answered on the connection that it has and on new ones, at once.
func TestAttacksOfMany(t *testing.T) {
	const slots = 32
	secondKey := func(o *kmsserver.Tuned) {
		second := fullKey()
		second.ID = "second"
		o.AccessKeys = append(o.AccessKeys, second)
		o.Limits.Connections = slots
	}
	for name, opening := range map[string]func(t *testing.T, s *signer) string{
		"half-open connections":  func(*testing.T, *signer) string { return "" },
		"half requests":          func(*testing.T, *signer) string { return "POST / HTTP/1.1\r\nHost: x\r\nX-Slow: " },
		"half bodies":            func(*testing.T, *signer) string { return "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\nA" },
		"plain text":             func(*testing.T, *signer) string { return strings.Repeat("\x00\xff garbage \r\n\r\n", 10) },
		"requests not signed":    func(*testing.T, *signer) string { return "GET /?Action=ListSecrets HTTP/1.1\r\nHost: x\r\n\r\n" },
		"half requests of a key": func(t *testing.T, s *signer) string { return signedBytes(t, s, "ListSecrets") + "GET " },
		"idle ones of a key":     func(t *testing.T, s *signer) string { return signedBytes(t, s, "ListSecrets") },
	} {
		t.Run(name, func(t *testing.T) {
			f := start(t, secondKey)
			attacker, honest := newSigner(f), newSigner(f)
			attacker.id = "second"
			honest.call(t, "ListSecrets").wants(t, "before", 200, "")
			for range 3 {
				for range slots {
					nc := send(t, "tcp", f.address, opening(t, attacker))
					if strings.HasSuffix(name, "of a key") {
						_, _ = nc.Read(make([]byte, 1)) // until it has shown its key
					}
				}
				honest.call(t, "ListSecrets").wants(t, "on the connection that is there", 200, "")
				f.web.CloseIdleConnections()
				honest.call(t, "ListSecrets").wants(t, "on a new one", 200, "")
			}
			if st := f.server.Stats(kmsserver.Signed); st.Open > slots {
				t.Errorf("%d connections are open", st.Open)
			}
			if log := f.log.String(); f.server.Stats(kmsserver.Signed).Evicted > 0 && !strings.Contains(log, "all connections are taken") {
				t.Errorf("log:\n%s", log)
			}
		})
	}
}

// signedBytes returns a signed call as it goes over the wire.
func signedBytes(t *testing.T, s *signer, action string) string {
	t.Helper()
	raw, err := httputil.DumpRequestOut(s.v1(t, http.MethodPost, params(action), nil), true)
	must(t, err)
	return string(raw)
}

// TestAKeyCannotTakeTheShareOfAnother: calls that do not end take all connections of one key, and
// none of another.
func TestAKeyCannotTakeTheShareOfAnother(t *testing.T) {
	f := start(t, func(o *kmsserver.Tuned) {
		second := fullKey()
		second.ID = "second"
		o.AccessKeys = append(o.AccessKeys, second)
		o.Limits.Connections = 4
	})
	attacker, honest := newSigner(f), newSigner(f)
	attacker.id = "second"
	release := f.fake.Block("ListSecrets")
	defer release()
	var calls []net.Conn
	for range 4 {
		calls = append(calls, send(t, "tcp", f.address, signedBytes(t, attacker, "ListSecrets")))
	}
	f.fake.AwaitCalls(t, "ListSecrets", 4)
	attacker.call(t, "GetRandomPassword").wants(t, "the key that has all", 503, upstream.Code(upstream.ErrUnavailable))
	f.web.CloseIdleConnections()
	honest.call(t, "GetRandomPassword").wants(t, "another key", 200, "")
	if _, err := io.ReadAll(calls[0]); err != nil && !strings.Contains(err.Error(), "reset") {
		t.Errorf("the first call: %v", err)
	}
	if st := f.server.Stats(kmsserver.Signed); st.Open != 4 || st.Evicted != 1 {
		t.Errorf("%+v", st)
	}
}
