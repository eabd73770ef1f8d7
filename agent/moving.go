package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"strings"

	"secretagent/agent/config"
	"secretagent/upstream"
	"secretagent/upstream/builtin"
	"secretagent/upstream/builtin/bolt"
	"secretagent/upstream/builtin/etcd"
	"secretagent/upstream/keyfile"
)

// Words of a [Moved].
const (
	MoveCopied    = builtin.Copied
	MoveReplaced  = builtin.Replaced
	MoveUnchanged = builtin.Unchanged
	MoveDiffers   = builtin.Differs
	MoveSkipped   = builtin.Skipped
)

// Moved is what [Copy] has done with a secret, or would do.
type Moved = builtin.Moved

// Progress hears how much of something is done, on any goroutine.
type Progress func(done, total int)

// Backup is what [BackUp] has made.
type Backup struct {
	Secrets int
	Bytes   int64
	Keyring string // the file that the backup cannot be read without
}

// errNoBuiltin is why there is nothing to save.
var errNoBuiltin = errors.New("upstream.alibaba keeps no database here")

// keyringOf returns the path of the keyring; empty for the cloud.
func keyringOf(cfg *config.Config) string {
	switch {
	case cfg.Upstream.Local != nil:
		return string(cfg.Upstream.Local.Keyring)
	case cfg.Upstream.Etcd != nil:
		return string(cfg.Upstream.Etcd.Keyring)
	}
	return ""
}

// backupOptions are those of a database that is a backup of the built-in backend.
func backupOptions(cfg *config.Config, path string, log *slog.Logger) bolt.Options {
	opts := bolt.Options{Database: path}
	switch {
	case cfg.Upstream.Local != nil:
		opts.Options = builtinOptions(cfg.Upstream.Local, log).Options
	case cfg.Upstream.Etcd != nil:
		opts.Options = etcdOptions(cfg.Upstream.Etcd, log).Options
	}
	opts.Seed, opts.Emulate = nil, builtin.Emulate{}
	return opts
}

// openBackup opens a backup of the built-in backend, or a database that is to be one, for reading alone.
func openBackup(cfg *config.Config, path string, log *slog.Logger) (*bolt.Store, error) {
	opts := backupOptions(cfg, path, log)
	opts.ReadOnly = true
	return bolt.Open(opts)
}

// BackUp writes what the built-in backend of cfg holds at one moment into a file, which is a database and sealed with the
// same keyring. It asks the agent that runs on a database, or opens the database where none runs; etcd is read at one
// revision. The file appears when it was read back and is on disk. With replace it takes the place of one that is there;
// otherwise the error then matches [fs.ErrExist].
func BackUp(ctx context.Context, cfg *config.Config, log *slog.Logger, path string, replace bool, progress Progress) (made Backup, err error) {
	made.Keyring = keyringOf(cfg)
	if made.Keyring == "" {
		return made, errNoBuiltin
	}
	_, missing := os.Lstat(path)
	if missing == nil && !replace {
		return made, fmt.Errorf("%s: %w", path, fs.ErrExist)
	}
	if err := notTheDatabase(cfg, path); err != nil {
		return made, err
	}
	fill := func(temp string) error {
		if err := fillBackup(ctx, cfg, log, temp, progress); err != nil {
			return err
		}
		store, err := openBackup(cfg, temp, log)
		if err != nil {
			return err
		}
		defer store.Close()
		names, err := store.Names(ctx)
		if err != nil {
			return err
		}
		made.Secrets, err = store.Verify(ctx, func(done int) { progress(done, len(names)) })
		if err != nil {
			return err
		}
		info, err := os.Stat(temp)
		if err == nil {
			made.Bytes = info.Size()
		}
		return err
	}
	if missing != nil {
		return made, keyfile.Database.Make(path, fill)
	}
	_, err = keyfile.Database.Replace(path, fill)
	return made, err
}

// notTheDatabase refuses the database of cfg as the file of a backup.
func notTheDatabase(cfg *config.Config, path string) error {
	if cfg.Upstream.Local != nil && sameFile(string(cfg.Upstream.Local.Database), path) {
		return &upstream.Error{Message: path + " is the database itself", Err: upstream.ErrInvalidParameter}
	}
	return nil
}

// sameFile reports whether both paths lead to one file.
func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	y, err2 := os.Stat(b)
	return err == nil && err2 == nil && os.SameFile(x, y)
}

// fillBackup writes a backup into the empty file at temp.
func fillBackup(ctx context.Context, cfg *config.Config, log *slog.Logger, temp string, progress Progress) error {
	if cfg.Upstream.Local != nil {
		return fillFromFile(ctx, cfg, log, temp)
	}
	store, err := etcd.Open(etcdOptions(cfg.Upstream.Etcd, log))
	if err != nil {
		return err
	}
	defer store.Close()
	const attempts = 3 // of a moment that etcd does not compact
	for n := 1; ; n++ {
		err := fillFromEtcd(ctx, store, backupOptions(cfg, temp, log), progress)
		if n == attempts || !errors.Is(err, builtin.ErrMomentLost) {
			return err
		}
		log.Warn("the backup begins anew", "err", err, "hint", "where it never comes to an end, let etcd compact later (--auto-compaction-retention)")
		if err := os.Truncate(temp, 0); err != nil {
			return err
		}
	}
}

