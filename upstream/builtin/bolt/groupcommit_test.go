package bolt

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/bbolt"

	"secretagent/upstream"
	"secretagent/upstream/builtin"
	"secretagent/upstream/upstreamtest"
)

// inBubble runs a test with the secret "a", on a clock of its own, whose goroutines can be
// waited for: synctest.Wait returns when each of them waits for another.
func inBubble(t *testing.T, test func(t *testing.T, s *Store)) {
	t.Helper()
	inTime(t, func(t *testing.T, s *Store) {
		mustCreate(t, s, "a", "v0", "zero")
		test(t, s)
	})
}

// start runs writes, each of which is in line before the next begins. outcomes waits for their
// errors.
func start(writes ...func() error) (outcomes func() []error) {
	errs := make([]error, len(writes))
	var wg sync.WaitGroup
	for i, write := range writes {
		wg.Go(func() { errs[i] = write() })
		synctest.Wait()
	}
	return func() []error { wg.Wait(); return errs }
}

// holdWriter makes the writer wait in the middle of a transaction until release is called.
func holdWriter(t *testing.T, s *Store) (release func()) {
	t.Helper()
	let := make(chan struct{})
	outcome := start(writer(context.Background(), s, func(*tx) error { <-let; return nil }))
	return sync.OnceFunc(func() {
		close(let)
		wantErr(t, outcome()[0], nil)
	})
}

func writer(ctx context.Context, s *Store, apply func(*tx) error) func() error {
	return func() error { return s.db.Update(ctx, func(w builtin.Writer) error { return apply(w.(*tx)) }) }
}

// mark writes a text where no rule looks.
func mark(text string) func(*tx) error {
	return func(t *tx) error { return t.Put(builtin.Seeds, []byte("mark"), []byte(text)) }
}

func wantMark(t *testing.T, s *Store, want string) {
	t.Helper()
	must(t, s.db.View(t.Context(), func(r builtin.Reader) error {
		if got, err := r.Get(builtin.Seeds, []byte("mark")); err != nil || string(got) != want {
			t.Errorf("marked %q, %v; want %q", got, err, want)
		}
		return nil
	}))
}

func putter(s *Store, name, id, data string) func() error {
	return putterWith(context.Background(), s, name, id, data)
}

func putterWith(ctx context.Context, s *Store, name, id, data string) func() error {
	return func() error {
		_, err := s.PutSecretValue(ctx, upstream.PutSecretValueInput{
			SecretName: upstream.SecretName(name), VersionID: upstream.VersionID(id), SecretData: secret(data),
		})
		return err
	}
}

func TestWritersShareACommit(t *testing.T) {
	inBubble(t, func(t *testing.T, s *Store) {
		release := holdWriter(t, s)
		var writes []func() error
		for i := range 50 {
			writes = append(writes, putter(s, "a", fmt.Sprint("v", i%8+1), fmt.Sprint("data", i%8+1))) // some are repeats
		}
		outcomes := start(writes...)
		before := s.Stats()
		release()
		for _, err := range outcomes() {
			wantErr(t, err, nil)
		}
		if after := s.Stats(); after.Commits-before.Commits != 1 || s.db.replays.Load() != 0 {
			t.Errorf("%d writes took %d commits and %d replays", len(writes), after.Commits-before.Commits, s.db.replays.Load())
		}
		wantValue(t, s, "a", "data8")
		wantValue(t, s, "a:ACSPrevious", "data7")
	})
}

func TestARefusedWriteLeavesItsNeighboursAlone(t *testing.T) {
	inBubble(t, func(t *testing.T, s *Store) {
		release := holdWriter(t, s)
		outcomes := start(putter(s, "a", "v1", "one"), putter(s, "a", "v1", "other"), putter(s, "missing", "v1", "x"), putter(s, "a", "v2", "two"))
		before := s.Stats()
		release()
		errs := outcomes()
		wantErr(t, errors.Join(errs[0], errs[3]), nil)
		wantErr(t, errs[1], upstream.ErrExists)
		wantErr(t, errs[2], upstream.ErrNotFound)
		if after := s.Stats(); after.Commits != before.Commits+1 || s.db.replays.Load() != 0 {
			t.Errorf("%d commits, %d replays", after.Commits-before.Commits, s.db.replays.Load())
		}
		wantValue(t, s, "a", "two")
	})
}

