package agent

import (
	"context"
	"io"
	"log/slog"

	"secretagent/agent/config"
	"secretagent/agent/endpoint"
	"secretagent/agent/rotation"
	"secretagent/cache"
	"secretagent/upstream"
	"secretagent/upstream/kms"
	"secretagent/upstream/kmsserver"
)

// kind is a kind of upstream, with its section of a configuration. Each has a file of its own,
// upstream_KIND.go, and a case in [kindOf]; nothing else tells them apart.
type kind interface {
	// name is the section in the configuration and the Kind in the status.
	name() string

	// check returns every problem with the section, as [Check] does.
	check() error

	// open opens the upstream for an agent. observe hears of each call to a service.
	open(ctx context.Context, log *slog.Logger, observe func(kms.Observation)) (backend, error)

	// manage opens the upstream for a command. The caller closes what it gets.
	manage(ctx context.Context, log *slog.Logger, files Files) (managed, error)

	// probe reads refs from every place that the upstream can be reached at.
	probe(ctx context.Context, refs []upstream.SecretRef, log *slog.Logger) ([]ProbeResult, error)

	// tune fits the options of the cache to this upstream.
	tune(opts *cache.Options)

	// fixed returns the settings that only a restart changes, in an order of their own.
	fixed() []setting
}

// kindOf returns the upstream that cfg has chosen.
func kindOf(cfg *config.Upstream) kind {
	if cfg.Alibaba != nil {
		return alibaba{cfg.Alibaba}
	}
	if cfg.Etcd != nil {
		return etcdKind{cfg.Etcd}
	}
	return builtinKind{cfg.Local}
}

// backend is an upstream as a running agent needs it.
type backend interface {
	cache.Upstream

	// OnChange calls changed for each secret that has changed, until cancel is called. An
	// upstream that cannot tell never calls it.
	OnChange(changed func(upstream.SecretName)) (cancel func())

	// manager is what versions are listed from for nothing; nil where the secrets are managed
	// elsewhere.
	manager() upstream.Manager

	// served is what the KMS API serves: the backend itself or, where each read costs a call, what
	// c holds of it. A reload asks again.
	served(c *cache.Cache) upstream.Manager

	// rotated is what versions are rotated on: the upstream itself, as it is in use now.
	rotated() rotation.Upstream

	// prepare does what can fail of a change to the configuration cfg, as the last step that
	// can: commit, which is called next, completes it.
	prepare(ctx context.Context, cfg *config.Upstream) (commit func(), err error)

	// run does what there is to do in the background, until ctx ends.
	run(ctx context.Context) error

	// operations returns what whoever runs the agent may ask of it, by method and path.
	operations() map[string]operation

	// problems returns what is wrong and does not keep the agent from serving what it can.
	problems() []endpoint.Problem

	status(s *UpstreamStatus)
	collect(s sink)

	io.Closer
}

// managed is an upstream as a command needs it.
type managed interface {
	upstream.Manager
	io.Closer
}

// checkAPI adds every problem with the KMS API, which may be nil.
func checkAPI(p *upstream.OptionErrors, api *config.API) {
	if api != nil {
		p.Add("api", checkListeners(apiListeners(api)))
		p.Add("api", kmsserver.Options{AccessKeys: accessKeys(api.AccessKeys)}.Validate())
	}
}

// fixedAPI returns what only a restart changes of the KMS API, which may be nil.
func fixedAPI(api *config.API) []setting {
	if api == nil {
		api = &config.API{}
	}
	return []setting{{"api.socket", api.Socket}, {"api.listen", api.Listen}, {"api.tls", api.TLS}}
}

// setting is one value of the configuration.
type setting struct {
	key   string
	value any
}

// Files says what a command makes of a built-in backend that no agent runs on.
type Files int

const (
	ExistingFiles Files = iota // nothing: it reads and writes what is there
	MissingFiles               // the database and the keyring, where they are missing
	StartFiles                 // these and the seed, as at a start of the agent
)

// OpenManager opens the upstream of cfg for a command: the cloud, or the built-in backend,
// over the socket of the agent that runs on it or, when none runs, by opening its files. The
// caller closes it.
//
// An error wraps [upstream.ErrUnavailable] when the backend is there but in use, and
// [ErrNoDatabase] when it has no files yet and none are to be made.
func OpenManager(ctx context.Context, cfg *config.Config, log *slog.Logger, files Files) (_ upstream.Manager, close func() error, _ error) {
	m, err := kindOf(&cfg.Upstream).manage(ctx, log, files)
	if err != nil {
		return nil, nil, err
	}
	return m, m.Close, nil
}
