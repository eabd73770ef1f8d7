package endpoint_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/valyala/fasthttp"

	"secretagent/agent/endpoint"
	"secretagent/agent/listen"
	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

// patience is how long a test waits for what must come, however busy the machine is.
const patience = time.Minute

const (
	token  = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	marker = "mArKeR-value-that-must-not-leak"
)

// fakeSecrets is a cache that holds what it is told to hold. Peek answers only for held
// references; Lookup also for those that are merely stored, as a miss.
type fakeSecrets struct {
	mu      sync.RWMutex
	held    map[upstream.SecretRef]upstream.Answer
	stored  map[upstream.SecretRef]upstream.Answer
	failing map[upstream.SecretName]error
	subs    map[chan struct{}]upstream.SecretRef
	changes []upstream.SecretName                             // told by clients
	onFetch func(ctx context.Context, ref upstream.SecretRef) // before a lookup that is not a hit

	lookups, refreshes, reports atomic.Int64
}

func newFake() *fakeSecrets {
	return &fakeSecrets{
		held:    map[upstream.SecretRef]upstream.Answer{},
		stored:  map[upstream.SecretRef]upstream.Answer{},
		failing: map[upstream.SecretName]error{},
		subs:    map[chan struct{}]upstream.SecretRef{},
	}
}

func value(name, version, data string, stages ...upstream.VersionStage) *upstream.SecretValue {
	return &upstream.SecretValue{
		SecretName: upstream.SecretName(name), VersionID: upstream.VersionID(version), VersionStages: stages,
		SecretData: upstream.NewSecretData([]byte(data)), SecretDataType: upstream.DataTypeText,
		SecretType: upstream.SecretTypeGeneric, CreateTime: time.Date(2024, 2, 21, 15, 39, 26, 0, time.UTC), RequestID: "req-of-the-read",
	}
}

func answer(v *upstream.SecretValue, f upstream.Freshness) upstream.Answer {
	return upstream.Answer{Value: v, Derived: new(upstream.Derived), Freshness: f}
}

func refOf(name, stage string) upstream.SecretRef {
	return upstream.SecretRef{SecretName: upstream.SecretName(name), VersionStage: upstream.VersionStage(stage)}
}

// put holds v under its labels and its version id, and rings who subscribed to one of them.
func (f *fakeSecrets) put(v *upstream.SecretValue) { f.putAnswer(answer(v, upstream.Hit)) }

func (f *fakeSecrets) putAnswer(a upstream.Answer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	refs := []upstream.SecretRef{{SecretName: a.Value.SecretName, VersionID: a.Value.VersionID}}
	for _, s := range a.Value.VersionStages {
		refs = append(refs, upstream.SecretRef{SecretName: a.Value.SecretName, VersionStage: s})
	}
	for _, r := range refs {
		f.held[r] = a
		for ch, sub := range f.subs {
			if sub == r {
				select {
				case ch <- struct{}{}:
				default:
				}
			}
		}
	}
}

func (f *fakeSecrets) store(v *upstream.SecretValue) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range v.VersionStages {
		f.stored[upstream.SecretRef{SecretName: v.SecretName, VersionStage: s}] = answer(v, upstream.Miss)
	}
}

func (f *fakeSecrets) fail(name string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failing[upstream.SecretName(name)] = err
}

// hook calls on before every lookup that is not a hit.
func (f *fakeSecrets) hook(on func(ctx context.Context, ref upstream.SecretRef)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onFetch = on
}

func (f *fakeSecrets) subscribers() int {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return len(f.subs)
}

func (f *fakeSecrets) Peek(ref upstream.SecretRef) (upstream.Answer, bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	a, ok := f.held[ref]
	return a, ok
}

func (f *fakeSecrets) Lookup(ctx context.Context, ref upstream.SecretRef) (upstream.Answer, error) {
	f.lookups.Add(1)
	return f.fetch(ctx, ref)
}

