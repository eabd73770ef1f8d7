package command

import (
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

func (a *app) getCommand() *cobra.Command {
	var (
		value   *readFlags
		caller  string
		refresh bool
		timeout time.Duration
	)
	cmd := &cobra.Command{
		Use:   "get NAME[:Label]",
		Short: "Ask the running agent for a secret, as an application would",
		Long: `Ask the endpoint of the running agent for a secret, as an application would, and print the
value byte by byte (with a newline after it on a terminal only). Without a label the
current version is meant.

The unix socket of the endpoint is used where one is configured, else TCP. The token is
that of endpoint.tokenFile. Where endpoint.callers are configured, --caller says as which
one to ask; it may be left out when only one has a token.

With --output json the answer is the JSON of GetSecretValue. To ask the backend itself, use
"secretagent secret get".`,
		Example: `  secretagent get demo/db
  secretagent get demo/db:ACSPrevious --output json
  PGPASSWORD=$(secretagent get demo/db --field password) psql`,
		Args: cobra.ExactArgs(1),
		RunE: a.run(func(ctx context.Context, args []string) error {
			ref, err := value.ref(args[0])
			if err != nil {
				return err
			}
			if timeout <= 0 {
				return usagef("--timeout must be positive")
			}
			cfg, err := a.loadConfig()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			client, err := newEndpointClient(cfg, caller)
			if err != nil {
				return err
			}
			query := url.Values{}
			for _, p := range [][2]string{
				{"format", "raw"}, {"versionId", string(ref.VersionID)}, {"versionStage", string(ref.VersionStage)}, {"field", value.field},
			} {
				if p[1] != "" {
					query.Set(p[0], p[1])
				}
			}
			if value.out.json() {
				query.Set("format", "kms")
			}
			if refresh {
				query.Set("refreshNow", "true")
			}
			body, err := client.call(ctx, http.MethodGet, cfg.Endpoint.PathPrefix+string(ref.SecretName), query)
			if err != nil {
				return upstream.Wrap(err, "get", ref)
			}
			if value.out.json() {
				return a.write(body)
			}
			return a.printRaw(body)
		}),
	}
	value = newReadFlags(cmd)
	cmd.Flags().BoolVar(&refresh, "refresh", false, "make the agent ask its upstream first")
	cmd.Flags().StringVar(&caller, "caller", "", "`name` of the one of endpoint.callers to ask as")
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "longest wait for the answer")
	return cmd
}

// readFlags are the flags of a verb that prints the value of a version.
type readFlags struct {
	versionID, field string
	out              output
}

func newReadFlags(cmd *cobra.Command) *readFlags {
	f := &readFlags{}
	f.out.of(cmd)
	cmd.Flags().StringVar(&f.versionID, "version-id", "", "`id` of the version")
	cmd.Flags().StringVar(&f.field, "field", "", "only this top-level `field` of a JSON secret")
	return f
}

// ref returns what is asked for, of which arg is the NAME[:Label].
func (f *readFlags) ref(arg string) (upstream.SecretRef, error) {
	ref, err := upstream.ParseSecretRef(arg)
	if err == nil && f.versionID != "" {
		ref.VersionID = upstream.VersionID(f.versionID)
		err = ref.Validate()
	}
	if err != nil {
		return ref, usageError{err}
	}
	if f.out.json() && f.field != "" {
		return ref, usagef("--field prints one field and --output json the whole answer: choose one")
	}
	return ref, nil
}

// maxAnswer bounds what is read from the endpoint.
const maxAnswer = 16 << 20

// endpointClient asks the endpoint of a running agent.
type endpointClient struct {
	http    *http.Client
	base    string // scheme and host
	where   string // the listener, for messages
	file    string // the configuration, for messages
	headers http.Header
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

// newEndpointClient reads the token and prepares the way to the endpoint.
func newEndpointClient(cfg *config.Config, caller string) (*endpointClient, error) {
	tokenFile, err := tokenFileOf(&cfg.Endpoint, caller)
	if err != nil {
		return nil, err
	}
	c, err := reachEndpoint(cfg)
	if err != nil {
		return nil, err
	}
	if tokenFile == "" {
		return c, nil
	}
	token, err := agent.ReadToken(tokenFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, (&endpointClient{file: c.file}).notRunning(fmt.Errorf("no token: %w", err))
	case errors.Is(err, fs.ErrPermission):
		return nil, &upstream.Error{Message: "the token cannot be read: " + err.Error(), Err: upstream.ErrAccessDenied}
	case err != nil:
		return nil, err
	}
	c.headers.Set(cfg.Endpoint.Headers[0], token)
	return c, nil
}

// reachEndpoint prepares the way to the endpoint, for questions that need no token.
func reachEndpoint(cfg *config.Config) (*endpointClient, error) {
	if cfg.Endpoint.Listen == "" && cfg.Endpoint.Socket == "" {
		return nil, usagef("endpoint.listen is off and endpoint.socket is not set: the agent cannot be asked")
	}
	transport := &http.Transport{DisableCompression: true, DisableKeepAlives: true}
	c := &endpointClient{file: cfg.File(), base: "http://localhost", headers: http.Header{}, http: &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	if cfg.Endpoint.Socket != "" {
		c.where = string(cfg.Endpoint.Socket)
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", c.where)
		}
		return c, nil
	}
	c.where = cfg.Endpoint.Listen
	host, port, err := net.SplitHostPort(c.where)
	if err != nil {
		return nil, err
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
		if ip != nil && ip.To4() == nil {
			host = "::1"
		}
	}
	address := net.JoinHostPort(host, port)
	c.base = "http://" + address
	if t := cfg.Endpoint.TLS; t != nil {
		c.base = "https://" + address
		if transport.TLSClientConfig, err = pinned(string(t.CertFile)); err != nil {
			return nil, err
		}
	}
	return c, nil
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
	u := c.base + (&url.URL{Path: path}).EscapedPath()
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u, nil)
	if err != nil {
		return 0, nil, err
	}
	req.Header = c.headers.Clone()
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return 0, nil, fmt.Errorf("no answer from %s: %w", c.where, ctx.Err())
		}
		if urlErr, ok := errors.AsType[*url.Error](err); ok {
			err = urlErr.Err // without the URL
		}
		return 0, nil, c.notRunning(err)
	}
	defer resp.Body.Close()
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
	switch {
	case errors.Is(err.Err, upstream.ErrInvalidParameter) && status == http.StatusNotFound: // of the endpoint itself
		err.Err = upstream.ErrNotFound
	case errors.Is(err.Err, upstream.ErrInvalidParameter) && status == http.StatusRequestTimeout:
		err.Err = upstream.ErrUnavailable
	}
	return err
}

func (c *endpointClient) unavailable(reason string) error {
	return &upstream.Error{Message: c.where + ": " + reason, Err: upstream.ErrUnavailable}
}

func (c *endpointClient) notRunning(cause error) error {
	reason := cause.Error()
	if c.where != "" && !strings.Contains(reason, c.where) {
		reason = c.where + ": " + reason
	}
	return withHint(&upstream.Error{Message: "the agent cannot be reached: " + reason, Err: upstream.ErrUnavailable},
		"start it with: secretagent run --config %s", c.file)
}
