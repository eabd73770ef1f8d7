package cache_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/bbolt"

	"secretagent/cache"
	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

// sealedIn returns options with a sealed file in a fresh folder and a keyring in another.
func sealedIn(t testing.TB) cache.Options {
	t.Helper()
	dir := t.TempDir()
	return cache.Options{
		Limits: cache.Limits{TTL: time.Minute, MaxStale: time.Hour, MaxEntries: 10000},
		Sealed: &cache.Sealed{Path: filepath.Join(dir, "data", "cache.db"), Keyring: filepath.Join(dir, "keys", "keyring.json")},
	}
}

// fillSealed runs a cache once, so that its file holds n secrets called s0, s1, … with the
// data value-0, value-1, ….
func fillSealed(t testing.TB, opts cache.Options, n int) {
	t.Helper()
	fake := upstreamtest.NewFake()
	c := open(t, fake, opts)
	stop := start(t, c)
	for i := range n {
		name := fmt.Sprint("s", i)
		fake.MustCreate(t, name, "v1", fmt.Sprint("value-", i))
		look(t, c, name)
	}
	stop()
}

// down is an upstream that cannot answer.
func down(context.Context, upstream.SecretRef) (upstream.SecretValue, error) {
	return upstream.SecretValue{}, upstream.ErrUnavailable
}

// survivors opens the file with a dead upstream and returns how many of n secrets are
// served. A secret that is served with another value ends the test.
func survivors(t testing.TB, opts cache.Options, n int) (served int) {
	t.Helper()
	c := open(t, fetchFunc(down), opts)
	for i := range n {
		answer, err := c.Lookup(t.Context(), ref(fmt.Sprint("s", i)))
		if err != nil {
			if !errors.Is(err, upstream.ErrUnavailable) {
				t.Fatal(err)
			}
			continue
		}
		wantAnswer(t, answer, fmt.Sprint("value-", i), upstream.Stale)
		served++
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	return served
}

func TestRestartWithTheUpstreamUnreachable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := sealedIn(t)
		begin := time.Now()
		fillSealed(t, opts, 3)
		time.Sleep(30 * time.Minute)

		c := open(t, fetchFunc(down), opts)
		if _, ok := c.Peek(ref("s1")); ok {
			t.Fatal("a value from the file counts as fresh")
		}
		start(t, c)
		answer := look(t, c, "s1")
		wantAnswer(t, answer, "value-1", upstream.Stale)
		if answer.Reason != "ServiceUnavailableTemporary" || !answer.FetchedAt.Equal(begin) {
			t.Errorf("reason %q, fetched %s, want %s", answer.Reason, answer.FetchedAt, begin)
		}
		if v := answer.Value; v.VersionID != "v1" || len(v.VersionStages) != 1 || v.SecretDataType != "text" || v.SecretType != "Generic" || v.CreateTime.IsZero() || v.RequestID == "" {
			t.Errorf("the value lost something: %+v", v)
		}
		// The bound counts from the original fetch, not from the restart.
		time.Sleep(30*time.Minute - time.Second)
		wantAnswer(t, look(t, c, "s1"), "value-1", upstream.Stale)
		time.Sleep(2 * time.Second)
		for _, name := range []string{"s1", "s2"} {
			_, err := c.Lookup(t.Context(), ref(name))
			wantError(t, err, upstream.ErrUnavailable)
			if !strings.Contains(err.Error(), begin.UTC().Format(time.RFC3339)) {
				t.Errorf("the error does not say since when: %v", err)
			}
		}
	})
}

func TestRestartWithTheUpstreamReachable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := sealedIn(t)
		fillSealed(t, opts, 2)
		fake := upstreamtest.NewFake()
		fake.MustCreate(t, "s0", "v2", "newer")
		opts.Pins = []cache.Pin{{Ref: ref("s0")}}
		c := open(t, fake, opts)
		start(t, c)
		synctest.Wait()
		wantAnswer(t, look(t, c, "s0"), "newer", upstream.Hit) // pinned: confirmed at once
		_, err := c.Lookup(t.Context(), ref("s1"))             // gone meanwhile
		wantError(t, err, upstream.ErrNotFound)
	})
}

func TestValueSurvivesManyRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := sealedIn(t)
		fillSealed(t, opts, 5)
		for range 5 {
			c := open(t, fetchFunc(down), opts)
			stop := start(t, c)
			time.Sleep(time.Second)
			stop()
			if got := survivors(t, opts, 5); got != 5 {
				t.Fatalf("%d values are left", got)
			}
		}
	})
}

