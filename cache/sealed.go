package cache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/tink-crypto/tink-go/v2/tink"
	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"secretagent/upstream"
)

const (
	// lockWait is how long a file in use by another process is waited for.
	lockWait = 100 * time.Millisecond

	// flushDelay lets changes that come together be written together.
	flushDelay = 250 * time.Millisecond

	// flushBatch bounds the records of one transaction.
	flushBatch = 1000

	// maxPending bounds the changes that wait to be written.
	maxPending = 8192

	// confirmShare is the share of MaxStale by which the age in the file may exceed the true
	// one: what was merely confirmed is not written each time.
	confirmShare = 64

	// clockSkew is how far in the future a record may have been fetched: a clock that was
	// set back must not make values immortal.
	clockSkew = time.Minute
)

// recordBucket is the bucket of all records; its name is the version of the format.
var recordBucket = []byte("records 2")

// errDamaged marks a file that cannot be used any further.
var errDamaged = errors.New("damaged")

// sealedFile is the restart cache: a bbolt file of sealed records. It is only ever read as a
// whole, when the cache starts, and only ever written by one goroutine, behind the lookups.
// The file of the run before is not written to, because its structure is not authenticated:
// run replaces it by a new one that is made from memory, and does so again when it finds the
// new one damaged.
//
// A nil sealedFile does nothing.
type sealedFile struct {
	path     string
	maxBytes int64
	key      tink.AEAD
	log      *slog.Logger
	held     func() []*record // everything that belongs in the file, newest last
	wake     chan struct{}    // rung when pending became non-empty

	mu      sync.Mutex
	off     bool                           // given up
	pending map[upstream.SecretRef]*record // :: reference → what to write, nil to delete
	writing map[upstream.SecretRef]*record // the part of it that is being written
	stored  map[upstream.SecretRef]stored  // what is in the file
	filling bool                           // a new file is being made: what is in it is not known yet
	st      SealedStats

	io   sync.Mutex  // around everything that touches the file
	ran  bool        // run has begun: the file may be written
	f    *boltFile   // nil until it is made
	mine os.FileInfo // of the last f
}

// boltFile is an open database that can be let go of when it is damaged.
type boltFile struct {
	*bbolt.DB
	fd *os.File
}

