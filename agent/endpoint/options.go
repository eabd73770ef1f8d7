package endpoint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"secretagent/upstream"
)

// Secrets is the cache as the endpoint needs it. All methods must be safe for concurrent use.
type Secrets interface {
	// Peek returns a fresh held value and nothing else. It must not block, and it must not
	// keep ref or its strings: they alias a buffer that the next request overwrites.
	Peek(ref upstream.SecretRef) (upstream.Answer, bool)

	// Lookup returns the value that ref names, held, fetched or stale.
	Lookup(ctx context.Context, ref upstream.SecretRef) (upstream.Answer, error)

	// LookupAll returns values of one consistent moment; answers and errors are as many as
	// refs, in their order.
	LookupAll(ctx context.Context, refs []upstream.SecretRef) ([]upstream.Answer, []error)

	// RefreshNow asks the backend, whatever is held.
	RefreshNow(ctx context.Context, ref upstream.SecretRef) (upstream.Answer, error)

	// Report says that a client found the value useless. It refreshes at a limited rate.
	Report(ctx context.Context, ref upstream.SecretRef) (upstream.Answer, error)

	// Subscribe returns a channel of size one that receives when a value may have changed, or
	// nil when there are too many subscriptions. Whoever subscribes keeps the value fresh.
	Subscribe(refs ...upstream.SecretRef) (changed <-chan struct{}, cancel func())
}

// Options configures a [Server]. The zero value of every field but Callers is usable.
type Options struct {
	// Callers are who may ask; at least one. See [Server.SetCallers].
	Callers []Caller

	// TokenHeaders are the headers that may carry a token. Empty means X-KMS-Token,
	// X-Vault-Token and X-Aws-Parameters-Secrets-Token.
	TokenHeaders []string

	// PathPrefix is what precedes the name in a path. It starts and ends with a slash and has
	// at least one segment. Empty means /v1/.
	PathPrefix string

	// Format is the shape of answers to requests that name none. The zero value is [FormatKMS].
	Format Format

	// AllowedHosts are Host names (without port) that are accepted besides loopback.
	AllowedHosts []string

	MaxConnections           int // open connections that do not wait; 0 means 800
	HealthConnections        int // more of them that may only ask for health; 0 means 16
	MaxRequestsPerConnection int // then it is closed; 0 means 1,000,000, at most 16,000,000
	MaxHeaderBytes           int // request line and headers; 0 means 8 KiB, at least 1 KiB
	MaxBatch                 int // secrets of one batch; 0 means 100
	MaxWaiters               int // waiting clients; 0 means 4096

	MaxWait        time.Duration // longest wait=; 0 means 5m
	RequestTimeout time.Duration // first byte of a request to last byte of the answer, without lookup and wait; 0 means 10s
	IdleTimeout    time.Duration // between two requests; 0 means 2m
	LookupTimeout  time.Duration // for the cache to answer; 0 means 10s

	// Ready says whether everything that was declared is there. Nil means always ready. It
	// must not block.
	Ready func() Readiness

	// Status returns what GET /status encodes as JSON. It must leave out what the viewer may
	// not read, and must not hold values. Nil means 404.
	Status func(Viewer) any

	// StatusPage makes GET /status answer browsers with a page. Off, there is neither page nor
	// sign-in.
	StatusPage bool

	// Versions returns what GET /status/versions encodes as JSON: the versions of one secret,
	// without values. The caller may read the secret. Nil means 404.
	Versions func(ctx context.Context, name upstream.SecretName) (any, error)

	// Metrics writes the Prometheus text format for GET /metrics. Nil means 404.
	Metrics func(w io.Writer) error

	// Observe hears how long lookups of one secret took, from the request to the answer: of
	// every one that was a miss, stale or ended in an error, and of one hit in 64 of each
	// connection. The result is hit, miss, stale or error. Nil: nothing is timed.
	Observe func(result string, took time.Duration)

	// Audit receives one line per answer. Nil means none is written. The server does not
	// close it.
	Audit *AuditLog

	// Logger receives refusals and defects, never values, tokens or request text. Nil
	// discards.
	Logger *slog.Logger
}