func TestWhatIsDroppedUpstreamLeavesTheFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := sealedIn(t)
		opts.MaxEntries = 3
		fake := upstreamtest.NewFake()
		c := open(t, fake, opts)
		stop := start(t, c)
		for i := range 5 { // the first two are evicted
			fake.MustCreate(t, fmt.Sprint("s", i), "v1", fmt.Sprint("value-", i))
			look(t, c, fmt.Sprint("s", i))
			time.Sleep(time.Second)
		}
		if s := c.Stats().Sealed; s.Records != 3 || s.Pending != 0 || s.Bytes == 0 || !s.Open {
			t.Errorf("after evictions: %+v", s)
		}
		fake.MustDelete(t, "s4")
		if _, err := c.RefreshNow(t.Context(), ref("s4")); !errors.Is(err, upstream.ErrNotFound) {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if s := c.Stats().Sealed; s.Records != 2 {
			t.Errorf("after a deletion: %+v", s)
		}
		stop()
		if got := survivors(t, opts, 5); got != 2 {
			t.Errorf("%d values are left, want 2", got)
		}
	})
}

func TestConfirmationsAreWrittenRarely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := sealedIn(t)
		opts.MaxStale = 64 * time.Hour // so that an hour of error is allowed
		fake := upstreamtest.NewFake()
		fake.MustCreate(t, "s0", "v1", "value-0")
		c := open(t, fake, opts)
		stop := start(t, c)
		_, cancel := c.Subscribe(ref("s0"))
		defer cancel()
		look(t, c, "s0")
		time.Sleep(time.Second)
		before, writes := fileBytes(t, opts.Sealed.Path), 0
		for range 600 {
			time.Sleep(time.Minute)
			if now := fileBytes(t, opts.Sealed.Path); !bytes.Equal(before, now) {
				before = now
				writes++
			}
		}
		confirmed := look(t, c, "s0").FetchedAt
		stop()
		if writes < 9 || writes > 12 {
			t.Errorf("%d writes in ten hours", writes)
		}
		c = open(t, fetchFunc(down), opts)
		if late := confirmed.Sub(look(t, c, "s0").FetchedAt); late < 0 || late > time.Hour {
			t.Errorf("the file is %s behind", late)
		}
	})
}

func fileBytes(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSealedFileTellsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := sealedIn(t)
		fillSealed(t, opts, 3)
		content := fileBytes(t, opts.Sealed.Path)
		for _, secret := range []string{"value-", "s1", "ACSCurrent", "VersionId", "Generic"} {
			if bytes.Contains(content, []byte(secret)) && len(secret) > 3 {
				t.Errorf("the file contains %q in the clear", secret)
			}
		}
		if runtime.GOOS == "windows" {
			return
		}
		for path, want := range map[string]os.FileMode{
			opts.Sealed.Path: 0o600, opts.Sealed.Keyring: 0o600,
			filepath.Dir(opts.Sealed.Path): 0o700, filepath.Dir(opts.Sealed.Keyring): 0o700,
		} {
			st, err := os.Stat(path)
			if err != nil || st.Mode().Perm() != want {
				t.Errorf("%s: mode %v, %v, want %v", path, st.Mode().Perm(), err, want)
			}
		}
		for _, dir := range []string{filepath.Dir(opts.Sealed.Path), filepath.Dir(opts.Sealed.Keyring)} {
			if names, _ := os.ReadDir(dir); len(names) != 1 {
				t.Errorf("%s: files are left behind: %v", dir, names)
			}
		}
	})
}

// scaled returns how much work a test does: what the environment says, or less under -short.
func scaled(env string, normal, short int) int {
	if n, err := strconv.Atoi(os.Getenv(env)); err == nil && n > 0 {
		return n
	}
	if testing.Short() {
		return short
	}
	return normal
}

