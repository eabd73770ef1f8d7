package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"time"

	"secretagent/agent/config"
	"secretagent/agent/rotation"
	"secretagent/cache"
	"secretagent/upstream"
	"secretagent/upstream/builtin"
	"secretagent/upstream/builtin/bolt"
	"secretagent/upstream/keyfile"
	"secretagent/upstream/kms"
	"secretagent/upstream/kmsserver"
)

// builtinKind is the built-in backend.
type builtinKind struct{ cfg *config.Local }

func (k builtinKind) name() string { return "local" }

func (k builtinKind) check() error {
	var p upstream.OptionErrors
	p.Add("", builtinOptions(k.cfg, slog.New(slog.DiscardHandler)).Validate())
	checkAPI(&p, &k.cfg.API)
	return p.Err()
}

func (k builtinKind) open(ctx context.Context, log *slog.Logger, _ func(kms.Observation)) (backend, error) {
	store, err := k.openFiles(ctx, log, StartFiles)
	if err != nil {
		return nil, inSection("upstream.local", err)
	}
	return newBuiltinBackend(store, log), nil
}

// openFiles opens the database and, at a start, writes the seed, which ctx can end: it can be large.
func (k builtinKind) openFiles(ctx context.Context, log *slog.Logger, files Files) (*bolt.Store, error) {
	opts := builtinOptions(k.cfg, log)
	if err := opts.Validate(); err != nil {
		return nil, err // of the seed, too
	}
	opts.Seed, opts.Existing = nil, files == ExistingFiles
	store, err := bolt.Open(opts)
	if err != nil || files != StartFiles {
		return store, err
	}
	if err := store.Seed(ctx, seed(k.cfg.Seed)); err != nil {
		return nil, errors.Join(err, store.Close())
	}
	return store, nil
}

// manage returns a [backend] where this process opens the files.
func (k builtinKind) manage(ctx context.Context, log *slog.Logger, files Files) (managed, error) {
	socket := string(k.cfg.API.Socket)
	running, err := answers(ctx, socket)
	if err != nil {
		return nil, err
	}
	if running {
		// One attempt: who does not answer on this host hangs, and says so sooner than a log line could.
		return kms.New(kms.Options{Endpoints: []kms.Endpoint{{Socket: socket}}, Timeout: socketTimeout, Deadline: socketTimeout})
	}
	store, err := k.openUnused(ctx, log, files)
	switch {
	case errors.Is(err, keyfile.ErrForeign) && socket != "":
		return nil, fmt.Errorf("%w; or start the agent, which makes what is missing as its own user: where one runs, it is asked", err)
	case err != nil:
		return nil, err
	case store.KeyringMade() && files != StartFiles:
		log.Warn("a keyring was made: without it nobody can read the database", "keyring", k.cfg.Keyring,
			"hint", "keep it, apart from the database, and let the user of the agent own both files")
	}
	return newBuiltinBackend(store, log), nil
}

// openUnused opens the files where no agent can be asked. That one has them open all the same is an error that
// says how it could be.
func (k builtinKind) openUnused(ctx context.Context, log *slog.Logger, files Files) (*bolt.Store, error) {
	store, err := k.openFiles(ctx, log, files)
	if errors.Is(err, bolt.ErrLocked) {
		return nil, unreachable(err, string(k.cfg.API.Socket))
	}
	return store, err
}

// unreachable is the error of a database that an agent has open which did not answer on the socket.
func unreachable(err error, socket string) error {
	why := "nothing answers on " + socket + ": was the agent started with another configuration?"
	if socket == "" {
		why = "set upstream.local.api.socket so that commands can reach the running agent"
	}
	return &upstream.Error{Message: err.Error() + "; " + why, Err: upstream.ErrUnavailable}
}

func (k builtinKind) probe(ctx context.Context, refs []upstream.SecretRef, log *slog.Logger) ([]ProbeResult, error) {
	m, err := k.manage(ctx, log, ExistingFiles)
	if err != nil {
		return nil, err
	}
	return probe(ctx, m, "the built-in backend", refs), m.Close()
}

func (k builtinKind) tune(*cache.Options) {}

func (k builtinKind) fixed() []setting {
	return append(fixedAPI(&k.cfg.API), []setting{
		{"database", k.cfg.Database},
		{"keyring", k.cfg.Keyring},
		{"maxVersions", k.cfg.MaxVersions},
		{"emulate", k.cfg.Emulate},
	}...)
}

// socketTimeout bounds what a command asks of a running agent.
const socketTimeout = 10 * time.Second

// builtinStore is the built-in backend, wherever it keeps its secrets.
type builtinStore interface {
	upstream.Manager
	OnChange(fn func(upstream.SecretName)) (cancel func())
	Seed(ctx context.Context, secrets []upstream.CreateSecretInput) error
	Unseeded(ctx context.Context, secrets []upstream.CreateSecretInput) ([]upstream.SecretName, error)
	keyStore
	Run(ctx context.Context) error
	Close() error
}

