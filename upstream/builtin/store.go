package builtin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"secretagent/upstream"
	"secretagent/upstream/keyfile"
)

// Store is the built-in Secrets Manager. Make one with [Open]; all methods are safe for
// concurrent use.
type Store struct {
	opts Options
	log  *slog.Logger

	db     *bbolt.DB
	file   *os.File                          // the one that db has open
	update func(func(*bbolt.Tx) error) error // db.Update; tests let it fail
	swap   sync.RWMutex                      // held by reads; the writer alone changes the three above, and locks it

	keyringMade bool // by Open

	keys   atomic.Pointer[keys]
	rotate sync.Mutex // one change of the keyring at a time

	queue      chan *write   // writes in line
	quit       chan struct{} // closed by Close
	writerDone chan struct{} // closed when the writer has stopped
	closeOnce  sync.Once
	closeErr   error

	runs atomic.Int32  // calls of Run at work
	bell chan struct{} // rung for Run when a compaction is owed; it has room for one

	broken     atomic.Pointer[error] // why no transaction can begin any more
	brokenDown chan struct{}         // closed when broken is set

	index     *index
	listeners listeners
	counters  counters
}

var _ upstream.Manager = (*Store)(nil)

// The buckets of the database.
//
//	format   "version"            → "1"
//	keys     key id, 4 bytes      → sealed: when the database first saw the key
//	secrets  name                 → sealed record, see record.go
//	seeded   name                 → nothing: the seed of that name is done, see seed.go
//	values   name 0x00 version id → sealed value
var (
	bucketFormat  = []byte("format")
	bucketKeys    = []byte("keys")
	bucketSecrets = []byte("secrets")
	bucketSeeded  = []byte("seeded") // made by the first seed
	bucketValues  = []byte("values")

	formatKey   = []byte("version")
	formatValue = []byte("1")
)

// Open opens the database, or creates it and its keyring where they do not exist, checks
// both, starts the writer, and creates the seed. The caller closes the [Store].
//
// It fails, having changed nothing, when the options or the keyring's permissions are bad;
// with [ErrLocked] when another process has the database open; with [ErrDamaged] when the file
// is not what was written; with [ErrKeyLost] when the keyring lacks a key that is in use, also
// when it is missing altogether while there are secrets. A keyring is not made where it would be
// lost while the database stays.
func Open(opts Options) (*Store, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	opts = opts.withDefaults()
	keyfile.KeyringFile.Clean(opts.Keyring)
	keyring, err := newKeys(keyfile.ReadKeyring(opts.Keyring, opts.KeyringIsCredential))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err := createDatabase(opts, keyring == nil); err != nil {
		return nil, fmt.Errorf("database %s: %w", opts.Database, err)
	}
	s := &Store{
		opts:       opts,
		log:        opts.Logger,
		queue:      make(chan *write, maxQueued),
		quit:       make(chan struct{}),
		writerDone: make(chan struct{}),
		brokenDown: make(chan struct{}),
		bell:       make(chan struct{}, 1),
		index:      newIndex(),
	}
	if s.db, s.file, err = openDatabase(opts.Database, opts.lockTimeout); err != nil {
		return nil, fmt.Errorf("database %s: %w", opts.Database, err)
	}
	s.update = s.db.Update
	if err := s.load(keyring); err != nil {
		return nil, errors.Join(fmt.Errorf("database %s: %w", opts.Database, err), s.closeDatabase())
	}
	s.warn()
	go s.writeLoop()
	if err := s.Seed(context.Background(), opts.Seed); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Format prints where the files are, for every verb. Otherwise fmt would, for some verbs, follow
// the pointers into key material and into the map of the file, which has no end it could see.
func (s *Store) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "builtin.Store(%s)", s.opts.Database)
}

// load makes the keyring usable with this database and checks every secret.
func (s *Store) load(keyring *keys) error {
	used := false
	err := s.transact(s.db.View, func(t *tx) error {
		if err := verifyFormat(t); err != nil {
			return err
		}
		first, _ := t.secrets.Cursor().First()
		used = first != nil
		return nil
	})
	if err != nil {
		return err
	}
	if keyring == nil {
		if used {
			return errorf(ErrKeyLost,
				"holds secrets, but the keyring %s does not exist; put the keyring back, or move the database away to start afresh", s.opts.Keyring)
		}
		if err := s.opts.mayMakeKeyring(); err != nil {
			return err
		}
		ring, created, err := keyfile.OpenKeyring(s.opts.Keyring, s.opts.KeyringIsCredential)
		if keyring, err = newKeys(ring, err); err != nil {
			return err
		}
		if s.keyringMade = created; created {
			s.log.Info("keyring created: keep it, without it nobody can read the database", "path", s.opts.Keyring, "key", formatKeyID(keyring.primary))
		}
	}
	s.keys.Store(keyring)
	var forgotten []uint32
	err = s.transact(s.db.View, func(t *tx) (err error) {
		forgotten, err = s.verify(t)
		s.index.apply(t.listed)
		return err
	})
	if err != nil {
		return err
	}
	return s.noteKeys(forgotten)
}