// Every flipped byte costs at most the values it touches: never a wrong value, never the
// agent.
func TestFlippedBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 150
		opts := sealedIn(t)
		fillSealed(t, opts, n)
		good := fileBytes(t, opts.Sealed.Path)
		if got := survivors(t, opts, n); got != n {
			t.Fatalf("%d of %d survive without damage", got, n)
		}
		var used []int // most of a small bbolt file is empty
		for at, b := range good {
			if b != 0 {
				used = append(used, at)
			}
		}
		step := scaled("CACHE_TEST_FLIPS", 500, 100)
		step = max(1, len(used)/step)
		worst, total := n, 0
		for i := 0; i < len(used); i += step {
			at := used[i]
			bad := bytes.Clone(good)
			bad[at] ^= byte(1 << (i % 8))
			if err := os.WriteFile(opts.Sealed.Path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			got := survivors(t, opts, n)
			c := open(t, fetchFunc(down), opts)
			if s := c.Stats().Sealed; s.Loaded < n && s.Refused == 0 && s.Rebuilt == 0 {
				t.Errorf("bit %d of byte %d hides %d records, and nobody is told", i%8, at, n-s.Loaded)
			}
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			worst, total = min(worst, got), total+1
		}
		t.Logf("%d flips in %d bytes, at worst %d of %d values served", total, len(good), worst, n)

		// The next run makes a good file of the rest.
		c := open(t, fetchFunc(down), opts)
		left := c.Stats().Sealed.Loaded
		stop := start(t, c)
		time.Sleep(time.Second)
		stop()
		c = open(t, fetchFunc(down), opts)
		if s := c.Stats().Sealed; s.Loaded != left || s.Refused != 0 || s.Rebuilt != 0 {
			t.Errorf("the file was not rebuilt: %+v, want %d records", s, left)
		}
	})
}

func TestDamageThatHidesRecordsIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 150
		opts := sealedIn(t)
		fillSealed(t, opts, n)
		good := fileBytes(t, opts.Sealed.Path)
		order := binary.NativeEndian
		hide := map[string]func(bad []byte){
			"all of them": func(bad []byte) { // by another name for where they are
				for at := bytes.Index(bad, []byte("records 2")); at >= 0; at = bytes.Index(bad, []byte("records 2")) {
					bad[at] ^= 1
				}
			},
			"the last of each page": func(bad []byte) {
				for page := 2; page < len(bad)/4096; page++ {
					p := bad[page*4096:]
					if count := order.Uint16(p[10:]); order.Uint64(p) == uint64(page) && order.Uint16(p[8:]) == 2 && count > 2 {
						order.PutUint16(p[10:], count-1)
					}
				}
			},
		}
		for name, damage := range hide {
			bad := bytes.Clone(good)
			damage(bad)
			if err := os.WriteFile(opts.Sealed.Path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			c := open(t, fetchFunc(down), opts)
			if s := c.Stats().Sealed; s.Loaded == n || s.Rebuilt == 0 {
				t.Errorf("%s: %+v", name, s)
			}
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestUnusableFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 150
		opts := sealedIn(t)
		path := opts.Sealed.Path
		fillSealed(t, opts, n)
		good := fileBytes(t, path)
		damage := map[string]func(){
			"empty":               func() { os.WriteFile(path, nil, 0o600) },
			"text":                func() { os.WriteFile(path, bytes.Repeat([]byte("not a database\n"), 5000), 0o600) },
			"zeros":               func() { os.WriteFile(path, make([]byte, len(good)), 0o600) },
			"one byte":            func() { os.WriteFile(path, good[:1], 0o600) },
			"headers only":        func() { os.WriteFile(path, good[:8192], 0o600) },
			"half":                func() { os.WriteFile(path, good[:len(good)/2], 0o600) },
			"last byte missing":   func() { os.WriteFile(path, good[:len(good)-1], 0o600) },
			"a folder":            func() { os.Remove(path); os.Mkdir(path, 0o700) },
			"a folder with files": func() { os.Remove(path); os.Mkdir(path, 0o700); os.WriteFile(path+"/x", nil, 0o600) },
			"a device":            func() { os.RemoveAll(path); os.Symlink(os.DevNull, path) },
			"missing":             func() { os.RemoveAll(path) },
			"tree in a circle":    func() { os.RemoveAll(path); os.WriteFile(path, circle(t, good), 0o600) },
		}
		for name, break_ := range damage {
			t.Log(name)
			break_()
			if got := survivors(t, opts, n); got == n && name != "last byte missing" {
				t.Errorf("%s: all values survive", name)
			}
			// The agent works on, and makes a new file if it can.
			c := open(t, constant(10), opts)
			stop := start(t, c)
			look(t, c, "new")
			time.Sleep(time.Minute)
			stop()
			records := c.Stats().Sealed.Records
			if records == 0 && name != "a folder with files" {
				t.Errorf("%s: the file was not made anew: %+v", name, c.Stats().Sealed)
			}
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// circle makes the first child of every branch page that page itself, and seals the header
// again, which needs no change.
func circle(t *testing.T, good []byte) []byte {
	bad := bytes.Clone(good)
	found := false
	order := binary.NativeEndian
	for page := 2; page < len(bad)/4096; page++ {
		p := bad[page*4096:]
		if order.Uint64(p) == uint64(page) && order.Uint16(p[8:]) == 1 {
			order.PutUint64(p[16+8:], uint64(page))
			found = true
		}
	}
	if !found {
		t.Fatal("the file has no branch page: take more records")
	}
	return bad
}

func TestExchangedRecordsAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 4
		opts := sealedIn(t)
		fillSealed(t, opts, n)
		db, err := bbolt.Open(opts.Sealed.Path, 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		err = db.Update(func(tx *bbolt.Tx) error {
			b := tx.Bucket([]byte("records 2"))
			var ids, records [][]byte
			_ = b.ForEach(func(id, r []byte) error {
				ids, records = append(ids, bytes.Clone(id)), append(records, bytes.Clone(r))
				return nil
			})
			return errors.Join(
				b.Put(ids[0], records[1]), b.Put(ids[1], records[0]), // exchanged
				b.Put([]byte("another id"), records[2]), b.Put(bytes.Repeat([]byte("x"), 16), records[3]), // moved
			)
		})
		if err := errors.Join(err, db.Close()); err != nil {
			t.Fatal(err)
		}
		var log upstreamtest.Buffer
		opts.Logger = slog.New(slog.NewTextHandler(&log, nil))
		if got := survivors(t, opts, n); got != n-2 {
			t.Errorf("%d values survive, want %d", got, n-2)
		}
		if !strings.Contains(log.String(), "refused=4") || !strings.Contains(log.String(), "level=ERROR") {
			t.Errorf("not loud: %s", &log)
		}
	})
}

func TestForeignKeyIsRefusedAndRebuilt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 4
		opts := sealedIn(t)
		fillSealed(t, opts, n)
		if err := os.Remove(opts.Sealed.Keyring); err != nil {
			t.Fatal(err)
		}
		if got := survivors(t, opts, n); got != 0 {
			t.Errorf("%d values are opened with another key", got)
		}
		fillSealed(t, opts, n)
		if got := survivors(t, opts, n); got != n {
			t.Errorf("%d values survive after the rebuild", got)
		}
	})
}