func TestAWriteThatFailsHalfWayIsUndone(t *testing.T) {
	inBubble(t, func(t *testing.T, s *Store) {
		heard := listen(t, s)
		release := holdWriter(t, s)
		outcomes := start(
			putter(s, "a", "v1", "one"),
			writer(t.Context(), s, func(t *tx) error { return errors.Join(mark("half")(t), errors.New("half-way")) }),
			putter(s, "a", "v2", "two"))
		release()
		errs := outcomes()
		if errs[0] != nil || errs[2] != nil || errs[1] == nil || !strings.Contains(errs[1].Error(), "half-way") {
			t.Errorf("got %v", errs)
		}
		if n := s.db.replays.Load(); n != 1 {
			t.Errorf("%d replays", n)
		}
		wantValue(t, s, "a", "two")
		wantMark(t, s, "")
		if got := heard(); !slices.Equal(got, []string{"a", "a"}) {
			t.Errorf("heard of %v", got)
		}
	})
}

func TestAFailedTransactionIsReplayedOneByOne(t *testing.T) {
	inBubble(t, func(t *testing.T, s *Store) {
		mustCreate(t, s, "b", "v0", "zero")
		release := holdWriter(t, s)
		outcomes := start(putter(s, "a", "v1", "one"), putter(s, "b", "v1", "one"))
		failCommits(s, 2) // the shared transaction, and the first one by itself
		release()
		errs := outcomes()
		wantErr(t, errs[0], upstream.ErrUnavailable)
		if errs[0] != nil && !strings.Contains(errs[0].Error(), "no space left") {
			t.Errorf("the cause is missing: %v", errs[0])
		}
		wantErr(t, errs[1], nil)
		wantValue(t, s, "a", "zero")
		wantValue(t, s, "b", "one")
		mustPut(t, s, "a", "v1", "one") // and on it goes
	})
}

// failCommits lets the next transactions that have something to commit fail.
func failCommits(s *Store, failures int) {
	s.db.update = func(fn func(*bbolt.Tx) error) error {
		return s.db.bolt.Update(func(tx *bbolt.Tx) error {
			if err := fn(tx); err != nil || failures == 0 {
				return err
			}
			failures--
			return errors.New("no space left on device")
		})
	}
}

// TestFullDisk fills the database up to a limit of its size. What was acknowledged is there,
// what was refused is not, and after there is room again all is well.
func TestFullDisk(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	st, err := s.db.file.Stat()
	must(t, err)
	s.db.bolt.MaxSize = int(st.Size()) + growStep
	var last [8]string
	var failed atomic.Int32
	var wg sync.WaitGroup
	for i := range last {
		name := fmt.Sprint("s/", i)
		mustCreate(t, s, name, "v0", "zero")
		wg.Go(func() {
			for v := 1; v < 20; v++ {
				data := fmt.Sprint(name, " ", v, strings.Repeat("x", 25_000))
				if err := putter(s, name, fmt.Sprint("v", v), data)(); err != nil {
					failed.Add(1)
					wantErr(t, err, upstream.ErrUnavailable)
				} else {
					last[i] = data
				}
			}
		})
	}
	wg.Wait()
	if failed.Load() == 0 {
		t.Fatal("the disk was never full: the test shows nothing")
	}
	for i, data := range last {
		if data != "" {
			wantValue(t, s, fmt.Sprint("s/", i), data)
		}
	}
	checkRules(t, s)
	s.db.bolt.MaxSize = 0
	mustPut(t, s, "s/3", "last", "last")
	wantValue(t, s, "s/3", "last")
}