// builtinCommon is what a running agent does with the built-in backend, wherever it keeps its secrets.
type builtinCommon struct {
	upstream.Manager // store, which knows no ARNs
	builtinStore     builtinStore
	log              *slog.Logger
}

func newBuiltinCommon(store builtinStore, log *slog.Logger) builtinCommon {
	return builtinCommon{upstream.OfAccount(store, builtin.Account), store, log.With("part", "backend")}
}

func (b builtinCommon) manager() upstream.Manager { return b.Manager }

func (b builtinCommon) rotated() rotation.Upstream { return b.Manager }

func (b builtinCommon) served(*cache.Cache) upstream.Manager { return b.Manager }

func (b builtinCommon) operations() map[string]operation { return keyOperations(b.builtinStore) }

func (b builtinCommon) Close() error { return b.builtinStore.Close() }

// OnChange tells of a secret by its name and by its ARN: both may be held.
func (b builtinCommon) OnChange(changed func(upstream.SecretName)) (cancel func()) {
	return b.builtinStore.OnChange(func(name upstream.SecretName) {
		changed(name)
		if name != upstream.AnySecret {
			changed(builtin.Account + ":secret/" + name)
		}
	})
}

func (b builtinCommon) run(ctx context.Context) error { return b.builtinStore.Run(ctx) }

// builtinBackend is the built-in backend in a file, of a running agent.
type builtinBackend struct {
	builtinCommon
	store *bolt.Store
}

func newBuiltinBackend(store *bolt.Store, log *slog.Logger) builtinBackend {
	return builtinBackend{newBuiltinCommon(store, log), store}
}

func (b builtinBackend) operations() map[string]operation {
	all := b.builtinCommon.operations()
	all["GET /backup"] = func(ctx context.Context, _ url.Values) (*kmsserver.Operated, error) {
		file, size, err := b.store.Backup(ctx)
		if err != nil {
			return nil, err
		}
		return &kmsserver.Operated{File: file, Size: size}, nil
	}
	return all
}

// prepare reads the keyring again. Secrets are seeded at a start.
func (b builtinBackend) prepare(ctx context.Context, cfg *config.Upstream) (commit func(), err error) {
	names, err := b.store.Unseeded(ctx, seed(cfg.Local.Seed))
	if err != nil {
		return nil, inSection("upstream.local", err)
	}
	useKeyring, err := b.store.ReadKeyring(ctx)
	return func() {
		useKeyring()
		for _, name := range names {
			b.log.Info("not seeded: the next start does it", "secret", string(name))
		}
	}, inSection("upstream.local", err)
}

func (b builtinBackend) status(s *UpstreamStatus) {
	st := b.store.Stats()
	s.Local = &st
}

func (b builtinBackend) collect(s sink) {
	st := b.store.Stats()
	s.counter("secretagent_local_reads_total", "Read transactions of the built-in backend.", st.Reads)
	s.counter("secretagent_local_writes_total", "Write operations of the built-in backend.", st.Writes)
	s.counter("secretagent_local_commits_total", "Commits of the built-in backend; fewer than writes when writers share one.", st.Commits)
	s.counter("secretagent_local_purged_total", "Secrets removed after their deletion window.", st.Purged)
	s.gauge("secretagent_local_writes_queued", "Writes in line.", float64(st.WritesQueued))
	s.gauge("secretagent_local_writes_queued_limit", "The length of that line.", float64(st.WritesQueueLimit))
	collectKeys(s, st.Keys)
}

// Errors of the built-in backend that a command acts on.
var (
	ErrNoDatabase  = bolt.ErrNoDatabase     // an [upstream.ErrNotFound]
	ErrKeyringKept = builtin.ErrKeyringKept // an [upstream.ErrUnsupported]
)

func builtinOptions(cfg *config.Local, log *slog.Logger) bolt.Options {
	return bolt.Options{
		Database: string(cfg.Database),
		Options: builtin.Options{
			Keyring: string(cfg.Keyring), KeyringIsCredential: isCredential(cfg.Keyring),
			MaxVersions: cfg.MaxVersions, Emulate: builtin.Emulate(cfg.Emulate), Seed: seed(cfg.Seed), Logger: log.With("part", "backend"),
		},
	}
}

// seed returns the configured secrets that are created once, at a start.
func seed(seeds []config.Seed) []upstream.CreateSecretInput {
	var secrets []upstream.CreateSecretInput
	for _, s := range seeds {
		secrets = append(secrets, upstream.CreateSecretInput{SecretName: s.Name, VersionID: s.VersionID, SecretData: s.Data})
	}
	return secrets
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
		return false, &upstream.Error{Message: "the socket of the agent is for others: " + cmp.Or(keyfile.Whose(socket), err.Error()), Err: upstream.ErrAccessDenied}
	}
	return false, nil
}
