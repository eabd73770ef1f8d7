package etcd

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/grpclog"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

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

	mu      sync.Mutex
	made    *clientv3.Client  // by connect
	with    [sha256.Size]byte // credentials of made
	making  singleflight.Group
	trouble atomic.Pointer[string] // why no member can be reached

	hints  *lru.Cache[string, []string] // see tx
	memory memory
	known  newest

	presence presence

	watch    *watch
	watched  *clientv3.Client   // that the watch at work is on; it may be another than made
	endWatch context.CancelFunc // ends that watch
	again    chan struct{}      // rung to have everything read anew; it has room for one
	observer func([]builtin.Notice)

	writes, commits, conflicts atomic.Uint64
}

var (
	_ builtin.Storage = (*db)(nil)
	_ builtin.Shared  = (*db)(nil)
)

const keptHints = 4096

// What there is to say comes as errors: nothing is to write to standard error past the log.
func init() { grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard)) }

func newDB(opts Options) *db {
	d := &db{opts: opts, log: opts.Logger, watch: newWatch(), again: make(chan struct{}, 1)}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	d.hints, _ = lru.New[string, []string](keptHints) // the size is positive
	d.memory = newMemory(d.key(builtin.Values, nil))
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
// there is one, those who wait share an attempt, none of them longer than ctx.
func (d *db) client(ctx context.Context) (*clientv3.Client, error) {
	if d.ctx.Err() != nil {
		return nil, builtin.ErrClosed
	}
	if made := d.connected(); made != nil {
		return made, nil
	}
	select {
	case attempt := <-d.making.DoChan("", func() (any, error) { return d.connect() }):
		if attempt.Err != nil {
			return nil, attempt.Err
		}
		return attempt.Val.(*clientv3.Client), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (d *db) connected() *clientv3.Client {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.made
}

// connect makes the connection, unless an attempt before has. Only one is at work at a time.
func (d *db) connect() (*clientv3.Client, error) {
	if made := d.connected(); made != nil {
		return made, nil
	}
	config := clientv3.Config{
		Context: d.ctx, Endpoints: d.opts.Endpoints, DialTimeout: d.opts.Timeout, Username: d.opts.User, Logger: zap.NewNop(),
		// Only while something is asked: etcd hangs up on who pings it otherwise. The second one is also how long a
		// member may leave bytes or probes without an acknowledgement.
		DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: silenceMax,
		DialOptions: []grpc.DialOption{
			grpc.WithChainUnaryInterceptor(d.observe),
			grpc.WithContextDialer(dial),
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: redialMax},
				MinConnectTimeout: d.opts.Timeout,
			}),
		},
	}
	with, err := d.opts.credentials()
	if err == nil {
		config.TLS, err = d.opts.tls()
	}
	if err == nil && d.opts.User != "" {
		config.Password, err = d.opts.password()
	}
	if err != nil {
		return nil, builtin.Errorf(upstream.ErrNoCredentials, "%v", err)
	}
	client, err := clientv3.New(config)
	if err != nil {
		return nil, d.failure(err, false)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ctx.Err() != nil {
		_ = client.Close()
		return nil, builtin.ErrClosed
	}
	d.made, d.with = client, with
	return client, nil
}

// What was cut off or away is to be in use within a second of its return. TCP alone would take as long again as
// it was away: it waits twice as long with each packet that is lost.
const (
	redialMax  = 300 * time.Millisecond  // from one attempt to connect to the next
	dialMax    = 500 * time.Millisecond  // of an attempt: the kernel of a member answers in one round trip
	silenceMax = 1500 * time.Millisecond // of a member whose kernel is to answer; then it is connected to anew
)

// dial connects to a member, and has the kernel look every second whether it is still there, which costs etcd nothing.
func dial(ctx context.Context, address string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: dialMax, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 2}}
	return dialer.DialContext(ctx, "tcp", address)
}

