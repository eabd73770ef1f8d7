package endpoint

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log"
	mathrand "math/rand/v2"
	"net"
	"net/textproto"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"secretagent/upstream"
	"secretagent/upstream/slots"
)

// ErrServerClosed is returned by [Server.Serve] after [Server.Shutdown].
var ErrServerClosed = errors.New("endpoint: server closed")

// maxBodyBytes bounds the body of a POST, which carries nothing, or a token.
const maxBodyBytes = 1 << 10

// Server answers HTTP requests for secrets on any number of listeners.
type Server struct {
	secrets Secrets
	opts    Options
	http    *fasthttp.Server

	prefix       []byte
	mounts       atomic.Pointer[vaultMounts]
	tokenHeaders [][]byte
	callers      atomic.Pointer[callerSet]
	accounts     map[string]*account // of callers; guarded by mu
	hosts        map[string]bool     // without ports; other names and addresses of loopback count as well
	etagKey      [32]byte
	sessions     sessions
	process      uint64 // random part of request ids

	table     *slots.Table
	batches   *semaphore.Weighted // bytes that batches may take, all together
	hubs      hubs
	stats     counters
	logLimit  limiter
	operator  *caller // see operator.go
	strangers limiter // audit lines about requests of no caller

	scrapes *rate.Limiter // of a monitor, by clients without a token

	// base ends when running lookups have to give up.
	base     context.Context
	cancel   context.CancelFunc
	stopping atomic.Bool

	mu        sync.Mutex
	listeners map[net.Listener]struct{}
	sweeping  bool
	done      chan struct{} // closed at shutdown: ends the sweep
	wg        sync.WaitGroup
	numbers   atomic.Uint64

	// clock is the time as of the last sweep, in nanoseconds of Unix time, for what may be a
	// second late.
	clock atomic.Int64
}

// New returns a server over secrets. It starts no goroutine and opens no listener. The error
// names every option at fault.
func New(secrets Secrets, opts Options) (*Server, error) {
	if secrets == nil {
		return nil, errors.New("endpoint: no secrets to serve")
	}
	return newServer(secrets, opts)
}

func newServer(secrets Secrets, opts Options) (*Server, error) {
	opts, err := opts.checked()
	if err != nil {
		return nil, err
	}
	s := &Server{
		secrets:   secrets,
		opts:      opts,
		prefix:    []byte(opts.PathPrefix),
		hosts:     map[string]bool{"localhost": true, "127.0.0.1": true},
		batches:   semaphore.NewWeighted(opts.MaxBatchBytes),
		listeners: map[net.Listener]struct{}{},
		done:      make(chan struct{}),
		logLimit:  limiter{Limiter: rate.NewLimiter(5, 20)},
		strangers: newAuditLimiter(),
		operator:  newOperator(),
	}
	for _, h := range opts.TokenHeaders {
		s.tokenHeaders = append(s.tokenHeaders, []byte(textproto.CanonicalMIMEHeaderKey(h)))
	}
	for _, h := range opts.AllowedHosts {
		s.hosts[lower(h)] = true
	}
	s.table = slots.New(slots.Limits{Open: opts.MaxConnections, Parked: opts.MaxWaiters,
		Total: cmp.Or(opts.MaxClients, opts.MaxConnections+opts.MaxWaiters)}, s.noteShortage)
	s.setCallers(newCallerSet(opts.Callers))
	s.mounts.Store(newVaultMounts(opts.VaultMounts))
	_, _ = rand.Read(s.etagKey[:]) // never fails
	s.process = mathrand.Uint64()
	s.clock.Store(time.Now().UnixNano())
	s.hubs.secrets, s.hubs.byRef = secrets, map[upstream.SecretRef]*hub{}
	s.base, s.cancel = context.WithCancel(context.Background())
	s.http = &fasthttp.Server{
		Handler:       s.handle,
		ErrorHandler:  s.handleBroken,
		ExpectHandler: func(*fasthttp.RequestCtx) int { return fasthttp.StatusExpectationFailed },
		ConnState:     follow,
		// The table decides who gets in; this is only a backstop for connections that were
		// told to leave and have not yet.
		Concurrency:                  2*(opts.MaxConnections+slots.Spares) + opts.MaxWaiters,
		ReadBufferSize:               opts.MaxHeaderBytes,
		MaxRequestBodySize:           maxBodyBytes,
		DisablePreParseMultipartForm: true,
		KeepHijackedConns:            true, // a parked connection lives on
		LazyRequestTime:              true,
		NoDefaultServerHeader:        true,
		NoDefaultDate:                true,
		NoDefaultContentType:         true,
		SecureErrorLogMessage:        true,
		Logger:                       log.New(io.Discard, "", 0), // its texts may quote the request
	}
	return s, nil
}