func TestOlderCopyBringsNothingBackThatIsTooOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 3
		opts := sealedIn(t)
		fillSealed(t, opts, n)
		copied := fileBytes(t, opts.Sealed.Path)
		time.Sleep(time.Hour)
		restore := func() {
			if err := os.WriteFile(opts.Sealed.Path, copied, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		restore()
		if got := survivors(t, opts, n); got != n {
			t.Errorf("%d of %d within the bound", got, n)
		}
		time.Sleep(time.Second)
		restore()
		if got := survivors(t, opts, n); got != 0 {
			t.Errorf("%d values are older than the bound", got)
		}
	})
}

// A smaller bound is no damage: what no longer fits is left out, but for what is declared.
func TestRecordsThatNoLongerFitAreLeftOut(t *testing.T) {
	for _, declared := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			opts := sealedIn(t)
			var log upstreamtest.Buffer
			opts.Logger = log.Logger()
			first := open(t, constant(2000), opts)
			stop := start(t, first)
			look(t, first, "big")
			stop()
			_ = first.Close()

			opts.Limits.MaxBytes = 3000
			if declared {
				opts.Limits.Pins = []cache.Pin{{Ref: ref("big")}}
			}
			second := open(t, constant(2000), opts)
			st := second.Stats()
			if held := st.Entries+st.Pinned > 0 && st.Sealed.Loaded == 1; held != declared || st.Sealed.Refused != 0 || strings.Contains(log.String(), "refused") {
				t.Errorf("declared %v: %+v\n%s", declared, st, log.String())
			}
		})
	}
}

func TestRecordsFromTheFutureAreRefused(t *testing.T) {
	opts := sealedIn(t)
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(2 * time.Hour) // the bubble's clock starts again for the next test
		fillSealed(t, opts, 3)
	})
	synctest.Test(t, func(t *testing.T) {
		if got := survivors(t, opts, 3); got != 0 {
			t.Errorf("%d values from the future are served", got)
		}
	})
}

func TestFileInUseIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := sealedIn(t)
		first := open(t, constant(10), opts)
		stop := start(t, first)
		look(t, first, "a")
		time.Sleep(time.Second)

		var log upstreamtest.Buffer
		opts.Logger = slog.New(slog.NewTextHandler(&log, nil))
		second := open(t, constant(10), opts)
		start(t, second)
		look(t, second, "b")
		time.Sleep(time.Second)
		if s := second.Stats().Sealed; s.Open || s.Records != 0 || s.Pending != 0 {
			t.Errorf("the second agent uses the file: %+v", s)
		}
		if !strings.Contains(log.String(), "in use by another process") {
			t.Errorf("no warning: %s", &log)
		}
		stop()
		if s := first.Stats().Sealed; s.Records != 1 || s.Errors != 0 {
			t.Errorf("the first agent was disturbed: %+v", s)
		}
	})
}

func TestFileDamagedWhileInUseIsRebuilt(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("an open file cannot be damaged there")
	}
	synctest.Test(t, func(t *testing.T) {
		const n = 150
		opts := sealedIn(t)
		path := opts.Sealed.Path
		fake := upstreamtest.NewFake()
		c := open(t, fake, opts)
		stop := start(t, c)
		for i := range n {
			fake.MustCreate(t, fmt.Sprint("s", i), "v1", fmt.Sprint("value-", i))
			look(t, c, fmt.Sprint("s", i))
		}
		time.Sleep(time.Second)
		more := n
		change := func() {
			fake.MustCreate(t, fmt.Sprint("s", more), "v1", fmt.Sprint("value-", more))
			look(t, c, fmt.Sprint("s", more))
			more++
			time.Sleep(time.Minute)
		}
		for name, damage := range map[string]func() error{
			"removed":   func() error { return os.Remove(path) },
			"replaced":  func() error { return errors.Join(os.Remove(path), os.WriteFile(path, []byte("x"), 0o600)) },
			"truncated": func() error { return os.Truncate(path, 8192) },
			"overwritten": func() error {
				f, err := os.OpenFile(path, os.O_WRONLY, 0)
				if err != nil {
					return err
				}
				st, err := f.Stat()
				if err == nil { // all but the headers
					_, err = f.WriteAt(bytes.Repeat([]byte{0xff}, int(st.Size()-8192)), 8192)
				}
				return errors.Join(err, f.Close())
			},
		} {
			if err := damage(); err != nil {
				t.Fatal(name, err)
			}
			change()
			if s := c.Stats().Sealed; s.Records != more || s.Pending != 0 || !s.Open {
				t.Errorf("%s: %+v, want %d records", name, s, more)
			}
		}
		stop()
		if got := survivors(t, opts, more); got != more {
			t.Errorf("%d of %d values survive", got, more)
		}
	})
}

func TestFolderThatCannotBeMadeStopsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := sealedIn(t)
		var log upstreamtest.Buffer
		opts.Logger = slog.New(slog.NewTextHandler(&log, nil))
		if err := os.WriteFile(filepath.Dir(opts.Sealed.Path), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		c := open(t, constant(10), opts)
		stop := start(t, c)
		look(t, c, "a")
		time.Sleep(10 * time.Minute)
		if s := c.Stats().Sealed; s.Errors == 0 || s.Errors > 100 {
			t.Errorf("%+v", s)
		}
		if n := strings.Count(log.String(), "level=ERROR"); n < 1 || n > 100 {
			t.Errorf("%d error lines:\n%s", n, &log)
		}
		// It is tried again, and works once the cause is gone.
		if err := os.Remove(filepath.Dir(opts.Sealed.Path)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if n := strings.Count(log.String(), "the sealed cache is written again"); n != 1 {
			t.Errorf("it is told %d times that it is over", n)
		}
		if s := c.Stats().Sealed; s.Records != 1 {
			t.Errorf("%+v", s)
		}
		stop()
	})
}

func TestSealedFileIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := sealedIn(t)
		opts.Sealed.MaxBytes = 100 << 10
		var log upstreamtest.Buffer
		opts.Logger = slog.New(slog.NewTextHandler(&log, nil))
		c := open(t, constant(1000), opts)
		stop := start(t, c)
		for i := range 1000 {
			look(t, c, fmt.Sprint("s", i))
			if i%10 == 0 {
				time.Sleep(time.Second)
			}
		}
		time.Sleep(time.Second)
		s := c.Stats().Sealed
		if s.Bytes > opts.Sealed.MaxBytes || s.Records < 50 || s.Records+s.Skipped < 1000 {
			t.Errorf("%+v", s)
		}
		if strings.Count(log.String(), "is full") != 1 {
			t.Errorf("log: %s", &log)
		}
		stop()
		if st, err := os.Stat(opts.Sealed.Path); err != nil || st.Size() > 4*opts.Sealed.MaxBytes+4<<20 {
			t.Errorf("%d bytes, %v", st.Size(), err)
		}
	})
}

func TestKeyringOthersCanReadIsRefused(t *testing.T) {
	opts := sealedIn(t)
	keyring := opts.Sealed.Keyring
	if err := os.MkdirAll(filepath.Dir(keyring), 0o700); err != nil {
		t.Fatal(err)
	}
	c, err := cache.New(constant(1), opts)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	good := fileBytes(t, keyring)
	write := func(content []byte, mode os.FileMode) {
		if err := errors.Join(os.RemoveAll(keyring), os.WriteFile(keyring, content, mode), os.Chmod(keyring, mode)); err != nil {
			t.Fatal(err)
		}
	}
	for name, tc := range map[string]struct {
		prepare func()
		want    string
	}{
		"readable by the group": {func() { write(good, 0o640) }, "chmod 600"},
		"readable by others":    {func() { write(good, 0o604) }, "chmod 600"},
		"not a keyset":          {func() { write([]byte("password"), 0o600) }, "not a Tink keyset"},
		"empty":                 {func() { write(nil, 0o600) }, "not a Tink keyset"},
		"a folder":              {func() { os.Remove(keyring); os.Mkdir(keyring, 0o700) }, "not a regular file"},
	} {
		if runtime.GOOS == "windows" && strings.Contains(tc.want, "chmod") {
			continue
		}
		tc.prepare()
		_, err := cache.New(constant(1), opts)
		if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "Sealed.Keyring") {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), "password") {
			t.Errorf("%s: the error quotes the file: %v", name, err)
		}
	}
}

// Ensure that a keyring may have the mode that systemd gives a credential, and no wider one.
func TestKeyringMayBeACredential(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no modes there")
	}
	opts := sealedIn(t)
	open(t, constant(1), opts).Close()
	opts.Sealed.KeyringIsCredential = true
	for mode, good := range map[os.FileMode]bool{0o400: true, 0o440: true, 0o444: false, 0o460: false} {
		if err := os.Chmod(opts.Sealed.Keyring, mode); err != nil {
			t.Fatal(err)
		}
		c, err := cache.New(constant(1), opts)
		if (err == nil) != good {
			t.Errorf("mode %04o: %v", mode, err)
		}
		if err == nil {
			c.Close()
		}
	}
}

func TestKeyringInTheSameFolderIsWarnedAbout(t *testing.T) {
	opts := sealedIn(t)
	opts.Sealed.Keyring = filepath.Join(filepath.Dir(opts.Sealed.Path), "keyring.json")
	var log upstreamtest.Buffer
	opts.Logger = slog.New(slog.NewTextHandler(&log, nil))
	open(t, constant(1), opts)
	if !strings.Contains(log.String(), "share a folder") {
		t.Errorf("no warning: %s", &log)
	}
}

func TestLabelsBelongTogetherAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := sealedIn(t)
		fake := upstreamtest.NewFake()
		fake.MustCreate(t, "app/db", "v1", "1")
		fake.MustPut(t, "app/db", "v2", "2")
		pair := []upstream.SecretRef{ref("app/db"), ref("app/db:ACSPrevious")}
		c := open(t, fake, opts)
		stop := start(t, c)
		if _, err := c.GetSecretValues(t.Context(), pair...); err != nil {
			t.Fatal(err)
		}
		stop()
		c = open(t, fetchFunc(down), opts)
		answers, errs := c.LookupAll(t.Context(), pair)
		for i, want := range []string{"2", "1"} {
			if errs[i] != nil {
				t.Fatal(errs[i])
			}
			wantAnswer(t, answers[i], want, upstream.Stale)
		}
	})
}

