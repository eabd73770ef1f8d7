package kmsserver

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/valyala/fasthttp"

	"secretagent/upstream"
	"secretagent/upstream/slots"
)

// Access says who may call over a listener.
type Access int

const (
	// Signed listeners demand the signature of an access key on every request.
	Signed Access = iota

	// Trusted listeners check nothing: everybody who can connect may do everything. They are
	// for unix sockets whose mode keeps others out.
	Trusted
)

// ErrServerClosed is returned by [Server.Serve] after [Server.Shutdown].
var ErrServerClosed = errors.New("kmsserver: the server is shut down")

// Server serves a Manager over the KMS API. Its methods are safe for concurrent use.
type Server struct {
	manager atomic.Pointer[upstream.Manager]
	logger  *slog.Logger
	observe func(action, code string, status int, took time.Duration)

	operator func(ctx context.Context, method, path string, query url.Values) (*Operated, error) // nil: nobody

	clock  func() time.Time
	limits limits

	keys    atomic.Pointer[accessKeys]
	changes *changes // nil: nobody can watch

	base   context.Context // parent of every call's context
	cancel context.CancelFunc

	conns *connections
}

// New returns a server that calls m. It starts nothing. It makes secret files of access keys
// that are missing. The error is that of [Options.Validate].
func New(m upstream.Manager, opts Options) (*Server, error) {
	return newServer(m, opts, standardLimits, time.Now)
}

