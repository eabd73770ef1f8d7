package endpoint

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"secretagent/upstream"
)

// refusal is one way in which the endpoint itself says no.
type refusal struct {
	code    string
	status  int
	message string // what to do; it never quotes the request
	close   bool   // the connection ends with this answer
}

// The refusals, in the order of the guard. The package comment explains each.
var (
	allowed *refusal // none

	malformedRequest   = &refusal{"MalformedRequest", http.StatusBadRequest, "The request is not valid HTTP, or carries a body where none belongs.", true}
	methodNotAllowed   = &refusal{"MethodNotAllowed", http.StatusMethodNotAllowed, "The path does not support this method; see the Allow header.", false}
	forwardedRequest   = &refusal{"ForwardedRequest", http.StatusForbidden, "The request came through a proxy. The agent answers local clients only.", true}
	hostNotAllowed     = &refusal{"HostNotAllowed", http.StatusForbidden, "The Host header must name this host's loopback, such as localhost or 127.0.0.1, or a name that the configuration allows.", true}
	originNotAllowed   = &refusal{"OriginNotAllowed", http.StatusForbidden, "The agent does not answer requests that a browser sends for a page.", true}
	tokenMissing       = &refusal{"TokenMissing", http.StatusForbidden, "The request needs a token in the X-KMS-Token header, or in another header that the configuration allows.", false}
	bearerMissing      = &refusal{"TokenMissing", http.StatusForbidden, "The request needs a token: Authorization: Bearer TOKEN.", false}
	tokenInvalid       = &refusal{"TokenInvalid", http.StatusForbidden, "The token is not valid.", true}
	sessionEnded       = &refusal{"SessionEnded", http.StatusForbidden, "The session of the status page has ended. Sign in again.", true}
	linkInvalid        = &refusal{"LinkInvalid", http.StatusForbidden, "The link to the status page has been used already, or is too old.", true}
	peerNotAllowed     = &refusal{"PeerNotAllowed", http.StatusForbidden, "The token is not valid for this process. It is bound to a user or group and to the unix socket.", true}
	operatorOnly       = &refusal{"OperatorOnly", http.StatusForbidden, "Only root and the user of the agent may ask for this, over its unix socket and without a token.", true}
	nameNotAllowed     = &refusal{"Forbidden.NoPermission", http.StatusForbidden, "The caller may not read this secret.", false}
	pathNotFound       = &refusal{"PathNotFound", http.StatusNotFound, "There is nothing at this path.", false}
	fieldNotFound      = &refusal{"FieldNotFound", http.StatusNotFound, "The secret has no such field.", false}
	requestTimeout     = &refusal{"RequestTimeout", http.StatusRequestTimeout, "The request did not arrive in time.", true}
	bodyTooLarge       = &refusal{"BodyTooLarge", http.StatusRequestEntityTooLarge, "The request body is too large.", true}
	headerTooLarge     = &refusal{"HeaderTooLarge", http.StatusRequestHeaderFieldsTooLarge, "The request line and headers are too large.", true}
	internalFailure    = &refusal{"InternalFailure", http.StatusInternalServerError, "The agent failed; its log has the cause under this request id.", true}
	tooManyConnections = &refusal{"TooManyConnections", http.StatusServiceUnavailable, "All connections of the agent are busy, and the caller has its share of them. Only /live and /ready are answered.", true}
	tooManyWaiters     = &refusal{"TooManyWaiters", http.StatusServiceUnavailable, "Too many clients wait already, and the caller has its share of them. Ask again without wait, or later.", false}
	tooManyBatches     = &refusal{"TooManyBatches", http.StatusServiceUnavailable, "Other batches take all the memory that there is for them. Ask again later, or for fewer secrets at a time.", false}
	tooManyScrapes     = &refusal{"TooManyScrapes", http.StatusTooManyRequests, "The metrics are asked for too often. Ask again in a second, or with a token.", false}
	shuttingDown       = &refusal{"ShuttingDown", http.StatusServiceUnavailable, "The agent is shutting down.", true}
	upstreamTimeout    = &refusal{"UpstreamTimeout", http.StatusGatewayTimeout, "The backend did not answer in time and no usable value is held.", false}
)

// refuse answers with a refusal.
func (s *Server) refuse(ctx *fasthttp.RequestCtx, c *conn, r *refusal) {
	s.countRefusal(c, r)
	if r.close {
		ctx.Response.Header.SetConnectionClose()
	}
	if r.status == http.StatusServiceUnavailable {
		ctx.Response.Header.SetCanonical(headerRetryAfter, retryAfterOne)
	}
	f := failureBy(r)
	s.answerError(ctx, c, &f)
	s.noteRefusal(c, r)
}

