package kms

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	sdkerrors "github.com/aliyun/alibaba-cloud-sdk-go/sdk/errors"

	"secretagent/upstream"
)

// maxHint bounds what a Retry-After may ask for.
const maxHint = time.Minute

// maxMessage bounds how much of a message of the service is passed on.
const maxMessage = 300

// errUnreadable stands for answers that the SDK cannot decode.
var errUnreadable = errors.New("the answer is not one of the KMS API")

// outcome is one attempt, judged.
type outcome struct {
	err      error // nil, an *upstream.Error, or the error of the caller's context
	answered bool  // the service said yes or no
	fault    bool  // the endpoint is at fault: transport, timeout, 5xx, an answer that is none
	lost     bool  // the request may have been carried out although no answer says so
	refused  bool  // but our own agent says that it was not
	quit     bool  // repeating it is of no use
	renew    bool  // the credential was refused and a new one may do better
}

// judge turns what came over the wire, and what the SDK made of it, into an outcome.
// Nothing of a value, a credential or a URL passes: texts of errors are taken from a short
// list of types that cannot quote a request, texts of the service are filtered by scrub.
func judge(got answer, err error, e *endpoint, hide ...upstream.SecretData) outcome {
	if err == nil && got.err == nil {
		return outcome{answered: true}
	}
	out := &upstream.Error{Endpoint: e.name, RequestID: requestID(got.header)}
	if got.status == 0 {
		out.Err = upstream.ErrUnavailable
		if got.err == nil { // the SDK refused to build the request
			out.Err, out.Message = upstream.ErrInternal, "the SDK could not sign the request"
			return outcome{err: out, quit: true}
		}
		out.Message = "no answer: " + overProxy(e.proxy(), got.err) + plain(got.err)
		if meant, ok := MisspeltRegion(e.Region); ok {
			out.Message += "; did you mean the region " + meant + "?"
		}
		out.Unreached = unreached(got, e)
		return outcome{err: out, fault: true, lost: got.connected}
	}

	now := time.Now()
	out.RetryAfter = retryAfter(got.header, now)
	var served *sdkerrors.ServerError
	if errors.As(err, &served) && plainCode.MatchString(served.ErrorCode()) {
		out.Code = served.ErrorCode()
		if out.RequestID == "" {
			out.RequestID = oneLine(served.RequestId())
		}
		out.Message = scrub(served, hide)
	} else {
		out.Message = fmt.Sprintf("%v (HTTP status %d)", errUnreadable, got.status)
	}
	renew := false
	switch {
	case out.Code != "":
		out.Err = upstream.FromCode(out.Code, got.status)
		// Also where the clock may be the cause: only a new credential that meets the same shows that.
		renew = errors.Is(out.Err, upstream.ErrUnauthenticated) && renewable(out.Code)
		tellClock(out, got.header, now)
	case got.status == http.StatusTooManyRequests:
		out.Err = upstream.ErrThrottled
	case got.status == http.StatusInternalServerError:
		out.Err = upstream.ErrInternal
	default:
		// Also a 200 that cannot be read and a 404 from a proxy: what answered was not
		// KMS, which says nothing about the secret.
		out.Err = upstream.ErrUnavailable
	}
	foreign := out.Code == ""
	if foreign && got.status >= 300 {
		out.Code = fmt.Sprintf("HTTP%d", got.status)
	} else if foreign {
		out.Code = upstream.CodeInvalidAnswer
	}
	fault := errors.Is(out.Err, upstream.ErrUnavailable) && foreign || got.status >= 500
	return outcome{
		err:      out,
		answered: !fault,
		fault:    fault,
		lost:     fault,
		refused:  e.local() && !foreign && !strings.Contains(out.Message, upstream.UnknownOutcome),
		quit:     !upstream.Retryable(out),
		renew:    renew,
	}
}