// newServer is New with limits and a clock, which timestamps are compared with.
func newServer(m upstream.Manager, opts Options, limits limits, clock func() time.Time) (*Server, error) {
	if m == nil {
		return nil, errors.New("kmsserver: there is no manager to serve")
	}
	s := &Server{logger: opts.Logger, observe: opts.Observe, operator: opts.Operator, clock: clock, limits: limits}
	s.manager.Store(&m)
	s.conns = newConnections(&limits, s.noteShortage)
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	if s.observe == nil {
		s.observe = func(string, string, int, time.Duration) {}
	}
	if opts.Watch {
		s.changes = newChanges()
	}
	s.keys.Store(&accessKeys{})
	set, err := s.PrepareAccessKeys(opts.AccessKeys)
	if err != nil {
		return nil, err
	}
	set()
	s.base, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// PrepareAccessKeys returns what replaces all access keys for requests that arrive from then on,
// or everything that is wrong with them. It makes secret files that are missing. The keys whose files
// are of no use are shut out, which is no error.
func (s *Server) PrepareAccessKeys(keys []AccessKey) (set func(), err error) {
	opened, err := openAccessKeys(keys, s.keys.Load(), s.limits.NoncesPerKey, s.clock())
	if err != nil {
		return nil, err
	}
	return func() {
		s.keys.Store(opened)
		if s.changes != nil {
			s.changes.ring() // of what a watcher has no right to any more, nothing is told
		}
	}, nil
}

// ShutOut returns the ids of the access keys whose secret file is of no use, and why. A request that
// one of them signs is answered as that of a key that does not exist.
func (s *Server) ShutOut() map[string]string { return s.keys.Load().shutOut }

// SetManager makes the server call m from the next request on.
func (s *Server) SetManager(m upstream.Manager) { s.manager.Store(&m) }

// Stats returns how many connections there are on listeners of the access, and were.
func (s *Server) Stats(access Access) slots.Counts { return s.conns.tables[access].Counts() }

// noteShortage tells the log that there are more clients than connections.
func (s *Server) noteShortage(access Access, n slots.Notice) {
	s.logger.Warn("all connections are taken: some were closed to make room for others", "signed", access == Signed, "access_key", n.Owner, "from", n.Origin, "count", n.Closed,
		"hint", "look at what these clients do with their connections, and keep strangers away from the address")
}

// Serve answers requests on ln until [Server.Shutdown] or until ln is closed, both of which
// make it return nil, or until ln fails. It closes ln. Connections of a listener that was
// closed are served until they have been idle for the idle timeout. Several listeners may be
// served at once. Trusted access over anything but a unix socket is refused.
func (s *Server) Serve(ln net.Listener, access Access) error {
	if network := ln.Addr().Network(); access == Trusted && network != "unix" {
		_ = ln.Close()
		return fmt.Errorf("kmsserver: a %s listener cannot be trusted: anybody on this host could call it", network)
	}
	if !s.conns.add(ln, &s.limits) {
		_ = ln.Close()
		return ErrServerClosed
	}
	defer s.conns.remove(ln)
	server := &fasthttp.Server{
		Handler:                      func(ctx *fasthttp.RequestCtx) { s.handle(ctx, access) },
		ErrorHandler:                 s.handleMalformed,
		ConnState:                    follow,
		Concurrency:                  2*(s.limits.Connections+slots.Spares) + s.limits.Watchers, // a backstop: the table decides
		ReadBufferSize:               lineBytes,
		MaxRequestBodySize:           s.limits.BodyBytes,
		ReduceMemoryUsage:            true, // gives the read buffer back while a connection is idle
		DisablePreParseMultipartForm: true,
		NoDefaultServerHeader:        true,
		NoDefaultContentType:         true,
		SecureErrorLogMessage:        true,
		Logger:                       libraryLogger{s.logger},
	}
	for {
		nc, err := ln.Accept()
		switch {
		case err == nil:
			s.conns.serve(nc, access, server)
		case s.conns.closing(), errors.Is(err, net.ErrClosed):
			return nil
		default:
			return fmt.Errorf("kmsserver: serve %s: %w", ln.Addr(), err)
		}
	}
}

// Shutdown stops accepting, lets running requests finish, and returns when every connection
// is closed. When ctx ends first, running calls are cancelled, their connections are closed,
// and the context's error is returned. A server that was shut down serves no more.
func (s *Server) Shutdown(ctx context.Context) error {
	defer s.cancel()
	if s.conns.drain(ctx) {
		return nil
	}
	return ctx.Err()
}

// handle answers one request. Nothing of ctx outlives it.
func (s *Server) handle(ctx *fasthttp.RequestCtx, access Access) {
	if access == Trusted && s.answerOperator(ctx) {
		return
	}
	begin := time.Now()
	ex := &exchange{requestID: upstream.NewRequestID(), trace: traceOf(&ctx.Request.Header)}
	body, err := s.answer(ctx, access, ex)
	code, status := "", http.StatusOK
	if err != nil {
		f := faultOf(err)
		if access == Trusted {
			f.tellAll()
		}
		if unknown(err, ex.action) {
			f.message = strings.TrimSuffix(f.message, ".") + "; " + upstream.UnknownOutcome
		}
		code, status = f.code, f.status
		body = ex.encodeFault(f, ctx.Request.Header.Host())
		if f.retryAfter > 0 {
			ctx.Response.Header.Set("Retry-After", strconv.Itoa(int((f.retryAfter+time.Second-1)/time.Second)))
			ctx.Response.Header.Set("x-acs-retry-after", strconv.FormatInt(f.retryAfter.Milliseconds(), 10))
		}
		s.logFault(f, ex, ctx.RemoteAddr())
	} else {
		s.logger.Debug("request answered", "op", ex.action, "access_key", ex.keyID(), ex.cause().Attr())
	}
	ex.respond(ctx, status, body)
	if ctx.Conn().(*conn).Spare() || s.conns.closing() {
		ctx.SetConnectionClose()
	}
	s.observe(ex.action, code, status, time.Since(begin))
}

// answerOperator answers a request that is none of the KMS API.
func (s *Server) answerOperator(ctx *fasthttp.RequestCtx) bool {
	path, raw, _ := strings.Cut(string(ctx.Request.Header.RequestURI()), "?")
	if s.operator == nil || path == "" || path == "/" {
		return false
	}
	client, ex := ctx.Conn().(*conn), &exchange{requestID: upstream.NewRequestID()}
	client.SetPhase(slots.Busy)
	within, cancel := context.WithTimeout(upstream.WithCause(s.base, ex.cause()), MaxOperation)
	defer cancel()
	var answer *Operated
	query, err := url.ParseQuery(raw)
	if err != nil {
		err = &upstream.Error{Message: "the query is malformed", Err: upstream.ErrInvalidParameter} // its own text quotes it
	} else {
		answer, err = s.operator(within, string(ctx.Method()), path, query)
	}
	switch {
	case err != nil:
		f := faultOf(err)
		f.tellAll()
		s.logFault(f, ex, ctx.RemoteAddr())
		ex.respond(ctx, f.status, ex.encodeFault(f, nil))
	case answer == nil:
		client.SetPhase(slots.Active)
		return false
	case answer.File != nil:
		// It is sent after this returns, while the connection still counts as busy.
		_ = client.SetWriteDeadline(time.Now().Add(MaxOperation))
		ex.respond(ctx, http.StatusOK, nil)
		ctx.Response.Header.SetContentType("application/octet-stream")
		ctx.SetBodyStream(answer.File, int(answer.Size))
		ctx.SetConnectionClose()
		return true
	default:
		ex.respond(ctx, cmp.Or(answer.Status, http.StatusOK), answer.Body)
	}
	client.SetPhase(slots.Active)
	return true
}

// exchange is what is known about a request so far, for the log and for Observe.
type exchange struct {
	requestID string
	trace     upstream.TraceParent
	xml       bool   // the answer is XML
	action    string // empty until it is one that is served
	key       *accessKey
	cursor    string // from where to watch what is read; empty: nothing is to be said of that
}

// cause returns the request as the cause of what the backend does.
func (e *exchange) cause() upstream.Cause {
	return upstream.Cause{RequestID: e.requestID, Trace: e.trace}
}

// traceOf returns the trace of a request that names exactly one.
func traceOf(h *fasthttp.RequestHeader) upstream.TraceParent {
	values := h.PeekAll(upstream.TraceParentHeader)
	if len(values) != 1 {
		return upstream.TraceParent{}
	}
	trace, _ := upstream.ParseTraceParent(bytes.Trim(values[0], " \t"))
	return trace
}

func (e *exchange) keyID() string {
	if e.key == nil {
		return ""
	}
	return e.key.ID
}

// answer takes a request through the checks, in the order of the service: form, action,
// signature, permission, and last its own parameters.
func (s *Server) answer(ctx *fasthttp.RequestCtx, access Access, ex *exchange) (body []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			// What was thrown may quote the request: only its type is told.
			err = fmt.Errorf("panic of type %T\n%s", p, debug.Stack())
		}
	}()
	req, err := parseRequest(ctx, access == Trusted)
	ex.xml = req.wantsXML()
	if err != nil {
		return nil, err
	}
	act, served := actions[req.action]
	watches := s.changes != nil && access == Signed
	waits := watches && req.action == upstream.WatchAction
	if !served && !waits {
		return nil, errUnknownAction
	}
	ex.action = req.action
	owner := "socket"
	if access != Trusted {
		if ex.key, err = authenticate(req, s.keys.Load().byID, s.clock()); err != nil {
			return nil, err
		}
		owner = ex.key.ID
	}
	client := ctx.Conn().(*conn)
	s.conns.tables[access].Claim(&client.Slot, owner)
	if client.Spare() {
		return nil, errTooManyConnections
	}
	right := req.action
	if waits {
		act, right = s.watch(client), opGetSecretValue
	}
	if !ex.key.mayCall(right) {
		return nil, errForbidden
	}
	if watches && req.action == opGetSecretValue {
		ex.cursor = s.changes.now(ex.key) // before it is read
	}
	callCtx, cancel := context.WithTimeout(upstream.WithCause(s.base, ex.cause()), s.limits.RequestTimeout)
	defer cancel()
	client.SetPhase(slots.Busy)
	defer client.SetPhase(slots.Active)
	c := &call{exchange: ex, manager: *s.manager.Load(), params: req.params}
	body, err = c.run(callCtx, act)
	if err == nil && ex.xml {
		body, err = toXML(ex.action+"Response", body)
	}
	return body, err
}

