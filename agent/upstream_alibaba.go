package agent

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"secretagent/agent/config"
	"secretagent/agent/endpoint"
	"secretagent/agent/listen"
	"secretagent/agent/rotation"
	"secretagent/cache"
	"secretagent/upstream"
	"secretagent/upstream/keyfile"
	"secretagent/upstream/kms"
)

// alibaba is Alibaba Cloud KMS.
type alibaba struct{ cfg *config.Alibaba }

func (k alibaba) name() string { return "alibaba" }

func (k alibaba) check() error {
	var p upstream.OptionErrors
	log := slog.New(slog.DiscardHandler)
	p.Add("credentials", credentialOptions(&k.cfg.Credentials, log).Validate())
	opts := cloudOptions(k.cfg, log)
	opts.Credentials = kms.StaticCredential("", "", "") // those of the options above
	p.Add("", opts.Validate())
	checkAPI(&p, k.cfg.API)
	return p.Err()
}

func (k alibaba) open(_ context.Context, log *slog.Logger, observe func(kms.Observation)) (backend, error) {
	first, err := openCloud(k.cfg, log, observe)
	if err != nil {
		return nil, err
	}
	b := &alibabaBackend{log: log, observe: observe, replaced: map[*cloud]*time.Timer{}}
	b.current.Store(first)
	return b, nil
}

func (k alibaba) manage(_ context.Context, log *slog.Logger, _ Files) (managed, error) {
	return openCloud(k.cfg, log, nil)
}

// probe asks each endpoint once, with one attempt for each of refs.
func (k alibaba) probe(ctx context.Context, refs []upstream.SecretRef, log *slog.Logger) ([]ProbeResult, error) {
	var results []ProbeResult
	for i, e := range k.cfg.Endpoints {
		one := *k.cfg
		one.Endpoints = k.cfg.Endpoints[i : i+1]
		one.Retry.MaxAttempts = 1
		one.Deadline = one.Timeout
		c, err := openCloud(&one, log, nil)
		if err != nil {
			return results, err
		}
		for _, r := range probe(ctx, c, cmp.Or(e.Host, "kms."+e.Region+".aliyuncs.com"), refs) {
			r.Credential = c.Status().Credential.Source
			results = append(results, r)
		}
		if err := c.Close(); err != nil {
			return results, err
		}
	}
	return results, nil
}

// tune lets a call take longer than the client takes, which gives up by itself and says why.
func (k alibaba) tune(opts *cache.Options) {
	opts.FetchTimeout = max(opts.FetchTimeout, k.cfg.Deadline+time.Second)
	opts.MaxFetches = k.cfg.MaxConcurrent
}

// fixed returns what the listeners of the KMS API and the bounds of the cache follow from.
func (k alibaba) fixed() []setting {
	return append(fixedAPI(k.cfg.API), setting{"api", k.cfg.API != nil}, setting{"deadline", k.cfg.Deadline}, setting{"maxConcurrent", k.cfg.MaxConcurrent})
}

// alibabaBackend is the cloud to a running agent. Its client can be exchanged while it works.
type alibabaBackend struct {
	log     *slog.Logger
	observe func(kms.Observation)
	current atomic.Pointer[cloud]
	changed atomic.Pointer[func(upstream.SecretName)] // nil: nobody wants to hear

	mu       sync.Mutex
	replaced map[*cloud]*time.Timer // :: client that reads may still use → its end
}

func (b *alibabaBackend) GetSecretValue(ctx context.Context, ref upstream.SecretRef) (upstream.SecretValue, error) {
	return b.current.Load().GetSecretValue(ctx, ref)
}

func (b *alibabaBackend) operations() map[string]operation { return nil }

func (b *alibabaBackend) problems() []endpoint.Problem { return nil }

// OnChange calls changed where the endpoint in use is another agent, which tells of changes; the
// cloud does not. It has room for one.
func (b *alibabaBackend) OnChange(changed func(upstream.SecretName)) (cancel func()) {
	b.changed.Store(&changed)
	return func() { b.changed.CompareAndSwap(&changed, nil) }
}

// tell passes a change on.
func (b *alibabaBackend) tell(name upstream.SecretName) {
	if changed := b.changed.Load(); changed != nil {
		(*changed)(name)
	}
}

// manager returns nil: the cloud has its own API, and every question costs a call.
func (b *alibabaBackend) manager() upstream.Manager { return nil }

func (b *alibabaBackend) prepare(_ context.Context, cfg *config.Upstream) (commit func(), err error) {
	now := b.current.Load()
	if sameClient(*cfg.Alibaba, *now.cfg) && fingerprint(caFiles(cfg.Alibaba)) == now.cas {
		return func() {}, nil
	}
	next, err := openCloud(cfg.Alibaba, b.log, b.observe)
	if err != nil {
		return nil, err
	}
	return func() { b.retire(b.current.Swap(next)) }, nil
}

