package bolt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/builtin"
	"secretagent/upstream/upstreamtest"
)

// readOnly opens a backup.
func readOnly(opts Options, path string) (*Store, error) {
	opts.Database, opts.ReadOnly = path, true
	return Open(opts)
}

func mustOpenBackup(tb testing.TB, opts Options, path string) *Store {
	tb.Helper()
	s, err := readOnly(opts, path)
	must(tb, err)
	tb.Cleanup(func() { wantErr(tb, s.Close(), nil) })
	return s
}

// backup makes a copy of what s holds.
func backup(tb testing.TB, s *Store) (path string) {
	tb.Helper()
	path = filepath.Join(tb.TempDir(), "backup.db")
	must(tb, os.WriteFile(path, nil, 0o600))
	must(tb, s.CopyTo(context.Background(), path))
	return path
}

// varied fills a built-in backend with secrets of every kind.
func varied(tb testing.TB, s *Store, clock *upstreamtest.Clock) {
	tb.Helper()
	ctx := context.Background()
	step := func() { clock.Advance(time.Hour) }
	first := primaryOf(tb, s).ID
	mustCreate(tb, s, "plain", "v1", "one")
	step()
	mustRotate(tb, s)
	_, err := s.CreateSecret(ctx, upstream.CreateSecretInput{
		SecretName: "rich", VersionID: "v1", SecretData: secret("MQ=="), SecretDataType: upstream.DataTypeBinary, EncryptionKeyID: first,
		Description: "of everything", Tags: []upstream.Tag{{Key: "env", Value: "prod"}, {Key: "app", Value: "x"}},
	})
	must(tb, err)
	for i := range 5 {
		step()
		mustPut(tb, s, "rich", fmt.Sprintf("w%d", i), fmt.Sprint(i))
	}
	mustPut(tb, s, "rich", "next", "pending", "Pending")
	step()
	mustCreate(tb, s, "leaves", "v1", "soon")
	mustDelete(tb, s, "leaves", 30)
	must(tb, s.Seed(ctx, []upstream.CreateSecretInput{{SecretName: "seeded", VersionID: "v1", SecretData: secret("s")}}))
	forceDelete(tb, s, "seeded") // its seed is done
	if s.opts.MaxVersions == 100 {
		mustCreate(tb, s, "large", "v0", strings.Repeat("x", upstream.MaxSecretDataLen))
		versions := 100
		if raceDetector {
			versions = 10
		}
		for i := 1; i < versions; i++ {
			mustPut(tb, s, "large", fmt.Sprintf("v%d", i), strings.Repeat(fmt.Sprint(i%10), upstream.MaxSecretDataLen))
		}
	}
	step()
}

// transfer moves everything and returns how many secrets had which result.
func transfer(tb testing.TB, from, to *Store, replace, dryRun bool) map[string]int {
	tb.Helper()
	moved, err := builtin.Transfer{From: from, To: to, Replace: replace, DryRun: dryRun}.Run(context.Background())
	must(tb, err)
	results := map[string]int{}
	for _, m := range moved {
		results[m.Result]++
	}
	return results
}

func wantResults(tb testing.TB, got, want map[string]int) {
	tb.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		tb.Errorf("got %v, want %v", got, want)
	}
}

