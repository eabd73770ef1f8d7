package endpoint_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"secretagent/agent/endpoint"
	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

func TestTCPListenerStaysOnLoopback(t *testing.T) {
	for _, test := range []struct {
		opts endpoint.TCPOptions
		want string
	}{
		{endpoint.TCPOptions{Address: "0.0.0.0:0"}, "other hosts can reach"},
		{endpoint.TCPOptions{Address: ":0"}, "other hosts can reach"},
		{endpoint.TCPOptions{Address: "[::]:0"}, "other hosts can reach"},
		{endpoint.TCPOptions{Address: "0.0.0.0:0", AllowNonLoopback: true}, "needs TLS"},
		{endpoint.TCPOptions{Address: "nonsense"}, "nonsense"},
	} {
		if ln, err := endpoint.ListenTCP(test.opts); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: %v", test.opts, err)
			if err == nil {
				_ = ln.Close()
			}
		}
	}
	// Also when somebody else opened it.
	ln, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	srv, err := endpoint.New(newFake(), endpoint.Options{Callers: []endpoint.Caller{endpoint.DefaultCaller(mustToken(t, token))}})
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.Serve(ln); err == nil || !strings.Contains(err.Error(), "reachable from other hosts") {
		t.Errorf("Serve: %v", err)
	}
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the refused listener is still open: %v", err)
	}
}

func TestPortInUse(t *testing.T) {
	ln, err := endpoint.ListenTCP(endpoint.TCPOptions{Address: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if _, err := endpoint.ListenTCP(endpoint.TCPOptions{Address: ln.Addr().String()}); err == nil || !strings.Contains(err.Error(), ln.Addr().String()) {
		t.Errorf("the second listener: %v", err)
	}
}

// socketPath returns a path that fits into a socket address.
func socketPath(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ep")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "agent.sock")
}

func TestUnixSocketIsFinishedBeforeItAccepts(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no modes on sockets")
	}
	path := socketPath(t)
	// Whatever appears at the path must have its mode from the first moment.
	stop := make(chan struct{})
	seen := make(chan fs.FileMode, 1)
	go func() {
		defer close(seen)
		for {
			if info, err := os.Lstat(path); err == nil {
				seen <- info.Mode()
				return
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	ln, err := endpoint.ListenUnix(endpoint.UnixOptions{Path: path, Mode: 0o640})
	if err != nil {
		t.Fatal(err)
	}
	mode, ok := <-seen
	close(stop)
	if !ok || mode.Perm() != 0o640 || mode.Type() != fs.ModeSocket {
		t.Errorf("the socket appeared as %v", mode)
	}
	if ln.Addr().String() != path {
		t.Errorf("Addr: %v", ln.Addr())
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind beside the socket: %v %v", entries, err)
	}
	if _, err := endpoint.ListenUnix(endpoint.UnixOptions{Path: path}); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second listener: %v", err)
	}
	if err := ln.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket outlives its listener: %v", err)
	}
}

func TestUnixSocketReplacesOnlyDeadSockets(t *testing.T) {
	path := socketPath(t)
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := endpoint.ListenUnix(endpoint.UnixOptions{Path: path}); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("over a file: %v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Errorf("the file is gone: %q %v", b, err)
	}
	_ = os.Remove(path)
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	_ = dead.Close()
	ln, err := endpoint.ListenUnix(endpoint.UnixOptions{Path: path})
	if err != nil {
		t.Fatalf("over a dead socket: %v", err)
	}
	// A successor took the path: closing the old listener must not take its socket away.
	_ = os.Remove(path)
	next, err := endpoint.ListenUnix(endpoint.UnixOptions{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	_ = ln.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the successor's socket is gone: %v", err)
	}
	long := filepath.Join(filepath.Dir(path), strings.Repeat("x", 120))
	if _, err := endpoint.ListenUnix(endpoint.UnixOptions{Path: long}); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("a long path: %v", err)
	}
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
	ln, err := endpoint.ListenUnix(endpoint.UnixOptions{Path: path})
	if err != nil {
		t.Fatal(err)
	}
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

// authority issues certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

func (a *authority) issue(t testing.TB, name string) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &k.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	kb, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: kb})
}