// runSealedWriter is the other process of TestKilledWriter: it changes secrets as fast as it
// can until it is killed.
func runSealedWriter() bool {
	dir := os.Getenv("CACHE_TEST_SEALED_DIR")
	if dir == "" {
		return false
	}
	up := fetchFunc(func(_ context.Context, r upstream.SecretRef) (upstream.SecretValue, error) {
		// The value proves itself: name, time and filling.
		data := fmt.Sprintf("%s %d %s", r.SecretName, time.Now().UnixNano(), strings.Repeat("x", 500))
		return upstream.SecretValue{
			SecretName: r.SecretName, VersionID: upstream.VersionID(strconv.FormatInt(time.Now().UnixNano(), 10)),
			SecretData: upstream.NewSecretData([]byte(data)), SecretType: "Generic", SecretDataType: "text",
		}, nil
	})
	c, err := cache.New(up, cache.Options{
		Limits:          cache.Limits{MaxEntries: 40},
		ForcedPerSecond: 1e9, ForcedBurst: 1e6,
		Sealed: &cache.Sealed{Path: filepath.Join(dir, "cache.db"), Keyring: filepath.Join(dir, "keys", "keyring.json")},
	})
	if err != nil {
		panic(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = c.Run(context.Background()) })
	fmt.Println("loaded", c.Stats().Sealed.Loaded, "refused", c.Stats().Sealed.Refused, "rebuilt", c.Stats().Sealed.Rebuilt)
	for i := 0; ; i++ {
		_, _ = c.RefreshNow(context.Background(), ref(fmt.Sprint("s", i%60)))
		if i%60 == 0 {
			time.Sleep(time.Millisecond)
		}
	}
}

func TestKilledWriterLeavesAGoodFile(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no SIGKILL")
	}
	kills := scaled("CACHE_TEST_KILLS", 5, 2)
	dir := t.TempDir()
	opts := cache.Options{
		Limits: cache.Limits{MaxEntries: 1000},
		Sealed: &cache.Sealed{Path: filepath.Join(dir, "cache.db"), Keyring: filepath.Join(dir, "keys", "keyring.json")},
	}
	loadedEver := 0
	for i := range kills {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "CACHE_TEST_SEALED_DIR="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line := make([]byte, 200)
		n, _ := io.ReadAtLeast(out, line, 1)
		time.Sleep(time.Duration(300+i*37%500) * time.Millisecond)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if !strings.Contains(string(line[:n]), "refused 0 rebuilt 0") {
			t.Errorf("kill %d: the next process says %s", i, line[:n])
		}

		c := open(t, fetchFunc(down), opts)
		s := c.Stats().Sealed
		loadedEver += s.Loaded
		if s.Refused != 0 || s.Rebuilt != 0 {
			t.Errorf("kill %d: %+v", i, s)
		}
		for _, e := range c.Entries() {
			answer := look(t, c, string(e.Ref.SecretName))
			data := string(answer.Value.SecretData.Reveal())
			if !strings.HasPrefix(data, string(e.Ref.SecretName)+" ") || !strings.HasSuffix(data, strings.Repeat("x", 500)) {
				t.Fatalf("kill %d: %s has a value that was never its own", i, e.Ref)
			}
		}
		_ = c.Close()
	}
	if loadedEver == 0 {
		t.Error("no value ever reached the file")
	}
	t.Logf("%d kills, %d values loaded", kills, loadedEver)
}

// Whatever is written over a sealed file, the cache starts, and serves for each secret its
// own value or none.
func FuzzDamagedFile(f *testing.F) {
	const n = 150
	opts := sealedIn(f)
	fillSealed(f, opts, n)
	good := fileBytes(f, opts.Sealed.Path)
	f.Add(uint32(0), []byte{0})
	f.Add(uint32(4096+16), bytes.Repeat([]byte{0xff}, 64))
	f.Add(uint32(3*4096), binary.NativeEndian.AppendUint64(nil, 3))
	f.Add(uint32(4*4096+10), []byte{0xff, 0xff, 0xff, 0xff})
	f.Add(uint32(5*4096+16), bytes.Repeat([]byte{1, 0, 0, 0}, 20))
	f.Fuzz(func(t *testing.T, at uint32, with []byte) {
		bad := bytes.Clone(good)
		copy(bad[int(at)%len(bad):], with)
		opts := opts
		opts.Sealed = &cache.Sealed{Path: filepath.Join(t.TempDir(), "cache.db"), Keyring: opts.Sealed.Keyring}
		if err := os.WriteFile(opts.Sealed.Path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		survivors(t, opts, n)
	})
}