// A transfer keeps all that there is to know, and is repeated without effect.
func TestTransfer(t *testing.T) {
	t.Parallel()
	opts, clock := testOptions(t), upstreamtest.NewClock()
	opts.Now, opts.MaxVersions = clock.Now, 100
	from := mustOpen(t, opts)
	varied(t, from, clock)
	other := testOptions(t) // another keyring
	other.Now = func() time.Time { return clock.Now().Add(24 * time.Hour) }
	to := mustOpen(t, other)
	wantResults(t, transfer(t, from, to, false, true), map[string]int{builtin.Copied: 4})
	if names, err := to.Names(t.Context()); err != nil || len(names) > 0 {
		t.Errorf("a dry run has made %v, %v", names, err)
	}
	wantResults(t, transfer(t, from, to, false, false), map[string]int{builtin.Copied: 4})
	wantResults(t, transfer(t, from, to, false, false), map[string]int{builtin.Unchanged: 4})
	to = reopen(t, to)
	wantResults(t, transfer(t, to, from, false, false), map[string]int{builtin.Unchanged: 4})
	for _, name := range []upstream.SecretName{"plain", "rich", "leaves", "large"} {
		was, err := from.DescribeSecret(t.Context(), name, true)
		must(t, err)
		is, err := to.DescribeSecret(t.Context(), name, true)
		must(t, err)
		if fmt.Sprint(was) != fmt.Sprint(is) {
			t.Errorf("got %+v, want %+v", is, was)
		}
		in := upstream.ListSecretVersionIDsInput{SecretName: name, IncludeDeprecated: true, Page: upstream.Page{Size: 100}}
		versions, err := from.ListSecretVersionIDs(t.Context(), in)
		must(t, err)
		moved, err := to.ListSecretVersionIDs(t.Context(), in)
		must(t, err)
		if fmt.Sprint(versions) != fmt.Sprint(moved) || moved.TotalCount == 0 {
			t.Errorf("got %+v, want %+v", moved, versions)
		}
	}
	wantValue(t, to, "rich:Pending", "pending")
	wantValue(t, to, "rich:ACSPrevious", "3")
	wantErr(t, only(get(to, "leaves")), upstream.ErrPendingDeletion)
	seeds, err := from.Seeds(t.Context())
	must(t, err)
	must(t, to.SetSeeds(t.Context(), seeds, true))
	must(t, builtin.Same(t.Context(), from.Store, to.Store, nil))

	// What differs is told, and replaced on request alone.
	mustPut(t, to, "plain", "v2", "mine")
	mustCreate(t, to, "extra", "v1", "mine")
	wantResults(t, transfer(t, from, to, false, false), map[string]int{builtin.Unchanged: 3, builtin.Differs: 1})
	wantValue(t, to, "plain", "mine")
	_, err = builtin.Restore(t.Context(), from.Store, to.Store, false, false, nil)
	wantErr(t, err, upstream.ErrExists)
	wantValue(t, to, "plain", "mine")
	wantResults(t, transfer(t, from, to, true, false), map[string]int{builtin.Unchanged: 3, builtin.Replaced: 1})
	wantValue(t, to, "extra", "mine")
	restored, err := builtin.Restore(t.Context(), from.Store, to.Store, true, false, nil)
	if want := (builtin.Restored{Secrets: 4, Removed: 1}); err != nil || restored != want {
		t.Errorf("got %+v, %v; want %+v", restored, err, want)
	}
	wantValue(t, to, "plain", "one")
	wantErr(t, only(get(to, "extra")), upstream.ErrNotFound)

	// Names are of secrets that there are.
	_, err = builtin.Transfer{From: from, To: to, Names: []upstream.SecretName{"plain", "nobody"}}.Run(t.Context())
	wantErr(t, err, upstream.ErrNotFound)
	moved, err := builtin.Transfer{From: from, To: to, Names: []upstream.SecretName{"plain"}}.Run(t.Context())
	if err != nil || len(moved) != 1 || moved[0].Result != builtin.Unchanged {
		t.Errorf("got %v, %v", moved, err)
	}
	moved, err = builtin.Transfer{From: from, To: to, Prefix: "l"}.Run(t.Context())
	if err != nil || len(moved) != 2 {
		t.Errorf("got %v, %v", moved, err)
	}
}

// A transfer that was interrupted has left a part of a secret, which the next one completes; another secret it leaves alone.
func TestTransferCompletes(t *testing.T) {
	from, opts := mustOpen(t, testOptions(t)), testOptions(t)
	opts.Database = filepath.Join(t.TempDir(), "empty.db")
	must(t, os.WriteFile(opts.Database, nil, 0o600))
	to, err := Create(opts)
	must(t, err)
	defer to.Close()
	mustCreate(t, from, "a", "v1", "one")
	mustPut(t, from, "a", "v2", "two")
	mustPut(t, from, "a", "v3", "three")
	whole, err := from.Lookup(t.Context(), []upstream.SecretName{"a"})
	must(t, err)
	part := *whole["a"]
	part.Versions = part.Versions[1:] // without the one that has no label
	must(t, to.PutSecret(t.Context(), &part, false))
	wantValue(t, to, "a", "three")
	wantResults(t, transfer(t, from, to, false, false), map[string]int{builtin.Copied: 1})
	wantValue(t, to, "a", "three")
	must(t, builtin.Same(t.Context(), from.Store, to.Store, nil))
	wantErr(t, to.PutSecret(t.Context(), &part, false), upstream.ErrExists) // the whole is no part of a part
	part.Versions = part.Versions[:1]
	wantErr(t, to.PutSecret(t.Context(), &part, true), upstream.ErrInvalidParameter) // nothing is current
}

