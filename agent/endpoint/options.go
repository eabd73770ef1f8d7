package endpoint

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"slices"
	"strconv"
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

	// Changed says that a client has changed the secret in the backend: no lookup that begins after
	// it returns is answered with what was held before as if it were fresh. Its rate is limited.
	Changed(name upstream.SecretName) error

	// Subscribe returns a channel of size one that receives when a value may have changed, or
	// nil when there are too many subscriptions. A subscription keeps the value fresh.
	Subscribe(refs ...upstream.SecretRef) (changed <-chan struct{}, cancel func())
}

// Options configures a [Server]. The zero value of every field but Callers is usable.
type Options struct {
	// Callers are who may ask; at least one. See [Server.PrepareCallers].
	Callers []Caller

	// TokenHeaders are the headers that may carry a token. Nil means X-KMS-Token,
	// X-Vault-Token and X-Aws-Parameters-Secrets-Token.
	TokenHeaders []string

	// PathPrefix is what precedes the name in a path. It starts and ends with a slash and has
	// at least one segment. Empty means /v1/.
	PathPrefix string

	// Format is the shape of answers and errors to requests that name none, where neither the
	// path and headers of the request nor its caller call for another. Zero means [FormatKMS].
	Format Format

	// VaultMounts are the mounts of a Vault that this endpoint stands in for, below /v1/. With
	// none, no path is Vault's. See [Server.PrepareVaultMounts].
	VaultMounts []VaultMount

	// AllowedHosts are Host names (without port) that are accepted besides loopback.
	AllowedHosts []string

	MaxConnections           int // open connections that do not wait; 0 means 800
	MaxRequestsPerConnection int // then it is closed; 0 means 1,000,000, at most 16,000,000
	MaxHeaderBytes           int // request line and headers; 0 means 8 KiB, at least 1 KiB
	MaxBatch                 int // secrets of one batch; 0 means 100
	MaxWaiters               int // waiting clients; 0 means 4096
	MaxClients               int // open connections, waiting ones included; 0 means that there is no such bound

	// MaxBatchBytes is the memory that batches take, all together, from when their values are known
	// until they are with the client; one caller beside others takes half of it at most. What has no
	// room waits for what is left of LookupTimeout. 0 means 256 MiB.
	MaxBatchBytes int64

	MaxWait        time.Duration // longest wait=; 0 means 5m
	RequestTimeout time.Duration // first byte of a request to last byte of the answer, without lookup and wait; 0 means 10s
	IdleTimeout    time.Duration // between two requests; 0 means 2m
	LookupTimeout  time.Duration // for the cache to answer; 0 means 10s

	// Ready says whether everything that was declared is there. Nil means always ready. It
	// must not block.
	Ready func() Readiness

	// Status returns what GET /status encodes as JSON. It must leave out what the viewer may
	// not see, and must not hold values. Nil means 404.
	Status func(Viewer) any

	// Reload reads the configuration again, for POST /reload; an error says why the agent goes on as it was. Nil
	// means 404.
	Reload func(context.Context) error

	// StatusPage makes GET /status answer browsers with a page. Off, there is neither page nor
	// sign-in.
	StatusPage bool

	// Versions returns the versions of one secret, without values, for GET /status/versions and for
	// the metadata of Vault. The caller may see the secret. Nil means that no backend tells them.
	Versions func(ctx context.Context, name upstream.SecretName) (VersionList, error)

	// Declared returns the names that LIST of Vault may show. It must not block. Nil means none.
	Declared func() []upstream.SecretName

	// Metrics writes the Prometheus text format for GET /metrics. It must leave out what the viewer
	// may not see. Nil means 404.
	Metrics func(w io.Writer, v Viewer) error

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

	monitor bool // see NewMonitor
}

// Viewer is the caller that a status, or metrics, are for.
type Viewer struct {
	Caller string
	All    bool                           // it may see everything
	May    func(upstream.SecretName) bool // it may see this secret; always true with All
}

// Hides reports whether the path of a name is not that of the secret, because it is one of Vault's.
func (o Options) Hides(name upstream.SecretName) bool {
	path := append([]byte(cmp.Or(o.PathPrefix, string(vaultPrefix))), name...)
	r, inner, _ := newVaultMounts(o.VaultMounts).routeOf(path)
	return r != nil && !((r == routeKV2 || r == routeKV1) && string(inner) == string(name))
}

// Validate returns every problem with the options, as New would find them: an
// [upstream.OptionErrors] whose keys are those below the section endpoint of agent.yaml.
func (o Options) Validate() error {
	_, err := o.checked()
	return err
}