// sameClient reports whether one client does for both configurations.
func sameClient(a, b config.Alibaba) bool {
	a.API, b.API = nil, nil
	return reflect.DeepEqual(a, b)
}

// served returns what clients of the KMS API may do: read what the cache holds, so that all of them
// together cost the quota what one agent does, and manage secrets as the client in use can. Only
// names are known, not ARNs: rights are given by name, and so would be those on secrets of other
// accounts.
func (b *alibabaBackend) served(c *cache.Cache) upstream.Manager {
	told := upstream.TellWrites(relay{b.current.Load().Client, c}, func(_ context.Context, name upstream.SecretName) { b.tell(name) })
	return upstream.OfAccount(told, "asked for by names alone")
}

// rotated returns the client in use. What is written with it this agent hears of.
func (b *alibabaBackend) rotated() rotation.Upstream {
	return upstream.TellWrites(b.current.Load().Client, func(_ context.Context, name upstream.SecretName) { b.tell(name) })
}

// relay is an upstream whose values come from the cache.
type relay struct {
	upstream.Manager
	cache *cache.Cache
}

func (r relay) GetSecretValue(ctx context.Context, ref upstream.SecretRef) (upstream.SecretValue, error) {
	answer, err := r.cache.Lookup(ctx, ref)
	if err != nil {
		return upstream.SecretValue{}, err
	}
	return *answer.Value, nil
}

// retire closes a client when the reads that are on their way must have ended.
func (b *alibabaBackend) retire(old *cloud) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old.retired()
	b.replaced[old] = time.AfterFunc(old.cfg.Deadline, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.replaced[old] == nil {
			return // Close was faster
		}
		delete(b.replaced, old)
		if err := old.Close(); err != nil {
			b.log.Warn("closing the previous client failed", "part", "kms", "err", err, "hint", "nothing: the new one is in use")
		}
	})
}

// run watches for changes, with the client in use; the rest of it works by itself.
func (b *alibabaBackend) run(ctx context.Context) error {
	for ctx.Err() == nil {
		c := b.current.Load()
		watched, stop := context.WithCancel(ctx)
		free := context.AfterFunc(c.inUse, stop)
		if c.Watch(watched, b.tell) && ctx.Err() == nil {
			b.tell(upstream.AnySecret) // of what happens until the next one begins, nobody tells
		}
		free()
		stop()
	}
	return nil
}

func (b *alibabaBackend) status(s *UpstreamStatus) {
	now := b.current.Load()
	s.Alibaba = &AlibabaStatus{now.Status(), now.caExpires}
}

func (b *alibabaBackend) collect(s sink) {
	now := b.current.Load()
	st := now.Status()
	for _, state := range []string{"closed", "open", "half-open"} {
		s.gauge("secretagent_upstream_breaker_state", "1 for the state that the breaker is in.", boolean(st.Breaker.State == state), "state", state)
	}
	s.gauge("secretagent_upstream_budget_calls_per_second", "The rate at which calls are made at most, as the service allows it at present.", st.Budget.CallsPerSecond)
	s.gauge("secretagent_upstream_budget_calls", "Calls that may start at once; negative while some wait.", st.Budget.Calls)
	s.gauge("secretagent_upstream_budget_waiting_calls", "Attempts in line for the budget.", float64(st.Budget.Waiting))
	s.counter("secretagent_upstream_budget_waits_total", "Attempts that had to wait for the budget.", st.Budget.Waits)
	s.send(prometheus.CounterValue, "secretagent_upstream_budget_wait_seconds_total", "How long attempts have waited for the budget, all together.", st.Budget.WaitSeconds, nil)
	s.counter("secretagent_upstream_budget_refusals_total", "Attempts that were not made because their turn would have come too late.", st.Budget.Refused)
	s.gauge("secretagent_upstream_calls_in_flight", "Attempts on their way.", float64(st.InFlight))
	s.gauge("secretagent_upstream_calls_in_flight_limit", "The limit of attempts on their way.", float64(now.cfg.MaxConcurrent))
	s.gauge("secretagent_upstream_budget_paused", "1 while the service has asked for a pause.", boolean(st.Budget.PausedUntil.After(time.Now())))
	s.gauge("secretagent_upstream_credential_failing", "1 while the source of the credential gives nothing.", boolean(st.Credential.Error != ""))
	s.moment("secretagent_upstream_credential_renewed_timestamp_seconds", "When the present credential was first seen.", st.Credential.RenewedAt)
	s.moment("secretagent_upstream_credential_expiry_timestamp_seconds", "When the present credential ends, where that is known: it is for ram_role_arn and oidc_role_arn.", st.Credential.Expires)
	s.gauge("secretagent_upstream_watch_up", "1 while the endpoint, another agent, tells of changes as they happen.", boolean(st.Watch.State == "on"))
	s.gauge("secretagent_upstream_watch_broken", "1 while an endpoint that has told of changes cannot: values are as fresh as cache.ttl makes them.", boolean(st.Watch.State == "broken"))
	s.counter("secretagent_upstream_watch_changes_total", "Changes that the endpoint has told of.", st.Watch.Changes)
	for _, e := range st.Endpoints {
		s.gauge("secretagent_upstream_endpoint_up", "1 while the endpoint is not resting after failures.", boolean(e.State != "resting"), "endpoint", e.Name)
	}
}