func (f *fakeSecrets) fetch(ctx context.Context, ref upstream.SecretRef) (upstream.Answer, error) {
	f.mu.RLock()
	hook, err := f.onFetch, f.failing[ref.SecretName]
	a, ok := f.stored[ref]
	if !ok {
		a, ok = f.held[ref]
	}
	f.mu.RUnlock()
	if hook != nil {
		hook(ctx, ref)
	}
	switch {
	case err != nil:
		return upstream.Answer{}, err
	case ctx.Err() != nil:
		return upstream.Answer{}, ctx.Err()
	case !ok:
		return upstream.Answer{}, &upstream.Error{Op: "GetSecretValue", Ref: ref, Message: "The specified resource is not found.", Err: upstream.ErrNotFound}
	}
	return a, nil
}

func (f *fakeSecrets) LookupAll(ctx context.Context, refs []upstream.SecretRef) ([]upstream.Answer, []error) {
	answers, errs := make([]upstream.Answer, len(refs)), make([]error, len(refs))
	for i, r := range refs {
		if a, ok := f.Peek(r); ok {
			answers[i] = a
			continue
		}
		answers[i], errs[i] = f.fetch(ctx, r)
	}
	return answers, errs
}

func (f *fakeSecrets) RefreshNow(ctx context.Context, ref upstream.SecretRef) (upstream.Answer, error) {
	f.refreshes.Add(1)
	return f.fetch(ctx, ref)
}

func (f *fakeSecrets) Report(ctx context.Context, ref upstream.SecretRef) (upstream.Answer, error) {
	f.reports.Add(1)
	return f.fetch(ctx, ref)
}

func (f *fakeSecrets) Changed(name upstream.SecretName) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.changes = append(f.changes, name)
	if len(f.changes) > 2 {
		return &upstream.Error{Err: upstream.ErrThrottled, RetryAfter: time.Second}
	}
	return nil
}

func (f *fakeSecrets) Subscribe(refs ...upstream.SecretRef) (<-chan struct{}, func()) {
	ch := make(chan struct{}, 1)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.subs[ch] = refs[0]
	return ch, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.subs, ch)
	}
}

// rig is a server that listens on a loopback port, or on pipes.
type rig struct {
	*fakeSecrets
	srv     *endpoint.Server
	addr    string
	pipes   *pipes
	log     *upstreamtest.Buffer
	serving []chan error
}

func mustToken(t testing.TB, text string) endpoint.Token {
	t.Helper()
	tok, err := endpoint.NewToken([]byte(text))
	must(t, err)
	return tok
}

// start serves a fake cache until the test ends. With no callers given, token reads everything.
func start(t testing.TB, opts endpoint.Options) *rig {
	t.Helper()
	r := &rig{fakeSecrets: newFake(), log: &upstreamtest.Buffer{}}
	r.serveCache(t, r.fakeSecrets, opts)
	return r
}

// serveCache serves secrets on a loopback port, or on r.pipes, until the test ends.
func (r *rig) serveCache(t testing.TB, secrets endpoint.Secrets, opts endpoint.Options) {
	t.Helper()
	if opts.Callers == nil {
		opts.Callers = []endpoint.Caller{endpoint.DefaultCaller(mustToken(t, token))}
	}
	opts.Logger = r.logger()
	srv, err := endpoint.New(secrets, opts)
	must(t, err)
	r.run(t, srv)
}

func (r *rig) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// run makes srv answer on a loopback port, or on r.pipes, until the test ends.
func (r *rig) run(t testing.TB, srv *endpoint.Server) {
	t.Helper()
	r.srv = srv
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := r.srv.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		for _, done := range r.serving {
			if err := <-done; !errors.Is(err, endpoint.ErrServerClosed) {
				t.Errorf("Serve: %v", err)
			}
		}
	})
	if r.pipes != nil {
		r.serve(t, r.pipes)
		return
	}
	ln, err := listen.Open(listen.TCPOptions{Address: "127.0.0.1:0"})
	must(t, err)
	r.addr = ln.Addr().String()
	r.serve(t, ln)
}

// inBubble runs a test whose time passes only while everybody waits: connections are pipes.
func inBubble(t *testing.T, opts endpoint.Options, test func(t *testing.T, r *rig)) {
	t.Helper()
	startClock()
	synctest.Test(t, func(t *testing.T) {
		r := &rig{fakeSecrets: newFake(), log: &upstreamtest.Buffer{}, pipes: newPipes()}
		r.serveCache(t, r.fakeSecrets, opts)
		test(t, r)
	})
}

