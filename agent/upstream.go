package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"secretagent/agent/config"
	"secretagent/upstream"
	"secretagent/upstream/builtin"
	"secretagent/upstream/kms"
)

// backend is the chosen upstream as the agent needs it. The cloud client can be exchanged while
// it works.
type backend struct {
	store *builtin.Store        // nil: not the built-in backend
	cloud atomic.Pointer[cloud] // nil: not the cloud
}

// cloud is a client of Alibaba Cloud KMS and its credentials.
type cloud struct {
	*kms.Client
	credentials *kms.CredentialSource
	caExpires   time.Time // see caExpiry
}

// close ends the client and then what signs for it.
func (c *cloud) close() error { return errors.Join(c.Client.Close(), c.credentials.Close()) }

// openBackend opens the upstream of cfg. The built-in backend gets its seed.
func openBackend(ctx context.Context, cfg *config.Config, log *slog.Logger, observe func(kms.Observation)) (*backend, error) {
	b := new(backend)
	if cfg.Upstream.Alibaba != nil {
		c, err := openCloud(cfg.Upstream.Alibaba, log, observe)
		if err != nil {
			return nil, err
		}
		b.cloud.Store(c)
		return b, nil
	}
	var err error
	if b.store, err = openStore(cfg.Upstream.Local, log); err != nil {
		return nil, err
	}
	if err := seed(ctx, b.store, cfg.Upstream.Local.Seed, log); err != nil {
		return nil, errors.Join(err, b.store.Close())
	}
	return b, nil
}

// GetSecretValue reads from whichever upstream it is; see [upstream.Manager].
func (b *backend) GetSecretValue(ctx context.Context, ref upstream.SecretRef) (upstream.SecretValue, error) {
	if b.store != nil {
		return b.store.GetSecretValue(ctx, ref)
	}
	return b.cloud.Load().GetSecretValue(ctx, ref)
}

// client returns the client of the cloud in use, or nil.
func (b *backend) client() *kms.Client {
	if c := b.cloud.Load(); c != nil {
		return c.Client
	}
	return nil
}

// run does what the backend does in the background, until ctx ends.
func (b *backend) run(ctx context.Context) error {
	if b.store == nil {
		return nil
	}
	return b.store.Run(ctx)
}

func (b *backend) close() error {
	if b.store != nil {
		return b.store.Close()
	}
	return b.cloud.Load().close()
}

// OpenManager opens the upstream of cfg for a command: the cloud, or the built-in backend,
// over the socket of the agent that runs on it or, when none runs, by opening its files, seed
// included. The caller closes it.
//
// An error wraps [upstream.ErrUnavailable] when the backend is there but in use.
func OpenManager(ctx context.Context, cfg *config.Config, log *slog.Logger) (_ upstream.Manager, close func() error, _ error) {
	if cfg.Upstream.Alibaba != nil {
		c, err := openCloud(cfg.Upstream.Alibaba, log, nil)
		if err != nil {
			return nil, nil, err
		}
		return c, c.close, nil
	}
	socket := string(cfg.Upstream.Local.API.Socket)
	running, err := answers(ctx, socket)
	if err != nil {
		return nil, nil, err
	}
	if running {
		client, err := kms.New(kms.Options{Endpoints: []kms.Endpoint{{Socket: socket}}, Logger: log})
		if err != nil {
			return nil, nil, err
		}
		return client, client.Close, nil
	}
	store, err := openStore(cfg.Upstream.Local, log)
	switch {
	case errors.Is(err, builtin.ErrLocked) && socket == "":
		return nil, nil, &upstream.Error{Message: err.Error() + "; set upstream.local.api.socket so that commands can reach the running agent", Err: upstream.ErrUnavailable}
	case errors.Is(err, builtin.ErrLocked):
		return nil, nil, &upstream.Error{Message: err.Error() + "; nothing answers on " + socket + ": was the agent started with another configuration?", Err: upstream.ErrUnavailable}
	case err != nil:
		return nil, nil, err
	}
	if err := seed(ctx, store, cfg.Upstream.Local.Seed, log); err != nil {
		return nil, nil, errors.Join(err, store.Close())
	}
	return store, store.Close, nil
}

// Store is the built-in backend, for commands on its keyring.
type Store = builtin.Store

// OpenStore opens the files of the built-in backend. It fails while an agent runs on them,
// with an error that wraps [upstream.ErrUnavailable].
func OpenStore(cfg *config.Local, log *slog.Logger) (*Store, error) {
	store, err := openStore(cfg, log)
	if errors.Is(err, builtin.ErrLocked) {
		return nil, &upstream.Error{Message: err.Error() + "; stop the agent first", Err: upstream.ErrUnavailable}
	}
	return store, err
}

// answers reports whether somebody serves the unix socket. That it is not there, or that
// nobody serves it any more, is no error; that we may not open it is one, because then
// somebody else's agent does.
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

func openStore(cfg *config.Local, log *slog.Logger) (*builtin.Store, error) {
	return builtin.Open(builtin.Options{
		Database: string(cfg.Database), Keyring: string(cfg.Keyring), KeyringIsCredential: isCredential(cfg.Keyring),
		MaxVersions: cfg.MaxVersions, Logger: log.With("part", "backend"),
	})
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

func openCloud(cfg *config.Alibaba, log *slog.Logger, observe func(kms.Observation)) (*cloud, error) {
	log = log.With("part", "kms")
	c := cfg.Credentials
	credentials, err := kms.NewCredentials(kms.CredentialOptions{
		Type:                c.Type,
		AccessKeyIDFile:     string(c.AccessKeyIDFile),
		AccessKeySecretFile: string(c.AccessKeySecretFile),
		SecurityTokenFile:   string(c.SecurityTokenFile),
		RoleARN:             c.RoleARN,
		RoleSessionName:     c.RoleSessionName,
		SessionDuration:     c.SessionDuration,
		ExternalID:          c.ExternalID,
		Policy:              c.Policy,
		STSEndpoint:         c.STSEndpoint,
		OIDCProviderARN:     c.OIDCProviderARN,
		OIDCTokenFile:       string(c.OIDCTokenFile),
		RoleName:            c.RoleName,
		DisableIMDSv1:       c.DisableIMDSv1,
		URI:                 c.URI,
		Profile:             c.Profile,
		ProfileFile:         string(c.ProfileFile),
		Logger:              log,
	})
	if err != nil {
		return nil, fmt.Errorf("upstream.alibaba.%w", err) // it begins with "credentials."
	}
	opts := kms.Options{
		Credentials: credentials,
		Timeout:     cfg.Timeout, Deadline: cfg.Deadline,
		Retry:         kms.Retry{MaxAttempts: cfg.Retry.MaxAttempts, Base: cfg.Retry.Base, Cap: cfg.Retry.Cap},
		Budget:        kms.Budget{PerSecond: cfg.Budget.PerSecond, Burst: cfg.Budget.Burst},
		Breaker:       kms.Breaker{Failures: cfg.Breaker.Failures, Pause: cfg.Breaker.Pause, MaxPause: cfg.Breaker.MaxPause},
		MaxConcurrent: cfg.MaxConcurrent,
		Logger:        log,
		Observe:       observe,
	}
	for _, e := range cfg.Endpoints {
		opts.Endpoints = append(opts.Endpoints, kms.Endpoint{Region: e.Region, Host: e.Host, Scheme: e.Scheme, CAFile: string(e.CAFile)})
	}
	client, err := kms.New(opts)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("upstream.alibaba: %w", err), credentials.Close())
	}
	return &cloud{client, credentials, caExpiry(cfg.Endpoints)}, nil
}