// openBolt opens the file at path.
func openBolt(path string, opts bbolt.Options) (*boltFile, error) {
	f := &boltFile{}
	opts.Timeout = lockWait
	opts.NoStatistics = true
	opts.OpenFile = func(name string, flag int, mode os.FileMode) (fd *os.File, err error) {
		f.fd, err = os.OpenFile(name, flag, mode)
		return f.fd, err
	}
	err := guarded(func() (err error) {
		f.DB, err = bbolt.Open(path, 0o600, &opts)
		return err
	})
	if errors.Is(err, errDamaged) {
		f.abandon()
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

// abandon lets go of a database that has panicked. Its own Close may wait for ever for what
// the panic left locked. The mapping is lost, and with it stays the lock on the file.
func (f *boltFile) abandon() {
	if f.fd != nil {
		_ = f.fd.Close()
	}
}

// stored is what is known about a record in the file.
type stored struct {
	id        recordID
	size      int
	fetchedAt time.Time
}

// openSealed makes ready for a file, which is not touched yet.
func openSealed(opts Sealed, log *slog.Logger) (*sealedFile, error) {
	key, err := openKeyring(opts.Keyring, opts.KeyringIsCredential)
	if err != nil {
		return nil, err
	}
	if sameFolder(opts.Path, opts.Keyring) {
		log.Warn("the sealed cache and its keyring share a folder: who gets that folder has the secrets", "path", opts.Path, "keyring", opts.Keyring,
			"hint", "put the keyring on another volume and set cache.sealed.keyring")
	}
	return &sealedFile{
		path: opts.Path, maxBytes: opts.MaxBytes, key: key, log: log,
		wake:    make(chan struct{}, 1),
		pending: map[upstream.SecretRef]*record{},
		stored:  map[upstream.SecretRef]stored{},
	}, nil
}

func sameFolder(a, b string) bool {
	a, errA := filepath.Abs(filepath.Dir(a))
	b, errB := filepath.Abs(filepath.Dir(b))
	return errA == nil && errB == nil && a == b
}

// loadSealed puts what the sealed file holds into an empty cache. None of it is fresh: it
// has to be confirmed, or is served stale while the upstream cannot answer.
func (c *Cache) loadSealed() {
	s := c.sealed
	if s == nil {
		return
	}
	s.held = c.records
	found := s.load()
	limits := c.limits.Load()
	newest := uint64(0)
	for _, r := range found {
		v := &r.Value
		if limits.MaxStale == Never || time.Since(r.FetchedAt) > limits.MaxStale || time.Until(r.FetchedAt) > clockSkew ||
			r.Ref.Validate() != nil || r.Ref != r.Ref.WithDefaults() {
			s.st.Refused++
			continue
		}
		sh := c.shardOf(r.Ref.SecretName)
		e := sh.obtain(r.Ref)
		v.SecretName = sharedName(v.SecretName, e.ref.SecretName)
		e.value, e.memo = v, new(upstream.Memo)
		e.fetchedAt, e.since, e.confirmed = r.FetchedAt, r.Since, r.Confirmed
		if c.oversize(e, limits) {
			e.clear()
			c.settle(sh, e)
			continue
		}
		c.settle(sh, e)
		s.st.Loaded++
		newest = max(newest, r.Confirmed)
		if r.Since != unproven {
			newest = max(newest, r.Since)
		}
	}
	c.tick.Store(newest)
	c.evict()
	if s.st.Refused > 0 {
		s.log.Error("records of the sealed cache were refused: damaged, exchanged, sealed with another key, or too old", "path", s.path,
			"refused", s.st.Refused, "loaded", s.st.Loaded, "hint", "nothing: the file is rebuilt; if you did not restore or move it, find out who can write it")
	}
}

// records returns everything that belongs in the sealed file, least recently confirmed first.
func (c *Cache) records() []*record {
	limits := c.limits.Load()
	var all []*record
	for _, sh := range c.shards {
		sh.mu.Lock()
		for _, e := range sh.secrets {
			for ; e != nil; e = e.next {
				if e.value != nil && c.servable(e, limits) {
					all = append(all, recordOf(e))
				}
			}
		}
		sh.mu.Unlock()
	}
	slices.SortFunc(all, func(a, b *record) int { return a.FetchedAt.Compare(b.FetchedAt) })
	return all
}

// load returns the records of the file that are authentic, least recently confirmed first
// and each reference once.
func (s *sealedFile) load() []*record {
	newest := map[upstream.SecretRef]*record{}
	err := s.readAll(func(id, sealed []byte) {
		r, err := openRecord(s.key, id, sealed)
		if err != nil {
			s.st.Refused++
			return
		}
		if known := newest[r.Ref]; known == nil || r.FetchedAt.After(known.FetchedAt) {
			newest[r.Ref] = r
		}
	})
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist):
	case errors.Is(err, berrors.ErrTimeout):
		s.giveUp()
		s.log.Warn("the sealed cache is in use by another process; this one works without it", "path", s.path, "hint", "give each agent a cache.sealed.path of its own")
	case errors.Is(err, fs.ErrPermission):
		s.giveUp()
		s.log.Warn("the sealed cache cannot be read; the agent works without it", "path", s.path, "err", err, "hint", "make the file readable for the user of the agent")
	default:
		s.st.Rebuilt++
		s.log.Error("the sealed cache is damaged", "path", s.path, "err", err, "loaded", len(newest), "hint", "nothing: it is rebuilt; check the disk if it happens again")
	}
	found := make([]*record, 0, len(newest))
	for _, r := range newest {
		found = append(found, r)
	}
	slices.SortFunc(found, func(a, b *record) int {
		return cmp.Or(a.FetchedAt.Compare(b.FetchedAt), cmp.Compare(a.Ref.String(), b.Ref.String()))
	})
	return found
}

