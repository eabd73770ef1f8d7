package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"secretagent/upstream"
	"secretagent/upstream/builtin"
	"secretagent/upstream/keyfile"
)

// db is a [builtin.Storage] under a prefix of etcd.
type db struct {
	opts Options
	log  *slog.Logger

	ctx    context.Context // ended by Close
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu   sync.Mutex
	made *clientv3.Client // by client

	viewHints, updateHints *lru.Cache[string, []string]

	watch    *watch
	endWatch context.CancelFunc // of the watch at work; for tests
	again    chan struct{}      // rung to have everything read anew; it has room for one
	observer func([]builtin.Notice)

	writes, commits, conflicts atomic.Uint64
}

var (
	_ builtin.Storage = (*db)(nil)
	_ builtin.Shared  = (*db)(nil)
)

const keptHints = 4096

func newDB(opts Options) *db {
	d := &db{opts: opts, log: opts.Logger, watch: newWatch(), again: make(chan struct{}, 1)}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	d.viewHints, _ = lru.New[string, []string](keptHints) // the size is positive
	d.updateHints, _ = lru.New[string, []string](keptHints)
	return d
}

// Observe sets who hears of changes.
func (d *db) Observe(fn func([]builtin.Notice)) { d.observer = fn }

// Place tells the prefix, to which everything is bound.
func (d *db) Place() builtin.Place {
	return builtin.Place{
		Name:    "etcd " + d.opts.Prefix,
		Binding: "secretagent/etcd\x00" + d.opts.Prefix,
		Damage:  "what etcd holds under " + d.opts.Prefix + " is damaged: %s; restore it from a snapshot of etcd, or delete the secret",
		Shared:  true,
	}
}

// client returns the connection to the cluster. With a user, making it needs an answer of etcd: until
// there is one, each call tries anew.
func (d *db) client() (*clientv3.Client, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ctx.Err() != nil {
		return nil, builtin.ErrClosed
	}
	if d.made != nil {
		return d.made, nil
	}
	config := clientv3.Config{
		Context: d.ctx, Endpoints: d.opts.Endpoints, DialTimeout: d.opts.Timeout, Username: d.opts.User, Logger: zap.NewNop(),
		DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 5 * time.Second, PermitWithoutStream: true,
	}
	var err error
	if config.TLS, err = d.opts.tls(); err == nil && d.opts.User != "" {
		config.Password, err = d.opts.password()
	}
	if err != nil {
		return nil, errorf(upstream.ErrNoCredentials, "%v", err)
	}
	client, err := clientv3.New(config)
	if err != nil {
		return nil, d.failure(err, false)
	}
	d.made = client
	return client, nil
}

// tls returns how to talk to the cluster; nil for plain text. The certificate of the client is read for
// each connection.
func (o *Options) tls() (*tls.Config, error) {
	if !strings.HasPrefix(o.Endpoints[0], "https://") {
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CAFile != "" {
		pem, err := keyfile.ReadFile(o.CAFile, maxFile)
		if err != nil {
			return nil, fmt.Errorf("tls.caFile: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("tls.caFile: %s holds no certificate", o.CAFile)
		}
	}
	if o.CertFile != "" {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return o.certificate() }
	}
	return config, nil
}

func (o *Options) certificate() (*tls.Certificate, error) {
	cert, err := keyfile.ReadFile(o.CertFile, maxFile)
	if err != nil {
		return nil, fmt.Errorf("tls.certFile: %w", err)
	}
	key, err := keyfile.ReadFile(o.KeyFile, maxFile)
	if err != nil {
		return nil, fmt.Errorf("tls.keyFile: %w", err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("tls.certFile: %w", err)
	}
	return &pair, nil
}

func (o *Options) password() (string, error) {
	content, err := keyfile.ReadFile(o.PasswordFile, maxFile)
	if err != nil {
		return "", fmt.Errorf("passwordFile: %w", err)
	}
	return strings.TrimRight(string(content), "\r\n"), nil
}

const maxFile = 1 << 20

// Close ends the watch and all calls.
func (d *db) Close() error {
	d.cancel()
	d.mu.Lock()
	client := d.made
	d.mu.Unlock()
	d.done.Wait()
	if client == nil {
		return nil
	}
	if err := client.Close(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("close the connection to etcd: %w", err)
	}
	return nil
}

// errorf returns an error of the class, a sentinel, with a message for people.
func errorf(class error, format string, args ...any) error {
	return &upstream.Error{Message: fmt.Sprintf(format, args...), Err: class}
}
