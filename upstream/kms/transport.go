package kms

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"time"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/auth/credentials"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/requests"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/responses"

	"secretagent/upstream"
)

const (
	// maxAnswer bounds an answer. The largest is a page of 100 secrets with 20 tags each.
	maxAnswer = 4 << 20

	apiProduct = "Kms"
	apiVersion = "2016-01-20"
)

var (
	errTooLarge = errors.New("the answer is larger than 4 MiB")
	errRedirect = errors.New("the answer is a redirect, which is not followed")
)

// newTransport returns the connection pool of one endpoint. Each endpoint has its own, so
// that a private authority is trusted for its own host only.
func newTransport(e Endpoint, maxConns int) *http.Transport {
	dialer := &net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}
	t := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            dialer.DialContext,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: e.RootCAs},
		TLSHandshakeTimeout:    5 * time.Second,
		MaxIdleConns:           maxConns,
		MaxIdleConnsPerHost:    maxConns,
		MaxConnsPerHost:        maxConns,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true,
	}
	if e.Socket != "" {
		t.Proxy = nil
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", e.Socket)
		}
	}
	return t
}

// session is one client of the SDK with all that the SDK cannot do by itself: it carries a
// context, keeps values out of the URL and hides answers from the SDK's own printers.
//
// A session serves one attempt at a time. It is the SDK client's transport and its
// credentials in one: whoever borrows the session sets both before the call.
type session struct {
	client sdk.Client

	// Of the attempt that is running.
	ctx      context.Context
	endpoint *endpoint
	cred     Credential
	got      answer
}

// answer is what came back over the wire, or why nothing did.
type answer struct {
	connected bool  // the request may have reached the other side
	err       error // of the transport
	status    int
	header    http.Header
	body      []byte
}

func newSession() (*session, error) {
	s := &session{}
	config := sdk.NewConfig().WithScheme("HTTPS").WithUserAgent("secretagent")
	config.Transport = s
	if err := s.client.InitWithOptions("", config, credentials.CredentialsProvider(s)); err != nil {
		return nil, err
	}
	// A registered global tracer would receive the request line as the name of a span.
	s.client.SetCloseTrace(true)
	// The SDK reads the proxy variables on every call and takes NO_PROXY for a list of
	// regular expressions, so that a value such as "**.corp" fails every call. Our transport
	// does the proxying; these settings keep the SDK from looking.
	s.client.SetHttpProxy("http://unused.invalid")
	s.client.SetHttpsProxy("http://unused.invalid")
	s.client.SetNoProxy("^$")
	return s, nil
}

// send signs one request, sends it to e and decodes the answer into response. The error is
// that of the SDK; what came over the wire is in the returned answer either way. It returns
// when ctx is done. A panic of the SDK becomes an error.
func (s *session) send(ctx context.Context, e *endpoint, cred Credential, m message, response responses.AcsResponse) (got answer, err error) {
	s.ctx, s.endpoint, s.cred, s.got = ctx, e, cred, answer{}
	defer func() {
		if p := recover(); p != nil {
			// The SDK asserts the types of fields it did not write. The value of the panic
			// can quote the answer and goes nowhere.
			got, err = s.got, errUnreadable
		}
		s.ctx, s.endpoint, s.cred, s.got = nil, nil, Credential{}, answer{}
	}()

	request := &requests.RpcRequest{}
	request.InitWithApiInfo(apiProduct, apiVersion, m.action, "kms", "openAPI")
	request.Method = requests.POST
	request.Domain = e.domain
	request.Scheme = strings.ToUpper(e.scheme)
	request.RegionId = e.Region
	// The context ends the attempt. The SDK's own timeout only has to be out of the way.
	request.ReadTimeout, request.ConnectTimeout = time.Hour, time.Hour
	// Form parameters are signed like query parameters but never printed. The token travels
	// here too, and not through the SDK's credentials, which would put it into the query.
	for k, v := range m.params {
		request.FormParams[k] = v
	}
	if token := cred.SecurityToken.Reveal(); len(token) > 0 {
		request.FormParams["SecurityToken"] = string(token)
	}

	// The SDK prints bodies when DEBUG=sdk is set, so it is shown an empty one here and
	// decodes the real one below.
	if err := s.client.DoAction(request, responses.NewCommonResponse()); err != nil && s.got.status == 0 {
		return s.got, err
	}
	return s.got, responses.Unmarshal(response, &http.Response{
		StatusCode: s.got.status,
		Header:     s.got.header,
		Body:       io.NopCloser(bytes.NewReader(s.got.body)),
	}, "JSON")
}

// GetCredentials implements the SDK's credentials provider with the credential of the
// running attempt, without its token.
func (s *session) GetCredentials() (*credentials.Credentials, error) {
	return &credentials.Credentials{
		AccessKeyId:     s.cred.AccessKeyID,
		AccessKeySecret: string(s.cred.AccessKeySecret.Reveal()),
		ProviderName:    s.cred.Source,
	}, nil
}

// GetProviderName implements the SDK's credentials provider.
func (s *session) GetProviderName() string { return "secretagent" }

// RoundTrip implements [http.RoundTripper] for the SDK. It moves every parameter into the
// body, which the signature allows because it covers query and form as one sorted list, and
// keeps the answer in the session. The SDK sees an empty one.
func (s *session) RoundTrip(request *http.Request) (*http.Response, error) {
	body, err := moveQueryToBody(request)
	if err != nil {
		s.got.err = err
		return nil, err
	}
	ctx := httptrace.WithClientTrace(s.ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { s.got.connected = true },
	})
	target := url.URL{Scheme: request.URL.Scheme, Host: request.URL.Host, Path: "/"}
	out, err := http.NewRequestWithContext(ctx, http.MethodPost, target.String(), bytes.NewReader(body))
	if err != nil {
		s.got.err = err
		return nil, err
	}
	out.Header = request.Header.Clone()
	if trace := upstream.CauseOf(s.ctx).Trace; !trace.IsZero() {
		out.Header.Set(upstream.TraceParentHeader, trace.String()) // no signature covers headers
	}
	response, err := s.endpoint.transport.RoundTrip(out)
	if err != nil {
		s.got.err = err
		return nil, err
	}
	defer response.Body.Close()
	answered, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	switch {
	case err != nil:
		s.got.err = err
	case len(answered) > maxAnswer:
		s.got.err = errTooLarge
	case response.StatusCode >= 300 && response.StatusCode < 400:
		// net/http would send the body, and the value in it, to wherever the answer says.
		s.got.err = errRedirect
	default:
		s.got.status, s.got.header, s.got.body = response.StatusCode, response.Header, answered
		return &http.Response{StatusCode: http.StatusOK, Proto: response.Proto, Body: http.NoBody, Request: request}, nil
	}
	return nil, s.got.err
}

// moveQueryToBody returns query and form of request as one form body.
func moveQueryToBody(request *http.Request) ([]byte, error) {
	var form []byte
	if request.Body != nil {
		var err error
		if form, err = io.ReadAll(request.Body); err != nil {
			return nil, fmt.Errorf("read the signed form: %w", err)
		}
		_ = request.Body.Close()
	}
	if len(form) > 0 && request.URL.RawQuery != "" {
		form = append(form, '&')
	}
	return append(form, request.URL.RawQuery...), nil
}
