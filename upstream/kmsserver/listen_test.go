package kmsserver_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"secretagent/upstream/kmsserver"
	"secretagent/upstream/upstreamtest"
)

func TestPlainTCPIsForLoopbackOnly(t *testing.T) {
	for _, address := range []string{"0.0.0.0:0", ":0", "[::]:0", "192.0.2.1:0", "nonsense", "127.0.0.1:http:x"} {
		ln, err := kmsserver.ListenTCP(address, nil)
		if err == nil {
			_ = ln.Close()
			t.Errorf("%s is served in clear text", address)
		} else if !strings.Contains(err.Error(), address) {
			t.Errorf("%s: %v", address, err)
		}
	}
	for _, address := range []string{"127.0.0.1:0", "127.0.0.7:0", "localhost:0"} {
		ln, err := kmsserver.ListenTCP(address, nil)
		if err != nil {
			t.Errorf("%s: %v", address, err)
			continue
		}
		_ = ln.Close()
	}
}

func selfSigned(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

func TestTLS(t *testing.T) {
	cert, pool := selfSigned(t)
	server, err := kmsserver.New(upstreamtest.NewFake(), kmsserver.Options{AccessKeys: []kmsserver.AccessKey{fullKey()}})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := kmsserver.ListenTCP("127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS10})
	if err != nil {
		t.Fatal(err)
	}
	address := ln.Addr().String()
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln, kmsserver.Signed) }()
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	client := &http.Client{Transport: transport}
	req := newSigner(address).v1(t, "GET", url.Values{"Action": {"ListSecrets"}}, nil)
	req.URL.Scheme = "https"
	res, err := client.Do(req)
	read(t, res, err).wants(t, "over TLS", 200, "")
	if conn, err := tls.Dial("tcp", address, &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}); err == nil {
		_ = conn.Close()
		t.Error("TLS 1.1 is spoken")
	}
	// Two clients that keep quiet: one in the handshake, one after a request.
	quiet, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer quiet.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
	transport.CloseIdleConnections()
}

func TestTheSocketIsPrivateFromTheStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "kms.sock")
	ln, err := kmsserver.ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	stat, err := os.Lstat(path)
	if err != nil || stat.Mode() != os.ModeSocket|0o600 {
		t.Errorf("mode %v: %v", stat.Mode(), err)
	}
	folder, _ := os.Stat(filepath.Dir(path))
	if folder.Mode().Perm() != 0o700 {
		t.Errorf("folder mode %o", folder.Mode().Perm())
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
		t.Errorf("files left behind: %v", left)
	}
	if ln.Addr().Network() != "unix" || ln.Addr().String() != path {
		t.Errorf("address %s", ln.Addr())
	}
	if again, err := kmsserver.ListenUnix(path); err == nil {
		_ = again.Close()
		t.Error("a socket that is served is taken over")
	}
	if err := ln.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket stays behind: %v", err)
	}
}

func TestASocketPathThatIsTooLongIsRefusedClearly(t *testing.T) {
	folder := filepath.Join(t.TempDir(), strings.Repeat("d", 100))
	ln, err := kmsserver.ListenUnix(filepath.Join(folder, "kms.sock"))
	if err == nil {
		_ = ln.Close()
		t.Fatal("it is served")
	}
	if !strings.Contains(err.Error(), "too long") {
		t.Error(err)
	}
	if left, _ := os.ReadDir(folder); len(left) != 0 {
		t.Errorf("files left behind: %v", left)
	}
}

func TestAStaleSocketIsReplacedAndNothingElse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kms.sock")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	_ = stale.Close()
	ln, err := kmsserver.ListenUnix(path)
	if err != nil {
		t.Fatalf("a stale socket: %v", err)
	}
	// Somebody replaces our socket: closing must not remove theirs.
	_ = os.Remove(path)
	other, err := kmsserver.ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("another listener's socket was removed: %v", err)
	}
	_ = other.Close()
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if ln, err := kmsserver.ListenUnix(path); err == nil {
		_ = ln.Close()
		t.Error("a file is replaced")
	}
	if content, _ := os.ReadFile(path); string(content) != "precious" {
		t.Error("the file is gone")
	}
}

func TestTCPIsNeverTrusted(t *testing.T) {
	server, err := kmsserver.New(upstreamtest.NewFake(), kmsserver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := kmsserver.ListenTCP("127.0.0.1:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Serve(ln, kmsserver.Trusted); err == nil || !strings.Contains(err.Error(), "trusted") {
		t.Errorf("got %v", err)
	}
	if _, err := net.Dial("tcp", ln.Addr().String()); err == nil {
		t.Error("the listener stays open")
	}
	if err := server.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

func serverTLS(cert tls.Certificate) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
}

func clientTLS(pool *x509.CertPool) *tls.Config {
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
}
