package cache

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/tink-crypto/tink-go/v2/tink"
)

const (
	// lockWait is how long a file in use by another process is waited for.
	lockWait = 100 * time.Millisecond

	// gatherDelay lets changes that come together be written together.
	gatherDelay = 250 * time.Millisecond

	// The pause after a rewrite keeps the average rate of writing below writeRate, and below
	// goneRate while the file holds a secret that is gone or denied. It is at least minPause.
	minPause  = time.Second
	writeRate = 1 << 20 // bytes per second
	goneRate  = 8 << 20

	// confirmShare is the share of MaxStale by which the age in the file may exceed the true
	// one: what was merely confirmed is not written each time.
	confirmShare = 64

	// clockSkew is how far in the future a record may have been fetched: a clock that was
	// set back must not make values immortal.
	clockSkew = time.Minute

	// leftover is how the names of unfinished files go on after that of the file.
	leftover = ".new-"

	sealedMagic  = "secretagent sealed cache 3\n"
	sealedHeader = len(sealedMagic) + 16
)

// errInUse says that another process has the lock of the sealed file.
var errInUse = errors.New("in use by another process")

// sealedFile is the restart cache. The file is read once, when the cache starts, and after that
// only ever replaced by a new one that holds everything:
//
//	header   sealedMagic, random id of the file
//	records  length, AEAD(record), the most important first
//	end      length, AEAD(no record, number of records)
//
// Lengths take four bytes. The associated data of each record are the header and its index,
// and so records cannot be exchanged, moved or taken from another file, and what is cut off
// is missed. Whoever wants to write holds the lock on a file beside it.
//
// A nil sealedFile does nothing.
type sealedFile struct {
	path     string
	maxBytes int64
	key      tink.AEAD
	log      *slog.Logger
	content  func(yield func(*record) bool) // everything that belongs in the file
	wake     chan struct{}                  // rung when a rewrite becomes due, or due earlier

	io      sync.Mutex // around everything that touches the file
	lock    *os.File   // nil until it is taken
	running bool       // the file may be written

	mu      sync.Mutex
	off     bool // given up or closed
	gone    bool // a secret in the file is gone or denied
	writing int  // changes that the rewrite under way writes
	st      SealedStats
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
	return &sealedFile{path: opts.Path, maxBytes: opts.MaxBytes, key: key, log: log, wake: make(chan struct{}, 1)}, nil
}

func sameFolder(a, b string) bool {
	a, errA := filepath.Abs(filepath.Dir(a))
	b, errB := filepath.Abs(filepath.Dir(b))
	return errA == nil && errB == nil && a == b
}

// load calls restore with every record of the file that is authentic, in the order of the
// file. restore reports whether the record can be used.
func (s *sealedFile) load(restore func(*record) bool) {
	s.io.Lock()
	defer s.io.Unlock()
	// Without a folder there is no file, and a lock that cannot be taken only stops the writer.
	if err := s.takeLock(); errors.Is(err, errInUse) {
		return
	}
	err := s.read(func(r *record) {
		if r == nil || !restore(r) {
			s.st.Refused++
		}
	})
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist):
	case errors.Is(err, fs.ErrPermission):
		s.giveUp()
		s.log.Warn("the sealed cache cannot be read; the agent works without it", "path", s.path, "err", err, "hint", "make the file readable for the user of the agent")
	default:
		s.st.Rebuilt++
		s.log.Error("the sealed cache is damaged", "path", s.path, "err", err, "loaded", s.st.Loaded, "hint", "nothing: it is rebuilt; check the disk if it happens again")
	}
	if s.st.Refused > 0 {
		s.log.Error("records of the sealed cache were refused: damaged, exchanged, sealed with another key, or too old", "path", s.path,
			"refused", s.st.Refused, "loaded", s.st.Loaded, "hint", "nothing: the file is rebuilt; if you did not restore or move it, find out who can write it")
	}
}