// Serve answers on ln until [Server.Shutdown], which makes it return [ErrServerClosed], or
// until ln fails for good; when the process is short of descriptors, it is ln that waits. It takes
// ln over and closes it. It serves whatever ln accepts: whether others than this host can reach ln
// is decided by the caller, who opens it.
func (s *Server) Serve(ln net.Listener) error {
	_, unix := ln.Addr().(*net.UnixAddr)
	s.mu.Lock()
	if s.stopping.Load() {
		s.mu.Unlock()
		_ = ln.Close()
		return ErrServerClosed
	}
	s.listeners[ln] = struct{}{}
	s.wg.Add(1)
	if !s.sweeping {
		s.sweeping = true
		s.clock.Store(time.Now().UnixNano())
		s.wg.Go(s.sweep)
	}
	s.mu.Unlock()
	defer s.wg.Done()
	defer func() {
		_ = ln.Close()
		s.mu.Lock()
		delete(s.listeners, ln)
		s.mu.Unlock()
	}()

	for {
		nc, err := ln.Accept()
		switch {
		case err == nil:
			s.admit(nc, unix)
		case s.stopping.Load():
			return ErrServerClosed
		default:
			return fmt.Errorf("endpoint: accept on %s: %w", ln.Addr(), err)
		}
	}
}

// MakeRoom closes the connection that is missed least, because the process has run out of
// descriptors; false when all are needed.
func (s *Server) MakeRoom() bool { return s.table.MakeRoom() }

// noteShortage tells the log that there are more clients than connections.
func (s *Server) noteShortage(n slots.Notice) {
	hint := "look at what the caller does with its connections, or raise endpoint.maxConnections and endpoint.maxWaiting"
	if s.opts.monitor {
		hint = "look at what holds connections to metrics.listen"
	}
	s.opts.Logger.Warn("all connections are taken: some were closed to make room for others", "caller", n.Owner, "from", n.Origin, "count", n.Closed, "hint", hint)
}

// admit starts serving a new connection. It may be one that has to leave again soon.
func (s *Server) admit(nc net.Conn, unix bool) {
	c := &conn{Conn: nc, unix: unix}
	if unix {
		c.peer = peerOf(nc)
	}
	c.setNumber(s.numbers.Add(1), s.process)
	if !s.table.Add(&c.Slot, nc, c.origin()) {
		_ = nc.Close()
		return
	}
	s.wg.Add(1) // not Go: a parked connection changes goroutines and keeps its place
	go s.serveConn(c)
}

// serveConn serves requests of c until it is closed or parked.
func (s *Server) serveConn(c *conn) {
	err := s.http.ServeConn(c)
	if w := c.waiter; w != nil && err == nil {
		<-w.detached
		go s.wait(w)
		return
	} else if w != nil { // the connection broke while it was handed over
		s.hubs.leave(w)
		c.waiter = nil
	}
	s.release(c)
}

// release ends the life of c.
func (s *Server) release(c *conn) {
	_ = c.Conn.Close()
	c.finish()
	s.table.Remove(&c.Slot)
	s.wg.Done()
}