// readAll calls fn with every record of the file as it was left.
func (s *sealedFile) readAll(fn func(id, sealed []byte)) error {
	switch st, err := os.Stat(s.path); { // before it is opened: to open a pipe waits for a writer
	case err != nil:
		return err
	case !st.Mode().IsRegular():
		return errors.New("it is not a regular file")
	case st.Size() == 0:
		return errors.New("it is empty")
	}
	raw, err := os.Open(s.path)
	if err != nil {
		return err
	}
	defer raw.Close()
	st, err := raw.Stat()
	if err != nil {
		return err
	}
	f, err := openBolt(s.path, bbolt.Options{ReadOnly: true}) // which leaves the freelist alone
	if err != nil {
		return err
	}
	// Nothing was walked yet, and nobody writes while the lock is held.
	if err := checkTree(raw, st.Size()); err != nil {
		return errors.Join(err, f.Close())
	}
	err = guarded(func() error {
		return f.View(func(tx *bbolt.Tx) error {
			b := tx.Bucket(recordBucket)
			if b == nil {
				return errors.New("it has no place for records")
			}
			// The sequence of the bucket, which bbolt leaves to us, is the number of records:
			// damage can hide some and leave a tree that is sound.
			count := uint64(0)
			err := b.ForEach(func(id, sealed []byte) error {
				fn(id, sealed)
				count++
				return nil
			})
			if err == nil && count != b.Sequence() {
				err = fmt.Errorf("it has %d of %d records", count, b.Sequence())
			}
			return err
		})
	})
	if errors.Is(err, errDamaged) {
		f.abandon()
		return err
	}
	return errors.Join(err, f.Close())
}

// guarded turns a panic of bbolt into an error, and the fault of a damaged or truncated
// mapping into a panic.
func guarded(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", errDamaged, p)
		}
	}()
	return fn()
}

// put has the value of e written. What was merely confirmed is written only when the age in
// the file has become too wrong. The caller holds the shard.
func (s *sealedFile) put(e *entry, changed bool, limits *Limits) {
	if s == nil || limits.MaxStale == Never {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.off {
		return
	}
	if known, ok := s.stored[e.ref]; ok && !changed && e.fetchedAt.Sub(known.fetchedAt) < limits.MaxStale/confirmShare {
		return
	}
	if _, waits := s.pending[e.ref]; !waits && len(s.pending) >= maxPending {
		// The file must not keep an older value than the one it cannot take.
		if _, ok := s.stored[e.ref]; ok && changed {
			s.pending[e.ref] = nil
		}
		s.st.Skipped++
		return
	}
	s.pending[e.ref] = recordOf(e)
	s.ring()
}

// drop has the value of ref deleted.
func (s *sealedFile) drop(ref upstream.SecretRef) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.off {
		return
	}
	_, isStored := s.stored[ref]
	_, isWritten := s.writing[ref]
	if isStored || isWritten || s.filling {
		s.pending[ref] = nil
		s.ring()
	} else {
		delete(s.pending, ref)
	}
}

func (s *sealedFile) ring() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run writes changes until ctx ends. What is left then is written by close.
func (s *sealedFile) run(ctx context.Context) {
	if s == nil {
		return
	}
	s.io.Lock()
	s.ran = true
	s.io.Unlock()
	backoff := newBackoff()
	wait := time.Duration(0) // the first time, the file is made
	failures := 0            // in a row
	for {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		if err := s.flush(); err != nil {
			s.mu.Lock()
			s.st.Errors++
			s.mu.Unlock()
			failures++
			s.log.Error("the sealed cache cannot be written", "path", s.path, "err", err, "hint", "it is tried again; check space and permissions")
			wait, _ = backoff.Next()
			continue
		}
		backoff = newBackoff()
		if failures > 0 {
			s.log.Info("the sealed cache is written again", "path", s.path, "failures", failures)
			failures = 0
		}
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		}
		wait = flushDelay
	}
}

// close writes what is left and closes the file. It may be called more than once.
func (s *sealedFile) close() {
	if s == nil {
		return
	}
	s.io.Lock()
	ran := s.ran
	s.ran = false
	s.io.Unlock()
	if ran {
		if err := s.flush(); err != nil {
			s.log.Error("the last changes of the sealed cache could not be written", "path", s.path, "err", err, "hint", "check space and permissions; what it holds is a little older")
		}
	}
	s.mu.Lock()
	s.off = true
	s.pending = map[upstream.SecretRef]*record{}
	s.mu.Unlock()
	s.io.Lock()
	defer s.io.Unlock()
	s.shut(false)
}

