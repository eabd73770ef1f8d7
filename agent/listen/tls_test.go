package listen_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"secretagent/agent/listen"
)

// ca issues certificates.
type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newCA(t testing.TB) *ca {
	t.Helper()
	a := &ca{}
	a.cert, a.key = a.sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

// sign signs with the key of the authority, or with its own where there is none yet.
func (a *ca) sign(t testing.TB, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	must(t, err)
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	return cert, key
}

// issue returns a certificate and its key, in PEM.
func (a *ca) issue(t testing.TB, name string) (cert, key []byte) {
	t.Helper()
	c, k := a.sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: name}, DNSNames: []string{"localhost"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}})
	der, err := x509.MarshalPKCS8PrivateKey(k)
	must(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func (a *ca) client(t testing.TB, name string) tls.Certificate {
	t.Helper()
	pair, err := tls.X509KeyPair(a.issue(t, name))
	must(t, err)
	return pair
}

func write(t testing.TB, path string, content []byte) {
	t.Helper()
	must(t, os.WriteFile(path, content, 0o600))
}

// files writes a certificate and its key, and the authority that clients need.
func (a *ca) files(t testing.TB, name string) listen.TLSFiles {
	t.Helper()
	dir := t.TempDir()
	f := listen.TLSFiles{CertFile: filepath.Join(dir, "cert"), KeyFile: filepath.Join(dir, "key"), ClientCAFile: filepath.Join(dir, "ca")}
	cert, key := a.issue(t, name)
	write(t, f.CertFile, cert)
	write(t, f.KeyFile, key)
	write(t, f.ClientCAFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
	return f
}

func TestTLSAndMutualTLSWithNewCertificates(t *testing.T) {
	authority := newCA(t)
	files := authority.files(t, "first")
	ln := open(t, listen.TCPOptions{Address: "0.0.0.0:0", AllowNonLoopback: true, TLS: files})
	go func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			if _, ok := nc.(*tls.Conn); !ok {
				t.Error("the connection does not say that it is TLS")
			}
			_, _ = nc.Write([]byte("hello"))
			_ = nc.Close()
		}
	}()
	roots := x509.NewCertPool()
	roots.AddCert(authority.cert)
	connect := func(config *tls.Config) (name string, err error) {
		config.RootCAs, config.ServerName = roots, "localhost"
		nc, err := tls.Dial("tcp", ln.Addr().String(), config)
		if err != nil {
			return "", err
		}
		defer nc.Close()
		if _, err := io.ReadAll(nc); err != nil {
			return "", err
		}
		return nc.ConnectionState().PeerCertificates[0].Subject.CommonName, nil
	}
	client := []tls.Certificate{authority.client(t, "client")}
	if name, err := connect(&tls.Config{Certificates: client}); err != nil || name != "first" || !ln.Secure() {
		t.Fatalf("%s %v", name, err)
	}
	if _, err := connect(&tls.Config{}); err == nil {
		t.Error("a client without a certificate got in")
	}
	if _, err := connect(&tls.Config{Certificates: []tls.Certificate{newCA(t).client(t, "stranger")}}); err == nil {
		t.Error("a client with a stranger's certificate got in")
	}
	if _, err := connect(&tls.Config{Certificates: client, MaxVersion: tls.VersionTLS11}); err == nil {
		t.Error("TLS 1.1 is spoken")
	}

	// Half an update changes nothing; the rest of it does.
	cert, key := authority.issue(t, "second")
	write(t, files.CertFile, cert)
	if err := ln.TLS().Reload(); err == nil || !strings.Contains(err.Error(), "does not match") {
		t.Errorf("a certificate with another's key: %v", err)
	}
	if name, err := connect(&tls.Config{Certificates: client}); err != nil || name != "first" {
		t.Errorf("after half an update: %s %v", name, err)
	}
	write(t, files.KeyFile, key)
	must(t, ln.TLS().Reload())
	if name, err := connect(&tls.Config{Certificates: client}); err != nil || name != "second" {
		t.Errorf("after the update: %s %v", name, err)
	}
}

func TestTLSNoticesNewFilesByItself(t *testing.T) {
	authority := newCA(t)
	files := authority.files(t, "first")
	synctest.Test(t, func(t *testing.T) {
		certs, err := listen.LoadTLS(files)
		must(t, err)
		var heard []error
		certs.OnError(func(err error) { heard = append(heard, err) })
		write(t, files.KeyFile, []byte("half a key"))
		certs.Expiry()
		if len(heard) != 0 {
			t.Errorf("it looked at once: %v", heard)
		}
		time.Sleep(10 * time.Second)
		certificate, clientCAs := certs.Expiry()
		if len(heard) != 1 || strings.Contains(heard[0].Error(), "half a key") {
			t.Errorf("heard: %v", heard)
		}
		if certificate.IsZero() || !clientCAs.Equal(authority.cert.NotAfter) {
			t.Errorf("the old certificate ends %v, its authority %v", certificate, clientCAs)
		}
	})
}

func TestTLSFilesSayWhatIsWrong(t *testing.T) {
	good := newCA(t).files(t, "agent")
	bad := filepath.Join(t.TempDir(), "bad")
	write(t, bad, []byte("MARKER"))
	tcp := func(change func(*listen.TLSFiles)) listen.TCPOptions {
		files := good
		change(&files)
		return listen.TCPOptions{Address: "127.0.0.1:0", TLS: files}
	}
	refused(t, tcp(func(f *listen.TLSFiles) { f.CertFile = "/no/cert" }), false, "tls.certFile: /no/cert: cannot be read: ")
	refused(t, tcp(func(f *listen.TLSFiles) { f.KeyFile = "/no/key" }), false, "tls.keyFile: /no/key: cannot be read: ")
	refused(t, tcp(func(f *listen.TLSFiles) { f.ClientCAFile = "/no/ca" }), false, "tls.clientCAFile: /no/ca: cannot be read: ")
	refused(t, tcp(func(f *listen.TLSFiles) { f.KeyFile = "" }), false, "tls.keyFile: is missing")
	refused(t, tcp(func(f *listen.TLSFiles) { f.ClientCAFile = bad }), false, "tls.clientCAFile: "+bad+": holds no certificate")
	refused(t, tcp(func(f *listen.TLSFiles) { f.KeyFile = newCA(t).files(t, "other").KeyFile }), false, "does not match")
	refused(t, tcp(func(f *listen.TLSFiles) { f.CertFile = bad }), false, "tls: "+bad+" and ")
	if err := tcp(func(f *listen.TLSFiles) { f.KeyFile = bad }).Validate(); err == nil || strings.Contains(err.Error(), "MARKER") {
		t.Errorf("a bad key: %v", err)
	}
}