// warn logs what is unwise about where the files are, and what could be taken for protection.
func (s *Store) warn() {
	if s.opts.Emulate.InstanceID != "" {
		s.log.Info("a KMS instance is emulated: policies of secrets are kept and have no effect", "hint", "restrict the access keys of the API instead")
	}
	if sameFolder(s.opts.Database, s.opts.Keyring) {
		s.log.Warn("the keyring lies in the folder of the database: who gets that folder has the secrets", "path", s.opts.Database, "keyring", s.opts.Keyring,
			"hint", "move it to another volume and set upstream.local.keyring")
	}
	if st, err := s.file.Stat(); err == nil && st.Mode().Perm()&0o077 != 0 && runtime.GOOS != "windows" {
		s.log.Warn("others than its owner can read the database or change it", "path", s.opts.Database, "mode", fmt.Sprintf("%04o", st.Mode().Perm()),
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

// KeyringMade reports whether [Open] has made the keyring.
func (s *Store) KeyringMade() bool { return s.keyringMade }

// mayMakeKeyring returns why the keyring, which is missing, is not to be made.
func (o Options) mayMakeKeyring() error {
	const credentials = "/run/credentials/"
	const advice = `make it where it is kept, with "secretagent keys init FILE", and hand it over`
	path, err := filepath.Abs(o.Keyring)
	switch {
	case err != nil:
		return err
	case o.Existing:
		return errorf(ErrNoDatabase, "holds no secret, and the keyring %s does not exist yet; %s", o.Keyring, firstMade)
	case o.KeyringIsCredential || strings.HasPrefix(path, credentials):
		return fmt.Errorf("the keyring %s does not exist and is not made there: what lies among the credentials of a service is lost when the service stops; %s", o.Keyring, advice)
	case keyfile.InMemory(path) && !keyfile.InMemory(o.Database):
		return fmt.Errorf("the keyring %s does not exist and is not made there: that file system is kept in memory, so the next boot would lose the keyring and with it every secret; set upstream.local.keyring to a path on a disk, or %s", o.Keyring, advice)
	}
	return nil
}

// firstMade says what makes the files.
const firstMade = `the first start of the agent makes it, or "secretagent secret create"`

// createDatabase puts a database without secrets in its place unless there is a file already. It
// is complete when it appears, so that a crash leaves no half-made one. The keyring is made later,
// but where that must not be, there is no database either.
func createDatabase(opts Options, keyringMissing bool) error {
	path := opts.Database
	if !opts.Existing {
		keyfile.Database.Clean(path)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if opts.Existing {
		return errorf(ErrNoDatabase, "does not exist yet; %s", firstMade)
	}
	if keyringMissing {
		if err := opts.mayMakeKeyring(); err != nil {
			return err
		}
	}
	err := keyfile.Database.Make(path, func(temp string) error {
		db, err := bbolt.Open(temp, 0o600, &bbolt.Options{Timeout: time.Second})
		if err != nil {
			return err
		}
		err = db.Update(func(tx *bbolt.Tx) error {
			for _, name := range [][]byte{bucketFormat, bucketKeys, bucketSecrets, bucketValues} {
				if _, err := tx.CreateBucket(name); err != nil {
					return err
				}
			}
			return tx.Bucket(bucketFormat).Put(formatKey, formatValue)
		})
		return errors.Join(err, db.Close())
	})
	if errors.Is(err, fs.ErrExist) {
		return nil // another process was faster
	}
	return err
}

// mapSize is how much address space the map of the file gets at once. Growing it later makes
// bbolt wait for all reads and hold up new ones meanwhile; space that is not used costs
// nothing. Windows makes the file as large as the map, and 32 bits have no room to spare.
func mapSize() int {
	if runtime.GOOS == "windows" || strconv.IntSize < 64 {
		return 16 << 20
	}
	return 1 << 30
}

// growStep is by how much the file grows when it is full; each time costs a sync. bbolt's own
// step of 16 MiB is more than most stores ever fill.
const growStep = 1 << 20

// openDatabase locks the file, checks its structure and only then lets bbolt map it.
func openDatabase(path string, timeout time.Duration) (db *bbolt.DB, file *os.File, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = damaged("it cannot be opened (%v)", p)
		}
	}()
	db, err = bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout:         max(timeout, time.Second),
		FreelistType:    bbolt.FreelistMapType,
		InitialMmapSize: mapSize(),
		NoStatistics:    true,
		OpenFile: func(name string, flag int, perm os.FileMode) (*os.File, error) {
			f, err := openLocked(name, flag&^os.O_CREATE, perm, timeout)
			if err != nil {
				return nil, err
			}
			st, err := f.Stat()
			if err == nil {
				err = keyfile.CheckOpen(name, st)
			}
			if err == nil {
				err = verifyPages(f, st.Size())
			}
			handOver(f)
			if err != nil {
				return nil, errors.Join(err, f.Close())
			}
			file = f
			return f, nil
		},
	})
	if errors.Is(err, bolterrors.ErrTimeout) {
		err = ErrLocked
	}
	if err != nil {
		return nil, nil, err
	}
	db.AllocSize = growStep
	return db, file, nil
}