// shut closes the database. The caller holds io.
func (s *sealedFile) shut(damaged bool) {
	f := s.f
	s.f = nil
	switch {
	case f == nil:
	case damaged:
		f.abandon()
	default:
		if err := f.Close(); err != nil {
			s.log.Error("the sealed cache could not be closed", "path", s.path, "err", err, "hint", "check the disk")
		}
	}
}

// giveUp goes on without a file.
func (s *sealedFile) giveUp() {
	s.mu.Lock()
	s.off = true
	s.pending = map[upstream.SecretRef]*record{}
	s.mu.Unlock()
}

// flush writes what is pending. A file that is not there yet, not ours any more or damaged
// is made anew.
func (s *sealedFile) flush() error {
	s.io.Lock()
	defer s.io.Unlock()
	for {
		s.mu.Lock()
		off, todo := s.off, len(s.pending)
		s.mu.Unlock()
		if off || todo == 0 && s.f != nil {
			return nil
		}
		if s.f == nil || !s.inPlace() {
			if err := s.rebuild(); err != nil {
				return err
			}
			continue
		}
		err := s.flushSome()
		if err == nil {
			continue
		}
		if !unusable(err) {
			return err
		}
		s.log.Error("the sealed cache was damaged while in use", "path", s.path, "err", err, "hint", "nothing: it is rebuilt; check the disk if it happens again")
		s.shut(errors.Is(err, errDamaged))
		s.mu.Lock()
		s.st.Rebuilt++
		s.mu.Unlock()
	}
}