// TestUnconfirmedCommit lets the last sync of a commit fail: readers see the change, but nobody
// knows whether it is on disk. The writer is not told that it is, and no write follows.
func TestUnconfirmedCommit(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	mustCreate(t, s, "a", "v0", "zero")
	s.db.update = func(fn func(*bbolt.Tx) error) error {
		return errors.Join(s.db.bolt.Update(fn), errors.New("input/output error"))
	}
	err := putter(s, "a", "v1", "one")()
	wantErr(t, err, upstream.ErrInternal)
	if err == nil || !strings.Contains(err.Error(), "may or may not survive") {
		t.Errorf("unclear: %v", err)
	}
	s.db.update = s.db.bolt.Update
	wantErr(t, putter(s, "a", "v2", "two")(), upstream.ErrInternal)
}

func TestAWriteWhoseContextEnds(t *testing.T) {
	inBubble(t, func(t *testing.T, s *Store) {
		put := func(ctx context.Context, id string) func() error { return putterWith(ctx, s, "a", id, id) }
		ctx, cancel := context.WithCancel(t.Context())
		release := holdWriter(t, s)
		outcomes := start(put(ctx, "waiting"), put(t.Context(), "patient"))
		cancel()
		synctest.Wait()
		release()
		wantErr(t, outcomes()[0], context.Canceled)
		wantErr(t, put(ctx, "late")(), context.Canceled)
		wantErr(t, outcomes()[1], nil)
		wantValue(t, s, "a", "patient")
		wantValue(t, s, "a:ACSPrevious", "zero")

		// One that has begun goes on without its caller.
		let := make(chan struct{})
		ctx, cancel = context.WithCancel(t.Context())
		outcomes = start(writer(ctx, s, func(t *tx) error { <-let; return mark("begun")(t) }))
		cancel()
		wantErr(t, outcomes()[0], context.Canceled)
		close(let)
		mustPut(t, s, "a", "after", "after")
		wantMark(t, s, "begun")
	})
}

func TestTheLineIsBounded(t *testing.T) {
	inBubble(t, func(t *testing.T, s *Store) {
		defer holdWriter(t, s)()
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		for range maxQueued + 10 {
			wg.Go(func() { wantErr(t, writer(ctx, s, mark(""))(), context.Canceled) })
		}
		synctest.Wait()
		if n := s.Stats().WritesQueued; n != maxQueued {
			t.Errorf("%d writes in line", n)
		}
		cancel()
		wg.Wait()
	})
}

func TestReadsDoNotWaitForAWrite(t *testing.T) {
	inBubble(t, func(t *testing.T, s *Store) {
		defer holdWriter(t, s)()
		wantValue(t, s, "a", "zero")
		if out, err := s.ListSecrets(t.Context(), upstream.ListSecretsInput{}); err != nil || out.TotalCount != 1 {
			t.Errorf("list: %v, %v", out, err)
		}
	})
}

// listen returns a function that gives the names heard of since the last call, in order.
func listen(t *testing.T, s *Store) (heard func() []string) {
	t.Helper()
	var mu sync.Mutex
	var names []string
	t.Cleanup(s.OnChange(func(name upstream.SecretName) {
		mu.Lock()
		defer mu.Unlock()
		names = append(names, string(name))
	}))
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		got := names
		names = nil
		return got
	}
}

// TestOnChange: when a writer is told that a write is done, the listeners have been told.
func TestOnChange(t *testing.T) { inBubble(t, testOnChange) }