func TestTLSAndMutualTLSWithNewCertificates(t *testing.T) {
	ca, dir := newAuthority(t), t.TempDir()
	opts := endpoint.TLSOptions{CertFile: filepath.Join(dir, "cert"), KeyFile: filepath.Join(dir, "key"), ClientCAFile: filepath.Join(dir, "ca")}
	write := func(path string, b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, key := ca.issue(t, "first")
	write(opts.CertFile, cert)
	write(opts.KeyFile, key)
	if _, err := endpoint.LoadTLS(opts, nil); err == nil || !strings.Contains(err.Error(), "ca") {
		t.Fatalf("without the authority's file: %v", err)
	}
	write(opts.ClientCAFile, ca.pem)
	certs, err := endpoint.LoadTLS(opts, nil)
	if err != nil {
		t.Fatal(err)
	}
	r := start(t, endpoint.Options{})
	r.put(value("a", "v1", strings.Repeat("x", 20<<10), upstream.ACSCurrent))
	ln, err := endpoint.ListenTCP(endpoint.TCPOptions{Address: "127.0.0.1:0", TLS: certs})
	if err != nil {
		t.Fatal(err)
	}
	r.serve(t, ln)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.pem)
	cc, ck := ca.issue(t, "client")
	clientCert, err := tls.X509KeyPair(cc, ck)
	if err != nil {
		t.Fatal(err)
	}
	connect := func(certs ...tls.Certificate) (string, int, error) {
		nc, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{RootCAs: roots, ServerName: "localhost", Certificates: certs})
		if err != nil {
			return "", 0, err
		}
		defer nc.Close()
		c := &client{t, nc, newReader(nc)}
		if _, err := nc.Write([]byte(request("GET", "/v1/a", "Host: localhost", tokenLine))); err != nil {
			return "", 0, err
		}
		got, err := c.tryReceive("GET")
		return nc.ConnectionState().PeerCertificates[0].Subject.CommonName, got.status, err
	}
	if name, status, err := connect(clientCert); err != nil || status != 200 || name != "first" {
		t.Fatalf("%s %d %v", name, status, err)
	}
	if _, status, err := connect(); err == nil {
		t.Errorf("without a client certificate: %d", status)
	}
	stranger, sk := newAuthority(t).issue(t, "stranger")
	strangerCert, err := tls.X509KeyPair(stranger, sk)
	if err != nil {
		t.Fatal(err)
	}
	if _, status, err := connect(strangerCert); err == nil {
		t.Errorf("with a stranger's certificate: %d", status)
	}

	// Half an update changes nothing; the rest of it does.
	cert, key = ca.issue(t, "second")
	write(opts.CertFile, cert)
	if err := certs.Reload(); err == nil {
		t.Error("a certificate with another's key was taken")
	}
	if name, _, err := connect(clientCert); err != nil || name != "first" {
		t.Errorf("after half an update: %s %v", name, err)
	}
	write(opts.KeyFile, key)
	if err := certs.Reload(); err != nil {
		t.Fatal(err)
	}
	if name, _, err := connect(clientCert); err != nil || name != "second" {
		t.Errorf("after the update: %s %v", name, err)
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
	if err != nil {
		t.Fatal(err)
	}
	if err := r.srv.Serve(ln); !errors.Is(err, endpoint.ErrServerClosed) {
		t.Errorf("Serve after Shutdown: %v", err)
	}
}

func TestNothingLeaksThroughLogAuditOrStats(t *testing.T) {
	audit := &upstreamtest.Buffer{}
	log := endpoint.NewAuditLog(audit, endpoint.AuditOptions{})
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
	log.Flush()
	for where, text := range map[string]string{"log": r.log.String(), "audit": audit.String()} {
		if text == "" || bytes.Contains([]byte(text), []byte(marker)) || strings.Contains(text, token) {
			t.Errorf("%s:\n%s", where, text)
		}
	}
}
