package bolt

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/bbolt"

	"secretagent/upstream"
	"secretagent/upstream/builtin"
	"secretagent/upstream/upstreamtest"
)

// ciphertexts returns everything that is sealed in the database.
func ciphertexts(t *testing.T, s *Store) (all [][]byte) {
	must(t, s.db.bolt.View(func(tx *bbolt.Tx) error {
		for _, b := range [][]byte{buckets[builtin.Records], buckets[builtin.Values]} {
			must(t, tx.Bucket(b).ForEach(func(_, sealed []byte) error {
				all = append(all, bytes.Clone(sealed))
				return nil
			}))
		}
		return nil
	}))
	return all
}

// wantGone checks that the file holds none of what was sealed.
func wantGone(t *testing.T, s *Store, sealed [][]byte) {
	t.Helper()
	file := readFile(t, s.opts.Database)
	for _, c := range sealed {
		if bytes.Contains(file, c) {
			t.Errorf("the file still holds %d bytes of old ciphertext", len(c))
		}
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(s.opts.Database), ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// fileOf returns the file that is the database now.
func fileOf(s *Store) *os.File {
	s.db.swap.RLock()
	defer s.db.swap.RUnlock()
	return s.db.file
}

func skipWithoutCompaction(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("cannot replace a file that is open")
	}
}

// TestOldCiphertextIsGone looks into the file after a re-encryption, a forced deletion and a purge.
func TestOldCiphertextIsGone(t *testing.T) {
	skipWithoutCompaction(t)
	t.Parallel()
	opts, clock := testOptions(t), upstreamtest.NewClock()
	opts.Now = clock.Now
	s := mustOpen(t, opts)
	mustCreate(t, s, "small", "v1", "x")
	mustCreate(t, s, "large", "v1", strings.Repeat("x", 20_000))
	must(t, os.Chmod(opts.Database, 0o640))
	first := primaryOf(t, s).ID
	old := ciphertexts(t, s)
	wantErr(t, s.RemoveKey(t.Context(), first), builtin.ErrKeyInUse)
	mustRotate(t, s)
	wantErr(t, s.RemoveKey(t.Context(), first), builtin.ErrKeyInUse) // it protects both
	must(t, s.Reencrypt(t.Context(), nil))
	wantGone(t, s, old)
	if info, err := os.Stat(opts.Database); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("the mode is not kept: %v, %v", info, err)
	}
	must(t, s.RemoveKey(t.Context(), first))
	wantErr(t, s.RemoveKey(t.Context(), first), upstream.ErrKeyNotFound)
	wantErr(t, s.RemoveKey(t.Context(), "x"), upstream.ErrKeyNotFound)
	if keys, err := s.Keys(t.Context()); err != nil || len(keys) != 1 {
		t.Errorf("left are %v, %v", keys, err)
	}

	old = ciphertexts(t, s)
	forceDelete(t, s, "large")
	wantValue(t, s, "small", "x")
	mustDelete(t, s, "small", 7)
	clock.Advance(8 * 24 * time.Hour)
	must(t, only(s.Purge(t.Context())))
	must(t, s.db.compactOwed(t.Context()))
	wantGone(t, s, old)
	mustCreate(t, s, "next", "v1", "y")
	wantValue(t, reopen(t, s), "next", "y")
}

// TestKeyNamedAtCreationStays keeps a key that a secret asked for, although nothing is sealed
// with it yet.
func TestKeyNamedAtCreationStays(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	first := primaryOf(t, s).ID
	mustRotate(t, s)
	_, err := s.CreateSecret(t.Context(), upstream.CreateSecretInput{SecretName: "a", VersionID: "v1", SecretData: secret("x"), EncryptionKeyID: first})
	must(t, err)
	wantErr(t, s.RemoveKey(t.Context(), first), builtin.ErrKeyInUse)
	must(t, s.Reencrypt(t.Context(), nil))
	must(t, s.RemoveKey(t.Context(), first))
	wantValue(t, reopen(t, s), "a", "x")
}