// renewable tells refusals of the credential from refusals of clock or nonce, which a new
// credential would meet as well.
func renewable(code string) bool {
	switch code {
	case "InvalidTimeStamp.Format", "InvalidTimeStamp.Expired", "RequestTimeTooSkewed", "IllegalTimestamp", "SignatureNonceUsed",
		"InvalidSignatureMethod", "MissingTimestamp", "MissingSignature", "MissingSignatureNonce":
		return false
	}
	return true
}

// skewed is the difference between two clocks that is worth telling: more than an answer takes.
const skewed = time.Minute

// tellClock completes out where the service refuses us and the clock of this host is the cause,
// or may be: the service tells its own time in the header of the answer. A token that ended
// too early did so because the clock that it is renewed by is behind.
func tellClock(out *upstream.Error, h http.Header, now time.Time) {
	date, err := http.ParseTime(h.Get("Date"))
	ahead := now.Sub(date).Round(time.Second)
	wrong := err == nil && ahead.Abs() >= skewed
	skew := errors.Is(out.Err, upstream.ErrClockSkew)
	if !skew && !(wrong && errors.Is(out.Err, upstream.ErrUnauthenticated)) {
		return
	}
	clock := "the answer does not tell the time of the service"
	switch {
	case wrong && ahead > 0:
		clock = fmt.Sprintf("the clock of this host is %s ahead of that of the service", ahead)
	case wrong:
		clock = fmt.Sprintf("the clock of this host is %s behind that of the service", -ahead)
	case err == nil: // the request was on its way for too long
		out.Err = upstream.ErrUnauthenticated
		return
	}
	if skew || out.Code == "InvalidSecurityToken.Expired" {
		out.Message = fmt.Sprintf("%s, which answers %s", clock, out.Code)
		out.Err, out.Code, out.Date = upstream.ErrClockSkew, upstream.Code(upstream.ErrClockSkew), date
	} else {
		out.Message = strings.TrimPrefix(out.Message+"; ", "; ") + clock
	}
}

// unreached reports whether nothing got through to the other side: nobody listens, or the way to
// it is not there. Of what is on this host, such as our own agent or a relay, a connection that
// was closed without an answer says the same.
func unreached(got answer, e *endpoint) bool {
	failed := is[syscall.Errno](got.err)
	if !e.onHost() {
		return failed && !got.connected
	}
	return failed || errors.Is(got.err, io.EOF) || errors.Is(got.err, io.ErrUnexpectedEOF)
}

// overProxy names the proxy, empty for none, on the way to what has failed with err.
func overProxy(proxy string, err error) string {
	if proxy == "" {
		return ""
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && (op.Op == "proxyconnect" || op.Op == "dial") {
		return "the proxy " + proxy + ": "
	}
	return "over the proxy " + proxy + ": "
}

// certificate says what is wrong with a certificate. It names what the certificate says, which
// is no secret, and nothing else.
func certificate(err error) string {
	const check = " (check the host and caFile)"
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		now, c := time.Now(), invalid.Cert
		what, at := "expired at", c.NotAfter
		if now.Before(c.NotBefore) {
			what, at = "is not valid before", c.NotBefore
		}
		return fmt.Sprintf("the certificate %s %s %s; the clock of this host says %s", oneLine(c.Subject.String()), what,
			at.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	if host, ok := errors.AsType[x509.HostnameError](err); ok {
		names := slices.Clone(host.Certificate.DNSNames)
		for _, ip := range host.Certificate.IPAddresses {
			names = append(names, ip.String())
		}
		return fmt.Sprintf("the certificate is not for %s but for %s%s", oneLine(host.Host), cmp.Or(oneLine(strings.Join(names, ", ")), "no name"), check)
	}
	if unknown, ok := errors.AsType[x509.UnknownAuthorityError](err); ok && unknown.Cert != nil {
		return fmt.Sprintf("the certificate %s was issued by an authority that is not trusted, %s%s",
			oneLine(unknown.Cert.Subject.String()), oneLine(unknown.Cert.Issuer.String()), check)
	}
	return "the certificate is not trusted" + check
}

// plain says in words what went wrong on the way. It knows the types of errors whose text
// holds addresses and reasons but no part of a request or an answer; for all others it says
// no more than that the connection failed.
func plain(err error) string {
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		err = wrapped.Err
	}
	switch {
	case errors.Is(err, errTooLarge), errors.Is(err, errRedirect), errors.Is(err, errUnreadable), is[proxyRefusal](err):
		return err.Error()
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, errOutOfTime):
		return "it did not come in time"
	case errors.Is(err, context.Canceled):
		return "the call was cancelled"
	case is[*tls.CertificateVerificationError](err), is[x509.UnknownAuthorityError](err):
		return certificate(err)
	case is[tls.RecordHeaderError](err):
		return "the other side does not speak TLS"
	case is[tls.AlertError](err):
		return "the TLS handshake was refused"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the connection was closed"
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsNotFound {
		return "the host name does not resolve"
	} else if ok {
		return "the name server does not answer"
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno.Error()
	}
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return "it did not come in time"
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return "the connection failed at " + op.Op
	}
	for _, known := range [][2]string{ // in the texts of a library that keeps nothing else of an error
		{"connection refused", "connection refused"}, {"no route to host", "no route to host"}, {"network is unreachable", "network is unreachable"},
		{"i/o timeout", "it did not come in time"}, {"Client.Timeout exceeded", "it did not come in time"}, {"EOF", "the connection was closed"},
	} {
		if strings.Contains(err.Error(), known[0]) {
			return known[1]
		}
	}
	return failedSomehow
}

