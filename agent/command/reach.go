package command

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"secretagent/agent"
	"secretagent/agent/config"
	"secretagent/upstream"
)

// reachFlags say which running agent to ask, and as whom.
type reachFlags struct {
	address, socket, tokenFile, caller string

	about upstream.SecretName // what is asked for; empty: no secret
}

// of adds the flags to a verb.
func (f *reachFlags) of(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.address, "address", "", "ask the agent at `HOST:PORT` or https://HOST:PORT, and read no configuration")
	cmd.Flags().StringVar(&f.socket, "socket", "", "ask the agent at the unix socket `FILE`, and read no configuration")
	cmd.Flags().StringVar(&f.tokenFile, "token-file", "", "`FILE` with the token to ask with")
	cmd.Flags().StringVar(&f.caller, "caller", "", "`name` of the one of endpoint.callers to ask as")
	cmd.MarkFlagsMutuallyExclusive("address", "socket")
	cmd.MarkFlagsMutuallyExclusive("caller", "token-file")
	cmd.MarkFlagsMutuallyExclusive("caller", "address")
	cmd.MarkFlagsMutuallyExclusive("caller", "socket")
}

// maxAnswer bounds what is read from the endpoint.
const maxAnswer = 16 << 20

// endpointClient asks the endpoint of a running agent. One goroutine uses it at a time.
type endpointClient struct {
	routes  []route // the first that answers is asked
	where   string  // the route of the last question, for messages
	headers http.Header
	hint    string // what to do when nobody answers
	etag    string // of the last answer
}

// route is a way to an endpoint.
type route struct {
	http  *http.Client
	base  string // scheme and host
	where string // the listener, for messages
}

func newRoute(base, where string, transport *http.Transport) route {
	transport.DisableCompression, transport.DisableKeepAlives = true, true
	return route{base: base, where: where, http: &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// overSocket returns the way over the unix socket at path.
func overSocket(path string) route {
	return newRoute("http://localhost", path, &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}})
}

// overTCP returns the way to an address of this host. With certFile it is asked over TLS.
func overTCP(listen, certFile string) (route, error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return route{}, err
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
		if ip != nil && ip.To4() == nil {
			host = "::1"
		}
	}
	base, transport := "http://"+net.JoinHostPort(host, port), &http.Transport{}
	if certFile != "" {
		base = "https://" + net.JoinHostPort(host, port)
		transport.TLSClientConfig, err = pinned(certFile)
	}
	return newRoute(base, listen, transport), err
}

// overAddress returns the way to the address of --address.
func overAddress(address string) (route, error) {
	if rest, secure := strings.CutPrefix(address, "https://"); secure {
		return newRoute(address, rest, &http.Transport{}), nil
	}
	address = strings.TrimPrefix(address, "http://")
	host, _, err := net.SplitHostPort(address)
	if ip := net.ParseIP(host); err != nil || !strings.EqualFold(host, "localhost") && (ip == nil || !ip.IsLoopback()) {
		return route{}, usagef("--address %s: must be HOST:PORT with a loopback host such as 127.0.0.1, or https://HOST:PORT", address)
	}
	return overTCP(address, "")
}

// reach prepares the ways to the agent that f means, for questions that need no token, and
// returns what is known of its endpoint.
func (a *app) reach(f reachFlags) (*endpointClient, *config.Reach, error) {
	c := &endpointClient{headers: http.Header{}}
	var r config.Reach
	switch {
	case f.address != "":
		r = config.Source{}.ReadReach()
		route, err := overAddress(f.address)
		c.routes = append(c.routes, route)
		return c, &r, err
	case f.socket != "":
		r = config.Source{}.ReadReach()
		c.routes = append(c.routes, overSocket(f.socket))
		return c, &r, nil
	}
	path, err := config.Find(a.configFlag, a.Getenv, ".")
	r = config.Source{File: path, StateDir: a.stateDir}.ReadReach()
	c.hint = "start it with: secretagent run --config " + path
	if err != nil {
		r.Err, r.Said = err, false
	}
	if r.Err != nil {
		first, _, _ := strings.Cut(r.Err.Error(), "\n")
		c.hint = first + "; --address, --socket and --token-file need no configuration"
	}
	if r.Socket != "" {
		c.routes = append(c.routes, overSocket(string(r.Socket)))
	}
	if r.Listen != "" {
		certFile := ""
		if r.TLS != nil {
			certFile = string(r.TLS.CertFile)
		}
		var tcp route
		if tcp, err = overTCP(r.Listen, certFile); err == nil {
			c.routes = append(c.routes, tcp)
		}
	}
	switch {
	case len(c.routes) > 0:
		return c, &r, nil
	case r.Listen != "":
		return nil, nil, withHint(fmt.Errorf("endpoint.listen: %w", err), "%s", c.hint)
	}
	return nil, nil, withHint(usagef("endpoint.listen is off and endpoint.socket is not set: the agent cannot be asked"), "%s", c.hint)
}

