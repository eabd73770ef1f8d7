package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"time"

	"secretagent/agent/config"
	"secretagent/cache"
	"secretagent/upstream"
	"secretagent/upstream/builtin"
	"secretagent/upstream/kms"
)

// builtinKind is the built-in backend.
type builtinKind struct{ cfg *config.Local }

func (k builtinKind) name() string { return "local" }

func (k builtinKind) open(ctx context.Context, log *slog.Logger, _ func(kms.Observation)) (backend, error) {
	store, err := openSeeded(ctx, k.cfg, log)
	if err != nil {
		return nil, err
	}
	return &builtinBackend{store, log}, nil
}

// manage returns a [backend] where this process opens the files.
func (k builtinKind) manage(ctx context.Context, log *slog.Logger) (managed, error) {
	socket := string(k.cfg.API.Socket)
	running, err := answers(ctx, socket)
	if err != nil {
		return nil, err
	}
	if running {
		return kms.New(kms.Options{Endpoints: []kms.Endpoint{{Socket: socket}}, Logger: log})
	}
	store, err := openSeeded(ctx, k.cfg, log)
	switch {
	case errors.Is(err, builtin.ErrLocked) && socket == "":
		return nil, &upstream.Error{Message: err.Error() + "; set upstream.local.api.socket so that commands can reach the running agent", Err: upstream.ErrUnavailable}
	case errors.Is(err, builtin.ErrLocked):
		return nil, &upstream.Error{Message: err.Error() + "; nothing answers on " + socket + ": was the agent started with another configuration?", Err: upstream.ErrUnavailable}
	case err != nil:
		return nil, err
	}
	return &builtinBackend{store, log}, nil
}

func (k builtinKind) probe(ctx context.Context, refs []upstream.SecretRef, log *slog.Logger) ([]ProbeResult, error) {
	m, err := k.manage(ctx, log)
	if err != nil {
		return nil, err
	}
	return probe(ctx, m, "the built-in backend", refs), m.Close()
}

func (k builtinKind) tune(*cache.Options) {}

func (k builtinKind) fixed() []setting {
	return []setting{
		{"database", k.cfg.Database},
		{"keyring", k.cfg.Keyring},
		{"maxVersions", k.cfg.MaxVersions},
		{"api.socket", k.cfg.API.Socket},
		{"api.listen", k.cfg.API.Listen},
		{"api.tls", k.cfg.API.TLS},
	}
}

// builtinBackend is the built-in backend of a running agent.
type builtinBackend struct {
	*builtin.Store
	log *slog.Logger
}

func (b *builtinBackend) manager() upstream.Manager { return b.Store }

// prepare writes the seed at once: what it creates is not taken back.
func (b *builtinBackend) prepare(ctx context.Context, cfg *config.Upstream) (commit func(), err error) {
	return func() {}, seed(ctx, b.Store, cfg.Local.Seed, b.log)
}

func (b *builtinBackend) run(ctx context.Context) error { return b.Run(ctx) }

func (b *builtinBackend) status(s *UpstreamStatus) {
	st := b.Stats()
	s.Local = &LocalStatus{
		Reads: st.Reads, Writes: st.Writes, Commits: st.Commits, Purged: st.Purged,
		WritesQueued: st.Queued, WritesQueueLimit: st.QueueLimit,
	}
}

func (b *builtinBackend) collect(s sink) {
	st := b.Stats()
	s.counter("secretagent_local_reads_total", "Read transactions of the built-in backend.", st.Reads)
	s.counter("secretagent_local_writes_total", "Write operations of the built-in backend.", st.Writes)
	s.counter("secretagent_local_commits_total", "Commits of the built-in backend; fewer than writes when writers share one.", st.Commits)
	s.counter("secretagent_local_purged_total", "Secrets removed after their deletion window.", st.Purged)
	s.gauge("secretagent_local_writes_queued", "Writes in line.", float64(st.Queued))
	s.gauge("secretagent_local_writes_queued_limit", "The length of that line.", float64(st.QueueLimit))
}

// Store is the built-in backend, for commands on its keyring.
type Store = builtin.Store

// OpenStore opens the files of the built-in backend. It fails while an agent runs on them,
// with an error that wraps [upstream.ErrUnavailable].
func OpenStore(cfg *config.Local, log *slog.Logger) (*Store, error) {
	store, err := builtin.Open(builtinOptions(cfg, log))
	if errors.Is(err, builtin.ErrLocked) {
		return nil, &upstream.Error{Message: err.Error() + "; stop the agent first", Err: upstream.ErrUnavailable}
	}
	return store, err
}

func builtinOptions(cfg *config.Local, log *slog.Logger) builtin.Options {
	return builtin.Options{
		Database: string(cfg.Database), Keyring: string(cfg.Keyring), KeyringIsCredential: isCredential(cfg.Keyring),
		MaxVersions: cfg.MaxVersions, Logger: log.With("part", "backend"),
	}
}

func openSeeded(ctx context.Context, cfg *config.Local, log *slog.Logger) (*builtin.Store, error) {
	store, err := builtin.Open(builtinOptions(cfg, log))
	if err != nil {
		return nil, err
	}
	if err := seed(ctx, store, cfg.Seed, log); err != nil {
		return nil, errors.Join(err, store.Close())
	}
	return store, nil
}

// seed creates the configured secrets that are missing and leaves all others alone.
func seed(ctx context.Context, m upstream.Manager, seeds []config.Seed, log *slog.Logger) error {
	for _, s := range seeds {
		_, err := m.CreateSecret(ctx, upstream.CreateSecretInput{SecretName: s.Name, VersionID: s.VersionID, SecretData: s.Data})
		switch {
		case err == nil:
			log.Info("seeded", "secret", string(s.Name), "version", string(s.VersionID))
		case errors.Is(err, upstream.ErrExists):
		case errors.Is(err, upstream.ErrPendingDeletion):
			log.Warn("not seeded: the secret is scheduled for deletion", "secret", string(s.Name), "hint", "secretagent secret restore "+string(s.Name))
		default:
			return fmt.Errorf("upstream.local.seed: %s: %w", s.Name, err)
		}
	}
	return nil
}

// answers reports whether a process serves the unix socket. A socket that is missing or dead is no
// error. One that we may not open is an error: the agent of another user serves it.
func answers(ctx context.Context, socket string) (bool, error) {
	if socket == "" {
		return false, nil
	}
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(ctx, "unix", socket)
	switch {
	case err == nil:
		return true, conn.Close()
	case ctx.Err() != nil:
		return false, ctx.Err()
	case errors.Is(err, fs.ErrPermission):
		return false, &upstream.Error{Message: socket + ": no permission to open the socket; an agent of another user serves it", Err: upstream.ErrAccessDenied}
	}
	return false, nil
}
