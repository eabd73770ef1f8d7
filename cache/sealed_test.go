package cache_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
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

// settled is a pause after which small changes are in the sealed file.
const settled = 2 * time.Second

// sealedIn returns options with a sealed file in a fresh folder and a keyring in another.
func sealedIn(t testing.TB) cache.Options {
	t.Helper()
	dir := t.TempDir()
	return cache.Options{
		Limits: cache.Limits{TTL: time.Minute, MaxStale: time.Hour, MaxEntries: 100_000, MaxBytes: 1 << 30},
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
// served, and the counts. A secret that is served with another value ends the test.
func survivors(t testing.TB, opts cache.Options, n int) (served int, st cache.SealedStats) {
	t.Helper()
	c := open(t, fetchFunc(down), opts)
	for i := range n {
		answer, err := c.Lookup(t.Context(), ref(fmt.Sprint("s", i)))
		if err != nil {
			wantError(t, err, upstream.ErrUnavailable)
			continue
		}
		wantAnswer(t, answer, fmt.Sprint("value-", i), upstream.Stale)
		served++
	}
	st = c.Stats().Sealed
	must(t, c.Close())
	return served, st
}

// wantSurvivors checks how many of n secrets are served after a restart, and, when they are
// given, how many records were refused and whether the file is told to be damaged.
func wantSurvivors(t testing.TB, opts cache.Options, n, want int, refusedAndRebuilt ...int) {
	t.Helper()
	got, st := survivors(t, opts, n)
	failIf(t, got != want, "%d of %d values are served after a restart, want %d: %+v", got, n, want, st)
	failIf(t, len(refusedAndRebuilt) > 0 && !slices.Equal(refusedAndRebuilt, []int{st.Refused, st.Rebuilt}), "%+v, want %d", st, refusedAndRebuilt)
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return b
}

func writeFile(t testing.TB, path string, parts ...[]byte) {
	t.Helper()
	must(t, errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, bytes.Join(parts, nil), 0o600)))
}

// parts returns the header of a sealed file, and its records with their lengths.
func parts(file []byte) (all [][]byte) {
	n := bytes.IndexByte(file, '\n') + 1 + 16
	for ; len(file) > 0; n = 4 + int(binary.BigEndian.Uint32(file)) {
		all, file = append(all, file[:n:n]), file[n:]
		if len(file) == 0 {
			break
		}
	}
	return all
}

func TestRestartWithTheUpstreamUnreachable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := sealedIn(t)
		begin := time.Now()
		fillSealed(t, opts, 3)
		time.Sleep(30 * time.Minute)

		c := open(t, fetchFunc(down), opts)
		_, ok := c.Peek(ref("s1"))
		stopIf(t, ok, "a value from the file counts as fresh")
		start(t, c)
		answer := look(t, c, "s1")
		wantAnswer(t, answer, "value-1", upstream.Stale)
		failIf(t, answer.Reason != "ServiceUnavailableTemporary" || !fetchedAt(answer).Equal(begin), "reason %q, fetched %s, want %s", answer.Reason, fetchedAt(answer), begin)
		if v := answer.Value; v.VersionID != "v1" || len(v.VersionStages) != 1 || v.SecretDataType != "text" || v.SecretType != "Generic" || v.CreateTime.IsZero() || v.RequestID == "" {
			t.Errorf("the value lost something: %+v", v)
		}
		// The bound counts from the original fetch, not from the restart.
		time.Sleep(30*time.Minute - time.Second)
		wantAnswer(t, look(t, c, "s1"), "value-1", upstream.Stale)
		time.Sleep(2 * time.Second)
		for _, name := range []string{"s1", "s2"} {
			err := noValue(t, c, name, upstream.ErrUnavailable)
			failIf(t, !strings.Contains(err.Error(), begin.UTC().Format(time.RFC3339)), "the error does not say since when: %v", err)
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
		for range 3 {
			start(t, open(t, fetchFunc(down), opts))()
			wantSurvivors(t, opts, 5, 5)
		}
	})
}

func TestWhatIsDroppedLeavesTheFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := sealedIn(t)
		opts.MaxEntries = 3
		fake := upstreamtest.NewFake()
		c := open(t, fake, opts)
		stop := start(t, c)
		for i := range 5 { // the first two are evicted
			fake.MustCreate(t, fmt.Sprint("s", i), "v1", fmt.Sprint("value-", i))
			look(t, c, fmt.Sprint("s", i))
			time.Sleep(settled)
		}
		failFor(t, c.Stats().Sealed, func(s cache.SealedStats) bool { return s.Records != 3 || s.Pending != 0 || s.Bytes == 0 || !s.Open })
		fake.MustDelete(t, "s4")
		_, err := c.RefreshNow(t.Context(), ref("s4"))
		wantError(t, err, upstream.ErrNotFound)
		time.Sleep(settled)
		failFor(t, c.Stats().Sealed, func(s cache.SealedStats) bool { return s.Records != 2 || s.Pending != 0 })
		stop()
		wantSurvivors(t, opts, 5, 2)
	})
}

// The pause between rewrites grows with the file, is shorter when a secret is gone, and a
// clean end does not wait for it.
func TestPauseGrowsWithTheFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n, size = 16, 1 << 20 // the pause is 16 s, and 2 s for what is gone
		opts := sealedIn(t)
		opts.TTL = time.Hour
		missing := ""
		c := open(t, fetchFunc(func(ctx context.Context, r upstream.SecretRef) (upstream.SecretValue, error) {
			if string(r.SecretName) == missing {
				return upstream.SecretValue{}, upstream.ErrNotFound
			}
			return constant(size)(ctx, r)
		}), opts)
		for i := range n {
			look(t, c, fmt.Sprint("s", i))
		}
		stop := start(t, c) // written at once
		after := func(pause time.Duration, records int) {
			t.Helper()
			time.Sleep(pause)
			synctest.Wait()
			failIf(t, c.Stats().Sealed.Records != records, "%d records, want %d: %+v", c.Stats().Sealed.Records, records, c.Stats().Sealed)
		}
		after(time.Millisecond, n)
		look(t, c, "more")
		after(15*time.Second, n)
		after(2*time.Second, n+1)
		missing = "more"
		_, _ = c.RefreshNow(t.Context(), ref(missing))
		after(time.Second, n+1)
		after(2*time.Second, n)
		look(t, c, "last")
		stop()
		after(0, n+1)
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
		time.Sleep(settled)
		before, writes := readFile(t, opts.Sealed.Path), 0
		for range 600 {
			time.Sleep(time.Minute)
			if now := readFile(t, opts.Sealed.Path); !bytes.Equal(before, now) {
				before = now
				writes++
			}
		}
		confirmed := fetchedAt(look(t, c, "s0"))
		stop()
		failIf(t, writes < 9 || writes > 12, "%d writes in ten hours", writes)
		c = open(t, fetchFunc(down), opts)
		late := confirmed.Sub(fetchedAt(look(t, c, "s0")))
		failIf(t, late < 0 || late > time.Hour, "the file is %s behind", late)
	})
}

// What the sealed file holds is told apart until it is confirmed, which rings.
func TestWhatWasRestoredIsToldUntilItIsConfirmed(t *testing.T) {
	opts := sealedIn(t)
	fillSealed(t, opts, 1)
	synctest.Test(t, func(t *testing.T) {
		fake := upstreamtest.NewFake()
		fake.MustCreate(t, "s0", "v1", "value-0")
		fake.Fail(get, upstream.ErrUnavailable)
		c := open(t, fake, opts)
		asOf, unconfirmed := c.Restored(ref("s0"))
		failIf(t, asOf.IsZero() || !unconfirmed, "as of %v, unconfirmed %t", asOf, unconfirmed)
		bell, cancel := c.Subscribe(ref("s0"))
		defer cancel()
		fake.Fail(get, nil)
		wantAnswer(t, look(t, c, "s0"), "value-0", upstream.Miss)
		again, unconfirmed := c.Restored(ref("s0"))
		failIf(t, again != asOf || unconfirmed, "as of %v, unconfirmed %t", again, unconfirmed)
		failIf(t, !rung(bell), "the bell does not ring")
	})
}

func TestSealedFileTellsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := sealedIn(t)
		fillSealed(t, opts, 3)
		content := readFile(t, opts.Sealed.Path)
		for _, secret := range []string{"value-", "ACSCurrent", "VersionId", "Generic"} {
			failIf(t, bytes.Contains(content, []byte(secret)), "the file contains %q in the clear", secret)
		}
		data, keys := filepath.Dir(opts.Sealed.Path), filepath.Dir(opts.Sealed.Keyring)
		for dir, want := range map[string]int{data: 2, keys: 1} { // with the lock
			if names, _ := os.ReadDir(dir); len(names) != want {
				t.Errorf("%s: files are left behind: %v", dir, names)
			}
		}
		if runtime.GOOS == "windows" {
			return
		}
		for path, want := range map[string]fs.FileMode{
			opts.Sealed.Path: 0o600, opts.Sealed.Path + ".lock": 0o600, opts.Sealed.Keyring: 0o600, data: 0o700, keys: 0o700,
		} {
			if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
				t.Errorf("%s: mode %v, %v, want %v", path, st.Mode().Perm(), err, want)
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

// Every flipped bit costs at most the value it touches, or, in a length, those that follow;
// it is told, and never a wrong value or the end of the agent.
func TestFlippedBits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 20
		opts := sealedIn(t)
		fillSealed(t, opts, n)
		good := readFile(t, opts.Sealed.Path)
		wantSurvivors(t, opts, n, n)
		step := max(1, len(good)/scaled("CACHE_TEST_FLIPS", 500, 100))
		at := 0
		for index, part := range parts(good) {
			for i := range part {
				if at%step == 0 {
					bad := bytes.Clone(good)
					bad[at] ^= byte(1 << (at / step % 8))
					writeFile(t, opts.Sealed.Path, bad)
					got, st := survivors(t, opts, n)
					atLeast := n - 1
					if index == 0 {
						atLeast = 0
					} else if i < 4 {
						atLeast = index - 1
					}
					failIf(t, got < atLeast || st.Refused == 0 && st.Rebuilt == 0, "byte %d of part %d: %d of %d values are served: %+v", i, index, got, n, st)
				}
				at++
			}
		}
		// The next run makes a good file of the rest.
		_, st := survivors(t, opts, n)
		stop := start(t, open(t, fetchFunc(down), opts))
		time.Sleep(settled)
		stop()
		if _, now := survivors(t, opts, n); now.Loaded != st.Loaded || now.Refused != 0 || now.Rebuilt != 0 {
			t.Errorf("the file was not made anew: %+v, want %d records", now, st.Loaded)
		}
	})
}

// A file that is cut off gives what is left of it, and it is told: also between two records.
func TestTruncatedFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 5
		opts := sealedIn(t)
		fillSealed(t, opts, n)
		all := parts(readFile(t, opts.Sealed.Path))
		for whole := range 1 + n + 1 {
			for _, piece := range [][]byte{nil, all[whole][:2], all[whole][:len(all[whole])-1]} {
				writeFile(t, opts.Sealed.Path, append(slices.Clone(all[:whole]), piece)...)
				wantSurvivors(t, opts, n, max(0, whole-1), 0, 1)
			}
		}
	})
}

func TestExchangedRecordsAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 4
		opts := sealedIn(t)
		fillSealed(t, opts, n)
		other := parts(readFile(t, opts.Sealed.Path))
		fillSealed(t, opts, n) // the same in another file, sealed with the same key
		good := parts(readFile(t, opts.Sealed.Path))
		var log upstreamtest.Buffer
		opts.Logger = log.Logger()
		for name, tc := range map[string]struct {
			order           [][]byte
			served, refused int
			rebuilt         int
		}{
			"two exchanged":      {[][]byte{good[0], good[2], good[1], good[3], good[4], good[5]}, 2, 2, 0},
			"one left out":       {[][]byte{good[0], good[1], good[3], good[4], good[5]}, 1, 3, 1},
			"one twice":          {[][]byte{good[0], good[1], good[1], good[3], good[4], good[5]}, 3, 1, 0},
			"of another file":    {[][]byte{good[0], other[1], good[2], good[3], good[4], good[5]}, 3, 1, 0},
			"a foreign header":   {[][]byte{other[0], good[1], good[2], good[3], good[4], good[5]}, 0, 5, 1},
			"goes on at its end": {append(slices.Clone(good), good[1]), 4, 0, 1},
		} {
			writeFile(t, opts.Sealed.Path, tc.order...)
			t.Log(name)
			wantSurvivors(t, opts, n, tc.served, tc.refused, tc.rebuilt)
		}
		failIf(t, !strings.Contains(log.String(), "refused=2") || !strings.Contains(log.String(), "level=ERROR"), "not loud: %s", &log)
	})
}

func TestUnusableFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := sealedIn(t)
		path := opts.Sealed.Path
		fillSealed(t, opts, 3)
		damage := unusable(path)
		damage["empty"] = func() error { return os.WriteFile(path, nil, 0o600) }
		damage["text"] = func() error { return os.WriteFile(path, bytes.Repeat([]byte("no sealed cache\n"), 500), 0o600) }
		damage["zeros"] = func() error { return os.WriteFile(path, make([]byte, 5000), 0o600) }
		damage["a folder"] = func() error { return os.MkdirAll(filepath.Join(path, "x"), 0o700) }
		damage["missing"] = func() error { return nil }
		damage["of a version that kept a bbolt file"] = func() error {
			db, err := bbolt.Open(path, 0o600, nil)
			if err != nil {
				return err
			}
			return db.Close()
		}
		for name, make := range damage {
			must(t, errors.Join(os.RemoveAll(path), make()))
			t.Log(name)
			wantSurvivors(t, opts, 3, 0, 0, map[bool]int{true: 1}[name != "missing"])
			// The agent works on, and makes a new file if it can.
			c := open(t, constant(10), opts)
			stop := start(t, c)
			look(t, c, "new")
			time.Sleep(time.Minute)
			stop()
			failIf(t, (c.Stats().Sealed.Records == 1) != (name != "a folder"), "%s: the file was not made anew: %+v", name, c.Stats().Sealed)
		}
	})
}

// A file without an end in sight is read to a bound, whatever its records say.
func TestHugeFileDoesNotHoldUpTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := sealedIn(t)
		opts.Sealed.MaxBytes = 64 << 10
		fillSealed(t, opts, 3)
		all := parts(readFile(t, opts.Sealed.Path))
		for name, tail := range map[string][]byte{"tiny records": nil, "a huge record": {0xf0, 0, 0, 0}} {
			writeFile(t, opts.Sealed.Path, all[0], all[1], tail)
			if err := os.Truncate(opts.Sealed.Path, 1<<40); err != nil {
				t.Skip("no sparse files: ", err)
			}
			t.Log(name)
			_, st := survivors(t, opts, 3)
			failIf(t, st.Loaded != 1 || st.Rebuilt != 1, "%+v", st)
		}
	})
}

func TestForeignKeyIsRefusedAndRebuilt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := sealedIn(t)
		fillSealed(t, opts, 4)
		must(t, os.Remove(opts.Sealed.Keyring))
		wantSurvivors(t, opts, 4, 0)
		fillSealed(t, opts, 4)
		wantSurvivors(t, opts, 4, 4)
	})
}

func TestOlderCopyBringsNothingBackThatIsTooOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := sealedIn(t)
		fillSealed(t, opts, 3)
		copied := readFile(t, opts.Sealed.Path)
		time.Sleep(time.Hour)
		writeFile(t, opts.Sealed.Path, copied)
		wantSurvivors(t, opts, 3, 3)
		time.Sleep(time.Second)
		writeFile(t, opts.Sealed.Path, copied)
		wantSurvivors(t, opts, 3, 0)
	})
}

// A smaller bound is no damage: what no longer fits is left out, but for what is declared.
func TestRecordsThatNoLongerFitAreLeftOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := sealedIn(t)
		var log upstreamtest.Buffer
		opts.Logger = log.Logger()
		first := open(t, constant(2000), opts)
		stop := start(t, first)
		look(t, first, "big")
		stop()

		opts.Limits.MaxBytes = 3000
		for _, declared := range []bool{false, true} {
			if declared {
				opts.Limits.Pins = []cache.Pin{{Ref: ref("big")}}
			}
			second := open(t, constant(2000), opts)
			st := second.Stats()
			if held := st.Entries+st.Pinned > 0 && st.Sealed.Loaded == 1; held != declared || st.Sealed.Refused != 0 || strings.Contains(log.String(), "refused") {
				t.Errorf("declared %v: %+v\n%s", declared, st, log.String())
			}
			second.Close()
		}
	})
}

// A smaller bound of the file is no damage either: what was written stays until it is rewritten.
func TestFileThatIsLargerThanItsBoundIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := sealedIn(t)
		fillSealed(t, opts, 50)
		var log upstreamtest.Buffer
		opts.Logger = log.Logger()
		for _, bound := range []int64{1000, 1} {
			opts.Sealed.MaxBytes = bound
			wantSurvivors(t, opts, 50, 50, 0, 0)
		}
		failIf(t, strings.Contains(log.String(), "sealed cache"), "log: %s", &log)
		stop := start(t, open(t, fetchFunc(down), opts))
		time.Sleep(settled)
		stop()
		failIf(t, !strings.Contains(log.String(), "is full"), "log: %s", &log)
	})
}