// errNoSocket is why nobody can be asked as the operator.
var errNoSocket = withHint(usagef("the agent has no unix socket that we know of: endpoint.socket is not set"),
	"set it; until then send the agent SIGHUP, and look at its log")

// askOperator asks the agent, over one of its sockets, what root and its own user may ask whatever callers there
// are. Where f names a caller or an address, that is not asked.
func (a *app) askOperator(ctx context.Context, f reachFlags, method, path string) (body []byte, err error) {
	if f.address != "" || f.tokenFile != "" || f.caller != "" {
		return nil, errNoSocket
	}
	c := &endpointClient{headers: http.Header{}}
	sockets := []string{f.socket}
	if f.socket == "" {
		file, _ := config.Find(a.configFlag, a.Getenv, ".")
		r := config.Source{File: file, StateDir: a.stateDir}.ReadReach()
		c.hint = "start it with: secretagent run --config " + file
		sockets = []string{string(r.Socket), string(r.APISocket)}
	}
	err = errNoSocket
	for _, socket := range sockets {
		if socket == "" {
			continue
		}
		c.routes = []route{overSocket(socket)}
		status, body, failed := c.ask(ctx, method, path, nil)
		if failed == nil && (status == http.StatusOK || status == http.StatusUnprocessableEntity) {
			return body, nil
		}
		if failed == nil {
			failed = c.refused(status, body)
		}
		if !errors.Is(err, upstream.ErrAccessDenied) { // says more than that nobody answers elsewhere
			err = failed
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, err
}

// client prepares the way to the agent that f means and reads the token to ask with.
func (a *app) client(f reachFlags) (*endpointClient, *config.Reach, error) {
	c, r, err := a.reach(f)
	if err != nil {
		return nil, nil, err
	}
	c.routes = c.routes[:1] // a token goes to no address that another process could have taken meanwhile
	tokenFile := f.tokenFile
	switch {
	case tokenFile != "" || f.socket != "": // which may tell who asks
	case f.address != "" && r.TokenVariable() == "":
		return nil, nil, usagef("--address needs --token-file, or the token in a variable such as %s", config.TokenVariables[0])
	case f.address != "":
		tokenFile = string(r.TokenFile)
	case !r.Said && r.Err != nil:
		if _, found := errors.AsType[config.Problems](r.Err); !found {
			return nil, nil, usageError{withHint(r.Err, "or name the agent with --address or --socket, and its token with --token-file")}
		}
		return nil, nil, r.Err
	default:
		if f.caller == "" && f.about != "" && len(r.Callers) > 1 { // whoever may: the answer is the same
			f.caller = callerFor(&r.Endpoint, f.about)
		}
		if tokenFile, err = tokenFileOf(&r.Endpoint, f.caller); err != nil {
			return nil, nil, err
		}
	}
	var token string
	switch {
	case tokenFile != "":
		token, err = agent.ReadToken(tokenFile)
	case r.TokenVariable() != "" && f.socket == "":
		token, err = agent.ReadTokenVariable(r.TokenVariable())
	default:
		return c, r, nil
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil, c.notRunning(fmt.Sprintf("no token: %v", err))
	case errors.Is(err, fs.ErrPermission):
		return nil, nil, withHint(&upstream.Error{Message: "the token is for others: " + err.Error(), Err: upstream.ErrAccessDenied}, hintOthers)
	case err != nil:
		return nil, nil, err
	}
	c.headers.Set(append(r.Headers, "X-KMS-Token")[0], token)
	return c, r, nil
}

// tokenFileOf returns the file with the token to ask with; empty for a caller that the unix
// socket recognises without one.
func tokenFileOf(cfg *config.Endpoint, caller string) (string, error) {
	if len(cfg.Callers) == 0 {
		if caller != "" {
			return "", usagef("--caller %s: no endpoint.callers are configured", caller)
		}
		return string(cfg.TokenFile), nil
	}
	var names []string
	file := ""
	for _, c := range cfg.Callers {
		if c.TokenFile == "" && cfg.Socket == "" || caller != "" && c.Name != caller {
			continue // without a token, the socket tells who asks
		}
		names = append(names, c.Name)
		file = string(c.TokenFile)
	}
	switch {
	case len(names) == 1:
		return file, nil
	case caller != "":
		return "", usagef("--caller %s: none of endpoint.callers has this name and a token", caller)
	case len(names) == 0:
		return "", usagef("none of endpoint.callers has a tokenFile, and there is no endpoint.socket")
	}
	return "", usagef("say with --caller as which of endpoint.callers to ask: %s", strings.Join(names, ", "))
}

// pinned returns a configuration that accepts the certificate in certFile and no other. It
// may have been issued for any name by anyone: that it is the one which the agent was told
// to use says more.
func pinned(certFile string) (*tls.Config, error) {
	b, err := os.ReadFile(certFile)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s does not begin with a certificate in PEM form", certFile)
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", certFile, err)
	}
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, // replaced by the comparison below
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 || !s.PeerCertificates[0].Equal(leaf) {
				return fmt.Errorf("the certificate is not the one in %s", certFile)
			}
			return nil
		},
	}, nil
}