// TestCompactionIsOwed fails to replace the file, as a full disk would have it. What asked for it is
// done all the same, and a later process makes it good.
func TestCompactionIsOwed(t *testing.T) {
	skipWithoutCompaction(t)
	s := mustOpen(t, testOptions(t))
	mustCreate(t, s, "a", "v1", "x")
	old := ciphertexts(t, s)
	away := s.opts.Database + ".away"
	must(t, os.Rename(s.opts.Database, away))
	forceDelete(t, s, "a")
	wantErr(t, s.Compact(t.Context()), upstream.ErrUnavailable)
	wantErr(t, only(get(s, "a")), upstream.ErrNotFound)
	must(t, os.Rename(away, s.opts.Database))
	s = reopen(t, s)
	must(t, s.db.compactOwed(t.Context()))
	wantGone(t, s, old)
	file := fileOf(s)
	must(t, s.db.compactOwed(t.Context()))
	if fileOf(s) != file {
		t.Error("compacted again for nothing")
	}
}

// TestDeletionsShareACompaction deletes by force while Run is at work: no deletion waits for the
// copy, many share one, and the next copy keeps its distance.
func TestDeletionsShareACompaction(t *testing.T) {
	skipWithoutCompaction(t)
	inTime(t, func(t *testing.T, s *Store) {
		defer run(t, s)()
		time.Sleep(time.Minute)
		synctest.Wait()
		var old [][]byte
		remove := func() {
			mustCreate(t, s, "a", "v1", "x")
			old = append(old, ciphertexts(t, s)...)
			forceDelete(t, s, "a")
		}
		compacted := func(after time.Duration, want bool) {
			t.Helper()
			file := fileOf(s)
			time.Sleep(after)
			synctest.Wait()
			if got := fileOf(s) != file; got != want {
				t.Errorf("compacted within %v: %t", after, got)
			}
		}
		file := fileOf(s)
		for range 20 {
			remove()
		}
		if fileOf(s) != file {
			t.Error("a deletion waits for a copy of the file")
		}
		compacted(2*compactDelay, true)
		wantGone(t, s, old)
		remove()
		compacted(compactAtLeast-2*compactDelay, false)
		compacted(3*compactDelay, true)
		wantGone(t, s, old)
		compacted(time.Hour, false)
	})
}

// TestCompactionsAtTheSameTime tells all that wait for one compaction how it ended.
func TestCompactionsAtTheSameTime(t *testing.T) {
	skipWithoutCompaction(t)
	inBubble(t, func(t *testing.T, s *Store) {
		compact := func() error { return s.Compact(t.Context()) }
		release := holdWriter(t, s)
		outcomes := start(compact, compact, putter(s, "a", "v1", "one"))
		away := s.opts.Database + ".away"
		must(t, os.Rename(s.opts.Database, away))
		release()
		errs := outcomes()
		must(t, os.Rename(away, s.opts.Database))
		wantErr(t, errs[0], upstream.ErrUnavailable)
		wantErr(t, errs[1], upstream.ErrUnavailable)
		wantErr(t, errs[2], nil)
	})
}

// TestCompactionMeetsDamage lets the copy meet a page that cannot be read: the store goes on with the
// file that it has, and compacts it when the page is well again.
func TestCompactionMeetsDamage(t *testing.T) {
	skipWithoutCompaction(t)
	s := mustOpen(t, testOptions(t))
	mustCreate(t, s, "a", "v1", strings.Repeat("x", 20_000)) // the bucket has pages of its own
	mustCreate(t, s, "b", "v1", "x")
	forceDelete(t, s, "b")
	var at int64
	must(t, s.db.bolt.View(func(tx *bbolt.Tx) error {
		at = int64(tx.Bucket(buckets[builtin.Values]).RootPage()) * int64(s.db.bolt.Info().PageSize)
		return nil
	}))
	file, err := os.OpenFile(s.opts.Database, os.O_RDWR, 0)
	must(t, err)
	defer file.Close()
	whole := make([]byte, 16) // the header of the page
	must(t, only(file.ReadAt(whole, at)))
	must(t, only(file.WriteAt(make([]byte, len(whole)), at)))
	wantErr(t, s.Compact(t.Context()), upstream.ErrUnavailable)
	must(t, only(file.WriteAt(whole, at)))
	if broken := s.db.broken.Load(); broken != nil {
		t.Fatal("the store has broken down: ", *broken)
	}
	wantGone(t, s, nil)
	mustPut(t, s, "a", "v2", "y")
	must(t, s.Compact(t.Context()))
	wantValue(t, s, "a", "y")
}