// lockRetry is how often a lock held by another process is tried again.
const lockRetry = 10 * time.Millisecond

// openLocked opens and locks the file of that name. Another process may replace it while this one
// waits for the lock: then what was opened is not the database any more.
func openLocked(name string, flag int, perm os.FileMode, timeout time.Duration) (*os.File, error) {
	for range 10 {
		f, err := os.OpenFile(name, flag, perm)
		if err != nil {
			return nil, err
		}
		if err := lockFile(f, timeout); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		opened, err := f.Stat()
		named, nameErr := os.Stat(name)
		if err == nil && nameErr == nil && os.SameFile(opened, named) {
			return f, nil
		}
		if err = errors.Join(err, nameErr, f.Close()); err != nil {
			return nil, err
		}
	}
	return nil, ErrLocked
}

// lockFile takes the lock that bbolt takes, so that the file can be looked at before bbolt
// maps it.
func lockFile(f *os.File, timeout time.Duration) error {
	for deadline := time.Now().Add(timeout); ; time.Sleep(min(lockRetry, time.Until(deadline))) {
		switch locked, err := tryLock(f); {
		case locked:
			return nil
		case err != nil:
			return fmt.Errorf("lock: %w", err)
		case !time.Now().Before(deadline):
			return ErrLocked
		}
	}
}

// closePatience bounds how long Close waits for a database in which a transaction broke
// down: bbolt may then hold its own locks for ever.
const closePatience = 500 * time.Millisecond

// breakDown lets no transaction begin any more.
func (s *Store) breakDown(why error) {
	if s.broken.CompareAndSwap(nil, &why) {
		close(s.brokenDown)
	}
}

// Close stops the writer and closes the database. Writes that have begun are finished;
// writes in line and all later calls get [ErrClosed]. It waits for running reads. Calling it
// again returns what it returned the first time.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		close(s.quit)
		closed := make(chan error, 1)
		go func() {
			<-s.writerDone
			closed <- s.closeDatabase()
		}()
		select {
		case s.closeErr = <-closed:
			return
		case <-s.brokenDown:
		}
		select {
		case s.closeErr = <-closed:
		case <-time.After(closePatience):
			unlockFile(s.file) // by itself, since the map keeps the file open
			s.closeErr = errors.Join(*s.broken.Load(), s.file.Close())
		}
	})
	return s.closeErr
}

func (s *Store) closeDatabase() error {
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("close database %s: %w", s.opts.Database, err)
	}
	return nil
}

// Stats is a snapshot of what a [Store] has done since it was opened.
type Stats struct {
	Reads   uint64 // read transactions
	Writes  uint64 // write operations that were executed, refused ones included
	Commits uint64 // transactions that reached the disk; fewer than Writes when writers share
	Purged  uint64 // secrets removed after their deletion window

	WritesQueued     int // in line now
	WritesQueueLimit int // beyond which writers wait for a place in line
}

type counters struct {
	reads, writes, commits, purged atomic.Uint64
	replays                        atomic.Uint64 // batches that had to be repeated one by one
}

// Stats returns counters for metrics and status.
func (s *Store) Stats() Stats {
	return Stats{
		Reads:            s.counters.reads.Load(),
		Writes:           s.counters.writes.Load(),
		Commits:          s.counters.commits.Load(),
		Purged:           s.counters.purged.Load(),
		WritesQueued:     len(s.queue),
		WritesQueueLimit: cap(s.queue),
	}
}