// observe is around each request to a member. It keeps why no member can be reached, of which the client of etcd
// tells only that time is over, and whether a request was sent.
func (d *db) observe(ctx context.Context, method string, in, out any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	var to peer.Peer // it has an address if there was a stream
	err := invoke(ctx, method, in, out, conn, append(slices.Clip(opts), grpc.Peer(&to))...)
	if sent, ok := ctx.Value(sentKey{}).(*atomic.Bool); ok && to.Addr != nil {
		sent.Store(true)
	}
	if _, why, ok := strings.Cut(status.Convert(err).Message(), "connection error: desc = "); ok {
		d.trouble.Store(&why)
	} else if err == nil {
		d.trouble.Store(nil)
	}
	if method == etcdserverpb.Auth_Authenticate_FullMethodName && rpctypes.Error(err) == rpctypes.ErrInvalidAuthToken {
		d.drop(conn)
		return errExpired
	}
	return err
}

// errExpired is what becomes of the refusal to give a user a token because the one that the request came with, of
// the same connection, has expired, which an etcd before 3.5 does. The client would repeat the same for ever.
var errExpired = status.Error(codes.Aborted, "the token of the user has expired")

func isExpired(err error) bool {
	return status.Code(err) == codes.Aborted && status.Convert(err).Message() == status.Convert(errExpired).Message()
}

type sentKey struct{}

// noteSent returns a context whose requests note that they were sent.
func noteSent(ctx context.Context) (context.Context, *atomic.Bool) {
	sent := new(atomic.Bool)
	return context.WithValue(ctx, sentKey{}, sent), sent
}

// drop gives up a connection whose token has expired. A watch on it goes on, since it has been let in.
func (d *db) drop(conn *grpc.ClientConn) {
	d.mu.Lock()
	client, watched := d.made, d.made == d.watched
	if client == nil || client.ActiveConnection() != conn {
		d.mu.Unlock()
		return // others have
	}
	d.made = nil
	d.mu.Unlock()
	if watched {
		return // it is closed when the watch has ended
	}
	go func() {
		select {
		case <-time.After(d.opts.Timeout): // what others have asked is answered by then
		case <-d.ctx.Done():
		}
		_ = client.Close()
	}()
}

// watching notes that the watch is on a connection, until done is called.
func (d *db) watching(client *clientv3.Client, end context.CancelFunc) (done func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.watched, d.endWatch = client, end
	return func() {
		d.mu.Lock()
		d.watched = nil
		left := d.made != client
		d.mu.Unlock()
		if left {
			_ = client.Close()
		}
	}
}

// renew gives up a connection that was made with a password or CA that is no longer the one in its file.
func (d *db) renew() {
	if d.opts.PasswordFile == "" && d.opts.CAFile == "" {
		return
	}
	now, err := d.opts.credentials()
	if err != nil {
		return // it may be about to be written
	}
	d.mu.Lock()
	old, endWatch := d.made, d.endWatch
	if old == nil || d.with == now {
		d.mu.Unlock()
		return
	}
	d.made = nil
	d.mu.Unlock()
	if endWatch != nil {
		endWatch()
	}
	_ = old.Close()
	d.log.Info("etcd is connected to anew: the password or the CA has changed")
}

// credentials returns a digest of what a connection is made with and does not read again itself.
func (o *Options) credentials() (sum [sha256.Size]byte, err error) {
	hash := sha256.New()
	for _, path := range []string{o.PasswordFile, o.CAFile} {
		if path == "" {
			continue
		}
		content, err := keyfile.ReadFile(path, maxFile)
		if err != nil {
			return sum, err
		}
		part := sha256.Sum256(content)
		hash.Write(part[:])
	}
	return [sha256.Size]byte(hash.Sum(nil)), nil
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
	d.leave()
	d.cancel()
	d.done.Wait()
	client := d.connected()
	if client == nil {
		return nil
	}
	if err := client.Close(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("close the connection to etcd: %w", err)
	}
	return nil
}