// A length that is damaged costs no memory.
func TestDamagedLengthTakesNoMemory(t *testing.T) {
	opts := sealedIn(t)
	fillSealed(t, opts, 1)
	header := parts(readFile(t, opts.Sealed.Path))[0]
	for _, length := range []uint32{0, 15 << 20, 60 << 20, 1<<32 - 1} {
		writeFile(t, opts.Sealed.Path, header, binary.BigEndian.AppendUint32(nil, length), make([]byte, 1000))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		wantSurvivors(t, opts, 1, 0, 0, 1)
		runtime.ReadMemStats(&after)
		failIf(t, after.TotalAlloc-before.TotalAlloc > 8<<20, "length %d: %d bytes", length, after.TotalAlloc-before.TotalAlloc)
	}
}

// When no stale value may be served, none is kept on disk: neither after a reload nor a start.
func TestFileIsEmptyWithoutMaxStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, reload := range []bool{true, false} {
			opts := sealedIn(t)
			fillSealed(t, opts, 3)
			limits := opts.Limits
			limits.MaxStale = cache.Never
			if !reload {
				opts.Limits = limits
			}
			c := open(t, fetchFunc(down), opts)
			stop := start(t, c)
			synctest.Wait()
			if reload {
				setLimits(t, c, limits)
			}
			time.Sleep(settled)
			failIf(t, len(parts(readFile(t, opts.Sealed.Path))) != 2, "reload %v: %d parts are in the file", reload, len(parts(readFile(t, opts.Sealed.Path))))
			stop()
		}
	})
}

func TestFileInUseIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := sealedIn(t)
		first := open(t, constant(10), opts)
		stop := start(t, first)
		look(t, first, "a")

		var log upstreamtest.Buffer
		opts.Logger = log.Logger()
		second := open(t, constant(10), opts)
		start(t, second)
		look(t, second, "b")
		time.Sleep(settled)
		failFor(t, second.Stats().Sealed, func(s cache.SealedStats) bool { return s.Open || s.Records != 0 || s.Pending != 0 })
		failIf(t, !strings.Contains(log.String(), "in use by another process"), "no warning: %s", &log)
		stop()
		failFor(t, first.Stats().Sealed, func(s cache.SealedStats) bool { return s.Records != 1 || s.Errors != 0 })
	})
}

func TestFileDamagedWhileInUseIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := sealedIn(t)
		path := opts.Sealed.Path
		c := open(t, constant(10), opts)
		stop := start(t, c)
		for i, damage := range []func() error{
			func() error { return nil },
			func() error { return os.Remove(path) },
			func() error { return os.WriteFile(path, []byte("x"), 0o600) },
		} {
			must(t, damage())
			look(t, c, fmt.Sprint("s", i))
			time.Sleep(settled)
			failIf(t, c.Stats().Sealed.Records != i+1 || c.Stats().Sealed.Pending != 0 || len(parts(readFile(t, path))) != i+3, "%d: %+v", i, c.Stats().Sealed)
		}
		stop()
	})
}

func TestFolderThatCannotBeMadeStopsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := sealedIn(t)
		var log upstreamtest.Buffer
		opts.Logger = log.Logger()
		dir := filepath.Dir(opts.Sealed.Path)
		writeFile(t, dir)
		c := open(t, constant(10), opts)
		stop := start(t, c)
		look(t, c, "a")
		time.Sleep(10 * time.Minute)
		failFor(t, c.Stats().Sealed, func(s cache.SealedStats) bool { return s.Errors == 0 || s.Errors > 100 })
		n := strings.Count(log.String(), "level=ERROR")
		failIf(t, n < 1 || n > 100, "%d error lines:\n%s", n, &log)
		// It is tried again, and works once the cause is gone.
		must(t, os.Remove(dir))
		time.Sleep(time.Minute)
		n = strings.Count(log.String(), "the sealed cache is written again")
		failIf(t, n != 1, "it is told %d times that it is over", n)
		failFor(t, c.Stats().Sealed, func(s cache.SealedStats) bool { return s.Records != 1 })
		stop()
	})
}

func TestSealedFileIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := sealedIn(t)
		opts.Sealed.MaxBytes = 100 << 10
		opts.TTL = time.Hour
		opts.Pins = []cache.Pin{{Ref: ref("declared")}}
		var log upstreamtest.Buffer
		opts.Logger = log.Logger()
		c := open(t, constant(1000), opts)
		stop := start(t, c)
		for i := range 1000 {
			look(t, c, fmt.Sprint("s", i))
			time.Sleep(100 * time.Millisecond)
		}
		stop()
		s := c.Stats().Sealed
		failIf(t, s.Bytes > opts.Sealed.MaxBytes || s.Records < 50 || s.Records+s.Skipped != 1001, "%+v", s)
		failIf(t, strings.Count(log.String(), "is full") != 1, "log: %s", &log)
		size := int64(len(readFile(t, opts.Sealed.Path)))
		failIf(t, size > opts.Sealed.MaxBytes+200, "%d bytes", size)
		// What is declared is in it, and what was used last, which is also the last to be evicted.
		opts.MaxEntries = 1
		c = open(t, fetchFunc(down), opts)
		look(t, c, "declared")
		look(t, c, "s999")
	})
}

func TestKeyringOthersCanReadIsRefused(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no modes there")
	}
	opts := sealedIn(t)
	open(t, constant(1), opts).Close()
	for mode, good := range map[fs.FileMode]struct{ plain, credential bool }{
		0o600: {true, true}, 0o400: {true, true}, 0o440: {false, true}, 0o460: {}, 0o444: {}, 0o604: {},
	} {
		must(t, os.Chmod(opts.Sealed.Keyring, mode))
		for _, opts.Sealed.KeyringIsCredential = range []bool{false, true} {
			c, err := cache.New(constant(1), opts)
			if err == nil {
				c.Close()
			}
			want := good.plain && !opts.Sealed.KeyringIsCredential || good.credential && opts.Sealed.KeyringIsCredential
			failIf(t, (err == nil) != want, "mode %04o, credential %v: %v", mode, opts.Sealed.KeyringIsCredential, err)
			failIf(t, err != nil && (!strings.Contains(err.Error(), "chmod 600") || !strings.Contains(err.Error(), "sealed.keyring")), "mode %04o: %v", mode, err)
		}
	}
}

func TestKeyringInTheSameFolderIsWarnedAbout(t *testing.T) {
	opts := sealedIn(t)
	opts.Sealed.Keyring = filepath.Join(filepath.Dir(opts.Sealed.Path), "keyring.json")
	var log upstreamtest.Buffer
	opts.Logger = log.Logger()
	open(t, constant(1), opts)
	failIf(t, !strings.Contains(log.String(), "share a folder"), "no warning: %s", &log)
}

func TestLabelsBelongTogetherAfterARestart(t *testing.T) {
	opts := sealedIn(t)
	with(t, opts, func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache) {
		fake.MustPut(t, "app/db", "v2", "second")
		stop := start(t, c)
		_, err := c.GetSecretValues(t.Context(), pair...)
		must(t, err)
		stop()
		answers, errs := open(t, fetchFunc(down), opts).LookupAll(t.Context(), pair)
		must(t, errors.Join(errs...))
		wantAnswer(t, answers[0], "second", upstream.Stale)
		wantAnswer(t, answers[1], "first", upstream.Stale)
	})
}

// proof is what the other process of TestKilledWriter puts into a secret.
func proof(name upstream.SecretName) string {
	return fmt.Sprintf("%s %s", name, strings.Repeat("x", 4000))
}

// runSealedWriter is the other process of TestKilledWriter: it fetches 2000 secrets and changes
// them as fast as it can until it is killed.
func runSealedWriter() bool {
	dir := os.Getenv("CACHE_TEST_SEALED_DIR")
	if dir == "" {
		return false
	}
	up := fetchFunc(func(_ context.Context, r upstream.SecretRef) (upstream.SecretValue, error) {
		return upstream.SecretValue{
			SecretName: r.SecretName, VersionID: upstream.VersionID(strconv.FormatInt(time.Now().UnixNano(), 10)),
			SecretData: upstream.NewSecretData([]byte(proof(r.SecretName))), SecretType: "Generic", SecretDataType: "text",
		}, nil
	})
	c, err := cache.New(up, cache.Options{
		Limits:          cache.Limits{MaxEntries: 2000},
		ForcedPerSecond: 1e9, ForcedBurst: 1e6,
		Sealed: &cache.Sealed{Path: filepath.Join(dir, "cache.db"), Keyring: filepath.Join(dir, "keys", "keyring.json")},
	})
	if err != nil {
		panic(err)
	}
	var wg sync.WaitGroup
	for i := 0; ; i++ {
		if i == 2000 {
			wg.Go(func() { _ = c.Run(context.Background()) })
		}
		_, _ = c.RefreshNow(context.Background(), ref(fmt.Sprint("s", i%2000)))
	}
}