// read calls fn with every record, nil for one that cannot be opened. Beside what fn keeps it
// takes memory for one record, and it ends however long the file is.
func (s *sealedFile) read(fn func(*record)) error {
	st, err := os.Stat(s.path) // before it is opened: to open a pipe waits for a writer
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return errors.New("it is not a regular file")
	}
	f, err := os.Open(s.path)
	if err != nil {
		return err
	}
	defer f.Close()
	in, left := bufio.NewReaderSize(f, 64<<10), min(st.Size(), 4*s.maxBytes+4<<20)
	next := func(n int64) ([]byte, error) {
		if left -= n; left < 0 {
			return nil, io.ErrUnexpectedEOF
		}
		b := make([]byte, n)
		_, err := io.ReadFull(in, b)
		return b, err
	}
	header, err := next(int64(sealedHeader))
	if err != nil || !bytes.HasPrefix(header, []byte(sealedMagic)) {
		return errors.New("it is no sealed cache of this version")
	}
	for index := uint64(0); ; index++ {
		length, err := next(4)
		var sealed []byte
		if err == nil {
			sealed, err = next(int64(binary.BigEndian.Uint32(length)))
		}
		if err != nil {
			return fmt.Errorf("it has no end after %d records: %w", index, err)
		}
		plain, err := s.key.Decrypt(sealed, associatedData(header, index))
		if err != nil {
			fn(nil)
			continue
		}
		if count, ok := isEnd(plain); ok {
			if count != index || left != 0 {
				return fmt.Errorf("its end does not belong there: after %d of %d records, %d bytes before the true one", index, count, left)
			}
			return nil
		}
		fn(parseRecord(plain))
	}
}

// changed has the file rewritten soon. With gone it holds a secret that is gone or denied,
// which makes it more urgent.
func (s *sealedFile) changed(gone bool) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.off {
		return
	}
	if s.st.Pending == 0 || gone && !s.gone {
		s.ring()
	}
	s.st.Pending++
	s.gone = s.gone || gone
}

func (s *sealedFile) ring() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// pause returns how long after a rewrite the next one may begin.
func (s *sealedFile) pause() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	rate := float64(writeRate)
	if s.gone {
		rate = goneRate
	}
	return max(minPause, time.Duration(float64(s.st.Bytes)/rate*float64(time.Second)))
}

// run rewrites the file, the first time at once, until ctx ends. What is left then is written
// by close.
func (s *sealedFile) run(ctx context.Context) {
	if s == nil {
		return
	}
	s.io.Lock()
	s.running = true
	s.io.Unlock()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var last time.Time
	var failed setback
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
			if failed.count == 0 {
				timer.Reset(max(gatherDelay, time.Until(last.Add(s.pause()))))
			}
			continue
		case <-timer.C:
		}
		if err := s.rewrite(); err != nil {
			s.log.Error("the sealed cache cannot be written", "path", s.path, "err", err, "hint", "it is tried again; check space and permissions")
			failed.add(err)
			timer.Reset(failed.wait())
			continue
		}
		if failed.count > 0 {
			s.log.Info("the sealed cache is written again", "path", s.path, "failures", failed.count)
		}
		last, failed = time.Now(), setback{}
	}
}

// close writes what is left and gives the file up. It may be called more than once.
func (s *sealedFile) close() {
	if s == nil {
		return
	}
	if s.stats().Pending > 0 {
		if err := s.rewrite(); err != nil {
			s.log.Error("the last changes of the sealed cache could not be written", "path", s.path, "err", err, "hint", "check space and permissions; what it holds is a little older")
		}
	}
	s.giveUp()
	s.io.Lock()
	defer s.io.Unlock()
	s.running = false
	if s.lock != nil {
		_ = s.lock.Close() // which unlocks it
		s.lock = nil
	}
}

// giveUp goes on without a file.
func (s *sealedFile) giveUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.off = true
	s.st.Pending = 0
}

// rewrite replaces the file by a new one. Until that is complete the old one stays.
func (s *sealedFile) rewrite() error {
	s.io.Lock()
	defer s.io.Unlock()
	if !s.begin() {
		return nil
	}
	st, err := s.replace()
	if errors.Is(err, errInUse) {
		err = nil // it was given up
	}
	if s.end(st, err) {
		s.log.Warn("the sealed cache is full: some values will not survive a restart", "path", s.path, "limit", s.maxBytes, "hint", "raise cache.sealed.maxBytes")
	}
	return err
}

