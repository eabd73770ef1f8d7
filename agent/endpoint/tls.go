package endpoint

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// tlsCheckEvery bounds how often handshakes look whether the files have changed.
const tlsCheckEvery = 10 * time.Second

// TLSOptions names the files of a TLS listener, all PEM.
type TLSOptions struct {
	CertFile string // certificate, followed by its chain
	KeyFile  string

	// ClientCAFile makes client certificates compulsory: they must be signed by one of these.
	ClientCAFile string
}

// TLS is the certificate of a listener, and the authorities that its clients need, read from
// files that may change. All methods are safe for concurrent use.
type TLS struct {
	opts    TLSOptions
	current atomic.Pointer[tlsState]

	mu      sync.Mutex
	checked time.Time
	onError func(error)
}

type tlsState struct {
	config *tls.Config
	files  [3][]byte // as read
}

// LoadTLS reads the files. When they change later, new connections use what they then hold:
// at the latest ten seconds after, or at once after [TLS.Reload]. Files that do not fit
// together, as in the middle of an update, leave the old certificate in use; onError, if not
// nil, hears of it.
func LoadTLS(opts TLSOptions, onError func(error)) (*TLS, error) {
	t := &TLS{opts: opts, onError: onError}
	if err := t.Reload(); err != nil {
		return nil, err
	}
	return t, nil
}

// Reload reads the files now. On error the certificate in use stays.
func (t *TLS) Reload() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.reloadLocked()
}

func (t *TLS) reloadLocked() error {
	t.checked = time.Now()
	next := &tlsState{}
	for i, path := range []string{t.opts.CertFile, t.opts.KeyFile, t.opts.ClientCAFile} {
		if path == "" {
			if i < 2 {
				return errors.New("tls: certFile and keyFile are both needed")
			}
			continue
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("tls: %w", err)
		}
		next.files[i] = b
	}
	if now := t.current.Load(); now != nil && bytes.Equal(now.files[0], next.files[0]) &&
		bytes.Equal(now.files[1], next.files[1]) && bytes.Equal(now.files[2], next.files[2]) {
		return nil
	}
	cert, err := tls.X509KeyPair(next.files[0], next.files[1])
	if err != nil {
		return fmt.Errorf("tls: %s and %s: %w", t.opts.CertFile, t.opts.KeyFile, err)
	}
	next.config = &tls.Config{
		Certificates: []tls.Certificate{cert},
		MinVersion:   tls.VersionTLS12,
		NextProtos:   []string{"http/1.1"},
	}
	if next.files[2] != nil {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(next.files[2]) {
			return fmt.Errorf("tls: %s holds no certificate", t.opts.ClientCAFile)
		}
		next.config.ClientCAs = pool
		next.config.ClientAuth = tls.RequireAndVerifyClientCert
	}
	t.current.Store(next)
	return nil
}

// Config returns a configuration that takes certificate and authorities anew for each
// connection.
func (t *TLS) Config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			t.refresh()
			return t.current.Load().config, nil
		},
	}
}

// Expiry returns when the certificate in use ends, and when the authorities of clients do, see
// [FirstExpiry]; zero without those.
func (t *TLS) Expiry() (certificate, clientCAs time.Time) {
	t.refresh()
	now := t.current.Load()
	if leaf := now.config.Certificates[0].Leaf; leaf != nil {
		certificate = leaf.NotAfter
	}
	return certificate, FirstExpiry(now.files[2])
}

// FirstExpiry returns when the first of the certificates in a PEM text ends: of those that
// have not ended, so that an old one beside its successor counts until then and no longer, or
// of all when all have. Zero when there is none.
func FirstExpiry(text []byte) time.Time {
	var first, last time.Time
	now := time.Now()
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if block.Type != "CERTIFICATE" || err != nil {
			continue
		}
		end := cert.NotAfter
		if end.After(now) && (first.IsZero() || end.Before(first)) {
			first = end
		}
		if end.After(last) {
			last = end
		}
	}
	if first.IsZero() {
		return last
	}
	return first
}

// refresh reads the files again when that was not done lately. A handshake costs far more than
// three small files, so their content is compared, not their times.
func (t *TLS) refresh() {
	if !t.mu.TryLock() {
		return // somebody else is at it
	}
	defer t.mu.Unlock()
	if time.Since(t.checked) < tlsCheckEvery {
		return
	}
	if err := t.reloadLocked(); err != nil && t.onError != nil {
		t.onError(err)
	}
}