// checked returns o with zeros replaced, and every problem with it.
func (o Options) checked() (Options, error) {
	var p upstream.OptionErrors
	if o.TokenHeaders == nil {
		o.TokenHeaders = []string{"X-KMS-Token", "X-Vault-Token", "X-Aws-Parameters-Secrets-Token"}
	}
	o.PathPrefix = cmp.Or(o.PathPrefix, "/v1/")
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
	if o.Ready == nil {
		o.Ready = func() Readiness { return Readiness{Ready: true} }
	}
	if o.Observe == nil {
		o.Observe = func(string, time.Duration) {}
	}
	if o.Declared == nil {
		o.Declared = func() []upstream.SecretName { return nil }
	}
	o.MaxBatchBytes = cmp.Or(o.MaxBatchBytes, 256<<20)
	o.checkLimits(&p)
	if len(o.TokenHeaders) == 0 {
		p.Addf("headers", "", "must name at least one header: a token is always required")
	}
	for i, h := range o.TokenHeaders {
		key := fmt.Sprintf("headers[%d]", i)
		name := strings.ToLower(h)
		switch {
		case !headerName.MatchString(h):
			p.Addf(key, h, "must be the name of an HTTP header, such as X-KMS-Token")
		case slices.Contains(otherHeaders, name), strings.HasPrefix(name, "x-forwarded"):
			p.Addf(key, h, "has another meaning: choose a header such as X-KMS-Token")
		}
	}
	for i, h := range o.AllowedHosts {
		if !hostName.MatchString(h) {
			p.Addf(fmt.Sprintf("allowedHosts[%d]", i), h, "must be a host name or address, without port")
		}
	}
	switch prefix := o.PathPrefix; {
	case !pathPrefix.MatchString(prefix):
		p.Addf("pathPrefix", prefix, "must start and end with a slash, such as /v1/")
	case prefix == "/", strings.HasPrefix(prefix, "/secretsmanager/"), routes[strings.TrimSuffix(prefix, "/")] != nil:
		p.Addf("pathPrefix", prefix, "would hide the other paths of the endpoint")
	}
	if !o.Format.valid() {
		p.Addf("format", strconv.Itoa(int(o.Format)), "must be one of %s", formatNames)
	}
	o.Format = cmp.Or(o.Format, FormatKMS)
	checkMounts(&p, o.VaultMounts)
	o.checkCallers(&p, o.Callers)
	return o, p.Err()
}

var (
	headerName = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)
	hostName   = regexp.MustCompile(`^[A-Za-z0-9._-]{1,253}$|^[0-9A-Fa-f:.]+$`)
	pathPrefix = regexp.MustCompile(`^/([A-Za-z0-9._~-]+/)*$`)
)

// otherHeaders cannot identify a caller.
var otherHeaders = []string{"host", "user-agent", "content-type", "content-length", "connection", "cookie", "transfer-encoding",
	"trailer", "origin", "forwarded", "via", "x-real-ip", "if-none-match", "sec-fetch-site", "expect", "traceparent"}

// checkLimits replaces zeros among the numbers by their defaults, and adds what is out of bounds.
func (o *Options) checkLimits(p *upstream.OptionErrors) {
	for _, f := range []struct {
		key           string
		field         *int
		def, min, max int
	}{
		{"maxConnections", &o.MaxConnections, 800, 1, 1 << 20},
		{"maxRequestsPerConnection", &o.MaxRequestsPerConnection, 1_000_000, 1, 16_000_000},
		{"maxHeaderBytes", &o.MaxHeaderBytes, 8 << 10, 1 << 10, 1 << 20},
		{"maxBatch", &o.MaxBatch, 100, 1, 1000},
		{"maxWaiting", &o.MaxWaiters, 4096, 1, 1 << 20},
	} {
		if *f.field == 0 {
			*f.field = f.def
		}
		if *f.field < f.min || *f.field > f.max {
			p.Addf(f.key, strconv.Itoa(*f.field), "must be %d to %d", f.min, f.max)
		}
	}
	for _, f := range []struct {
		key   string
		field *time.Duration
		def   time.Duration
	}{
		{"maxWait", &o.MaxWait, 5 * time.Minute},
		{"requestTimeout", &o.RequestTimeout, 10 * time.Second},
		{"idleTimeout", &o.IdleTimeout, 2 * time.Minute},
		{"lookupTimeout", &o.LookupTimeout, 10 * time.Second},
	} {
		if *f.field == 0 {
			*f.field = f.def
		}
		if *f.field < time.Millisecond {
			p.Addf(f.key, f.field.String(), "must be at least 1ms")
		}
	}
}