// handleMalformed answers what fasthttp could not read as a request.
func (s *Server) handleMalformed(ctx *fasthttp.RequestCtx, err error) {
	f := errParse("the request is malformed")
	var netErr net.Error
	switch {
	case errors.As(err, new(*fasthttp.ErrSmallBuffer)):
		f = &fault{status: http.StatusRequestHeaderFieldsTooLarge, code: "InvalidParameter",
			message: fmt.Sprintf("The request line and headers exceed %d bytes: send long parameters in a form body.", lineBytes)}
	case errors.Is(err, fasthttp.ErrBodyTooLarge):
		f = &fault{status: http.StatusRequestEntityTooLarge, code: "InvalidParameter",
			message: fmt.Sprintf("The request body exceeds %d bytes.", s.limits.BodyBytes)}
	case errors.As(err, &netErr) && netErr.Timeout():
		f = &fault{status: http.StatusRequestTimeout, code: "RequestTimeout",
			message: fmt.Sprintf("The request was not complete after %s.", s.limits.ClientTimeout)}
	}
	req, _ := readQuery(ctx)
	ex := &exchange{requestID: upstream.NewRequestID(), xml: req.wantsXML()}
	ex.respond(ctx, f.status, ex.encodeFault(f, nil))
	s.logFault(f, ex, ctx.RemoteAddr())
	s.observe("", f.code, f.status, 0)
}

