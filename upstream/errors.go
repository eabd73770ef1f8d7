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

	// The backend cannot answer now; asking again later may work.
	ErrThrottled   = errors.New("throttled")
	ErrInternal    = errors.New("internal failure")
	ErrUnavailable = errors.New("unavailable")
)

// Exit codes of the command line.
const (
	ExitOK          = 0
	ExitFailed      = 1
	ExitUsage       = 2
	ExitNotFound    = 3
	ExitDenied      = 4
	ExitUnavailable = 5
)

// class is what one sentinel means everywhere.
type class struct {
	sentinel error
	code     string // the KMS code we answer with
	status   int    // and its HTTP status
	retry    bool   // the same request may succeed later
	outage   bool   // says nothing about the secret: the last good value may still be served
	exit     int
	aliases  []string // other KMS and gateway codes with the same meaning
}

// classes is the one table between sentinels, KMS codes, HTTP statuses and exit codes.
// Codes are compared whole: ResourceNotFound and NoPermission share the prefix "Forbidden.".
// Source: the error pages of the KMS API and of the API gateway.
var classes = []class{
	{ErrInvalidParameter, "InvalidParameter", http.StatusBadRequest, false, false, ExitUsage,
		[]string{"ParseRequestParameterException", "InvalidParameter.Format", "InvalidApi.NotFound", "InvalidAction.NotFound", "UnsupportedHTTPMethod"}},
	{ErrMissingParameter, "MissingParameter", http.StatusBadRequest, false, false, ExitUsage, nil},
	{ErrUnsupported, "UnsupportedOperation", http.StatusBadRequest, false, false, ExitFailed, nil},
	{ErrLimitExceeded, "Rejected.LimitExceeded", http.StatusBadRequest, false, false, ExitFailed, nil},
	{ErrAccessDenied, "Forbidden.NoPermission", http.StatusForbidden, false, false, ExitDenied, []string{
		"Forbidden.KeyPolicyUnSupported", "Forbidden.KmsServiceNotEnabled", "Forbidden.ProhibitedByRiskControl",
		"Forbidden.InDebt", "Forbidden.InDebtOverdue"}},
	{ErrUnauthenticated, "InvalidAccessKeyId.NotFound", http.StatusNotFound, false, true, ExitDenied, []string{
		"InvalidAccessKeyId.Inactive", "Forbidden.AccessKey", "SignatureDoesNotMatch", "IncompleteSignature",
		"InvalidSecurityToken.Expired", "InvalidSecurityToken.Malformed", "InvalidSecurityToken.MismatchWithAccessKey", "MissingSecurityToken",
		"InvalidTimeStamp.Format", "InvalidTimeStamp.Expired", "IllegalTimestamp", "SignatureNonceUsed",
		"InvalidSignatureMethod", "MissingAccessKeyId", "MissingTimestamp", "MissingSignature", "MissingSignatureNonce"}},
	{ErrNotFound, "Forbidden.ResourceNotFound", http.StatusNotFound, false, false, ExitNotFound, nil},
	{ErrKeyNotFound, "Forbidden.KeyNotFound", http.StatusNotFound, false, false, ExitNotFound, nil},
	{ErrExists, "Rejected.ResourceExist", http.StatusConflict, false, false, ExitFailed, nil},
	{ErrPendingDeletion, "Rejected.ResourceInDeleteWindow", http.StatusConflict, false, false, ExitFailed, nil},
	{ErrNotPendingDeletion, "Rejected.ResourceInUse", http.StatusConflict, false, false, ExitFailed, nil},
	{ErrThrottled, "Rejected.Throttling", http.StatusTooManyRequests, true, true, ExitUnavailable,
		[]string{"Throttling", "Throttling.User", "Throttling.Api"}},
	{ErrInternal, "InternalFailure", http.StatusInternalServerError, true, true, ExitUnavailable, nil},
	{ErrUnavailable, "ServiceUnavailableTemporary", http.StatusServiceUnavailable, true, true, ExitUnavailable, []string{
		"Rejected.Unavailable", "Rejected.Disabled", "Rejected.PendingDeletion", "Rejected.PendingImport", "Rejected.StateModifiedFailed"}},
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

	// Parameter is the parameter of the request that is wrong, and Reason what is wrong with
	// it, without the words of the KMS API around it. Both may be empty.
	Parameter, Reason string
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

// FromCode returns the sentinel for a code of the KMS API or its gateway. A code that the
// table does not know is classed by its HTTP status.
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
	case status == http.StatusForbidden:
		return ErrAccessDenied
	default:
		return ErrInvalidParameter
	}
}

// Code returns the KMS code to answer err with: the sentinel's, never the backend's own, so
// that a client meets the documented set. Errors from outside this package are
// InternalFailure.
func Code(err error) string { return classOf(err).code }

// Status returns the HTTP status that belongs to [Code].
func Status(err error) int { return classOf(err).status }

// Retryable reports whether the same request may succeed later. It is the only place that
// decides. Context errors are not retryable: the caller gave up.
func Retryable(err error) bool {
	return !IsContextError(err) && classOf(err).retry
}

// Outage reports whether err says nothing about the secret itself, so that the last good
// value may still be served: the backend is unreachable, troubled or throttling, or refuses
// our credentials. A secret that is gone or denied is an answer, not an outage.
func Outage(err error) bool {
	return err != nil && (IsContextError(err) || classOf(err).outage)
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