// begin reports whether the file may be written.
func (s *sealedFile) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.off || !s.running {
		return false
	}
	s.writing, s.st.Pending, s.gone = s.st.Pending, 0, false
	return true
}

// end notes what is in the file, and reports whether it has just become full.
func (s *sealedFile) end(st SealedStats, err error) (full bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.st.Pending += max(1, s.writing)
		s.st.Errors++
	} else {
		full = st.Skipped > 0 && s.st.Skipped == 0
		s.st.Records, s.st.Bytes, s.st.Skipped = st.Records, st.Bytes, st.Skipped
	}
	s.writing = 0
	return full
}

// replace puts a new file in place and on disk.
func (s *sealedFile) replace() (st SealedStats, err error) {
	if err := s.takeLock(); err != nil {
		return st, err
	}
	dir := filepath.Dir(s.path)
	temp, err := os.CreateTemp(dir, filepath.Base(s.path)+leftover+"*") // mode 0600
	if err != nil {
		return st, err
	}
	defer os.Remove(temp.Name()) // unless it was renamed
	st, err = s.write(temp)
	if err := errors.Join(err, temp.Sync(), temp.Close()); err != nil {
		return st, err
	}
	if err := os.Rename(temp.Name(), s.path); err != nil {
		return st, err
	}
	return st, syncFolder(dir)
}

// write writes everything that belongs in the file and fits.
func (s *sealedFile) write(f io.Writer) (st SealedStats, err error) {
	out := bufio.NewWriterSize(f, 64<<10)
	header := append([]byte(sealedMagic), make([]byte, sealedHeader-len(sealedMagic))...)
	_, _ = rand.Read(header[len(sealedMagic):]) // never fails
	if _, err := out.Write(header); err != nil {
		return st, err
	}
	put := func(plain []byte, limit int64) (size int64, err error) {
		defer clear(plain)
		sealed, err := s.key.Encrypt(plain, associatedData(header, uint64(st.Records)))
		size = int64(4 + len(sealed))
		if err != nil || size > limit {
			return size, err
		}
		_, _ = out.Write(binary.BigEndian.AppendUint32(nil, uint32(len(sealed)))) // an error stays
		_, err = out.Write(sealed)
		return size, err
	}
	for r := range s.content {
		left := s.maxBytes - st.Bytes
		size := r.minSize()
		if size <= left {
			plain, err := r.plain()
			if err != nil {
				return st, err
			}
			if size, err = put(plain, left); err != nil {
				return st, err
			}
		}
		if size > left {
			st.Skipped++
			continue
		}
		st.Records, st.Bytes = st.Records+1, st.Bytes+size
	}
	if _, err := put(endRecord(st.Records), s.maxBytes); err != nil {
		return st, err
	}
	return st, out.Flush()
}

// takeLock takes the lock and removes what runs that were killed have left. When another
// process has it, the file is given up. The caller holds io.
func (s *sealedFile) takeLock() error {
	if s.lock != nil {
		return nil
	}
	dir := filepath.Dir(s.path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(s.path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(lockWait); ; time.Sleep(lockWait / 10) {
		if err = lockFile(f); !errors.Is(err, errInUse) || !time.Now().Before(deadline) {
			break
		}
	}
	if err != nil {
		_ = f.Close()
		if errors.Is(err, errInUse) {
			s.giveUp()
			s.log.Warn("the sealed cache is in use by another process; this one works without it", "path", s.path, "hint", "give each agent a cache.sealed.path of its own")
		}
		return err
	}
	s.lock = f
	names, _ := os.ReadDir(dir)
	for _, n := range names {
		if strings.HasPrefix(n.Name(), filepath.Base(s.path)+leftover) {
			_ = os.Remove(filepath.Join(dir, n.Name()))
		}
	}
	return nil
}

func (s *sealedFile) stats() SealedStats {
	if s == nil {
		return SealedStats{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.st
	st.Open = !s.off
	st.Pending += s.writing
	return st
}
