package kmsserver

import (
	"errors"
	"net/http"
	"time"

	"secretagent/upstream"
)

// fault is an answer that is not the one asked for, as it goes over the wire.
type fault struct {
	status     int
	code       string
	message    string
	recommend  string
	retryAfter time.Duration // zero: not said
	cause      error         // for the log only; never sent
}

// Error returns code and message.
func (f *fault) Error() string { return f.code + ": " + f.message }

func badRequest(code, message string) *fault {
	return &fault{status: http.StatusBadRequest, code: code, message: message}
}

// Faults of the gateway: a request that never becomes a call.

var (
	errUnknownAction = &fault{status: http.StatusNotFound, code: "InvalidApi.NotFound",
		message: "Specified api is not found, please check your url, action and version " + apiVersion + "."}
	errMethod = badRequest("UnsupportedHTTPMethod", "This http method is not supported: use GET or POST.")
)

func errParse(why string) *fault {
	return badRequest("ParseRequestParameterException", "cannot parse the parameters: "+why)
}

// errMissingCommon is for the parameters that every request carries: they have a code each.
func errMissingCommon(name string) *fault {
	return badRequest("Missing"+name, name+" is mandatory for this action.")
}

func errFormat(name, why string) *fault {
	return badRequest("InvalidParameter.Format", "The parameter "+name+" is not valid: "+why)
}

// errTooManyConnections tells a client that its connection is beyond the limit.
var errTooManyConnections = &fault{status: http.StatusServiceUnavailable, code: "ServiceUnavailableTemporary", retryAfter: time.Second,
	message: "All connections are busy, and this access key has its share of them."}

// errTooManyWatchers tells a client that there is no room to wait for changes.
var errTooManyWatchers = &fault{status: http.StatusTooManyRequests, code: "Rejected.Throttling", retryAfter: watchRetry,
	message: "Too many clients watch, and this access key has its share of them."}

// Faults of authentication and authorisation.

var (
	errUnknownAccessKey = &fault{status: http.StatusNotFound, code: "InvalidAccessKeyId.NotFound", message: "Specified access key is not found."}
	errTimestampFormat  = badRequest("InvalidTimeStamp.Format", "Specified time stamp or date value is not well formatted: use "+timestampLayout+" in UTC.")
	errTimestampExpired = &fault{status: http.StatusBadRequest, code: "InvalidTimeStamp.Expired", message: "Specified time stamp or date value is expired.",
		recommend: "Check the clock of the client."}
	errTokenMissing  = badRequest("MissingSecurityToken", "SecurityToken is mandatory for this access key.")
	errTokenMismatch = badRequest("InvalidSecurityToken.MismatchWithAccessKey", "Specified SecurityToken does not belong to this access key.")
	errNonceUsed     = badRequest("SignatureNonceUsed", "Specified signature nonce was used already.")
	errNoncesFull    = &fault{status: http.StatusTooManyRequests, code: "Rejected.Throttling", retryAfter: time.Minute,
		message: "QPS Limit Exceeded: this access key signed more requests than the server remembers to recognise replays."}
	errForbidden = &fault{status: http.StatusForbidden, code: "Forbidden.NoPermission", message: documented["Forbidden.NoPermission"]}
)

func errSignatureMethod(why string) *fault {
	return badRequest("InvalidSignatureMethod", "The signature method is not supported: "+why)
}

func errIncompleteSignature(why string) *fault {
	return badRequest("IncompleteSignature", "The request signature does not conform to Alibaba Cloud standards: "+why)
}

func errUnsupported(why string) *fault {
	return badRequest("UnsupportedOperation", "This action is not supported: "+why)
}

// documented has the texts of the API for codes whose error says nothing itself.
var documented = map[string]string{
	"Forbidden.ResourceNotFound":      "Resource not found",
	"Forbidden.KeyNotFound":           "The specified Key is not found.",
	"Forbidden.NoPermission":          "This operation is forbidden by permission system.",
	"Rejected.ResourceExist":          "The resource already exists.",
	"Rejected.ResourceInDeleteWindow": "secret in delete period",
	"Rejected.ResourceInUse":          "restore normal secret",
	"Rejected.LimitExceeded":          "The quota is exceeded.",
	"Rejected.Throttling":             "QPS Limit Exceeded",
	"UnsupportedOperation":            "This action is not supported.",
	"InvalidParameter":                "The specified parameter is not valid.",
	"MissingParameter":                "The parameter needed but not provided.",
	"InternalFailure":                 "Internal Failure",
	"ServiceUnavailableTemporary":     "Service Unavailable Temporary.",
	"Rejected.Unavailable":            "The service is not available to this account.",
}

// faultOf translates what a call returned. What a backend says about the secret and the
// request goes to the client; what it says about its own trouble goes to the log.
func faultOf(err error) *fault {
	var f *fault
	if errors.As(err, &f) {
		return f
	}
	cause := err
	// A call that was given up, and a backend whose own credentials or clock are refused, say
	// nothing about this client.
	if upstream.IsContextError(err) || errors.Is(err, upstream.ErrUnauthenticated) || errors.Is(err, upstream.ErrNoCredentials) || errors.Is(err, upstream.ErrClockSkew) {
		err = upstream.ErrUnavailable
	}
	f = &fault{status: upstream.Status(err), code: upstream.Code(err)}
	f.message = documented[f.code]
	if f.status >= http.StatusInternalServerError {
		f.cause = cause
	}
	var known *upstream.Error
	if errors.As(err, &known) {
		f.retryAfter = known.RetryAfter
		if known.Message != "" && f.status < http.StatusInternalServerError {
			f.message = known.Message
		}
	}
	return f
}

// tellAll adds what the backend says about its own trouble, for who runs it.
func (f *fault) tellAll() {
	if known, ok := errors.AsType[*upstream.Error](f.cause); ok && known.Message != "" {
		f.message = known.Message
	}
}

// unknown reports whether the action that ended with err may have changed something all the same, or may still.
func unknown(err error, action string) bool {
	known, ok := errors.AsType[*upstream.Error](err)
	return ok && known.Unknown || upstream.IsContextError(err) && upstream.Changes(action)
}
