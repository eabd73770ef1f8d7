package upstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Sentinels: act on them with [errors.Is]. Grouped by who can do something about them.
var (
	// The request is wrong; asking again changes nothing.
	ErrInvalidParameter = errors.New("invalid parameter")
	ErrMissingParameter = errors.New("missing parameter")
	ErrUnsupported      = errors.New("operation not supported")
	ErrLimitExceeded    = errors.New("limit exceeded")

	// The backend answered about the secret.
	ErrNotFound           = errors.New("not found")
	ErrKeyNotFound        = errors.New("encryption key not found")
	ErrExists             = errors.New("already exists")
	ErrPendingDeletion    = errors.New("scheduled for deletion")
	ErrNotPendingDeletion = errors.New("not scheduled for deletion")

	// The identity is known but not allowed, or not accepted at all.
	ErrAccessDenied    = errors.New("access denied")
	ErrUnauthenticated = errors.New("credentials refused")
	ErrNoCredentials   = errors.New("no credentials")
	ErrClockSkew       = errors.New("the clock is wrong")

	// The backend cannot answer now; asking again later may work.
	ErrThrottled   = errors.New("throttled")
	ErrInternal    = errors.New("internal failure")
	ErrUnavailable = errors.New("unavailable")

	// The backend refuses for a reason that says nothing about the secret, such as the state of
	// the account, of the instance or of the encryption key.
	ErrRefused = errors.New("refused by the backend")
)

// Exit codes of the command line.
const (
	ExitOK          = 0
	ExitFailed      = 1
	ExitUsage       = 2
	ExitNotFound    = 3
	ExitDenied      = 4
	ExitUnavailable = 5
	ExitExists      = 6
)

// verdict is what the failure of a read says about a value that is held.
type verdict uint8

const (
	outage  verdict = iota // nothing, nor about any other: the last good value may still be served
	alone                  // nothing, but others may be answered: as well
	gone                   // there is none for us: it is dropped
	mistake                // nothing, for the question itself is wrong
)

// class is what one sentinel means everywhere.
type class struct {
	sentinel error
	code     string // the KMS code we answer with
	status   int    // and its HTTP status
	retry    bool   // the same request may succeed later
	verdict  verdict
	exit     int
	aliases  []string // other KMS and gateway codes with the same meaning
}

// classes is the one table between sentinels, KMS codes, HTTP statuses and exit codes.
// Codes are compared whole: ResourceNotFound and NoPermission share the prefix "Forbidden.".
// The codes that mean gone are all there are: one that is not in the table is never among them.
// Source: the error pages of the KMS API and of the API gateway. NoCredentials and ClockSkew
// are ours.
var classes = []class{
	{ErrInvalidParameter, "InvalidParameter", http.StatusBadRequest, false, mistake, ExitUsage, nil},
	{ErrMissingParameter, "MissingParameter", http.StatusBadRequest, false, mistake, ExitUsage, nil},
	{ErrUnsupported, "UnsupportedOperation", http.StatusBadRequest, false, alone, ExitFailed,
		[]string{"InvalidApi.NotFound", "InvalidAction.NotFound", "UnsupportedHTTPMethod", "Forbidden.KeyPolicyUnSupported"}},
	{ErrLimitExceeded, "Rejected.LimitExceeded", http.StatusBadRequest, false, alone, ExitFailed, nil},
	{ErrAccessDenied, "Forbidden.NoPermission", http.StatusForbidden, false, gone, ExitDenied, nil},
	{ErrUnauthenticated, "InvalidAccessKeyId.NotFound", http.StatusNotFound, false, outage, ExitDenied, []string{
		"InvalidAccessKeyId.Inactive", "Forbidden.AccessKey", "SignatureDoesNotMatch", "IncompleteSignature",
		"InvalidSecurityToken.Expired", "InvalidSecurityToken.Malformed", "InvalidSecurityToken.MismatchWithAccessKey", "MissingSecurityToken",
		"InvalidTimeStamp.Format", "IllegalTimestamp", "SignatureNonceUsed",
		"InvalidSignatureMethod", "MissingAccessKeyId", "MissingTimestamp", "MissingSignature", "MissingSignatureNonce"}},
	{ErrNoCredentials, "NoCredentials", http.StatusServiceUnavailable, false, outage, ExitDenied, nil},
	{ErrClockSkew, "ClockSkew", http.StatusServiceUnavailable, false, outage, ExitUnavailable,
		[]string{"InvalidTimeStamp.Expired", "RequestTimeTooSkewed"}},
	{ErrNotFound, "Forbidden.ResourceNotFound", http.StatusNotFound, false, gone, ExitNotFound, nil},
	{ErrKeyNotFound, "Forbidden.KeyNotFound", http.StatusNotFound, false, alone, ExitNotFound, nil},
	{ErrExists, "Rejected.ResourceExist", http.StatusConflict, false, alone, ExitExists, nil},
	{ErrPendingDeletion, "Rejected.ResourceInDeleteWindow", http.StatusConflict, false, gone, ExitFailed, nil},
	{ErrNotPendingDeletion, "Rejected.ResourceInUse", http.StatusConflict, false, alone, ExitFailed, nil},
	{ErrThrottled, "Rejected.Throttling", http.StatusTooManyRequests, true, outage, ExitUnavailable,
		[]string{"Throttling", "Throttling.User", "Throttling.Api"}},
	{ErrInternal, "InternalFailure", http.StatusInternalServerError, true, outage, ExitUnavailable, nil},
	{ErrUnavailable, "ServiceUnavailableTemporary", http.StatusServiceUnavailable, true, outage, ExitUnavailable, nil},
	{ErrRefused, "Rejected.Unavailable", http.StatusServiceUnavailable, false, alone, ExitUnavailable, nil},
}