// fillFromFile copies a database: the agent that runs on it does, which has it open.
func fillFromFile(ctx context.Context, cfg *config.Config, log *slog.Logger, temp string) error {
	file, err := os.OpenFile(temp, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	running, err := askAgent(ctx, cfg, http.MethodGet, "/backup", nil, file)
	if running && err == nil {
		err = file.Sync()
	}
	err = errors.Join(err, file.Close())
	if running || err != nil {
		return err
	}
	store, err := openSource(cfg.Upstream.Local, log)
	if err != nil {
		return err
	}
	return errors.Join(store.CopyTo(ctx, temp), store.Close())
}

// openSource opens a database that no agent runs on, for reading alone.
func openSource(cfg *config.Local, log *slog.Logger) (*bolt.Store, error) {
	opts := builtinOptions(cfg, log)
	opts.Seed, opts.ReadOnly = nil, true
	return openLocal(opts, cfg)
}

// openLocal opens a database for a command that needs it for itself.
func openLocal(opts bolt.Options, cfg *config.Local) (*bolt.Store, error) {
	store, err := bolt.Open(opts)
	if errors.Is(err, bolt.ErrLocked) && opts.ReadOnly {
		return nil, unreachable(err, string(cfg.API.Socket))
	} else if errors.Is(err, bolt.ErrLocked) {
		return nil, &upstream.Error{Message: err.Error() + "; stop the agent first", Err: upstream.ErrUnavailable}
	}
	return store, err
}

// fillFromEtcd transfers everything of one revision into the empty file of opts.
func fillFromEtcd(ctx context.Context, from *etcd.Store, opts bolt.Options, progress Progress) error {
	names, err := from.Names(ctx)
	if err != nil {
		return err
	}
	seeds, err := from.Seeds(ctx) // before: one that is done later finds its secret there after a restore
	if err != nil {
		return err
	}
	to, err := bolt.Create(opts)
	if err != nil {
		return err
	}
	t := builtin.Transfer{From: from, To: to, Moment: true, Progress: func(done int) { progress(done, len(names)) }}
	_, err = t.Run(ctx)
	if err == nil {
		err = to.SetSeeds(ctx, seeds, true)
	}
	if err == nil {
		err = to.Sync()
	}
	return errors.Join(err, to.Close())
}

// Restored is what [Restore] has done, or would do.
type Restored struct {
	Secrets int    // that the backup has
	Written int    // on etcd: of these, others were there or none
	Removed int    // on etcd: that the backup does not have
	Kept    string // the database that was there has this name now
}

// RestoreOptions say how [Restore] does it.
type RestoreOptions struct {
	Replace, DryRun bool
	Progress        Progress
}

// Restore puts a backup into the built-in backend of cfg. All of the backup is read with the keyring before anything is
// touched. A database is put in place with one rename after its copy was read back, while no agent runs on it. On etcd,
// one secret after the other becomes what the backup has, and is read back in the end; see [builtin.Restore].
//
// What is there is replaced on request alone; otherwise the error matches [upstream.ErrExists].
func Restore(ctx context.Context, cfg *config.Config, log *slog.Logger, path string, opts RestoreOptions) (done Restored, err error) {
	if keyringOf(cfg) == "" {
		return done, errNoBuiltin
	}
	if err := notTheDatabase(cfg, path); err != nil {
		return done, err
	}
	backup, err := openBackup(cfg, path, log)
	if err != nil {
		return done, useless(err)
	}
	defer backup.Close()
	names, err := backup.Names(ctx)
	if err != nil {
		return done, err
	}
	done.Secrets, err = backup.Verify(ctx, func(n int) { opts.Progress(n, len(names)) })
	if err != nil {
		return done, useless(err)
	}
	if cfg.Upstream.Local != nil {
		done.Kept, err = restoreFile(ctx, cfg, log, backup, opts)
		return done, err
	}
	store, err := etcd.Open(etcdOptions(cfg.Upstream.Etcd, log))
	if err != nil {
		return done, err
	}
	defer store.Close()
	result, err := builtin.Restore(ctx, backup.Store, store.Store, opts.Replace, opts.DryRun, opts.Progress)
	done.Written, done.Removed = result.Written, result.Removed
	return done, err
}

// useless is the error of a backup that cannot be read. It is none of the upstream, which was not touched.
func useless(err error) error {
	if upstream.IsContextError(err) {
		return err
	}
	why, _, _ := strings.Cut(err.Error(), "; stop the agent") // which is about a database in use
	return fmt.Errorf("the backup cannot be used: %s", why)
}

func restoreFile(ctx context.Context, cfg *config.Config, log *slog.Logger, backup *bolt.Store, opts RestoreOptions) (kept string, err error) {
	database := string(cfg.Upstream.Local.Database)
	running, err := answers(ctx, string(cfg.Upstream.Local.API.Socket))
	if err != nil {
		return "", err
	}
	if running {
		return "", &upstream.Error{Message: "an agent runs on the database " + database + "; stop it first", Err: upstream.ErrUnavailable}
	}
	if _, err := os.Stat(database); err == nil && !opts.Replace {
		return "", &upstream.Error{Message: "there is a database already: " + database, Err: upstream.ErrExists}
	}
	if opts.DryRun {
		return "", nil
	}
	return backup.Restore(ctx, database, opts.Replace, func(copied string) error {
		store, err := openBackup(cfg, copied, log)
		if err != nil {
			return err
		}
		defer store.Close()
		names, err := backup.Names(ctx)
		if err != nil {
			return err
		}
		return builtin.Same(ctx, backup.Store, store.Store, func(n int) { opts.Progress(n, len(names)) })
	})
}

// CopyOptions say what [Copy] copies, and how.
type CopyOptions struct {
	Prefix string                // of the names
	Names  []upstream.SecretName // nil: all with the prefix

	Replace, DryRun bool
	Progress        Progress

	Written func(context.Context, upstream.SecretName) // hears of each secret that was written to the cloud; may be nil
}

// Copy moves secrets from one upstream to another, and returns what was done with each; also after an error. What is
// the same at both is left alone. The agent that runs on the database of from is asked for a copy; on that of to, none may
// run.
func Copy(ctx context.Context, from, to *config.Config, log *slog.Logger, opts CopyOptions) (moved []Moved, err error) {
	if a, b := from.Upstream.Local, to.Upstream.Local; a != nil && b != nil && (a.Database == b.Database || sameFile(string(a.Database), string(b.Database))) {
		return nil, &upstream.Error{Message: "both configurations have the same database " + string(a.Database), Err: upstream.ErrInvalidParameter}
	}
	source, closeSource, err := openFrom(ctx, from, log)
	if err != nil {
		return nil, fmt.Errorf("from: %w", err)
	}
	defer closeSource()
	target, closeTarget, err := openTo(to, log, opts)
	if err != nil {
		return nil, fmt.Errorf("to: %w", err)
	}
	defer func() { err = errors.Join(err, closeTarget()) }()
	total := len(opts.Names)
	if counts, ok := source.(interface {
		Names(context.Context) ([]upstream.SecretName, error)
	}); ok && opts.Names == nil && opts.Prefix == "" {
		names, err := counts.Names(ctx)
		if err != nil {
			return nil, err
		}
		total = len(names)
	}
	return builtin.Transfer{
		From: source, To: target, Prefix: opts.Prefix, Names: opts.Names, Replace: opts.Replace, DryRun: opts.DryRun,
		Progress: func(done int) { opts.Progress(done, total) },
	}.Run(ctx)
}

func openFrom(ctx context.Context, cfg *config.Config, log *slog.Logger) (builtin.Keeper, func() error, error) {
	switch {
	case cfg.Upstream.Alibaba != nil:
		return openCloudKeeper(cfg.Upstream.Alibaba, log, nil)
	case cfg.Upstream.Etcd != nil:
		return opened(etcd.Open(etcdOptions(cfg.Upstream.Etcd, log)))
	}
	file, err := os.CreateTemp("", "secretagent-copy-") // ciphertext
	if err != nil {
		return nil, nil, err
	}
	defer os.Remove(file.Name())
	running, err := askAgent(ctx, cfg, http.MethodGet, "/backup", nil, file)
	if err = errors.Join(err, file.Close()); err != nil {
		return nil, nil, err
	}
	if running {
		return opened(openBackup(cfg, file.Name(), log))
	}
	return opened(openSource(cfg.Upstream.Local, log))
}

func openTo(cfg *config.Config, log *slog.Logger, how CopyOptions) (builtin.Keeper, func() error, error) {
	switch {
	case cfg.Upstream.Alibaba != nil:
		return openCloudKeeper(cfg.Upstream.Alibaba, log, how.Written)
	case cfg.Upstream.Etcd != nil:
		return opened(etcd.Open(etcdOptions(cfg.Upstream.Etcd, log)))
	}
	opts := builtinOptions(cfg.Upstream.Local, log)
	opts.Seed, opts.ReadOnly = nil, how.DryRun
	store, err := openLocal(opts, cfg.Upstream.Local)
	if how.DryRun && errors.Is(err, bolt.ErrNoDatabase) {
		return nowhere{}, func() error { return nil }, nil
	}
	return opened(store, err)
}

// opened returns what was opened and what closes it.
func opened[K interface {
	builtin.Keeper
	io.Closer
}](k K, err error) (builtin.Keeper, func() error, error) {
	if err != nil {
		return nil, nil, err
	}
	return k, k.Close, nil
}

// nowhere is a built-in backend that is not there yet, for a dry run: a Store fits all secrets alike.
type nowhere struct{ *builtin.Store }

func (nowhere) Lookup(context.Context, []upstream.SecretName) (map[upstream.SecretName]*builtin.Secret, error) {
	return nil, nil
}