// fail answers with what the cache or a parser returned: the code and status of the one table
// in upstream, and a message that its *upstream.Error was given for people. Anything else is
// ours and stays in the log.
func (s *Server) fail(ctx *fasthttp.RequestCtx, c *conn, ref upstream.SecretRef, err error) {
	f := failureOf(err)
	if f.refusal != allowed {
		s.refuse(ctx, c, f.refusal)
		return
	}
	s.stats.failed.add(f.code)
	if f.retryAfter > 0 {
		ctx.Response.Header.SetCanonical(headerRetryAfter, strconv.AppendInt(nil, int64(f.retryAfter), 10))
	}
	s.logFailure(c, ref, &f, err)
	s.answerError(ctx, c, &f)
}

// hintDefect is what to do about an error that no backend answers with.
const hintDefect = "report it: this is a defect"

// logFailure logs defects, and what may go away when the upstream recovers.
func (s *Server) logFailure(c *conn, ref upstream.SecretRef, f *failure, err error) {
	if f.defect {
		s.opts.Logger.Error("lookup failed", "secret", ref.String(), "err", err, c.cause().Attr(), "hint", hintDefect)
	} else if f.status >= http.StatusInternalServerError || f.status == http.StatusTooManyRequests {
		if ok, suppressed := s.logLimit.allow(); ok {
			s.opts.Logger.Warn("no usable value", "secret", ref.String(), "code", f.code, "err", err,
				c.cause().Attr(), "suppressed", suppressed,
				"hint", "check the upstream; secretagent status shows what failed last")
		}
	}
}

// failure is an error of the cache as a client sees it.
type failure struct {
	status     int
	code       string
	message    string
	retryAfter int      // seconds; 0: not said
	refusal    *refusal // not the backend's error, but one of our own
	defect     bool     // not an error that a backend answers with
	unreached  bool     // no request got through to the backend
	aws        string   // what the AWS agent says of a request that is wrong; empty: nothing of its own
}

func failureOf(err error) failure {
	e, known := errors.AsType[*upstream.Error](err)
	f := failure{status: upstream.Status(err), code: upstream.Code(err), unreached: upstream.Unreached(err)}
	if m, ok := errors.AsType[mistake](err); ok {
		f.aws = m.aws
	}
	switch {
	case errors.Is(err, upstream.ErrUnauthenticated):
		f.message = "The backend refuses the agent's own credentials. The request itself is fine; the agent's configuration is not."
	case errors.Is(err, upstream.ErrNoCredentials):
		f.message = "The agent has no credentials for the backend. The request itself is fine; the agent's configuration is not."
	case errors.Is(err, context.DeadlineExceeded):
		return failureBy(upstreamTimeout)
	case errors.Is(err, context.Canceled):
		return failureBy(shuttingDown)
	case errors.Is(err, upstream.ErrNoField), errors.Is(err, upstream.ErrNullField):
		return failureBy(fieldNotFound)
	case known && e.Err != nil:
		f.message = e.Message
		if e.Err == upstream.ErrRefused {
			f.message = strings.TrimSuffix("The backend refuses with "+upstream.Reason(err)+": "+f.message, ": ")
		}
		if f.message == "" {
			f.message = sentence(e.Err.Error())
		}
		if e.RetryAfter > 0 {
			f.retryAfter = int((e.RetryAfter + time.Second - 1) / time.Second)
		}
	case f.code == upstream.Code(upstream.ErrInternal):
		f.message, f.defect = internalFailure.message, true
	default: // a bare sentinel, or one wrapped by text that was not meant for clients
		f.message = "The backend answered " + f.code + "."
	}
	if upstream.Outage(err) && f.status < http.StatusInternalServerError && f.status != http.StatusTooManyRequests {
		// The application did nothing wrong: do not show it a 404 for a credential it never saw.
		f.status, f.code = upstream.Status(upstream.ErrUnavailable), upstream.Code(upstream.ErrUnavailable)
	}
	return f
}

// failureBy returns a refusal as a failure.
func failureBy(r *refusal) failure {
	return failure{status: r.status, code: r.code, message: r.message, refusal: r}
}

// sentence makes a message of the words of a sentinel.
func sentence(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:] + "."
}

// answerError writes a failure in the shape of the request's format.
func (s *Server) answerError(ctx *fasthttp.RequestCtx, c *conn, f *failure) {
	status, b := shapes[c.query.format].failure(c, f)
	c.status, c.code = status, f.code
	ctx.Response.SetStatusCode(status)
	setBody(ctx, b.contentType, b.data)
}
