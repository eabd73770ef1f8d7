package listen

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/keyfile"
)

// tlsCheckEvery bounds how often handshakes look whether the files have changed.
const tlsCheckEvery = 10 * time.Second

// TLSFiles names the files of a TLS listener, all PEM.
type TLSFiles struct {
	CertFile string // certificate, followed by its chain
	KeyFile  string

	// ClientCAFile makes client certificates compulsory: they must be signed by one of these.
	ClientCAFile string
}

// TLS is the certificate of a listener, and the authorities that its clients need, read from
// files that may change. All methods are safe for concurrent use.
type TLS struct {
	files   TLSFiles
	config  *tls.Config // takes certificate and authorities anew for each connection
	current atomic.Pointer[tlsState]

	mu      sync.Mutex
	checked time.Time
	onError func(error)

	connsMu sync.Mutex
	conns   map[*secureConn]struct{} // that rest on the certificate of a client
	ended   bool                     // none of them any more, see [TLS.EndClients]
}

// tlsState is what the files held when they were read. It is immutable.
type tlsState struct {
	config               *tls.Config
	cert, key, clientCAs []byte
}

// LoadTLS reads the files. When they change later, new connections use what they then hold:
// at the latest ten seconds after, or at once after [TLS.Reload]. Connections of clients whose
// certificates no authority of the file vouches for any more end then, whatever they do. Files that do not fit
// together, as in the middle of an update, leave the old certificate in use. The error is
// [upstream.OptionErrors].
func LoadTLS(files TLSFiles) (*TLS, error) {
	t := &TLS{files: files, conns: map[*secureConn]struct{}{}}
	t.config = &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			t.refresh()
			config := t.current.Load().config
			if c, ok := hello.Conn.(*secureConn); ok && config.ClientCAs != nil {
				config = config.Clone()
				config.VerifyConnection = func(now tls.ConnectionState) error { return t.enter(c, now.PeerCertificates) }
			}
			return config, nil
		},
	}
	if err := t.Reload(); err != nil {
		return nil, err
	}
	return t, nil
}

// OnError sets what hears of files that became unusable, when a connection finds them so.
func (t *TLS) OnError(hear func(error)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.onError = hear
}

// Reload reads the files now. On error the certificate in use stays.
func (t *TLS) Reload() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.reloadLocked()
}

func (t *TLS) reloadLocked() error {
	t.checked = time.Now()
	next, err := t.files.read()
	if err != nil {
		return err
	}
	if now := t.current.Load(); now != nil && bytes.Equal(now.cert, next.cert) &&
		bytes.Equal(now.key, next.key) && bytes.Equal(now.clientCAs, next.clientCAs) {
		return nil
	}
	if err := t.files.parse(next); err != nil {
		return err
	}
	now := t.current.Swap(next)
	if now != nil && !bytes.Equal(now.clientCAs, next.clientCAs) {
		t.endUnverified()
	}
	return nil
}

// Validate reads the files and checks that they fit together.
func (f TLSFiles) Validate() error {
	state, err := f.read()
	if err != nil {
		return err
	}
	return f.parse(state)
}

func (f TLSFiles) read() (*tlsState, error) {
	state := &tlsState{}
	var problems upstream.OptionErrors
	for _, file := range []struct {
		key, path string
		needed    bool
		content   *[]byte
	}{
		{"certFile", f.CertFile, true, &state.cert},
		{"keyFile", f.KeyFile, true, &state.key},
		{"clientCAFile", f.ClientCAFile, false, &state.clientCAs},
	} {
		if file.path == "" {
			if file.needed {
				problems.Addf(file.key, "", "is missing: certFile and keyFile are both needed")
			}
			continue
		}
		var err error
		if *file.content, err = keyfile.PEM.Read(file.path); err != nil {
			cause := err
			if at, ok := errors.AsType[*fs.PathError](err); ok {
				cause = at.Err // the path is told anyway
			}
			problems = append(problems, problem(file.key, file.path, fmt.Errorf("cannot be read: %w", cause)))
		}
	}
	return state, problems.Err()
}

// parse fills in the configuration of a state that was read.
func (f TLSFiles) parse(state *tlsState) error {
	var problems upstream.OptionErrors
	cert, err := tls.X509KeyPair(state.cert, state.key)
	if err != nil {
		problems = append(problems, problem("", "", fmt.Errorf("%s and %s: %w", f.CertFile, f.KeyFile, err)))
	}
	state.config = &tls.Config{
		Certificates: []tls.Certificate{cert},
		MinVersion:   tls.VersionTLS12,
		NextProtos:   []string{"http/1.1"},
	}
	if f.ClientCAFile != "" {
		state.config.ClientCAs = x509.NewCertPool()
		state.config.ClientAuth = tls.RequireAndVerifyClientCert
		if !state.config.ClientCAs.AppendCertsFromPEM(state.clientCAs) {
			problems.Addf("clientCAFile", f.ClientCAFile, "holds no certificate")
		}
	}
	return problems.Err()
}

// Expiry returns when the certificate in use ends, and when the authorities of clients do, see
// [FirstExpiry]; zero without those.
func (t *TLS) Expiry() (certificate, clientCAs time.Time) {
	t.refresh()
	now := t.current.Load()
	if leaf := now.config.Certificates[0].Leaf; leaf != nil {
		certificate = leaf.NotAfter
	}
	return certificate, FirstExpiry(now.clientCAs)
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