// A backup holds what can be read at one moment and nothing older, and is not changed by being read.
func TestBackup(t *testing.T) {
	skipWithoutCompaction(t)
	t.Parallel()
	s := mustOpen(t, testOptions(t))
	mustCreate(t, s, "old", "v1", strings.Repeat("x", 20_000))
	old := ciphertexts(t, s)
	forceDelete(t, s, "old")
	for i := range 20 {
		mustCreate(t, s, fmt.Sprintf("s%02d", i), "v0", "0")
	}
	// Each writer has one secret, of which version vN has the value N, and notes what was acknowledged.
	var writers sync.WaitGroup
	var mu sync.Mutex
	acknowledged := map[string]int{}
	ctx, stop := context.WithCancel(t.Context())
	for w := range 4 {
		writers.Go(func() {
			for i := 1; ctx.Err() == nil; i++ {
				name := fmt.Sprintf("s%02d", w)
				_, err := s.PutSecretValue(t.Context(), upstream.PutSecretValueInput{
					SecretName: upstream.SecretName(name), VersionID: upstream.VersionID(fmt.Sprintf("v%d", i)), SecretData: secret(fmt.Sprint(i)),
				})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				acknowledged[name] = i
				mu.Unlock()
			}
		})
	}
	compacted := make(chan error, 1)
	go func() { compacted <- s.Compact(ctx) }() // at the same time
	for range 3 {
		time.Sleep(10 * time.Millisecond)
		mu.Lock()
		before := map[string]int{}
		for name, n := range acknowledged {
			before[name] = n
		}
		mu.Unlock()
		file, size, err := s.Backup(t.Context())
		must(t, err)
		content := make([]byte, size)
		must(t, only(file.ReadAt(content, 0)))
		must(t, file.Close())
		for _, c := range old {
			if bytes.Contains(content, c) {
				t.Error("the backup holds old ciphertext")
			}
		}
		path := filepath.Join(t.TempDir(), "backup.db")
		must(t, os.WriteFile(path, content, 0o600))
		b := mustOpenBackup(t, s.opts, path)
		if n, err := b.Verify(t.Context(), nil); n != 20 || err != nil {
			t.Errorf("got %d secrets, %v", n, err)
		}
		for name, n := range before {
			v, err := b.GetSecretValue(t.Context(), upstream.SecretRef{SecretName: upstream.SecretName(name)})
			is := 0
			_, _ = fmt.Sscan(string(v.SecretData.Reveal()), &is)
			if err != nil || is < n || string(v.VersionID) != fmt.Sprintf("v%d", is) {
				t.Errorf("%s is %d as %s in the backup, %v; %d was acknowledged before it", name, is, v.VersionID, err, n)
			}
		}
		_, err = b.PutSecretValue(t.Context(), upstream.PutSecretValueInput{SecretName: "s00", VersionID: "x", SecretData: secret("x")})
		wantErr(t, err, upstream.ErrUnsupported)
		if !bytes.Equal(content, readFile(t, path)) {
			t.Error("reading has changed the backup")
		}
	}
	stop()
	writers.Wait()
	if err := <-compacted; err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(s.opts.Database), ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// A backup that was altered or cut short is refused or, where nothing of it matters, is still right.
func TestDamagedBackup(t *testing.T) {
	t.Parallel()
	opts, clock := testOptions(t), upstreamtest.NewClock()
	opts.Now = clock.Now
	s := mustOpen(t, opts)
	varied(t, s, clock)
	mustCreate(t, s, "big", "v1", strings.Repeat("x", 20_000))
	path := backup(t, s)
	whole := readFile(t, path)
	check := func(content []byte) error {
		must(t, os.WriteFile(path, content, 0o600))
		b, err := readOnly(opts, path)
		if err != nil {
			return err
		}
		_, err = b.Verify(t.Context(), nil)
		if err == nil {
			err = builtin.Same(t.Context(), s.Store, b.Store, nil)
			if err != nil {
				t.Errorf("an altered backup is taken for whole: %v", err)
			}
		}
		must(t, b.Close())
		return err
	}
	must(t, check(whole))
	refused := 0
	random := rand.New(rand.NewPCG(1, 2))
	for range 60 {
		altered := bytes.Clone(whole)
		altered[random.IntN(len(altered))] ^= byte(1 + random.IntN(255))
		if check(altered) != nil {
			refused++
		}
	}
	if refused < 5 {
		t.Errorf("%d of 60 altered backups were refused", refused)
	}
	for _, size := range []int{0, 1, 4096, len(whole) / 4} {
		if err := check(whole[:size]); !errors.Is(err, builtin.ErrDamaged) {
			t.Errorf("%d of %d bytes: got %v", size, len(whole), err)
		}
	}
	must(t, os.WriteFile(path, whole, 0o600))
	other := testOptions(t)
	_, err := readOnly(other, path)
	wantErr(t, err, builtin.ErrKeyLost) // it makes no keyring
	if exists(other.Keyring) {
		t.Error("a keyring was made")
	}
	mustOpen(t, other)
	_, err = readOnly(other, path)
	wantErr(t, err, builtin.ErrKeyLost)
}

// A restored database takes the place of another one as a whole, or not at all.
func TestRestore(t *testing.T) {
	skipWithoutCompaction(t)
	opts := testOptions(t)
	s := mustOpen(t, opts)
	mustCreate(t, s, "a", "v1", "one")
	mustCreate(t, s, "large", "v1", strings.Repeat("x", 20_000))
	opts.lockTimeout = 10 * time.Millisecond
	b := mustOpenBackup(t, opts, backup(t, s))
	mustPut(t, s, "a", "v2", "two")
	files := func() (names []string) {
		entries, _ := os.ReadDir(filepath.Dir(opts.Database))
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	right := func(copied string) error {
		c, err := readOnly(opts, copied)
		must(t, err)
		defer c.Close()
		return builtin.Same(t.Context(), b.Store, c.Store, nil)
	}
	_, err := b.Restore(t.Context(), opts.Database, true, right)
	wantErr(t, err, ErrLocked)
	must(t, s.Close())
	wrong := errors.New("it is wrong")
	for _, replace := range []bool{false, true} {
		_, err = b.Restore(t.Context(), opts.Database, replace, func(string) error { return wrong })
		if err == nil || !slices.Equal(files(), []string{"secrets.db"}) {
			t.Errorf("got %v, and there are %v", err, files())
		}
	}
	_, err = b.Restore(t.Context(), opts.Database, false, right)
	wantErr(t, err, os.ErrExist)
	b.db.opts.freeSpace = func(string) (uint64, bool) { return 100, true }
	_, err = b.Restore(t.Context(), opts.Database, true, right)
	if err == nil || !strings.Contains(err.Error(), "the disk has 100") || len(files()) != 1 {
		t.Errorf("got %v", err)
	}
	wantErr(t, err, upstream.ErrUnavailable) // the socket tells why
	b.db.opts.freeSpace = func(string) (uint64, bool) { return 0, false }
	s, err = Open(opts)
	must(t, err)
	wantValue(t, s, "a", "two")
	must(t, s.Close())

	must(t, os.Chmod(opts.Database, 0o640))
	kept, err := b.Restore(t.Context(), opts.Database, true, right)
	must(t, err)
	if len(files()) != 2 || !strings.HasPrefix(filepath.Base(kept), "secrets.db.replaced-20") {
		t.Errorf("kept as %s, and there are %v", kept, files())
	}
	wantValue(t, mustOpenBackup(t, opts, kept), "a", "two")
	s = mustOpen(t, opts)
	wantValue(t, s, "a", "one")
	if info, err := os.Stat(opts.Database); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("the mode is not kept: %v, %v", info, err)
	}
	other := testOptions(t)
	must(t, only(b.Restore(t.Context(), other.Database, false, right)))
	other.Keyring = opts.Keyring
	wantValue(t, mustOpen(t, other), "a", "one")
}