// Error says what a backend could not do. It wraps one of the sentinels of this package and
// never contains a secret value or a URL.
type Error struct {
	Op         string        // the operation, such as GetSecretValue; may be empty
	Ref        SecretRef     // what was asked for; may be zero
	Code       string        // the code the backend answered with; empty: the sentinel's own
	Message    string        // what is wrong, for people
	RequestID  string        // the backend's id of the request; may be empty
	Endpoint   string        // host that answered or did not; may be empty
	RetryAfter time.Duration // how long the backend asked to wait; zero when it did not say
	Err        error         // a sentinel

	// Date is when the backend said so by its own clock, where it refuses ours; may be zero.
	Date time.Time

	// Unreached says that no request got through to the backend, as when nobody listens there:
	// asking again costs it nothing.
	Unreached bool

	// Unknown says that the change may have been made all the same, or may still be, such as when its answer was
	// lost. [Error.Error] says so, too.
	Unknown bool

	// Parameter is the parameter of the request that is wrong, and Reason what is wrong with
	// it, without the words of the KMS API around it. Both may be empty.
	Parameter, Reason string
}

// UnknownOutcome is what people are told of an [Error] that is Unknown.
const UnknownOutcome = "the outcome of the change is unknown: read it back, or repeat the request"

// Changes reports whether the operation of that name can change something.
func Changes(op string) bool {
	for _, verb := range []string{"Get", "List", "Describe", "BatchGet"} {
		if strings.HasPrefix(op, verb) {
			return false
		}
	}
	return true
}

// Error returns operation, reference, message, code and where to look, in that order.
func (e *Error) Error() string {
	s := strings.TrimSpace(e.Op + " " + e.Ref.String())
	if s != "" {
		s += ": "
	}
	if e.Message != "" {
		s += e.Message
	} else if e.Err != nil {
		s += e.Err.Error()
	}
	if e.Unknown && !strings.Contains(s, UnknownOutcome) {
		s += "; " + UnknownOutcome
	}
	var details []string
	for _, d := range []struct{ name, value string }{{"", e.Code}, {"request id ", e.RequestID}, {"endpoint ", e.Endpoint}} {
		if d.value != "" {
			details = append(details, d.name+d.value)
		}
	}
	if len(details) > 0 {
		s += " (" + strings.Join(details, ", ") + ")"
	}
	return s
}

// Unwrap returns the sentinel.
func (e *Error) Unwrap() error { return e.Err }

// InvalidParameter returns an [*Error] that wraps [ErrInvalidParameter], in the words of the
// KMS API followed by the reason. The reason must not quote a secret value.
func InvalidParameter(name, reason string) *Error {
	msg := fmt.Sprintf("The specified parameter %q is not valid", name)
	if reason != "" {
		msg += ": " + reason
	}
	return &Error{Message: msg + ".", Err: ErrInvalidParameter, Parameter: name, Reason: reason}
}

// MissingParameter returns an [*Error] that wraps [ErrMissingParameter].
func MissingParameter(name string) *Error {
	return &Error{
		Message: fmt.Sprintf("The parameter %q is needed but not provided.", name), Err: ErrMissingParameter,
		Parameter: name, Reason: "must not be empty",
	}
}