// TestCompactionBacksOff fails for hours: the attempts become rare, and begin anew after one that
// succeeds.
func TestCompactionBacksOff(t *testing.T) {
	skipWithoutCompaction(t)
	log := inTime(t, func(t *testing.T, s *Store) {
		away := s.opts.Database + ".away"
		defer run(t, s)()
		for range 2 {
			mustCreate(t, s, "a", "v1", "x")
			old := ciphertexts(t, s)
			must(t, os.Rename(s.opts.Database, away))
			forceDelete(t, s, "a")
			time.Sleep(3 * time.Hour)
			synctest.Wait()
			must(t, os.Rename(away, s.opts.Database))
			time.Sleep(compactAtMost + compactAtLeast)
			synctest.Wait()
			wantGone(t, s, old)
		}
	})
	var waits []string
	for line := range strings.Lines(log) {
		if _, wait, ok := strings.Cut(line, "retry_in="); ok {
			waits = append(waits, strings.Fields(wait)[0])
		}
	}
	once := "1m0s 2m0s 4m0s 8m0s 16m0s 32m0s 1h0m0s 1h0m0s"
	if got := strings.Join(waits, " "); got != once+" "+once {
		t.Errorf("the pauses are %s", got)
	}
}

// TestCompactionNeedsRoom begins no copy that the disk cannot hold, and one that it just can.
func TestCompactionNeedsRoom(t *testing.T) {
	skipWithoutCompaction(t)
	opts := testOptions(t)
	var free uint64
	opts.freeSpace = func(folder string) (uint64, bool) {
		if folder != filepath.Dir(opts.Database) {
			t.Errorf("looked at %s", folder)
		}
		return free, true
	}
	s := mustOpen(t, opts)
	mustCreate(t, s, "a", "v1", strings.Repeat("x", 20_000))
	mustCreate(t, s, "b", "v1", strings.Repeat("x", 20_000))
	file := fileOf(s)
	free = 30_000
	err := s.Compact(t.Context())
	wantErr(t, err, upstream.ErrUnavailable)
	if err == nil || !strings.Contains(err.Error(), "and the disk has 30000") || fileOf(s) != file {
		t.Errorf("compacted: %v", err)
	}
	wantGone(t, s, nil)
	forceDelete(t, s, "b") // which leaves its pages in the file, but not in the copy
	if fileOf(s) == file {
		t.Error("there was room")
	}
}

// TestReadsDuringCompaction reads and writes all the time.
func TestReadsDuringCompaction(t *testing.T) {
	skipWithoutCompaction(t)
	t.Parallel()
	s := mustOpen(t, testOptions(t))
	mustCreate(t, s, "a", "v1", "x")
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 3)
	for range 2 {
		go func() {
			var err error
			for err == nil && ctx.Err() == nil {
				_, err = get(s, "a")
			}
			failed <- err
		}()
	}
	go func() {
		var err error
		for err == nil && ctx.Err() == nil {
			description := "d"
			err = s.UpdateSecret(context.Background(), upstream.UpdateSecretInput{SecretName: "a", Description: &description})
		}
		failed <- err
	}()
	for range 20 {
		must(t, s.Compact(t.Context()))
	}
	cancel()
	must(t, errors.Join(<-failed, <-failed, <-failed))
}

// TestLockOfAReplacedFile waits for the lock of a file that is replaced meanwhile: what it opens is
// the new one.
func TestLockOfAReplacedFile(t *testing.T) {
	skipWithoutCompaction(t)
	t.Parallel()
	opts := testOptions(t)
	s := mustOpen(t, opts)
	opened := make(chan *os.File, 1)
	go func() {
		f, err := openLocked(opts.Database, os.O_RDWR, 0, true, time.Minute)
		if err != nil {
			t.Error(err)
		}
		opened <- f
	}()
	for range 5 {
		must(t, s.Compact(t.Context()))
	}
	select {
	case <-opened:
		t.Fatal("two have the database")
	case <-time.After(10 * time.Millisecond):
	}
	must(t, s.Close())
	f := <-opened
	defer f.Close()
	got, err := f.Stat()
	must(t, err)
	want, err := os.Stat(opts.Database)
	must(t, err)
	if !os.SameFile(got, want) {
		t.Error("an old file is locked")
	}
}
