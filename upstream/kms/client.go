package kms

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/requests"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/responses"
	"golang.org/x/sync/singleflight"

	"secretagent/upstream"
)

// Client is an [upstream.Manager] that asks Alibaba Cloud KMS, or anything that speaks its
// API. All methods are safe for concurrent use.
type Client struct {
	policy      *policy
	credentials CredentialProvider
	endpoints   []*endpoint

	sessions chan *session // free ones; its capacity is the bound on concurrency
	answered atomic.Pointer[endpoint]

	flights singleflight.Group
	life    context.Context // ends with Close
	end     context.CancelFunc
	mu      sync.Mutex // guards closed against running.Add
	closed  bool
	running sync.WaitGroup // joined reads
}

var _ upstream.Manager = (*Client)(nil)

// New returns a client. It opens no connection and asks for no credential; a file that it
// needs and cannot read is an error, as is everything that is wrong with opts, all at once.
// The caller calls [Client.Close] in the end.
func New(opts Options) (*Client, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("kms: %w", err)
	}
	if slices.Contains(strings.Split(os.Getenv("DEBUG"), ","), "sdk") {
		opts.Logger.Warn("the SDK prints action, key id and signature of every call to standard output", "hint", "DEBUG=sdk is set: unset it and start again")
	}
	c := &Client{credentials: opts.Credentials, sessions: make(chan *session, opts.MaxConcurrent)}
	for _, e := range opts.Endpoints {
		c.endpoints = append(c.endpoints, newEndpoint(e, opts.MaxConcurrent))
	}
	for range opts.MaxConcurrent {
		s, err := newSession()
		if err != nil {
			return nil, errors.New("kms: the SDK does not start")
		}
		c.sessions <- s
	}
	c.policy = newPolicy(opts, c.endpoints)
	c.life, c.end = context.WithCancel(context.Background())
	return c, nil
}

// Close ends joined reads, waits for them and closes idle connections. Calls that are on
// their way in other goroutines end as their contexts tell. Calling it again does nothing.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.end()
	c.running.Wait()
	for _, e := range c.endpoints {
		if t, ok := e.transport.(*http.Transport); ok {
			t.CloseIdleConnections()
		}
	}
	return nil
}

// operation describes one action of the API to [invoke].
type operation[R responses.AcsResponse] struct {
	name      string
	ref       upstream.SecretRef
	valueOnly bool
	request   requests.AcsRequest // filled in, not sent yet
	extra     map[string]string   // parameters that the SDK would drop because they are empty
	response  func() R
	complete  func(R) bool // the answer holds what it must
	hide      upstream.SecretData
	settle    func(ctx context.Context, refusal error) (bool, error)
}

// invoke performs op under the policy of c.
func invoke[R responses.AcsResponse](ctx context.Context, c *Client, op operation[R]) (R, error) {
	var result R
	if c.life.Err() != nil {
		return result, upstream.Wrap(&upstream.Error{Err: upstream.ErrUnavailable, Message: "the client is closed"}, op.name, op.ref)
	}
	// The SDK turns the fields of its request into parameters; from here on they travel in
	// the form.
	if err := requests.InitParams(op.request); err != nil {
		return result, upstream.Wrap(&upstream.Error{Err: upstream.ErrInternal, Message: "the SDK could not encode the request"}, op.name, op.ref)
	}
	params := op.request.GetQueryParams()
	for k, v := range op.extra {
		params[k] = v
	}
	err := c.policy.do(ctx, &call{
		op: op.name, ref: op.ref, valueOnly: op.valueOnly, settle: op.settle,
		send: func(attempt context.Context, e *endpoint) outcome {
			cred, err := c.credentials.Credential(attempt)
			if err != nil {
				return withoutCredential(ctx, attempt, err)
			}
			response := op.response()
			out := c.exchange(ctx, attempt, e, cred, op.name, params, response, op.hide)
			if out.renew {
				fresh, err := c.credentials.Renew(attempt, cred)
				if err == nil && !fresh.same(cred) {
					response = op.response()
					out = c.exchange(ctx, attempt, e, fresh, op.name, params, response, op.hide)
				}
			}
			if out.err == nil && !op.complete(response) {
				out = outcome{fault: true, lost: true, err: &upstream.Error{
					Err: upstream.ErrUnavailable, Endpoint: e.name, Message: errUnreadable.Error()}}
			}
			if out.err == nil {
				c.answered.Store(e)
				result = response
			}
			return out
		},
	})
	return result, err
}