// unusable reports whether err means that the file has to be made anew.
func unusable(err error) bool {
	for _, e := range []error{errDamaged, berrors.ErrMaxSizeReached, berrors.ErrInvalid, berrors.ErrChecksum, berrors.ErrVersionMismatch, berrors.ErrBucketNotFound} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// inPlace reports whether the file at path is the one that was opened last.
func (s *sealedFile) inPlace() bool {
	there, err := os.Stat(s.path)
	return err == nil && s.mine != nil && os.SameFile(s.mine, there)
}

// flushSome writes one batch of what is pending. The caller holds io.
func (s *sealedFile) flushSome() error {
	s.mu.Lock()
	s.writing = map[upstream.SecretRef]*record{}
	for ref, r := range s.pending {
		if len(s.writing) == flushBatch {
			break
		}
		s.writing[ref] = r
		delete(s.pending, ref)
	}
	batch := s.writing
	s.mu.Unlock()

	done, err := s.write(s.f, batch)

	s.mu.Lock()
	defer s.mu.Unlock()
	s.writing = nil
	if err != nil {
		for ref, r := range batch {
			if _, newer := s.pending[ref]; !newer {
				s.pending[ref] = r
			}
		}
		return err
	}
	s.adopt(done)
	return nil
}

// adopt notes what is in the file. The caller holds mu.
func (s *sealedFile) adopt(done map[upstream.SecretRef]stored) {
	for ref, n := range done {
		s.st.Bytes += int64(n.size - s.stored[ref].size)
		if n.size == 0 {
			delete(s.stored, ref)
		} else {
			s.stored[ref] = n
		}
	}
	s.st.Records = len(s.stored)
}

// write makes one transaction of batch. It returns what the file then holds of each
// reference; size zero means nothing. The caller holds io.
func (s *sealedFile) write(f *boltFile, batch map[upstream.SecretRef]*record) (map[upstream.SecretRef]stored, error) {
	done := make(map[upstream.SecretRef]stored, len(batch))
	s.mu.Lock()
	total := s.st.Bytes
	before := make(map[upstream.SecretRef]stored, len(batch))
	for ref := range batch {
		before[ref] = s.stored[ref]
	}
	s.mu.Unlock()
	skipped := 0
	err := guarded(func() error {
		return f.Update(func(tx *bbolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists(recordBucket)
			if err != nil {
				return err
			}
			count := b.Sequence() // see readAll
			for ref, r := range batch {
				old := before[ref]
				total -= int64(old.size)
				if r != nil {
					n := stored{id: old.id, fetchedAt: r.FetchedAt}
					if old.size == 0 {
						n.id = newRecordID()
					}
					sealed, err := r.seal(s.key, n.id)
					if err != nil {
						return err
					}
					n.size = len(n.id) + len(sealed)
					if total+int64(n.size) <= s.maxBytes {
						if err := b.Put(n.id[:], sealed); err != nil {
							return err
						}
						total += int64(n.size)
						if old.size == 0 {
							count++
						}
						done[ref] = n
						continue
					}
					skipped++ // and the old one, if any, is out of date
				}
				if old.size > 0 {
					if err := b.Delete(old.id[:]); err != nil {
						return err
					}
					count--
				}
				done[ref] = stored{}
			}
			return b.SetSequence(count)
		})
	})
	if err != nil {
		return nil, err
	}
	if skipped > 0 {
		s.mu.Lock()
		first := s.st.Skipped == 0
		s.st.Skipped += skipped
		s.mu.Unlock()
		if first {
			s.log.Warn("the sealed cache is full: some values will not survive a restart", "path", s.path, "limit", s.maxBytes, "hint", "raise cache.sealed.maxBytes")
		}
	}
	return done, nil
}

// rebuild replaces the file by a new one with everything that is held. Until it is complete
// the old one stays. The caller holds io.
func (s *sealedFile) rebuild() error {
	s.shut(false)
	if !s.inPlace() && inUse(s.path) {
		s.giveUp()
		s.log.Warn("the sealed cache is in use by another process; this one works without it", "path", s.path, "hint", "give each agent a cache.sealed.path of its own")
		return nil
	}
	dir := filepath.Dir(s.path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	const leftover = ".new-*"
	old, _ := filepath.Glob(s.path + leftover) // of runs that were killed
	for _, path := range old {
		_ = os.Remove(path)
	}
	temp, err := os.CreateTemp(dir, filepath.Base(s.path)+leftover) // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name()) // in vain after the rename
	if err := temp.Close(); err != nil {
		return err
	}

	s.mu.Lock()
	s.pending = map[upstream.SecretRef]*record{} // all of it is held, or gone
	s.stored = map[upstream.SecretRef]stored{}
	s.st.Bytes, s.st.Records = 0, 0
	s.filling = true
	s.mu.Unlock()
	err = s.fill(temp.Name())
	s.mu.Lock()
	s.filling = false
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if err := os.Rename(temp.Name(), s.path); err != nil {
		return err
	}
	if err := syncFolder(dir); err != nil {
		return err
	}
	if s.f, err = s.open(s.path); err != nil {
		return err
	}
	s.mine, err = s.f.fd.Stat()
	return err
}

// inUse reports whether another process has the file at path.
func inUse(path string) bool {
	if st, err := os.Stat(path); err != nil || !st.Mode().IsRegular() {
		return false
	}
	f, err := openBolt(path, bbolt.Options{ReadOnly: true})
	if err != nil {
		return errors.Is(err, berrors.ErrTimeout)
	}
	_ = f.Close()
	return false
}

// fill writes everything that is held to a new file at path, the youngest first.
func (s *sealedFile) fill(path string) error {
	f, err := s.open(path)
	if err != nil {
		return err
	}
	f.NoSync = true // until it is complete
	held := s.held()
	slices.Reverse(held)
	parts := slices.Collect(slices.Chunk(held, flushBatch))
	if len(parts) == 0 {
		parts = [][]*record{nil} // a file without records has a place for them, too
	}
	for _, part := range parts {
		batch := make(map[upstream.SecretRef]*record, len(part))
		for _, r := range part {
			batch[r.Ref] = r
		}
		done, err := s.write(f, batch)
		if errors.Is(err, errDamaged) {
			f.abandon()
			return err
		}
		if err != nil {
			return errors.Join(err, f.Close())
		}
		s.mu.Lock()
		s.adopt(done)
		s.mu.Unlock()
	}
	return errors.Join(f.Sync(), f.Close())
}

// open opens a file that this process made.
func (s *sealedFile) open(path string) (*boltFile, error) {
	// Room for the copies that transactions make; beyond it the file is made anew.
	return openBolt(path, bbolt.Options{MaxSize: int(4*s.maxBytes + 4<<20)})
}

func (s *sealedFile) stats() SealedStats {
	if s == nil {
		return SealedStats{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.st
	st.Open = !s.off
	st.Pending = len(s.pending) + len(s.writing)
	return st
}