// startClock starts the clock of fasthttp, which outlives the test, outside of a bubble.
func startClock() {
	ours, theirs := net.Pipe()
	_ = ours.Close()
	_ = (&fasthttp.Server{LazyRequestTime: true}).ServeConn(theirs)
}

// pipes is a listener of connections that hold nothing: what one side writes waits until the
// other reads.
type pipes struct {
	conns  chan net.Conn
	closed context.Context
	close  context.CancelFunc
}

func newPipes() *pipes {
	p := &pipes{conns: make(chan net.Conn)}
	p.closed, p.close = context.WithCancel(context.Background())
	return p
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case nc := <-p.conns:
		return nc, nil
	case <-p.closed.Done():
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error { p.close(); return nil }

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Net: "pipe"} }

func (r *rig) setCallers(t testing.TB, callers []endpoint.Caller) {
	t.Helper()
	set, err := r.srv.PrepareCallers(callers)
	must(t, err)
	set()
}

// serve adds a listener.
func (r *rig) serve(t testing.TB, ln net.Listener) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- r.srv.Serve(ln) }()
	r.serving = append(r.serving, done)
}

// reply is an answer as a client sees it.
type reply struct {
	status int
	header http.Header
	body   string
	code   string // of an error
	closed bool   // the server announced to close the connection
}

func (r reply) json(t testing.TB) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(r.body), &m); err != nil {
		t.Fatalf("body %q: %v", r.body, err)
	}
	return m
}

// client is one connection.
type client struct {
	t  testing.TB
	nc net.Conn
	br *bufio.Reader
}

func dial(t testing.TB, network, addr string) *client {
	t.Helper()
	nc, err := net.Dial(network, addr)
	must(t, err)
	t.Cleanup(func() { _ = nc.Close() })
	return &client{t, nc, bufio.NewReader(nc)}
}

// dial opens a connection to the rig.
func (r *rig) dial(t testing.TB) *client {
	t.Helper()
	if r.pipes == nil {
		return dial(t, "tcp", r.addr)
	}
	ours, theirs := net.Pipe()
	t.Cleanup(func() { _ = ours.Close() })
	r.pipes.conns <- theirs
	return &client{t, ours, newReader(ours)}
}

// ask sends a GET of an honest client and returns the answer.
func (c *client) ask(target string, header ...string) reply {
	c.t.Helper()
	c.send(request("GET", target, append([]string{hostLine, tokenLine}, header...)...))
	return c.receive("GET")
}

func (c *client) send(raw string) {
	c.t.Helper()
	if _, err := io.WriteString(c.nc, raw); err != nil {
		c.t.Fatalf("send: %v", err)
	}
}

func (c *client) receive(method string) reply {
	c.t.Helper()
	r, err := c.tryReceive(method)
	if err != nil {
		c.t.Fatalf("receive: %v", err)
	}
	return r
}

func (c *client) tryReceive(method string) (reply, error) {
	_ = c.nc.SetReadDeadline(time.Now().Add(patience))
	res, err := http.ReadResponse(c.br, &http.Request{Method: method})
	if err != nil {
		return reply{}, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return reply{}, err
	}
	r := reply{status: res.StatusCode, header: res.Header, body: string(body), closed: res.Close}
	var e struct{ Code string }
	if json.Unmarshal(body, &e) == nil {
		r.code = e.Code
	}
	return r, nil
}

// request returns the bytes of a request; header lines come without line ends.
func request(method, target string, header ...string) string {
	return method + " " + target + " HTTP/1.1\r\n" + strings.Join(append(header, ""), "\r\n") + "\r\n"
}

const (
	hostLine  = "Host: 127.0.0.1:2025"
	tokenLine = "X-KMS-Token: " + token
)

// get asks on a connection of its own, as an honest client.
func (r *rig) get(t testing.TB, target string, header ...string) reply {
	t.Helper()
	c := r.dial(t)
	defer c.nc.Close()
	return c.ask(target, header...)
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("it never came to this: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func newReader(r io.Reader) *bufio.Reader { return bufio.NewReader(r) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