// sweep ends connections that are stuck, until shutdown.
func (s *Server) sweep() {
	every := min(time.Second, s.opts.RequestTimeout/4, s.opts.IdleTimeout/4)
	ticker := time.NewTicker(max(every, time.Millisecond))
	defer ticker.Stop()
	for {
		select {
		case now := <-ticker.C:
			s.clock.Store(now.UnixNano())
			s.table.Sweep(now, s.opts.RequestTimeout, s.opts.IdleTimeout)
		case <-s.done:
			return
		}
	}
}

// Shutdown stops accepting, wakes waiting clients, lets running requests finish and closes
// every connection. When ctx ends first, what is left is cut off and ctx's error is returned.
// Further calls wait for the first.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	first := !s.stopping.Swap(true)
	for ln := range s.listeners {
		_ = ln.Close()
	}
	if first {
		close(s.done)
	}
	s.mu.Unlock()
	s.table.Stop()
	s.hubs.wakeAll()

	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.wg.Wait()
		s.hubs.wg.Wait()
	}()
	defer s.cancel()
	if slots.Drain(ctx, ended, s.table) {
		return nil
	}
	s.cancel()
	select {
	case <-ended:
	case <-time.After(time.Second): // a lookup that ignores its context
	}
	return ctx.Err()
}

// begin prepares the connection of ctx for a request, and the headers that every answer carries.
func begin(ctx *fasthttp.RequestCtx) *conn {
	c := ctx.Conn().(*conn)
	c.begin()
	h := &ctx.Response.Header
	h.SetCanonical(headerRequestID, c.id[:])
	h.SetCanonical(headerCacheControl, noStore)
	return c
}

// handle answers one request.
func (s *Server) handle(ctx *fasthttp.RequestCtx) {
	c := begin(ctx)
	if (c.requests+c.number)%sampleHits == 0 {
		c.began = time.Now()
	}
	defer s.recoverFault(ctx, c)
	if s.opts.monitor {
		s.dispatchMonitor(ctx, c)
	} else {
		s.dispatch(ctx, c)
	}
	c.waitUntil = time.Time{}
	// Last, so that a lookup which outlasted the start of a shutdown is the end of its connection.
	if s.stopping.Load() || c.Spare() || c.requests >= uint64(s.opts.MaxRequestsPerConnection) {
		ctx.Response.Header.SetConnectionClose()
	}
}

// recoverFault turns a panic into an answer. The value of a panic may quote anything, so only
// its type and the stack are logged.
func (s *Server) recoverFault(ctx *fasthttp.RequestCtx, c *conn) {
	v := recover()
	if v == nil {
		return
	}
	s.stats.panics.Add(1)
	s.opts.Logger.Error("request handler panicked", "type", fmt.Sprintf("%T", v), c.cause().Attr(), "stack", string(debug.Stack()), "hint", hintDefect)
	ctx.Response.ResetBody()
	s.refuse(ctx, c, internalFailure)
}

// handleBroken answers what could not be read as a request.
func (s *Server) handleBroken(ctx *fasthttp.RequestCtx, err error) {
	c := begin(ctx)
	_, small := errors.AsType[*fasthttp.ErrSmallBuffer](err)
	switch {
	case small:
		s.refuse(ctx, c, headerTooLarge)
	case errors.Is(err, fasthttp.ErrBodyTooLarge):
		s.refuse(ctx, c, bodyTooLarge)
	case errors.Is(err, os.ErrDeadlineExceeded):
		s.refuse(ctx, c, requestTimeout)
	default:
		s.refuse(ctx, c, malformedRequest)
	}
}

// limiter bounds how often something is written and counts what was not.
type limiter struct {
	*rate.Limiter
	suppressed atomic.Uint64 // since the last that was written
}

// newAuditLimiter returns one for the refusals of one origin.
func newAuditLimiter() limiter { return limiter{Limiter: rate.NewLimiter(100, 200)} }

// allow reports whether to write now, and how much was left out since the last time.
func (l *limiter) allow() (ok bool, suppressed uint64) {
	if !l.Allow() {
		l.suppressed.Add(1)
		return false, 0
	}
	return true, l.suppressed.Swap(0)
}