// failedSomehow is said of an error of which nothing is known.
const failedSomehow = "the connection failed"

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// scrub returns the service's own message, or the empty string where it could quote what we
// sent: a refused signature comes with the string that was signed, and the value in it.
func scrub(served *sdkerrors.ServerError, hide []upstream.SecretData) string {
	switch served.ErrorCode() {
	case "SignatureDoesNotMatch", "IncompleteSignature":
		return "the signature is refused: the access key secret is wrong, or a proxy changed the request"
	}
	message := served.Message()
	for _, h := range hide {
		text := string(h.Reveal())
		if text != "" && (strings.Contains(message, text) || strings.Contains(message, url.QueryEscape(text))) {
			return ""
		}
	}
	message, _, _ = strings.Cut(message, "string to sign")
	return oneLine(message)
}

// oneLine makes text of the service fit for one line of a log.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
	if len(s) > maxMessage {
		s = strings.ToValidUTF8(s[:maxMessage], "") + "…"
	}
	return strings.TrimSpace(s)
}

// plainCode matches what looks like a code: words joined by dots.
var plainCode = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

func requestID(h http.Header) string { return oneLine(h.Get("x-acs-request-id")) }

// retryAfter returns the longest wait that the headers ask for, at most maxHint: the HTTP
// header in seconds or as a date, that of the aliyun CLI in milliseconds, and the time left
// in the window of the gateway's flow control, in milliseconds as well.
func retryAfter(h http.Header, now time.Time) time.Duration {
	var wait time.Duration
	if v := h.Get("Retry-After"); v != "" {
		if n, err := strconv.ParseUint(v, 10, 32); err == nil {
			wait = time.Duration(n) * time.Second
		} else if at, err := http.ParseTime(v); err == nil {
			wait = at.Sub(now)
		}
	}
	if n, err := strconv.ParseUint(h.Get("x-acs-retry-after"), 10, 32); err == nil {
		wait = max(wait, time.Duration(n)*time.Millisecond)
	}
	for _, name := range []string{"x-ratelimit-user-api", "x-ratelimit-user"} {
		for part := range strings.SplitSeq(h.Get(name), ",") {
			if v, ok := strings.CutPrefix(strings.TrimSpace(part), "TimeLeft:"); ok {
				if n, err := strconv.ParseUint(v, 10, 32); err == nil {
					wait = max(wait, time.Duration(n)*time.Millisecond)
				}
			}
		}
	}
	return min(max(wait, 0), maxHint)
}