func (e *exchange) respond(ctx *fasthttp.RequestCtx, status int, body []byte) {
	contentType := "application/json;charset=utf-8"
	if e.xml {
		contentType = xmlContentType
	}
	ctx.SetStatusCode(status)
	ctx.Response.Header.SetContentType(contentType)
	ctx.Response.Header.Set("x-acs-request-id", e.requestID)
	ctx.Response.Header.Set("Cache-Control", "no-store")
	if e.cursor != "" {
		ctx.Response.Header.Set(upstream.WatchHeader, e.cursor)
	}
	ctx.Response.SetBodyRaw(body)
}

// encodeFault returns the body of an error. There always is one: what of its texts XML cannot
// carry is replaced.
func (e *exchange) encodeFault(f *fault, host []byte) []byte {
	hostID := ""
	if utf8.Valid(host) && len(host) <= 255 {
		hostID = string(host)
	}
	body := upstream.Fault{HTTPStatus: f.status, Code: f.code, Message: f.message, RequestID: e.requestID, HostID: hostID, Recommend: f.recommend}
	if !e.xml {
		return encode(body)
	}
	body.Message, body.HostID = withoutNotXML(body.Message), withoutNotXML(body.HostID)
	document, _ := toXML("Error", encode(body)) // fails for such texts alone
	return document
}

// logFault says what was refused, to whom, and why the backend failed. It repeats nothing
// that the client sent but the action and the access key, once both are known ones.
func (s *Server) logFault(f *fault, ex *exchange, from net.Addr) {
	logger := s.logger.With("op", ex.action, "code", f.code, "access_key", ex.keyID(), "from", from.String(), ex.cause().Attr())
	switch {
	case f.cause != nil:
		logger.Error("request failed", "err", f.cause, "hint", "check the disk of the database, or etcd; report it when it is a panic")
	case upstream.FromCode(f.code, f.status) == upstream.ErrClockSkew:
		logger.Warn("request refused", "hint", "set the clock of the client")
	case upstream.FromCode(f.code, f.status) == upstream.ErrUnauthenticated, f.code == "Forbidden.NoPermission":
		logger.Warn("request refused", "hint", "check the client's access key, its secret file and what it may do (accessKeys)")
	default:
		logger.Debug("request refused") // the client was told why
	}
}

// libraryLogger passes on what fasthttp complains about without its arguments, which may
// quote requests.
type libraryLogger struct{ logger *slog.Logger }

// Printf logs the format alone.
func (l libraryLogger) Printf(format string, _ ...any) {
	l.logger.Debug("connection trouble", "detail", format)
}