// What to do about an agent that is there.
const (
	hintOthers = "ask as that user or a member of the group, or let the operator give you a token and a way in with endpoint.callers"
	hintHangs  = "something holds the address and does not answer: where it is the agent, look at its log and restart it"
)

// call returns the body of a successful answer to a request without a body.
func (c *endpointClient) call(ctx context.Context, method, path string, query url.Values) ([]byte, error) {
	status, body, err := c.ask(ctx, method, path, query)
	if err == nil && status != http.StatusOK {
		return nil, c.refused(status, body)
	}
	return body, err
}

// ask returns status and body of any answer to a request without a body.
func (c *endpointClient) ask(ctx context.Context, method, path string, query url.Values) (int, []byte, error) {
	var missed []string
	began := time.Now()
	for _, r := range c.routes {
		c.where = r.where
		u := r.base + path
		if len(query) > 0 {
			u += "?" + query.Encode()
		}
		req, err := http.NewRequestWithContext(ctx, method, u, nil)
		if err != nil {
			return 0, nil, err
		}
		req.Header = c.headers.Clone()
		resp, err := r.http.Do(req)
		if err == nil {
			return c.read(resp)
		}
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return 0, nil, withHint(fmt.Errorf("no answer from %s within %s: %w", c.where, time.Since(began).Round(100*time.Millisecond), ctx.Err()), hintHangs)
		} else if ctx.Err() != nil {
			return 0, nil, fmt.Errorf("no answer from %s: %w", c.where, ctx.Err())
		}
		if errors.Is(err, fs.ErrPermission) {
			return 0, nil, withHint(&upstream.Error{Message: "the socket is for others: " + cmp.Or(agent.Whose(r.where), err.Error()), Err: upstream.ErrAccessDenied}, hintOthers)
		}
		if urlErr, ok := errors.AsType[*url.Error](err); ok {
			err = urlErr.Err // without the URL
		}
		reason := err.Error()
		if !strings.Contains(reason, r.where) {
			reason = r.where + ": " + reason
		}
		missed = append(missed, reason)
	}
	return 0, nil, c.notRunning(strings.Join(missed, "; "))
}

// read returns status and body of an answer.
func (c *endpointClient) read(resp *http.Response) (int, []byte, error) {
	defer resp.Body.Close()
	c.etag = resp.Header.Get("ETag")
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return 0, nil, c.unavailable("the answer broke off: " + err.Error())
	}
	if len(body) > maxAnswer {
		return 0, nil, c.unavailable("the answer is too large")
	}
	return resp.StatusCode, body, nil
}

// refused turns an error answer into an error.
func (c *endpointClient) refused(status int, body []byte) error {
	var answer struct{ Code, Message, RequestID string }
	if json.Unmarshal(body, &answer) != nil || answer.Code == "" {
		return c.unavailable(fmt.Sprintf("status %d, which is not an answer of secretagent; is something else listening there?", status))
	}
	err := &upstream.Error{
		Code: answer.Code, Message: strings.TrimSuffix(answer.Message, "."), RequestID: answer.RequestID,
		Err: upstream.FromCode(answer.Code, status),
	}
	if errors.Is(err.Err, upstream.ErrRefused) && status < http.StatusInternalServerError { // by the endpoint itself
		switch status {
		case http.StatusForbidden:
			err.Err = upstream.ErrAccessDenied
		case http.StatusNotFound:
			err.Err = upstream.ErrNotFound
		case http.StatusRequestTimeout:
			err.Err = upstream.ErrUnavailable
		default:
			err.Err = upstream.ErrInvalidParameter
		}
	}
	return err
}

func (c *endpointClient) unavailable(reason string) error {
	return &upstream.Error{Message: c.where + ": " + reason, Err: upstream.ErrUnavailable}
}

func (c *endpointClient) notRunning(reason string) error {
	return withHint(&upstream.Error{Message: "the agent cannot be reached: " + reason, Err: upstream.ErrUnavailable}, "%s", c.hint)
}