func testOnChange(t *testing.T, s *Store) {
	ctx := t.Context()
	heard := listen(t, s)
	stage := func() error {
		return s.UpdateSecretVersionStage(ctx, upstream.UpdateSecretVersionStageInput{SecretName: "a", VersionStage: "green", MoveToVersion: "v1"})
	}
	for _, step := range []struct {
		what string
		do   func() error
		want []string
		err  error
	}{
		{"put", putter(s, "a", "v1", "one"), []string{"a"}, nil},
		{"a repeated put", putter(s, "a", "v1", "one"), nil, nil},
		{"a refused put", putter(s, "a", "v1", "other"), nil, upstream.ErrExists},
		{"stage", stage, []string{"a"}, nil},
		{"a label that is there", stage, nil, nil},
		{"delete", func() error { mustDelete(t, s, "a", 30); return nil }, []string{"a"}, nil},
		{"restore", func() error { return s.RestoreSecret(ctx, "a") }, []string{"a"}, nil},
		{"delete again", func() error { mustDelete(t, s, "a", 30); return nil }, []string{"a"}, nil},
		{"purge", func() error { time.Sleep(31 * day); _, err := s.Purge(ctx); return err }, []string{"a"}, nil},
		{"create", func() error { mustCreate(t, s, "a", "v1", "one"); return nil }, []string{"a"}, nil},
		{"forced delete", func() error { forceDelete(t, s, "a"); return nil }, []string{"a"}, nil},
	} {
		wantErr(t, step.do(), step.err)
		if got := heard(); !slices.Equal(got, step.want) {
			t.Errorf("after %s: heard of %v, want %v", step.what, got, step.want)
		}
	}
	cancel := s.OnChange(func(upstream.SecretName) { t.Error("called after cancel") })
	cancel()
	cancel()
	mustCreate(t, s, "b", "v1", "one")
}

func TestClosed(t *testing.T) {
	inBubble(t, func(t *testing.T, s *Store) {
		release := holdWriter(t, s)
		outcomes := start(putter(s, "a", "v1", "one"))
		closed := start(s.Close)
		release()
		wantErr(t, closed()[0], nil)
		if err := outcomes()[0]; err != nil { // may still have been executed
			wantErr(t, err, builtin.ErrClosed)
		}
		_, err := get(s, "a")
		wantErr(t, err, builtin.ErrClosed)
		wantErr(t, err, upstream.ErrUnavailable)
		wantErr(t, putter(s, "a", "v2", "two")(), builtin.ErrClosed)
		_, err = s.RotateKey(t.Context(), false)
		wantErr(t, err, builtin.ErrClosed)
		wantErr(t, s.Run(t.Context()), nil)
		wantErr(t, s.Close(), nil)
	})
}

// TestEverythingAtOnce calls what changes secrets and keys from many goroutines. The race
// detector and the final check of the rules are what it is for.
func TestEverythingAtOnce(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	ctx, cancel := context.WithCancel(t.Context())
	var background, wg sync.WaitGroup
	background.Go(func() { wantErr(t, s.Run(ctx), nil) })
	rounds := 20
	if testing.Short() {
		rounds = 5
	}
	try := func(err error) {
		if err != nil && upstream.Status(err) >= 500 {
			t.Error(err)
		}
	}
	for g := range 8 {
		wg.Go(func() {
			for i := range rounds {
				name := upstream.SecretName(fmt.Sprint("s/", (g+i)%5))
				s.OnChange(func(upstream.SecretName) {})()
				_ = s.Stats()
				try(only(s.CreateSecret(ctx, upstream.CreateSecretInput{SecretName: name, VersionID: "v0", SecretData: secret("x")})))
				for _, call := range upstreamtest.EveryCall(ctx, s, name) {
					try(call.Run())
				}
				try(putter(s, string(name), fmt.Sprint("v", i%12), fmt.Sprint(i%2))())
				try(only(s.DeleteSecret(ctx, upstream.DeleteSecretInput{SecretName: name, ForceDeleteWithoutRecovery: i%9 == 0})))
				if g == 0 && i%10 == 0 {
					try(only(s.RotateKey(ctx, false)))
				}
				if g == 1 && i%10 == 0 {
					try(s.Reencrypt(ctx, nil))
					try(only(s.Keys(t.Context())))
				}
			}
		})
	}
	wg.Wait()
	cancel()
	background.Wait()
	checkRules(t, s)
}
