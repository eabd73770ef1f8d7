package agent

import (
	"context"
	"log/slog"
	"time"

	"secretagent/agent/config"
	"secretagent/cache"
	"secretagent/upstream"
	"secretagent/upstream/builtin"
	"secretagent/upstream/builtin/etcd"
	"secretagent/upstream/kms"
)

// etcdKind is the built-in backend on a cluster of etcd.
type etcdKind struct{ cfg *config.Etcd }

func (k etcdKind) name() string { return "etcd" }

func (k etcdKind) check() error {
	var p upstream.OptionErrors
	p.Add("", etcdOptions(k.cfg, slog.New(slog.DiscardHandler)).Validate())
	checkAPI(&p, &k.cfg.API)
	return p.Err()
}

// open does not wait for the cluster, but for the seed of one that answers.
func (k etcdKind) open(ctx context.Context, log *slog.Logger, _ func(kms.Observation)) (backend, error) {
	b, err := k.connect(log)
	if err != nil {
		return nil, inSection("upstream.etcd", err)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := b.store.Seed(ctx, b.seed); err == nil {
		b.seed = nil
	} // else run does it
	return b, nil
}

func (k etcdKind) connect(log *slog.Logger) (*etcdBackend, error) {
	store, err := etcd.Open(etcdOptions(k.cfg, log))
	if err != nil {
		return nil, err
	}
	return &etcdBackend{newBuiltinCommon(store, log), store, seed(k.cfg.Seed)}, nil
}

// manage returns what the running agent serves, or where none runs here, a connection to the cluster.
func (k etcdKind) manage(ctx context.Context, log *slog.Logger, _ Files) (managed, error) {
	socket := string(k.cfg.API.Socket)
	running, err := answers(ctx, socket)
	if err != nil {
		return nil, err
	}
	if running {
		// The agent has tried what it can when it says that etcd is away, which may take two requests.
		patience := max(socketTimeout, 2*k.cfg.Timeout+time.Second)
		return kms.New(kms.Options{Endpoints: []kms.Endpoint{{Socket: socket}}, Timeout: patience, Deadline: patience, Retry: kms.Retry{MaxAttempts: 1}})
	}
	return k.connect(log)
}

func (k etcdKind) probe(ctx context.Context, refs []upstream.SecretRef, log *slog.Logger) ([]ProbeResult, error) {
	b, err := k.connect(log)
	if err != nil {
		return nil, err
	}
	return probe(ctx, b, "etcd", refs), b.Close()
}

// tune lets a read take longer than its two requests may.
func (k etcdKind) tune(opts *cache.Options) {
	opts.FetchTimeout = max(opts.FetchTimeout, 2*k.cfg.Timeout+time.Second)
}

func (k etcdKind) fixed() []setting {
	return append(fixedAPI(&k.cfg.API), []setting{
		{"endpoints", k.cfg.Endpoints},
		{"prefix", k.cfg.Prefix},
		{"tls", k.cfg.TLS},
		{"user", k.cfg.User},
		{"passwordFile", k.cfg.PasswordFile},
		{"timeout", k.cfg.Timeout},
		{"keyring", k.cfg.Keyring},
		{"maxVersions", k.cfg.MaxVersions},
		{"emulate", k.cfg.Emulate},
		{"seed", k.cfg.Seed},
	}...)
}

func etcdOptions(cfg *config.Etcd, log *slog.Logger) etcd.Options {
	opts := etcd.Options{
		Endpoints: cfg.Endpoints, Prefix: cfg.Prefix, User: cfg.User, PasswordFile: string(cfg.PasswordFile), Timeout: cfg.Timeout,
		Options: builtin.Options{
			Keyring: string(cfg.Keyring), KeyringIsCredential: isCredential(cfg.Keyring),
			MaxVersions: cfg.MaxVersions, Emulate: builtin.Emulate(cfg.Emulate), Seed: seed(cfg.Seed), Logger: log.With("part", "backend"),
		},
	}
	if cfg.TLS != nil {
		opts.CAFile, opts.CertFile, opts.KeyFile = string(cfg.TLS.CAFile), string(cfg.TLS.CertFile), string(cfg.TLS.KeyFile)
	}
	return opts
}

// etcdBackend is the built-in backend on etcd, of a running agent.
type etcdBackend struct {
	builtinCommon
	store *etcd.Store
	seed  []upstream.CreateSecretInput // that is still to be created
}

const seedRetry = 5 * time.Second

// run creates the seed as soon as the cluster answers, and purges.
func (b *etcdBackend) run(ctx context.Context) error {
	for len(b.seed) > 0 {
		err := b.store.Seed(ctx, b.seed)
		if err == nil {
			break
		}
		b.log.Warn("not seeded yet", "retry_in", seedRetry, "err", err, "hint", "it is tried again; check etcd when it stays")
		select {
		case <-time.After(seedRetry):
		case <-ctx.Done():
			return nil
		}
	}
	return b.builtinCommon.run(ctx)
}

// prepare reads the keyring again. Secrets are seeded at a start.
func (b *etcdBackend) prepare(ctx context.Context, _ *config.Upstream) (commit func(), err error) {
	commit, err = b.store.ReadKeyring(ctx)
	return commit, inSection("upstream.etcd", err)
}

func (b *etcdBackend) status(s *UpstreamStatus) {
	st := b.store.Stats()
	s.Etcd = &st
}

func (b *etcdBackend) collect(s sink) {
	st := b.store.Stats()
	s.counter("secretagent_etcd_writes_total", "Write operations of the built-in backend on etcd.", st.Writes)
	s.counter("secretagent_etcd_commits_total", "Transactions that changed something at etcd.", st.Commits)
	s.counter("secretagent_etcd_conflicts_total", "Transactions that were repeated because others had changed the same.", st.Conflicts)
	s.counter("secretagent_etcd_purged_total", "Secrets that this agent removed after their deletion window.", st.Purged)
	s.gauge("secretagent_etcd_watch_up", "1 while etcd tells of changes at once; otherwise they are found when values are refreshed.", boolean(st.WatchUp))
	s.gauge("secretagent_etcd_watch_silence_seconds", "Time since etcd's watch gave the last sign of life, which it does every 5 s; 15 s are a broken watch.", time.Since(st.WatchAlive).Seconds())
	s.counter("secretagent_etcd_watch_breaks_total", "Times that the watch of etcd broke.", st.WatchBreaks)
	s.counter("secretagent_etcd_watch_resyncs_total", "Times that everything was read anew, the first one included.", st.WatchResyncs)
	s.gauge("secretagent_etcd_unreadable", "Secrets that cannot be read because the keyring lacks their key or they are damaged.", float64(st.Unreadable))
	collectKeys(s, st.Keys)
}
