package etcd

import (
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
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

// authority issues certificates into a folder.
type authority struct {
	dir  string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	a := &authority{dir: t.TempDir()}
	a.issue(t, "ca")
	return a
}

// issue writes NAME.crt and NAME.key; the first certificate is the authority's own.
func (a *authority) issue(t *testing.T, name string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true, IsCA: a.cert == nil,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if a.cert == nil {
		a.cert, a.key = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	must(t, err)
	if template.IsCA {
		a.cert, err = x509.ParseCertificate(der)
		must(t, err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	certFile, keyFile = a.path(name+".crt"), a.path(name+".key")
	must(t, os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	must(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600))
	return certFile, keyFile
}

func (a *authority) path(name string) string { return filepath.Join(a.dir, name) }

// TestTLS: the members are verified, and know the agent by its certificate or by a user with a password.
// A CA that is the wrong one is an outage that says so, and ends when the file is right; so does a
// password that was changed.
func TestTLS(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	serverCert, serverKey := ca.issue(t, "etcd")
	agentCert, agentKey := ca.issue(t, "secretagent")
	rootCert, rootKey := ca.issue(t, "root")
	pair, err := tls.LoadX509KeyPair(rootCert, rootKey)
	must(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	server := upstreamtest.NewEtcd(t, &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, Certificates: []tls.Certificate{pair}},
		"--cert-file", serverCert, "--key-file", serverKey, "--trusted-ca-file", ca.path("ca.crt"), "--client-cert-auth", "--auth-token-ttl", "1")
	opts := optionsAt(t, server.URL, "/agent/")
	opts.Timeout, opts.pulse = 2*time.Second, 300*time.Millisecond
	opts.CAFile, opts.CertFile, opts.KeyFile = filepath.Join(t.TempDir(), "ca.crt"), agentCert, agentKey
	raw := client(t, server)
	defer raw.Close()
	ctx := t.Context()
	must(t, only(raw.RoleAdd(ctx, "agent")))
	must(t, only(raw.RoleGrantPermission(ctx, "agent", "/agent/", clientv3.GetPrefixRangeEnd("/agent/"), clientv3.PermissionType(clientv3.PermReadWrite))))
	for _, user := range []string{"root", "secretagent", "named"} {
		must(t, only(raw.UserAdd(ctx, user, "first")))
	}
	must(t, only(raw.UserGrantRole(ctx, "root", "root")))
	must(t, only(raw.UserGrantRole(ctx, "secretagent", "agent")))
	must(t, only(raw.UserGrantRole(ctx, "named", "agent")))
	must(t, only(raw.AuthEnable(ctx)))

	// The wrong CA.
	wrong, err := os.ReadFile(newAuthority(t).path("ca.crt"))
	must(t, err)
	must(t, os.WriteFile(opts.CAFile, wrong, 0o600))
	s := mustOpen(t, opts)
	err = create(s, "a", "v1", "one")
	wantErr(t, err, upstream.ErrUnavailable)
	if !contains(err, "certificate signed by unknown authority") {
		t.Errorf("unclear: %v", err)
	}
	until(t, "the status says it", func() bool { return contains(errText(s.Stats().WatchCause), "certificate signed by unknown authority") })
	right, err := os.ReadFile(ca.path("ca.crt"))
	must(t, err)
	must(t, os.WriteFile(opts.CAFile, right, 0o600))
	until(t, "the right CA is taken", func() bool { return create(s, "a", "v1", "one") == nil })
	wantValue(t, s, "a", "one")

	// A user.
	named := opts
	named.User, named.PasswordFile = "named", filepath.Join(t.TempDir(), "password")
	must(t, os.WriteFile(named.PasswordFile, []byte("first\n"), 0o600))
	s = mustOpen(t, named)
	wantValue(t, s, "a", "one")
	must(t, only(raw.UserChangePassword(ctx, "named", "second")))
	until(t, "the old password is refused", func() bool { return errors.Is(put(s, "a", "v2", "two"), upstream.ErrUnauthenticated) })
	must(t, os.WriteFile(named.PasswordFile, []byte("second\n"), 0o600))
	until(t, "the new password is taken", func() bool { return put(s, "a", "v2", "two") == nil })
	until(t, "the watch is up", func() bool { return s.Stats().WatchUp })
	wantValue(t, s, "a", "two")
}

type errText string

func (e errText) Error() string { return string(e) }
