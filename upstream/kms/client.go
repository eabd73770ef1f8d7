package kms

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/responses"

	"secretagent/upstream"
)

// Client is an [upstream.Manager] that asks Alibaba Cloud KMS, or anything that speaks its
// API. All methods are safe for concurrent use.
type Client struct {
	policy   *policy
	busy     chan struct{} // one for each attempt on its way; its capacity bounds them
	answered atomic.Pointer[endpoint]
	closed   atomic.Bool
	watch    watch
}

var _ upstream.Manager = (*Client)(nil)

// New returns a client. It opens no connection and asks for no credential. Everything that is
// wrong with opts is in its error, which is [upstream.OptionErrors] like that of
// [Options.Validate]. The caller calls [Client.Close] in the end.
func New(opts Options) (*Client, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	if opts.Credentials == nil {
		if slices.ContainsFunc(opts.Endpoints, func(e Endpoint) bool { return e.Socket == "" }) {
			return nil, upstream.OptionErrors{{Key: "credentials", Reason: "is missing: only a socket needs none"}}
		}
		// Everyone who can open the socket may use it; the server does not look at this.
		opts.Credentials = StaticCredential("socket", "socket", "")
	}
	return &Client{policy: newPolicy(opts), busy: make(chan struct{}, opts.MaxConcurrent),
		watch: watch{offered: make(chan struct{}, 1), status: WatchStatus{State: "off"}}}, nil
}

// Close makes later calls fail and closes idle connections. Calls that are on their way end
// as their contexts tell. Calling it again does nothing.
func (c *Client) Close() error {
	c.closed.Store(true)
	for _, e := range c.policy.endpoints {
		if t, ok := e.transport.(*http.Transport); ok {
			t.CloseIdleConnections()
		}
	}
	return nil
}

// params are parameters of an action. They travel in the form.
type params map[string]string

// request is one action of the API with its parameters.
type request struct {
	op        string
	ref       upstream.SecretRef
	invalid   error               // what is wrong with the input: nothing is sent
	valueOnly bool                // a dedicated gateway serves it
	waits     bool                // for a long time, and takes no place among the calls
	params    params              // those that are empty are not sent
	always    params              // those that are sent also when they are empty
	hide      upstream.SecretData // the value in params

	// resolve, where set, finds out by reading whether an earlier attempt whose answer was
	// lost has done its work. It is asked before the call is repeated, with a nil refusal,
	// and when a repetition was refused. It returns true when the work is done.
	resolve func(ctx context.Context, refusal error) (bool, error)
}

// invoke makes a call under the policy of c and returns its answer, which create made. The
// answer of a service that is one of the KMS API but does not hold what complete, unless it is
// nil, wants is no reason to leave that endpoint alone: the next one is asked, and this one again.
func invoke[R responses.AcsResponse](ctx context.Context, c *Client, create func() R, req request, complete func(R) error) (R, error) {
	var result R
	if req.invalid != nil {
		return result, upstream.Wrap(req.invalid, req.op, req.ref)
	}
	if c.closed.Load() {
		return result, upstream.Wrap(&upstream.Error{Err: upstream.ErrUnavailable, Message: "the client is closed"}, req.op, req.ref)
	}
	maps.DeleteFunc(req.params, func(_, value string) bool { return value == "" })
	maps.Copy(req.params, req.always)
	err := c.policy.do(ctx, &call{request: req, send: func(attempt context.Context, e *endpoint) outcome {
		response := create()
		out := c.signed(ctx, attempt, e, req, response)
		if out.err != nil {
			return out
		}
		id := requestIDOf(response)
		err := has(id != "")
		out.answered = err == nil
		if out.answered && complete != nil {
			err = complete(response)
		}
		if known, ok := errors.AsType[*upstream.Error](err); ok {
			known.Endpoint, known.RequestID = e.name, oneLine(id)
			return outcome{err: known, answered: out.answered, fault: true, lost: true}
		}
		c.inUse(e)
		result = response
		return out
	}})
	if c.closed.Load() {
		_ = c.Close() // the connection that was in use is idle now
	}
	return result, err
}

// requestIDOf returns the id that every answer of the API has.
func requestIDOf(response responses.AcsResponse) string {
	return reflect.ValueOf(response).Elem().FieldByName("RequestId").String()
}

// signed makes one attempt with the present credential. When that is refused it is renewed
// once, and the attempt repeated once. ctx is the whole call's, to tell the end of the attempt
// from that of the call.
func (c *Client) signed(ctx, attempt context.Context, e *endpoint, req request, response responses.AcsResponse) outcome {
	cred, err := c.policy.Credentials.Credential(attempt)
	if err != nil {
		return withoutCredential(ctx, attempt, err)
	}
	out := c.exchange(ctx, attempt, e, cred, req, response)
	if !out.renew {
		return out
	}
	fresh, err := c.policy.Credentials.Renew(attempt, cred)
	if err != nil || fresh.same(cred) {
		return c.unrenewed(out)
	}
	return c.exchange(ctx, attempt, e, fresh, req, response)
}

// unrenewed adds to the refusal of a credential why its source has no newer one.
func (c *Client) unrenewed(out outcome) outcome {
	source, ok := c.policy.Credentials.(interface{ Status() CredentialStatus })
	if refusal, known := errors.AsType[*upstream.Error](out.err); ok && known {
		if why := source.Status().Error; why != "" {
			refusal.Message = strings.TrimPrefix(refusal.Message+"; ", "; ") + why
		}
	}
	return out
}

// exchange sends one signed request and judges the answer.
func (c *Client) exchange(ctx, attempt context.Context, e *endpoint, cred Credential, req request, response responses.AcsResponse) outcome {
	if !req.waits {
		select {
		case c.busy <- struct{}{}:
			defer func() { <-c.busy }()
		case <-attempt.Done():
			if err := ended(ctx); err != nil {
				return outcome{err: err, quit: true}
			}
			return outcome{err: &upstream.Error{Err: upstream.ErrUnavailable,
				Message: fmt.Sprintf("all %d connections are busy", cap(c.busy))}}
		}
	}
	got, err := e.ask(attempt, cred, req, response)
	if gone := ended(ctx); gone != nil && got.status == 0 {
		return outcome{err: gone, quit: true, lost: got.connected}
	}
	c.noteOffer(e, got.header)
	return judge(got, err, e, req.hide, cred.AccessKeySecret, cred.SecurityToken)
}

// withoutCredential is the outcome of an attempt that could not be signed.
func withoutCredential(ctx, attempt context.Context, err error) outcome {
	if gone := ended(ctx); gone != nil {
		return outcome{err: gone, quit: true}
	}
	known, ok := errors.AsType[*upstream.Error](err)
	switch {
	case attempt.Err() != nil:
		known = &upstream.Error{Err: upstream.ErrNoCredentials, Message: "the credential source did not answer in time"}
	case !ok: // of a provider from elsewhere, which may quote anything
		known = &upstream.Error{Err: upstream.ErrNoCredentials, Message: "no credentials"}
	}
	return outcome{err: known, quit: true}
}