// Viewer is the caller that a status is for.
type Viewer struct {
	Caller string
	All    bool                           // it may read every secret
	May    func(upstream.SecretName) bool // it may read this one
}

// withDefaults returns o with zeros replaced, or an error that names every field at fault.
func (o Options) withDefaults() (Options, error) {
	if len(o.TokenHeaders) == 0 {
		o.TokenHeaders = []string{"X-KMS-Token", "X-Vault-Token", "X-Aws-Parameters-Secrets-Token"}
	}
	if o.PathPrefix == "" {
		o.PathPrefix = "/v1/"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	var errs []error
	for _, f := range []struct {
		name          string
		field         *int
		def, min, max int
	}{
		{"MaxConnections", &o.MaxConnections, 800, 1, 1 << 20},
		{"HealthConnections", &o.HealthConnections, 16, 1, 1 << 16},
		{"MaxRequestsPerConnection", &o.MaxRequestsPerConnection, 1_000_000, 1, 16_000_000},
		{"MaxHeaderBytes", &o.MaxHeaderBytes, 8 << 10, 1 << 10, 1 << 20},
		{"MaxBatch", &o.MaxBatch, 100, 1, 1000},
		{"MaxWaiters", &o.MaxWaiters, 4096, 1, 1 << 20},
	} {
		if *f.field == 0 {
			*f.field = f.def
		}
		if *f.field < f.min || *f.field > f.max {
			errs = append(errs, fmt.Errorf("%s: %d: must be %d to %d", f.name, *f.field, f.min, f.max))
		}
	}
	for _, f := range []struct {
		name  string
		field *time.Duration
		def   time.Duration
	}{
		{"MaxWait", &o.MaxWait, 5 * time.Minute},
		{"RequestTimeout", &o.RequestTimeout, 10 * time.Second},
		{"IdleTimeout", &o.IdleTimeout, 2 * time.Minute},
		{"LookupTimeout", &o.LookupTimeout, 10 * time.Second},
	} {
		if *f.field == 0 {
			*f.field = f.def
		}
		if *f.field < time.Millisecond {
			errs = append(errs, fmt.Errorf("%s: %v: must be at least 1ms", f.name, *f.field))
		}
	}
	if p := o.PathPrefix; len(p) < 3 || p[0] != '/' || p[len(p)-1] != '/' || strings.ContainsAny(p, "%?# ") {
		errs = append(errs, fmt.Errorf("PathPrefix: %q: must start and end with '/' and name a segment, such as /v1/", p))
	} else if strings.HasPrefix("/secretsmanager/", p) || strings.HasPrefix(p, "/secretsmanager/") {
		errs = append(errs, fmt.Errorf("PathPrefix: %q: /secretsmanager/ is taken", p))
	}
	for _, h := range o.TokenHeaders {
		if !headerName(h) {
			errs = append(errs, fmt.Errorf("TokenHeaders: %q: must be a header name, such as X-KMS-Token", h))
		}
	}
	if o.Format >= numFormats {
		errs = append(errs, fmt.Errorf("Format: %d: must be one of %s", o.Format, formatNames))
	}
	for _, h := range o.AllowedHosts {
		if h == "" || strings.ContainsAny(h, "/:@ ") && !strings.Contains(h, "::") {
			errs = append(errs, fmt.Errorf("AllowedHosts: %q: must be a host name or IP without port", h))
		}
	}
	return o, errors.Join(errs...)
}

// headerName reports whether s can name a header that identifies a caller.
func headerName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	switch strings.ToLower(s) {
	case "", "host", "user-agent", "content-type", "content-length", "connection", "cookie", "transfer-encoding",
		"trailer", "origin", "forwarded", "via", "if-none-match", "sec-fetch-site", "expect":
		return false
	}
	return !strings.HasPrefix(strings.ToLower(s), "x-forwarded")
}
