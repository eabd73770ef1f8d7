package bolt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/builtin"
	"secretagent/upstream/keyfile"
)

// Store is a [builtin.Store] in one file. Make one with [Open]; all methods are safe for
// concurrent use.
type Store struct {
	*builtin.Store
	opts Options
	db   *db
}

var _ upstream.Manager = (*Store)(nil)

// Open opens the database, or creates it and its keyring where they do not exist, checks
// both, starts the writer, and creates the seed. The caller closes the [Store].
//
// It fails, having changed nothing, when the options or the keyring's permissions are bad;
// with [ErrLocked] when another process has the database open; with [builtin.ErrDamaged] when the file
// is not what was written; with [builtin.ErrKeyLost] when the keyring lacks a key that is in use, also
// when it is missing altogether while there are secrets. A keyring is not made where it would be
// lost while the database stays.
func Open(opts Options) (*Store, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	opts = opts.withDefaults()
	keyfile.KeyringFile.Clean(opts.Keyring)
	_, err := os.Stat(opts.Keyring)
	if err := createDatabase(opts, errors.Is(err, fs.ErrNotExist)); err != nil {
		return nil, fmt.Errorf("database %s: %w", opts.Database, err)
	}
	db, err := openDB(opts)
	if err != nil {
		return nil, fmt.Errorf("database %s: %w", opts.Database, err)
	}
	opts.MayMakeKeyring = opts.mayMakeKeyring
	rules, err := builtin.Open(db, opts.Options)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("database %s: %w", opts.Database, err), db.Close())
	}
	s := &Store{rules, opts, db}
	if opts.ReadOnly {
		return s, nil
	}
	s.warn()
	if err := s.Seed(context.Background(), opts.Seed); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// warn logs what is unwise about where the files are.
func (s *Store) warn() {
	log := s.opts.Logger
	if sameFolder(s.opts.Database, s.opts.Keyring) {
		log.Warn("the keyring lies in the folder of the database: who gets that folder has the secrets", "path", s.opts.Database, "keyring", s.opts.Keyring,
			"hint", "move it to another volume and set upstream.local.keyring")
	}
	if st, err := s.db.file.Stat(); err == nil && st.Mode().Perm()&0o077 != 0 && runtime.GOOS != "windows" {
		log.Warn("others than its owner can read the database or change it", "path", s.opts.Database, "mode", fmt.Sprintf("%04o", st.Mode().Perm()),
			"hint", "chmod 600 "+s.opts.Database)
	}
}

// sameFolder reports whether two files lie in one folder, where links in their places lead.
func sameFolder(a, b string) bool {
	folder := func(path string) fs.FileInfo {
		real, _ := filepath.EvalSymlinks(path) // both exist
		info, _ := os.Stat(filepath.Dir(real))
		return info
	}
	return os.SameFile(folder(a), folder(b))
}

// mayMakeKeyring returns why the keyring, which is missing, is not to be made.
func (o Options) mayMakeKeyring() error {
	const credentials = "/run/credentials/"
	const advice = `make it where it is kept, with "secretagent keys init FILE", and hand it over`
	path, err := filepath.Abs(o.Keyring)
	switch {
	case err != nil:
		return err
	case o.Existing || o.ReadOnly:
		return builtin.Errorf(ErrNoDatabase, "holds no secret, and the keyring %s does not exist yet; %s", o.Keyring, firstMade)
	case o.KeyringIsCredential || strings.HasPrefix(path, credentials):
		return fmt.Errorf("the keyring %s does not exist and is not made there: what lies among the credentials of a service is lost when the service stops; %s", o.Keyring, advice)
	case keyfile.InMemory(path) && !keyfile.InMemory(o.Database):
		return fmt.Errorf("the keyring %s does not exist and is not made there: that file system is kept in memory, so the next boot would lose the keyring and with it every secret; set upstream.local.keyring to a path on a disk, or %s", o.Keyring, advice)
	}
	return nil
}

// firstMade says what makes the files.
const firstMade = `the first start of the agent makes it, or "secretagent secret create"`

// Run purges secrets whose deletion window has passed, and compacts the file after deletions, until
// ctx ends or the [Store] is closed. It returns nil. Without it such secrets are invisible all the
// same, but stay in the file.
func (s *Store) Run(ctx context.Context) error {
	s.db.runs.Add(1)
	defer s.db.runs.Add(-1)
	var compaction sync.WaitGroup
	defer compaction.Wait()
	compaction.Go(func() { s.db.compactWhenOwed(ctx) })
	return s.Store.Run(ctx)
}

// DeleteSecret is that of [builtin.Store]. After a forced deletion the ciphertext is gone from the
// file when the file has been compacted: [Store.Run] does it within some seconds, for many deletions
// together, and where it is not at work, DeleteSecret itself. Where that fails, the log says so, and
// Run tries it again.
func (s *Store) DeleteSecret(ctx context.Context, in upstream.DeleteSecretInput) (time.Time, error) {
	at, err := s.Store.DeleteSecret(ctx, in)
	if err == nil && in.ForceDeleteWithoutRecovery && s.db.runs.Load() == 0 {
		if err := s.db.compactOwed(ctx); err != nil {
			s.opts.Logger.Warn("old ciphertext is not removed from the database yet", "err", err, "hint", "check the disk and its free space; the running agent tries again")
		}
	}
	return at, err
}

// Reencrypt is that of [builtin.Store]. In the end the file is compacted, so that it holds no secret
// under an older key.
func (s *Store) Reencrypt(ctx context.Context, progress func(done, total int)) error {
	if err := s.Store.Reencrypt(ctx, progress); err != nil {
		return err
	}
	return s.Compact(ctx)
}

// Compact replaces the file of the database by one that holds what can be read now and nothing
// older: no ciphertext that was deleted, or rewritten under another key. Reads go on meanwhile, and
// writes wait. Windows cannot replace a file that is open: there Compact does nothing.
func (s *Store) Compact(ctx context.Context) error {
	return upstream.Wrap(s.db.compact(ctx), "Compact", upstream.SecretRef{})
}

// Stats is a snapshot of what a [Store] has done since it was opened.
type Stats struct {
	Reads   uint64 // read transactions
	Writes  uint64 // write operations that were executed, refused ones included
	Commits uint64 // transactions that reached the disk; fewer than Writes when writers share
	Purged  uint64 // secrets removed after their deletion window

	WritesQueued     int // in line now
	WritesQueueLimit int // beyond which writers wait for a place in line

	Keys builtin.KeyState
}

// Stats returns counters for metrics and status.
func (s *Store) Stats() Stats {
	return Stats{
		Reads:            s.db.reads.Load(),
		Writes:           s.db.writes.Load(),
		Commits:          s.db.commits.Load(),
		Purged:           s.Purged(),
		WritesQueued:     len(s.db.queue),
		WritesQueueLimit: cap(s.db.queue),
		Keys:             s.KeyState(),
	}
}
