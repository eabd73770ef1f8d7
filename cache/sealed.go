package cache

import (
	"bufio"
	"bytes"
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
	endSize      = 100 // more than the end of the file takes
)

// errInUse says that another process has the lock of the sealed file.
var errInUse = errors.New("in use by another process")

// sealedFile is the restart cache. The file is read once, when the cache starts, and after that
// only ever replaced by a new one that holds everything, by one goroutine:
//
//	header   sealedMagic, random id of the file
//	records  length, AEAD(record), the most important first
//	end      length, AEAD(no record, number of records)
//
// Lengths take four bytes. The associated data of each record are the header and its index,
// and so records cannot be exchanged, moved or taken from another file, and what is cut off
// is missed. A lock on a file beside it keeps a second agent away.
//
// A nil sealedFile does nothing.
type sealedFile struct {
	path     string
	maxBytes int64
	key      tink.AEAD
	log      *slog.Logger
	content  func(yield func(*record) bool) // everything that belongs in the file
	wake     bell                           // a rewrite becomes due, or due earlier

	lock *os.File // nil until it is taken

	mu   sync.Mutex
	off  bool // given up or closed
	gone bool // a secret in the file is gone or denied
	st   SealedStats
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
	return &sealedFile{path: opts.Path, maxBytes: opts.MaxBytes, key: key, log: log, wake: newBell()}, nil
}

func sameFolder(a, b string) bool {
	a, errA := filepath.Abs(filepath.Dir(a))
	b, errB := filepath.Abs(filepath.Dir(b))
	return errA == nil && errB == nil && a == b
}

// load calls restore with every record of the file that is authentic, in the order of the
// file. restore reports whether the record can be used.
func (s *sealedFile) load(restore func(*record) bool) {
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
	in := bufio.NewReaderSize(io.LimitReader(f, 4*s.maxBytes+4<<20), 64<<10)
	header := make([]byte, sealedHeader)
	if _, err := io.ReadFull(in, header); err != nil || !bytes.HasPrefix(header, []byte(sealedMagic)) {
		return errors.New("it is no sealed cache of this version")
	}
	for index := 0; ; index++ {
		sealed, err := s.readRecord(in)
		if err != nil {
			return fmt.Errorf("it has no end after %d records: %w", index, err)
		}
		plain, err := s.key.Decrypt(sealed, associatedData(header, index))
		if err != nil {
			fn(nil)
			continue
		}
		if count, ok := isEnd(plain); ok {
			if _, err := in.ReadByte(); err != io.EOF || count != index {
				return fmt.Errorf("its end comes after %d of %d records, and is not the last", index, count)
			}
			return nil
		}
		fn(parseRecord(plain))
	}
}

func (s *sealedFile) readRecord(in io.Reader) ([]byte, error) {
	var length uint32
	if err := binary.Read(in, binary.BigEndian, &length); err != nil {
		return nil, err
	}
	if int64(length) > s.maxBytes+endSize {
		return nil, errors.New("a record is longer than the bound of all")
	}
	sealed := make([]byte, length)
	_, err := io.ReadFull(in, sealed)
	return sealed, err
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
		s.wake.ring()
	}
	s.st.Pending++
	s.gone = s.gone || gone
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

// run rewrites the file, the first time at once, until end is closed. Then it writes what is
// left.
func (s *sealedFile) run(end <-chan struct{}) {
	if s == nil {
		return
	}
	var failed setback
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Stop()
		if err := s.rewrite(); err != nil {
			s.log.Error("the sealed cache cannot be written", "path", s.path, "err", err, "hint", "it is tried again; check space and permissions")
			failed.add(err)
			timer.Reset(failed.wait())
		} else if failed.count > 0 {
			s.log.Info("the sealed cache is written again", "path", s.path, "failures", failed.count)
			failed = setback{}
		}
		last := time.Now()
		for due := false; !due; {
			select {
			case <-end:
				if s.stats().Pending == 0 {
					return
				}
				if err := s.rewrite(); err != nil {
					s.log.Error("the last changes of the sealed cache could not be written", "path", s.path, "err", err, "hint", "check space and permissions; what it holds is a little older")
				}
				return
			case <-s.wake:
				if failed.count == 0 {
					timer.Reset(max(gatherDelay, time.Until(last.Add(s.pause()))))
				}
			case <-timer.C:
				due = true
			}
		}
	}
}

// close gives the file up. It may be called more than once.
func (s *sealedFile) close() {
	if s == nil {
		return
	}
	s.giveUp()
	if s.lock != nil {
		_ = s.lock.Close() // which unlocks it
		s.lock = nil
	}
}

// giveUp goes on without a file.
func (s *sealedFile) giveUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.off, s.st.Pending = true, 0
}

// rewrite replaces the file by a new one. Until that is complete the old one stays.
func (s *sealedFile) rewrite() error {
	s.mu.Lock()
	off, before := s.off, s.st
	s.gone = false
	s.mu.Unlock()
	if off {
		return nil
	}
	st, err := s.replace()
	if errors.Is(err, errInUse) {
		return nil // it was given up
	}
	if st.Skipped > 0 && before.Skipped == 0 {
		s.log.Warn("the sealed cache is full: some values will not survive a restart", "path", s.path, "limit", s.maxBytes, "hint", "raise cache.sealed.maxBytes")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.st.Errors++
		return err
	}
	s.st.Records, s.st.Bytes, s.st.Skipped = st.Records, st.Bytes, st.Skipped
	if s.st.Pending -= before.Pending; s.st.Pending > 0 {
		s.wake.ring()
	}
	return nil
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
	out := bufio.NewWriterSize(f, 64<<10) // it keeps an error for Flush
	header := append([]byte(sealedMagic), make([]byte, sealedHeader-len(sealedMagic))...)
	_, _ = rand.Read(header[len(sealedMagic):]) // never fails
	_, _ = out.Write(header)
	put := func(plain []byte, left int64) (size int64, err error) {
		defer clear(plain)
		sealed, err := s.key.Encrypt(plain, associatedData(header, st.Records))
		if size = int64(4 + len(sealed)); err != nil || size > left {
			return 0, err
		}
		_ = binary.Write(out, binary.BigEndian, uint32(len(sealed)))
		_, err = out.Write(sealed)
		return size, err
	}
	for r := range s.content {
		size, left := int64(0), s.maxBytes-st.Bytes
		if plain := r.plain(left); plain != nil {
			if size, err = put(plain, left); err != nil {
				return st, err
			}
		}
		if size > 0 {
			st.Records, st.Bytes = st.Records+1, st.Bytes+size
		} else {
			st.Skipped++
		}
	}
	if _, err := put(endRecord(st.Records), endSize); err != nil {
		return st, err
	}
	return st, out.Flush()
}

// takeLock takes the lock and removes what runs that were killed have left. When another
// process has it, the file is given up.
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
	err = lockFile(f)
	for tries := 1; errors.Is(err, errInUse) && tries < 10; tries++ {
		time.Sleep(lockWait / 10)
		err = lockFile(f)
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
		if number, ok := strings.CutPrefix(n.Name(), filepath.Base(s.path)+leftover); ok && strings.Trim(number, "0123456789") == "" {
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
	return st
}
