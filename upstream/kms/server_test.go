package kms_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/builtin"
	"secretagent/upstream/builtin/bolt"
	"secretagent/upstream/kms"
	"secretagent/upstream/kmsserver"
	"secretagent/upstream/upstreamtest"
)

const (
	keyID     = "LTAI5tTestKey"
	keySecret = "MARKER-access-key-secret"
)

// backend is a local store whose clock can be moved.
func backend(t testing.TB, emulate ...upstreamtest.Emulation) (*bolt.Store, func(time.Duration)) {
	t.Helper()
	opts, advance := options(t, emulate...)
	store := must(bolt.Open(bolt.Options{Database: filepath.Join(t.TempDir(), "secrets.db"), Options: opts}))
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return store, advance
}

func options(t testing.TB, emulate ...upstreamtest.Emulation) (opts builtin.Options, advance func(time.Duration)) {
	var offset atomic.Int64
	return builtin.Options{
		Emulate: builtin.Emulate(append(emulate, upstreamtest.Emulation{})[0]),
		Keyring: filepath.Join(t.TempDir(), "keyring.json"),
		Now:     func() time.Time { return time.Now().Add(time.Duration(offset.Load())) },
	}, func(d time.Duration) { offset.Add(int64(d)) }
}

// serve answers the KMS API for m on ln until the test ends.
func serve(t testing.TB, m upstream.Manager, ln net.Listener, access kmsserver.Access, opts kmsserver.Options) *kmsserver.Server {
	t.Helper()
	if access == kmsserver.Signed && opts.AccessKeys == nil {
		opts.AccessKeys = []kmsserver.AccessKey{testKey(keyID, keySecret, "")}
	}
	server := must(kmsserver.New(m, opts))
	done := make(chan error, 1)
	go func() { done <- server.Serve(ln, access) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_ = server.Shutdown(ctx)
		if err := <-done; err != nil && !errors.Is(err, kmsserver.ErrServerClosed) { // closed before it served
			t.Error(err)
		}
	})
	return server
}

// start serves m on a free port of the loopback interface, with TLS where config says so.
func start(t testing.TB, m upstream.Manager, config *tls.Config, opts kmsserver.Options) net.Addr {
	t.Helper()
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	if config != nil {
		ln = tls.NewListener(ln, config)
	}
	serve(t, m, ln, kmsserver.Signed, opts)
	return ln.Addr()
}

// connect returns a client with a large budget that is closed before the servers it talks to.
func connect(t testing.TB, opts kms.Options) *kms.Client {
	t.Helper()
	if opts.Credentials == nil {
		opts.Credentials = kms.StaticCredential(keyID, keySecret, "")
	}
	if opts.Budget == (kms.Budget{}) {
		opts.Budget = kms.Budget{PerSecond: 100000, Burst: 100000}
	}
	client := must(kms.New(opts))
	kms.FullBudget(client)
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// over is the endpoint behind a proxy of a server without TLS.
func over(proxy *upstreamtest.Faulty) kms.Endpoint {
	return kms.Endpoint{Region: "cn-test", Host: proxy.Addr(), Scheme: "http"}
}

func plain(addr net.Addr) kms.Endpoint {
	return kms.Endpoint{Region: "cn-test", Host: addr.String(), Scheme: "http"}
}

// authority is a private CA with a certificate for 127.0.0.1.
type authority struct {
	pem    []byte
	pool   *x509.CertPool
	server *tls.Config
}

func (a authority) client() *tls.Config {
	return &tls.Config{RootCAs: a.pool, MinVersion: tls.VersionTLS12}
}

// file writes the certificate of the CA where a client can read it.
func (a authority) file(t testing.TB) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(name, a.pem, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// newAuthority makes one. Whatever its certificate is to be otherwise, change makes it.
func newAuthority(change ...func(*x509.Certificate)) authority {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "private test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	for _, fn := range change {
		fn(template)
	}
	der := must(x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key))
	a := authority{
		pem:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pool:   x509.NewCertPool(),
		server: &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS12},
	}
	a.pool.AddCert(must(x509.ParseCertificate(der)))
	return a
}

// must returns v. An error ends the tests: it is one of the machine.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func testKey(id, secret, token string) kmsserver.AccessKey {
	return kmsserver.AccessKey{
		ID: id, Secret: upstream.NewSecretData([]byte(secret)), SecurityToken: upstream.NewSecretData([]byte(token)),
		Actions: []string{"*"}, Secrets: []string{"*"},
	}
}

func secret(s string) upstream.SecretData { return upstream.NewSecretData([]byte(s)) }

func ref(name string) upstream.SecretRef {
	return upstream.SecretRef{SecretName: upstream.SecretName(name)}
}

// create makes a secret.
func create(t testing.TB, m upstream.Manager, name, value string) {
	t.Helper()
	_, err := m.CreateSecret(context.Background(), upstream.CreateSecretInput{
		SecretName: upstream.SecretName(name), VersionID: "v1", SecretData: secret(value),
	})
	if err != nil {
		t.Error(err)
	}
}
