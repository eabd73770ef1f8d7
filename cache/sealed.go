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

	"secretagent/upstream/keyfile"
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

	// confirmShare is the share of MaxStale after which the file is written although nothing has
	// changed: what was merely confirmed is not written each time. The file also tells the next
	// run what time it was at least.
	confirmShare = 64

	// maxRecord bounds a record, which holds one value.
	maxRecord = 16 << 20

	// maxForeign bounds what is read that cannot be opened.
	maxForeign = 64 << 20

	// sealOverhead is by how much a record is longer than what is in it.
	sealOverhead = 5 + 12 + 16 // id of the key, nonce and tag

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
//	end      length, AEAD(no record, number of records, time)
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
	clock    *clock
	every    func() time.Duration // between rewrites without a change
	wake     bell                 // a rewrite becomes due, or due earlier

	lock    *os.File  // nil until it is taken
	written time.Time // when the file was that the cache began with; zero: there was none

	mu   sync.Mutex
	off  bool // given up or closed
	gone bool // a secret in the file is gone or denied
	held bool // it stays as it is until the upstream answers; see hold
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
// file. restore reports whether the record can be used. load returns the newest time in the
// file.
func (s *sealedFile) load(restore func(*record) bool) (newest time.Time) {
	// Without a folder there is no file, and a lock that cannot be taken only stops the writer.
	if err := s.takeLock(); errors.Is(err, errInUse) {
		return newest
	}
	note := func(t time.Time) {
		if t.After(newest) {
			newest = t
		}
	}
	written, err := s.read(func(r *record) {
		if r == nil || !restore(r) {
			s.st.Refused++
		} else {
			note(r.FetchedAt)
		}
	})
	note(written)
	s.written = written
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
		s.log.Error("records of the sealed cache were refused: damaged, exchanged or sealed with another key", "path", s.path,
			"refused", s.st.Refused, "loaded", s.st.Loaded, "hint", "nothing: the file is rebuilt; if you did not restore or move it, find out who can write it")
	}
	return newest
}

// read calls fn with every record, nil for one that cannot be opened, and returns when the file
// was written. Beside what fn keeps it takes memory for one record. It reads no more than what
// was sealed with its key, however much that is, and some of what was not.
func (s *sealedFile) read(fn func(*record)) (written time.Time, err error) {
	st, err := os.Stat(s.path) // before it is opened: to open a pipe waits for a writer
	if err != nil {
		return written, err
	}
	if !st.Mode().IsRegular() {
		return written, errors.New("it is not a regular file")
	}
	f, err := os.Open(s.path)
	if err != nil {
		return written, err
	}
	defer f.Close()
	if st, err = f.Stat(); err == nil {
		err = keyfile.CheckOpen(s.path, st)
	}
	if err != nil {
		return written, err
	}
	in := bufio.NewReaderSize(f, 64<<10)
	header := make([]byte, sealedHeader)
	if _, err := io.ReadFull(in, header); err != nil || !bytes.HasPrefix(header, []byte(sealedMagic)) {
		return written, errors.New("it is no sealed cache of this version")
	}
	left, foreign := st.Size()-int64(sealedHeader), int64(0)
	for index := 0; foreign <= maxForeign; index++ {
		sealed, err := readRecord(in, left)
		if err != nil {
			return written, fmt.Errorf("it has no end after %d records: %w", index, err)
		}
		left -= int64(4 + len(sealed))
		plain, err := s.key.Decrypt(sealed, associatedData(header, index))
		if err != nil {
			foreign += int64(len(sealed))
			fn(nil)
			continue
		}
		if count, written, ok := isEnd(plain); ok {
			if left > 0 || count != index {
				return written, fmt.Errorf("its end comes after %d of %d records, and is not the last", index, count)
			}
			return written, nil
		}
		fn(parseRecord(plain))
	}
	return written, errors.New("most of it was not sealed with the key")
}

// readRecord reads a record from the last bytes of a file, of which left are left.
func readRecord(in io.Reader, left int64) ([]byte, error) {
	var length uint32
	if err := binary.Read(in, binary.BigEndian, &length); err != nil {
		return nil, err
	}
	if length < sealOverhead || length > maxRecord || int64(length) > left-4 {
		return nil, fmt.Errorf("no record is %d bytes long", length)
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
	if s.st.Pending == 0 || gone && !s.gone || s.held {
		s.wake.ring()
	}
	s.st.Pending++
	s.gone = s.gone || gone
	s.held = false
}

// hold keeps the file as it is until the upstream has answered. Values in it seem to be too old,
// but the wall clock may be ahead and be put right before there is something to write. What is
// gone leaves it all the same.
func (s *sealedFile) hold() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = !s.gone
}

// holds reports whether the file stays as it is.
func (s *sealedFile) holds() bool {
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held
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

// run rewrites the file until end is closed. Then it writes what is left, and, when that was long
// ago, what time it is. The first time is at once. It writes nothing while the file is held.
func (s *sealedFile) run(end <-chan struct{}) {
	if s == nil {
		return
	}
	var failed setback
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Stop()
		if s.holds() {
			failed = setback{} // later
		} else if err := s.rewrite(); err != nil {
			s.log.Error("the sealed cache cannot be written", "path", s.path, "err", err, "hint", "it is tried again; check space and permissions")
			failed.add(err)
			timer.Reset(failed.wait())
		} else {
			if failed.count > 0 {
				s.log.Info("the sealed cache is written again", "path", s.path, "failures", failed.count)
				failed = setback{}
			}
			if s.stats().Records > 0 {
				timer.Reset(max(s.every(), s.pause()))
			}
		}
		last, written := time.Now(), s.clock.now()
		for due := false; !due; {
			select {
			case <-end:
				st := s.stats()
				if s.holds() || st.Pending == 0 && (st.Records == 0 || s.clock.now()-written < int64(s.every())) {
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
	dir := keyfile.Folder(s.path)
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
		return st, keyfile.RenameError(s.path, err)
	}
	return st, syncFolder(dir)
}

// write writes everything that belongs in the file and fits.
func (s *sealedFile) write(f io.Writer) (st SealedStats, err error) {
	out := bufio.NewWriterSize(f, 64<<10) // it keeps an error for Flush
	began := s.clock.known(s.clock.now()) // what is newer may not be in it
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
		if plain := r.plain(min(left, maxRecord-sealOverhead)); plain != nil {
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
	if _, err := put(endRecord(st.Records, began), endSize); err != nil {
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
	dir := keyfile.Folder(s.path)
	if err := keyfile.MakeFolder(dir, 0o700, false); err != nil {
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
