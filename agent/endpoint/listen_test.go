package endpoint_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"secretagent/agent/endpoint"
	"secretagent/agent/listen"
	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

// socketPath returns a path that fits into a socket address.
func socketPath(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ep")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "agent.sock")
}

func TestUnixSocketKnowsItsPeer(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("no peer credentials")
	}
	me, group := uint32(os.Getuid()), uint32(os.Getgid())
	other := "another-token-of-some-length"
	both := "a-token-bound-to-another-user"
	r := start(t, endpoint.Options{Callers: []endpoint.Caller{
		{Name: "someone-else", UIDs: []uint32{me + 1}, Secrets: []string{"*"}},
		{Name: "me", UIDs: []uint32{me}, Secrets: []string{"a"}},
		{Name: "mine-with-token", Tokens: []endpoint.Token{mustToken(t, token)}, GIDs: []uint32{group}, Secrets: []string{"*"}},
		{Name: "anybody", Tokens: []endpoint.Token{mustToken(t, other)}, Secrets: []string{"*"}},
		{Name: "bound", Tokens: []endpoint.Token{mustToken(t, both)}, UIDs: []uint32{me + 1}, Secrets: []string{"*"}},
	}})
	path := socketPath(t)
	ln, err := listen.Open(listen.UnixOptions{Path: path})
	must(t, err)
	r.serve(t, ln)
	r.put(value("a", "v1", "x", upstream.ACSCurrent))
	r.put(value("b", "v1", "x", upstream.ACSCurrent))
	for _, test := range []struct {
		network, target, token string
		status                 int
		code                   string
	}{
		{"unix", "/v1/a", "", 200, ""},
		{"unix", "/v1/b", "", 403, "Forbidden.NoPermission"},
		{"tcp", "/v1/a", "", 403, "TokenMissing"},
		{"unix", "/v1/b", token, 200, ""},
		{"tcp", "/v1/b", token, 403, "PeerNotAllowed"},
		{"unix", "/v1/b", other, 200, ""},
		{"tcp", "/v1/b", other, 200, ""},
		{"unix", "/v1/a", both, 403, "PeerNotAllowed"},
		{"unix", "/v1/a", "a-wrong-token-of-some-length", 403, "TokenInvalid"},
	} {
		addr := map[string]string{"tcp": r.addr, "unix": path}[test.network]
		header := []string{"Host: localhost"}
		if test.token != "" {
			header = append(header, "X-KMS-Token: "+test.token)
		}
		c := dial(t, test.network, addr)
		c.send(request("GET", test.target, header...))
		if got := c.receive("GET"); got.status != test.status || got.code != test.code {
			t.Errorf("%s %s %q: %d %s", test.network, test.target, test.token, got.status, got.code)
		}
	}
	for host, status := range map[string]int{"unix": 200, "agent": 200, "127.0.0.1": 200, "evil.example": 403, "10.0.0.1": 403, "a:b:c": 403} {
		c := dial(t, "unix", path)
		c.send(request("GET", "/v1/a", "Host: "+host))
		if got := c.receive("GET"); got.status != status && got.status != 400 {
			t.Errorf("Host %s on the socket: %d", host, got.status)
		}
	}
}

func TestShutdownFinishesRunningRequests(t *testing.T) {
	r := start(t, endpoint.Options{})
	r.store(value("slow", "v1", "x", upstream.ACSCurrent))
	r.put(value("fast", "v1", "x", upstream.ACSCurrent))
	entered, release := make(chan struct{}), make(chan struct{})
	r.mu.Lock()
	r.onFetch = func(context.Context, upstream.SecretRef) { close(entered); <-release }
	r.mu.Unlock()

	idle := dial(t, "tcp", r.addr)
	idle.send(request("GET", "/v1/fast", hostLine, tokenLine))
	idle.receive("GET")
	running := dial(t, "tcp", r.addr)
	running.send(request("GET", "/v1/slow", hostLine, tokenLine))
	<-entered

	down := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		down <- r.srv.Shutdown(ctx)
	}()
	if _, err := idle.tryReceive("GET"); err == nil {
		t.Error("the idle connection got an answer nobody asked for")
	}
	select {
	case err := <-down:
		t.Fatalf("Shutdown returned %v while a request runs", err)
	case <-time.After(20 * time.Millisecond):
	}
	if _, err := net.DialTimeout("tcp", r.addr, time.Second); err == nil {
		t.Error("new connections are still accepted")
	}
	close(release)
	if got := running.receive("GET"); got.status != 200 || !got.closed {
		t.Errorf("the running request: %d, closed %v", got.status, got.closed)
	}
	if err := <-down; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

func TestShutdownIsBounded(t *testing.T) {
	r := start(t, endpoint.Options{})
	entered := make(chan struct{})
	r.mu.Lock()
	r.onFetch = func(ctx context.Context, _ upstream.SecretRef) { close(entered); <-ctx.Done() }
	r.mu.Unlock()
	c := dial(t, "tcp", r.addr)
	c.send(request("GET", "/v1/never", hostLine, tokenLine))
	<-entered
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	began := time.Now()
	if err := r.srv.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown: %v", err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestShutdownWhenIdleIsQuick(t *testing.T) {
	r := start(t, endpoint.Options{})
	r.put(value("a", "v1", "x", upstream.ACSCurrent))
	for range 20 {
		c := dial(t, "tcp", r.addr)
		c.send(request("GET", "/v1/a", hostLine, tokenLine))
		c.receive("GET")
	}
	began := time.Now()
	if err := r.srv.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	if err := r.srv.Shutdown(context.Background()); err != nil {
		t.Errorf("the second call: %v", err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	if err := r.srv.Serve(ln); !errors.Is(err, endpoint.ErrServerClosed) {
		t.Errorf("Serve after Shutdown: %v", err)
	}
}

func TestNothingLeaksThroughLogAuditOrStats(t *testing.T) {
	audit := &upstreamtest.Buffer{}
	log := endpoint.NewAuditLog(audit, 0)
	r := start(t, endpoint.Options{Audit: log})
	r.put(value("a", "v1", `{"password":"`+marker+`"}`, upstream.ACSCurrent))
	r.fail("broken", errors.New("no such disk"))
	for _, target := range []string{"/v1/a", "/v1/a?field=password", "/v1/a?field=" + marker, "/v1/a?" + marker + "=1", "/v1/" + marker + "%20", "/v1/broken",
		"/v1/a?format=" + marker, "/v1/a?wait=" + marker, "/nowhere/" + marker} {
		r.get(t, target)
	}
	c := dial(t, "tcp", r.addr)
	c.send(request("GET", "/v1/a", hostLine, "X-KMS-Token: "+marker+marker))
	c.receive("GET")
	c = dial(t, "tcp", r.addr)
	c.send("GET /v1/a HTTP/1.1\r\n" + hostLine + "\r\nX-KMS-Token: " + marker + "\x00\r\n\r\n")
	c.receive("GET")
	for where, text := range map[string]string{"log": r.log.String(), "audit": audit.String()} {
		if text == "" || bytes.Contains([]byte(text), []byte(marker)) || strings.Contains(text, token) {
			t.Errorf("%s:\n%s", where, text)
		}
	}
}