// exchange sends one signed request within the attempt and judges the answer. ctx is the
// whole call's, to tell the end of the attempt from the end of the call.
func (c *Client) exchange(ctx, attempt context.Context, e *endpoint, cred Credential, action string, params map[string]string, response responses.AcsResponse, hide upstream.SecretData) outcome {
	var s *session
	select {
	case s = <-c.sessions:
	case <-attempt.Done():
		if err := ended(ctx); err != nil {
			return outcome{err: err, quit: true}
		}
		return outcome{err: &upstream.Error{Err: upstream.ErrUnavailable,
			Message: fmt.Sprintf("all %d connections are busy", cap(c.sessions))}}
	}
	defer func() { c.sessions <- s }()
	got, err := s.send(attempt, e, cred, action, params, response)
	if gone := ended(ctx); gone != nil && got.status == 0 {
		return outcome{err: gone, quit: true, lost: got.connected}
	}
	return judge(got, err, e, hide, cred.AccessKeySecret, cred.SecurityToken)
}

// withoutCredential is the outcome of an attempt that could not be signed.
func withoutCredential(ctx, attempt context.Context, err error) outcome {
	switch {
	case ended(ctx) != nil:
		return outcome{err: ended(ctx), quit: true}
	case attempt.Err() != nil:
		return outcome{quit: true, err: &upstream.Error{Err: upstream.ErrUnauthenticated,
			Message: "the credential source did not answer in time"}}
	}
	var known *upstream.Error
	if !errors.As(err, &known) {
		// A provider from elsewhere may quote anything.
		known = &upstream.Error{Err: upstream.ErrUnauthenticated, Message: "no credentials"}
	}
	return outcome{err: known, quit: true}
}

// read performs a GetSecretValue that everyone who asks for the same at the same time
// shares. A caller that leaves does not end it for the others: the flight runs on, bounded
// by the deadline of the caller that began it and by Options.Deadline.
func (c *Client) read(ctx context.Context, ref upstream.SecretRef, do func(context.Context) (upstream.SecretValue, error)) (upstream.SecretValue, error) {
	key := string(ref.SecretName) + "\x00" + string(ref.VersionID) + "\x00" + string(ref.VersionStage)
	for {
		if err := ctx.Err(); err != nil {
			return upstream.SecretValue{}, err
		}
		landed := c.flights.DoChan(key, func() (any, error) {
			if !c.begin() {
				return upstream.SecretValue{}, errClosed
			}
			defer c.running.Done()
			flight, cancel := context.WithCancel(context.WithoutCancel(ctx))
			defer cancel()
			if deadline, ok := ctx.Deadline(); ok {
				flight, cancel = context.WithDeadline(flight, deadline)
				defer cancel()
			}
			defer context.AfterFunc(c.life, cancel)()
			return do(flight)
		})
		select {
		case <-ctx.Done():
			return upstream.SecretValue{}, ctx.Err()
		case r := <-landed:
			switch {
			case r.Err == nil:
				return r.Val.(upstream.SecretValue), nil
			case ended(ctx) != nil:
				return upstream.SecretValue{}, ended(ctx)
			case c.life.Err() != nil:
				return upstream.SecretValue{}, errClosed
			case errors.Is(r.Err, context.DeadlineExceeded):
				// The flight ended at the deadline of another caller, who began it. There is
				// time left to begin one of our own.
			default:
				return upstream.SecretValue{}, r.Err
			}
		}
	}
}

var errClosed error = &upstream.Error{Err: upstream.ErrUnavailable, Message: "the client is closed"}

// begin counts one joined read, unless the client is closed.
func (c *Client) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.running.Add(1)
	return true
}
