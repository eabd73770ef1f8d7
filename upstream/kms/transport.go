package kms

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"time"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/auth"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/auth/credentials"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/requests"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/responses"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/utils"

	"secretagent/upstream"
)

// maxAnswer bounds an answer. The largest is a page of 100 secrets with 20 tags each.
const maxAnswer = 4 << 20

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
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: e.roots},
		TLSHandshakeTimeout:    5 * time.Second,
		MaxIdleConns:           maxConns,
		MaxIdleConnsPerHost:    maxConns,
		MaxConnsPerHost:        maxConns,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true,

		OnProxyConnectResponse: func(_ context.Context, _ *url.URL, _ *http.Request, answer *http.Response) error {
			if answer.StatusCode != http.StatusOK {
				return proxyRefusal(answer.StatusCode)
			}
			return nil
		},
	}
	if e.Socket != "" {
		t.Proxy = nil
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", e.Socket)
		}
	}
	return t
}

// proxyRefusal is the HTTP status with which a proxy refused to connect us.
type proxyRefusal int

func (r proxyRefusal) Error() string {
	return fmt.Sprintf("it refuses the connection with HTTP status %d", int(r))
}

// proxy returns the host of the proxy that the environment sets for e; empty for none.
func (e *endpoint) proxy() string {
	t, ok := e.transport.(*http.Transport)
	if !ok || t.Proxy == nil {
		return ""
	}
	return proxyFor(t.Proxy, e.url)
}

func proxyFor(proxy func(*http.Request) (*url.URL, error), target string) string {
	to, err := url.Parse(target)
	if err != nil {
		return ""
	}
	if by, err := proxy(&http.Request{URL: to}); err == nil && by != nil {
		return by.Host // and not who we are to it
	}
	return ""
}

// answer is what came back over the wire, or why nothing did.
type answer struct {
	connected bool  // the request may have reached the other side
	err       error // of the transport
	status    int
	header    http.Header
	body      []byte
}

// ask signs req with cred, sends it to e and decodes the answer into response. The error is
// that of the SDK; what came over the wire is in the answer either way.
func (e *endpoint) ask(ctx context.Context, cred Credential, req request, response responses.AcsResponse) (answer, error) {
	form, err := sign(e.Region, cred, req)
	if err != nil {
		return answer{}, err
	}
	got := e.post(ctx, form)
	if got.err != nil {
		return got, got.err
	}
	return got, decode(got, response)
}

// sign returns the form of req with its signature. The SDK signs what it takes for parameters of
// the query. They travel in the form, so that no value stands in a URL: the signature covers
// query and form as one sorted list.
func sign(region string, cred Credential, req request) (string, error) {
	signed := &requests.RpcRequest{}
	signed.InitWithApiInfo("Kms", "2016-01-20", req.op, "", "")
	signed.Method = requests.POST
	signed.QueryParams = maps.Clone(req.params)
	key := credentials.NewStaticSTSCredentialsProvider(cred.AccessKeyID, string(cred.AccessKeySecret.Reveal()), string(cred.SecurityToken.Reveal()))
	if err := auth.Sign(signed, nil, region, key); err != nil {
		return "", err
	}
	return utils.GetUrlFormedMap(signed.QueryParams), nil
}

// post sends a form. It returns when ctx is done.
func (e *endpoint) post(ctx context.Context, form string) (got answer) {
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { got.connected = true },
	})
	request, err := http.NewRequestWithContext(traced, http.MethodPost, e.url, strings.NewReader(form))
	if err != nil {
		got.err = err
		return got
	}
	request.Header.Set("Content-Type", requests.Form)
	request.Header.Set("User-Agent", "secretagent")
	if trace := upstream.CauseOf(ctx).Trace; !trace.IsZero() {
		request.Header.Set(upstream.TraceParentHeader, trace.String()) // no signature covers headers
	}
	response, err := e.transport.RoundTrip(request)
	if err != nil {
		got.err = err
		return got
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	switch {
	case err != nil:
		got.err = err
	case len(body) > maxAnswer:
		got.err = errTooLarge
	case response.StatusCode >= 300 && response.StatusCode < 400:
		// net/http would send the body, and the value in it, to wherever the answer says.
		got.err = errRedirect
	default:
		got.status, got.header, got.body = response.StatusCode, response.Header, body
	}
	return got
}

// decode fills in response. A panic of the SDK becomes an error: it asserts the types of fields
// that it did not write. The value of the panic can quote the answer and goes nowhere.
func decode(got answer, response responses.AcsResponse) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = errUnreadable
		}
	}()
	return responses.Unmarshal(response, &http.Response{
		StatusCode: got.status, Header: got.header, Body: io.NopCloser(bytes.NewReader(got.body)),
	}, "JSON")
}