// Wrap returns err with operation and reference filled in, where err is itself an [*Error]
// that has none yet. Other errors, nil among them, are returned as they are.
func Wrap(err error, op string, ref SecretRef) error {
	e, ok := err.(*Error)
	if !ok {
		return err
	}
	w := *e
	w.Op, w.Ref = cmp.Or(e.Op, op), cmp.Or(e.Ref, ref)
	return &w
}

// Conceal returns err without its reference and the texts that may quote it. A context error
// stays as it is, nil too.
func Conceal(err error) error {
	e, ok := errors.AsType[*Error](err)
	switch {
	case ok:
		return &Error{Code: e.Code, RequestID: e.RequestID, Endpoint: e.Endpoint, RetryAfter: e.RetryAfter, Err: e.Err, Date: e.Date, Unreached: e.Unreached}
	case err == nil || IsContextError(err):
		return err
	}
	return &Error{Err: FromCode(Code(err), Status(err))}
}

// FromCode returns the sentinel for a code of the KMS API or its gateway. A code that the
// table does not know is classed by its HTTP status, and is never one that says something about
// the secret or about the question.
func FromCode(code string, status int) error {
	for i := range classes {
		if c := &classes[i]; c.code == code || slices.Contains(c.aliases, code) {
			return c.sentinel
		}
	}
	switch {
	case status == http.StatusTooManyRequests:
		return ErrThrottled
	case status == http.StatusInternalServerError:
		return ErrInternal
	case status >= 500:
		return ErrUnavailable
	case status == http.StatusUnauthorized:
		return ErrUnauthenticated
	default:
		return ErrRefused
	}
}

// Code returns the KMS code to answer err with: the sentinel's, never the backend's own, so
// that a client meets the documented set. Errors from outside this package are
// InternalFailure.
func Code(err error) string { return classOf(err).code }

// Reason returns the code that says best why err came about: the backend's own where it gave
// one, [Code] otherwise. It is for people and for metrics.
func Reason(err error) string {
	if e, ok := errors.AsType[*Error](err); ok && e.Code != "" {
		return e.Code
	}
	return Code(err)
}

// Explain returns why err came about in words, for people who know what was asked for: what is wrong and where. It
// is empty where nothing is known beyond [Reason].
func Explain(err error) string {
	e, ok := errors.AsType[*Error](err)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer in time"
	case !ok || e.Message == "":
		return ""
	case e.Endpoint != "" && !strings.Contains(e.Message, e.Endpoint):
		return e.Message + " (" + e.Endpoint + ")"
	}
	return e.Message
}

// Status returns the HTTP status that belongs to [Code].
func Status(err error) int { return classOf(err).status }

// Retryable reports whether the same request may succeed later. It is the only place that
// decides. Context errors are not retryable: the caller gave up.
func Retryable(err error) bool {
	return !IsContextError(err) && classOf(err).retry
}

// Gone reports whether err is the backend's answer that there is no value for us: no such
// secret, version or label, one that is being deleted, or one that we may not read.
func Gone(err error) bool {
	return err != nil && !IsContextError(err) && classOf(err).verdict == gone
}

// Outage reports whether err says nothing about the secret itself and nothing against the
// question, so that the last good value may still be served: the backend is unreachable,
// troubled or throttling, refuses us as a whole, or gives an answer that is none.
func Outage(err error) bool {
	return err != nil && (IsContextError(err) || classOf(err).verdict <= alone)
}

// Down reports whether err is an [Outage] that speaks of the backend as a whole: another secret
// would have met it as well. What the backend refuses and an answer that is none concern the
// secret that was asked for, until others meet the same.
func Down(err error) bool {
	return Outage(err) && classOf(err).verdict != alone && Reason(err) != CodeInvalidAnswer
}

// Unreached reports whether err is that of a request that did not get through to the backend.
func Unreached(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Unreached
}

// ExitCode returns the exit code of the command line for err; 0 for nil. Of several errors
// that are joined, one that may pass by itself decides: what the others say is not the whole
// truth before that one is gone.
func ExitCode(err error) int {
	if err == nil {
		return ExitOK
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return ExitUnavailable
	}
	exit := ExitFailed
	for i := range classes {
		switch c := &classes[i]; {
		case !errors.Is(err, c.sentinel):
		case c.exit == ExitUnavailable:
			return ExitUnavailable
		case exit == ExitFailed:
			exit = c.exit
		}
	}
	return exit
}

// IsContextError reports whether err is the end of a context: the caller gave up.
func IsContextError(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// classOf returns the row of the sentinel that err wraps, and that of ErrInternal for
// errors that wrap none.
func classOf(err error) *class {
	for i := range classes {
		if errors.Is(err, classes[i].sentinel) {
			return &classes[i]
		}
	}
	return classOf(ErrInternal)
}