// Close closes the client in use, and those that it has replaced.
func (b *alibabaBackend) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	err := b.current.Load().Close()
	for old, end := range b.replaced {
		end.Stop()
		err = errors.Join(err, old.Close())
	}
	clear(b.replaced)
	return err
}

// cloud is a client of Alibaba Cloud KMS and its credentials.
type cloud struct {
	*kms.Client
	cfg         *config.Alibaba // what it was made for
	credentials *kms.CredentialSource
	cas         string    // fingerprint of the files with authorities, which are read once
	caExpires   time.Time // see caExpiry

	inUse   context.Context // ends when another has replaced it
	retired context.CancelFunc
}

// Close ends the client and then what signs for it.
func (c *cloud) Close() error {
	c.retired()
	return errors.Join(c.Client.Close(), c.credentials.Close())
}

func openCloud(cfg *config.Alibaba, log *slog.Logger, observe func(kms.Observation)) (*cloud, error) {
	log = log.With("part", "kms")
	credentials, err := kms.NewCredentials(credentialOptions(&cfg.Credentials, log))
	if err != nil {
		return nil, inSection("upstream.alibaba.credentials", err)
	}
	opts := cloudOptions(cfg, log)
	opts.Credentials, opts.Observe = credentials, observe
	cas := fingerprint(caFiles(cfg)) // before they are read, so that no change is missed
	client, err := kms.New(opts)
	if err != nil {
		return nil, errors.Join(inSection("upstream.alibaba", err), credentials.Close())
	}
	c := &cloud{Client: client, cfg: cfg, credentials: credentials, cas: cas, caExpires: caExpiry(cfg)}
	c.inUse, c.retired = context.WithCancel(context.Background())
	return c, nil
}

func credentialOptions(cfg *config.Credentials, log *slog.Logger) kms.CredentialOptions {
	return kms.CredentialOptions{
		Type:                cfg.Type,
		AccessKeyIDFile:     string(cfg.AccessKeyIDFile),
		AccessKeySecretFile: string(cfg.AccessKeySecretFile),
		SecurityTokenFile:   string(cfg.SecurityTokenFile),
		RoleARN:             cfg.RoleARN,
		RoleSessionName:     cfg.RoleSessionName,
		SessionDuration:     cfg.SessionDuration,
		ExternalID:          cfg.ExternalID,
		Policy:              cfg.Policy,
		STSEndpoint:         cfg.STSEndpoint,
		OIDCProviderARN:     cfg.OIDCProviderARN,
		OIDCTokenFile:       string(cfg.OIDCTokenFile),
		RoleName:            cfg.RoleName,
		DisableIMDSv1:       cfg.DisableIMDSv1,
		URI:                 cfg.URI,
		Profile:             cfg.Profile,
		ProfileFile:         string(cfg.ProfileFile),
		Logger:              log,
	}
}

func cloudOptions(cfg *config.Alibaba, log *slog.Logger) kms.Options {
	opts := kms.Options{
		Timeout: cfg.Timeout, Deadline: cfg.Deadline,
		Retry:         kms.Retry{MaxAttempts: cfg.Retry.MaxAttempts, Base: cfg.Retry.Base, Cap: cfg.Retry.Cap},
		Budget:        kms.Budget{PerSecond: cfg.Budget.PerSecond, Burst: cfg.Budget.Burst},
		Breaker:       kms.Breaker{Failures: cfg.Breaker.Failures, Pause: cfg.Breaker.Pause, MaxPause: cfg.Breaker.MaxPause},
		MaxConcurrent: cfg.MaxConcurrent,
		Logger:        log,
	}
	for _, e := range cfg.Endpoints {
		opts.Endpoints = append(opts.Endpoints, kms.Endpoint{Region: e.Region, Host: e.Host, Scheme: e.Scheme, CAFile: string(e.CAFile)})
	}
	return opts
}

// caFiles returns the files with authorities that endpoints are checked against.
func caFiles(cfg *config.Alibaba) (files []string) {
	for _, e := range cfg.Endpoints {
		if e.CAFile != "" {
			files = append(files, string(e.CAFile))
		}
	}
	return files
}

// caExpiry returns when the first of the authorities ends that endpoints are checked against;
// zero when they are those of the system. The client has read the files and found them right.
func caExpiry(cfg *config.Alibaba) (first time.Time) {
	for _, file := range caFiles(cfg) {
		text, err := keyfile.PEM.Read(file)
		if err != nil { // removed since
			continue
		}
		if end := listen.FirstExpiry(text); first.IsZero() || !end.IsZero() && end.Before(first) {
			first = end
		}
	}
	return first
}
