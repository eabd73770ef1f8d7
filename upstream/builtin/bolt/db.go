package bolt

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"secretagent/upstream/builtin"
	"secretagent/upstream/keyfile"
)

// db is a [builtin.Storage] in a bbolt file.
type db struct {
	opts Options
	log  *slog.Logger

	bolt   *bbolt.DB
	file   *os.File                          // the one that bolt has open
	update func(func(*bbolt.Tx) error) error // bolt.Update; tests let it fail
	swap   sync.RWMutex                      // held by reads; the writer alone changes the three above, and locks it

	queue      chan *write   // writes in line
	quit       chan struct{} // closed by Close
	writerDone chan struct{} // closed when the writer has stopped

	copying chan struct{} // held while the file is copied: as the lock of a compaction, which must not wait for a backup

	runs atomic.Int32  // calls of Run at work
	bell chan struct{} // rung for Run when a compaction is owed; it has room for one

	broken     atomic.Pointer[error] // why no transaction can begin any more
	brokenDown chan struct{}         // closed when broken is set

	observer func([]builtin.Notice)

	reads, writes, commits atomic.Uint64
	replays                atomic.Uint64 // batches that had to be repeated one by one
}

var _ builtin.Storage = (*db)(nil)

// The database has a bucket for each [builtin.Space], which bears its name, and one for itself:
//
//	format   "version"  → "1"
//	format   "compact"  → a note that the file is to be compacted, see compact.go
//
// Those of the seeds and of what is younger are made by the first entry.
var (
	bucketFormat = []byte("format")

	formatKey   = []byte("version")
	formatValue = []byte("1")

	buckets = func() (names [builtin.Spaces][]byte) {
		for space := range names {
			names[space] = []byte(builtin.Space(space).String())
		}
		return names
	}()
)

// openDB opens a database that exists, checks the structure of the file and starts the writer.
func openDB(opts Options) (*db, error) {
	d := &db{
		opts:       opts,
		log:        opts.Logger,
		queue:      make(chan *write, maxQueued),
		quit:       make(chan struct{}),
		writerDone: make(chan struct{}),
		brokenDown: make(chan struct{}),
		bell:       make(chan struct{}, 1),
		copying:    make(chan struct{}, 1),
		observer:   func([]builtin.Notice) {},
	}
	var err error
	if d.bolt, d.file, err = openDatabase(opts.Database, opts.ReadOnly, opts.lockTimeout); err != nil {
		return nil, err
	}
	d.update = d.bolt.Update
	if err := d.transact(d.bolt.View, verifyFormat); err != nil {
		return nil, errors.Join(err, d.closeDatabase())
	}
	go d.writeLoop()
	return d, nil
}

// Observe sets who hears of changes. Nothing is written yet.
func (d *db) Observe(fn func([]builtin.Notice)) { d.observer = fn }

// Place returns where the database is. The binding is the same for all: a copy of the file can be read.
func (d *db) Place() builtin.Place {
	place := damage
	place.Name = d.opts.Database
	return place
}

var damage = builtin.Place{
	Binding: "secretagent/local",
	Damage:  "the database is damaged: %s; stop the agent and put a good copy of the database file in place",
}

func damaged(format string, args ...any) error { return damage.Damaged(format, args...) }

// verifyFormat checks that the file is one of ours, with all its buckets.
func verifyFormat(t *tx) error {
	format := t.bolt.Bucket(bucketFormat)
	if format == nil {
		return errors.New("is a bbolt file, but not a secretagent database")
	}
	if v := format.Get(formatKey); !bytes.Equal(v, formatValue) {
		return fmt.Errorf("has format %q, of which this program knows nothing; it reads format %q", v, formatValue)
	}
	for space, name := range buckets {
		if builtin.Space(space) < builtin.Seeds && t.bolt.Bucket(name) == nil {
			return damaged("it has no bucket %q", name)
		}
	}
	return nil
}

// createDatabase puts a database without secrets in its place unless there is a file already. It
// is complete when it appears, so that a crash leaves no half-made one. The keyring is made later,
// but where that must not be, there is no database either.
func createDatabase(opts Options, keyringMissing bool) error {
	path := opts.Database
	if !opts.Existing && !opts.ReadOnly {
		keyfile.Database.Clean(path)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if opts.Existing || opts.ReadOnly {
		return builtin.Errorf(ErrNoDatabase, "does not exist yet; %s", firstMade)
	}
	if keyringMissing {
		if err := opts.mayMakeKeyring(); err != nil {
			return err
		}
	}
	err := keyfile.Database.Make(path, makeEmpty)
	if errors.Is(err, fs.ErrExist) {
		return nil // another process was faster
	}
	return err
}

// makeEmpty makes a database without secrets of an empty file.
func makeEmpty(path string) error {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second})
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for space, name := range buckets {
			if builtin.Space(space) >= builtin.Seeds {
				continue
			}
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		format, err := tx.CreateBucket(bucketFormat)
		if err != nil {
			return err
		}
		return format.Put(formatKey, formatValue)
	})
	return errors.Join(err, db.Close())
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
func openDatabase(path string, readOnly bool, timeout time.Duration) (db *bbolt.DB, file *os.File, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = damaged("it cannot be opened (%v)", p)
		}
	}()
	size := mapSize()
	if readOnly {
		size = 0 // it does not grow
	}
	db, err = bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout:         max(timeout, time.Second),
		FreelistType:    bbolt.FreelistMapType,
		InitialMmapSize: size,
		NoStatistics:    true,
		ReadOnly:        readOnly,
		OpenFile: func(name string, flag int, perm os.FileMode) (*os.File, error) {
			f, err := openLocked(name, flag&^os.O_CREATE, perm, !readOnly, timeout)
			if err != nil {
				return nil, keyfile.Denied(name, err)
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

// openLocked opens and locks the file of that name, for this process alone or with others that read. Another process may replace it while this one
// waits for the lock: then what was opened is not the database any more.
func openLocked(name string, flag int, perm os.FileMode, alone bool, timeout time.Duration) (*os.File, error) {
	for range 10 {
		f, err := os.OpenFile(name, flag, perm)
		if err != nil {
			return nil, err
		}
		if err := lockFile(f, alone, timeout); err != nil {
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
func lockFile(f *os.File, alone bool, timeout time.Duration) error {
	for deadline := time.Now().Add(timeout); ; time.Sleep(min(lockRetry, time.Until(deadline))) {
		switch locked, err := tryLock(f, alone); {
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
func (d *db) breakDown(why error) {
	if d.broken.CompareAndSwap(nil, &why) {
		close(d.brokenDown)
	}
}

// Close stops the writer and closes the database. Writes that have begun are finished; writes in
// line and all later calls get [builtin.ErrClosed]. It waits for running reads. It is called once.
func (d *db) Close() error {
	close(d.quit)
	closed := make(chan error, 1)
	go func() {
		<-d.writerDone
		closed <- d.closeDatabase()
	}()
	select {
	case err := <-closed:
		return err
	case <-d.brokenDown:
	}
	select {
	case err := <-closed:
		return err
	case <-time.After(closePatience):
		unlockFile(d.file) // by itself, since the map keeps the file open
		return errors.Join(*d.broken.Load(), d.file.Close())
	}
}

func (d *db) closeDatabase() error {
	if err := d.bolt.Close(); err != nil {
		return fmt.Errorf("close database %s: %w", d.opts.Database, err)
	}
	return nil
}