// Every second process is killed while it rewrites the file, the others when they have done so.
func TestKilledWriterLeavesAGoodFile(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no SIGKILL")
	}
	dir := t.TempDir()
	opts := cache.Options{
		Limits: cache.Limits{MaxEntries: 10_000},
		Sealed: &cache.Sealed{Path: filepath.Join(dir, "cache.db"), Keyring: filepath.Join(dir, "keys", "keyring.json")},
	}
	leftovers := 0
	for i := range scaled("CACHE_TEST_KILLS", 6, 2) {
		before, _ := os.Stat(opts.Sealed.Path)
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "CACHE_TEST_SEALED_DIR="+dir)
		must(t, cmd.Start())
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
			if found, _ := filepath.Glob(opts.Sealed.Path + ".new-*"); len(found) > 0 && i%2 == 1 {
				break
			}
			if now, err := os.Stat(opts.Sealed.Path); err == nil && i%2 == 0 && (before == nil || !os.SameFile(before, now)) {
				break
			}
			stopIf(t, time.Now().After(deadline), "no file is written")
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		found, _ := filepath.Glob(opts.Sealed.Path + ".new-*")
		leftovers += len(found)

		c := open(t, fetchFunc(down), opts)
		failFor(t, c.Stats().Sealed, func(s cache.SealedStats) bool { return s.Loaded != 2000 || s.Refused != 0 || s.Rebuilt != 0 || !s.Open })
		for _, e := range c.Entries() {
			data := look(t, c, string(e.Ref.SecretName)).Value.SecretData.Reveal()
			stopIf(t, string(data) != proof(e.Ref.SecretName), "kill %d: %s has a value that was never its own", i, e.Ref)
		}
		found, _ = filepath.Glob(opts.Sealed.Path + ".new-*")
		failIf(t, len(found) > 0, "kill %d: %v is left", i, found)
		_ = c.Close()
	}
	t.Logf("%d unfinished files were left", leftovers)
}

// Whatever is written over a sealed file, the cache starts, and serves for each secret its
// own value or none.
func FuzzDamagedFile(f *testing.F) {
	const n = 20
	opts := sealedIn(f)
	fillSealed(f, opts, n)
	good := readFile(f, opts.Sealed.Path)
	all := parts(good)
	f.Add(uint32(0), []byte{0})
	f.Add(uint32(len(all[0])), []byte{0xff, 0xff, 0xff, 0xff})
	f.Add(uint32(len(all[0])), all[2])
	f.Add(uint32(len(good)-len(all[n+1])), make([]byte, 4))
	f.Fuzz(func(t *testing.T, at uint32, with []byte) {
		bad := bytes.Clone(good)
		copy(bad[int(at)%len(bad):], with)
		opts := opts
		opts.Sealed = &cache.Sealed{Path: filepath.Join(t.TempDir(), "cache.db"), Keyring: opts.Sealed.Keyring}
		writeFile(t, opts.Sealed.Path, bad)
		survivors(t, opts, n)
	})
}

// BenchmarkRewrite is one rewrite of the sealed file, and what it has on disk.
func BenchmarkRewrite(b *testing.B) {
	sizes := map[string]int{"1000 of 1 KiB": 1000, "64 MiB of 1 KiB": 45_000}
	for _, name := range slices.Sorted(maps.Keys(sizes)) {
		b.Run(name, func(b *testing.B) {
			opts := sealedIn(b)
			opts.TTL = time.Hour
			c := open(b, constant(1024), opts)
			for i := range sizes[name] {
				look(b, c, fmt.Sprint("team/service-", i))
			}
			for b.Loop() {
				if err := c.RewriteSealed(); err != nil {
					b.Fatal(err)
				}
			}
			st, err := os.Stat(opts.Sealed.Path)
			if err != nil || c.Stats().Sealed.Records < sizes[name]*9/10 {
				b.Fatal(c.Stats().Sealed, err)
			}
			b.ReportMetric(float64(st.Size()), "file-bytes")
		})
	}
}
