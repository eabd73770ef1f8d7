package builtin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"secretagent/upstream"
)

// holdWriter makes the writer wait in the middle of a transaction until release is called.
func holdWriter(t *testing.T, s *Store) (release func()) {
	t.Helper()
	held, let := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- s.write(context.Background(), "hold", upstream.SecretRef{}, func(*tx) error {
			close(held)
			<-let
			return nil
		})
	}()
	<-held
	return sync.OnceFunc(func() {
		close(let)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// queueWrites starts writes, each after the one before it is in line, and returns a function
// that waits for their outcomes.
func queueWrites(t *testing.T, s *Store, writes ...func() error) (outcomes func() []error) {
	t.Helper()
	errs := make([]error, len(writes))
	var wg sync.WaitGroup
	for i, write := range writes {
		before := len(s.queue)
		wg.Go(func() { errs[i] = write() })
		for deadline := time.Now().Add(5 * time.Second); len(s.queue) == before; time.Sleep(100 * time.Microsecond) {
			if time.Now().After(deadline) {
				t.Fatal("a write does not get in line")
			}
		}
	}
	return func() []error { wg.Wait(); return errs }
}

func putter(s *Store, name, id, data string) func() error {
	return func() error {
		_, err := s.PutSecretValue(context.Background(), upstream.PutSecretValueInput{
			SecretName: upstream.SecretName(name), VersionID: upstream.VersionID(id), SecretData: secret(data),
		})
		return err
	}
}

func TestWritersShareACommit(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	mustCreate(t, s, "a", "v0", "zero")
	release := holdWriter(t, s)
	var writes []func() error
	for i := range 50 {
		writes = append(writes, putter(s, "a", fmt.Sprint("v", i%8+1), fmt.Sprint("data", i%8+1))) // some are repeats
	}
	outcomes := queueWrites(t, s, writes...)
	before := s.Stats()
	release()
	for _, err := range outcomes() {
		if err != nil {
			t.Error(err)
		}
	}
	after := s.Stats()
	if n := after.Commits - before.Commits; n != 1 {
		t.Errorf("%d writes took %d commits", len(writes), n)
	}
	if after.Replays != 0 {
		t.Errorf("%d replays", after.Replays)
	}
	wantValue(t, s, "a", "data8")
	wantValue(t, s, "a:ACSPrevious", "data7")
}

func TestARefusedWriteLeavesItsNeighboursAlone(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	mustCreate(t, s, "a", "v0", "zero")
	release := holdWriter(t, s)
	outcomes := queueWrites(t, s, putter(s, "a", "v1", "one"), putter(s, "a", "v1", "other"), putter(s, "missing", "v1", "x"), putter(s, "a", "v2", "two"))
	before := s.Stats()
	release()
	errs := outcomes()
	if errs[0] != nil || errs[3] != nil {
		t.Errorf("the good ones: %v, %v", errs[0], errs[3])
	}
	wantErr(t, errs[1], upstream.ErrExists)
	wantErr(t, errs[2], upstream.ErrNotFound)
	if after := s.Stats(); after.Commits != before.Commits+1 || after.Replays != 0 {
		t.Errorf("%d commits, %d replays", after.Commits-before.Commits, after.Replays)
	}
	wantValue(t, s, "a", "two")
}

func TestAWriteThatFailsHalfWayIsUndone(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	mustCreate(t, s, "a", "v0", "zero")
	heard := listen(t, s)
	halfWay := errors.New("half-way")
	release := holdWriter(t, s)
	outcomes := queueWrites(t, s,
		putter(s, "a", "v1", "one"),
		func() error {
			return s.write(context.Background(), "test", upstream.SecretRef{}, func(t *tx) error {
				r, err := t.live("a")
				if err != nil {
					return err
				}
				r.description = "half"
				t.change("a")
				return errors.Join(t.putRecord("a", r), halfWay)
			})
		},
		putter(s, "a", "v2", "two"))
	release()
	errs := outcomes()
	if errs[0] != nil || errs[2] != nil || errs[1] == nil || !strings.Contains(errs[1].Error(), "half-way") {
		t.Errorf("got %v", errs)
	}
	if n := s.Stats().Replays; n != 1 {
		t.Errorf("%d replays", n)
	}
	wantValue(t, s, "a", "two")
	m, err := s.DescribeSecret(context.Background(), "a", false)
	if err != nil || m.Description != "" {
		t.Errorf("description %q, %v", m.Description, err)
	}
	if got := heard(); !slices.Equal(got, []string{"a", "a"}) {
		t.Errorf("heard of %v", got)
	}
}

func TestAFailedTransactionIsReplayedOneByOne(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	mustCreate(t, s, "a", "v0", "zero")
	mustCreate(t, s, "b", "v0", "zero")
	release := holdWriter(t, s)
	outcomes := queueWrites(t, s, putter(s, "a", "v1", "one"), putter(s, "b", "v1", "one"))
	failures := 2 // the shared transaction, and the first one by itself
	s.update = func(fn func(*bbolt.Tx) error) error {
		return s.db.Update(func(tx *bbolt.Tx) error {
			err := fn(tx)
			if failures > 0 && err == nil {
				failures--
				return errors.New("no space left on device")
			}
			return err
		})
	}
	release()
	errs := outcomes()
	wantErr(t, errs[0], upstream.ErrUnavailable)
	if errs[0] != nil && !strings.Contains(errs[0].Error(), "no space left") {
		t.Errorf("the cause is missing: %v", errs[0])
	}
	if errs[1] != nil {
		t.Error(errs[1])
	}
	wantValue(t, s, "a", "zero")
	wantValue(t, s, "b", "one")
	mustPut(t, s, "a", "v1", "one") // and on it goes
}

// TestFullDisk fills the database up to a limit of its size. What was acknowledged is there,
// what was refused is not, and after there is room again all is well.
func TestFullDisk(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	for i := range 16 {
		mustCreate(t, s, fmt.Sprint("s/", i), "v0", "zero")
	}
	st, err := s.file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	s.db.MaxSize = int(st.Size()) + growStep
	var mu sync.Mutex
	last := map[string]string{}
	failed := 0
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			name := fmt.Sprint("s/", i)
			for v := 1; v < 20; v++ {
				data := fmt.Sprint(name, " ", v, strings.Repeat("x", 25_000))
				err := putter(s, name, fmt.Sprint("v", v), data)()
				mu.Lock()
				if err == nil {
					last[name] = data
				} else {
					failed++
					wantErr(t, err, upstream.ErrUnavailable)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if failed == 0 {
		t.Fatal("the disk was never full: the test shows nothing")
	}
	for name, data := range last {
		wantValue(t, s, name, data)
	}
	checkRules(t, s)
	s.db.MaxSize = 0
	mustPut(t, s, "s/3", "last", "last")
	wantValue(t, s, "s/3", "last")
}

// TestUnconfirmedCommit lets the last sync of a commit fail: readers see the change, but nobody
// knows whether it is on disk. The writer is not told that it is, and no write follows.
func TestUnconfirmedCommit(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	mustCreate(t, s, "a", "v0", "zero")
	s.update = func(fn func(*bbolt.Tx) error) error {
		return errors.Join(s.db.Update(fn), errors.New("input/output error"))
	}
	err := putter(s, "a", "v1", "one")()
	wantErr(t, err, upstream.ErrInternal)
	if err == nil || !strings.Contains(err.Error(), "may or may not survive") {
		t.Errorf("unclear: %v", err)
	}
	s.update = s.db.Update
	wantErr(t, putter(s, "a", "v2", "two")(), upstream.ErrInternal)
}

func TestAWriteWhoseContextEnds(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	mustCreate(t, s, "a", "v0", "zero")
	put := func(ctx context.Context, id string) error {
		_, err := s.PutSecretValue(ctx, upstream.PutSecretValueInput{SecretName: "a", VersionID: upstream.VersionID(id), SecretData: secret(id)})
		return err
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	wantErr(t, put(ended, "before"), context.Canceled)

	release := holdWriter(t, s)
	ctx, cancel := context.WithCancel(context.Background())
	outcomes := queueWrites(t, s, func() error { return put(ctx, "waiting") }, func() error { return put(context.Background(), "patient") })
	cancel()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		// The impatient one must have left before the writer comes to it.
		if w := <-s.queue; w.state.Load() == abandoned {
			s.queue <- w
			break
		} else {
			s.queue <- w
		}
		if time.Now().After(deadline) {
			t.Fatal("the write does not give up")
		}
	}
	release()
	errs := outcomes()
	wantErr(t, errs[0], context.Canceled)
	if errs[1] != nil {
		t.Error(errs[1])
	}
	wantValue(t, s, "a", "patient")
	wantValue(t, s, "a:ACSPrevious", "zero")

	// One that has begun goes on without its caller.
	begun, let := make(chan struct{}), make(chan struct{})
	ctx, cancel = context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- s.write(ctx, "test", upstream.SecretRef{}, func(t *tx) error {
			close(begun)
			<-let
			r, err := t.live("a")
			if err != nil {
				return err
			}
			r.description = "begun"
			return t.putRecord("a", r)
		})
	}()
	<-begun
	cancel()
	wantErr(t, <-done, context.Canceled)
	close(let)
	mustPut(t, s, "a", "after", "after")
	if m, err := s.DescribeSecret(context.Background(), "a", false); err != nil || m.Description != "begun" {
		t.Errorf("description %q, %v", m.Description, err)
	}
}

func TestTheLineIsBounded(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	release := holdWriter(t, s)
	defer release()
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	for range maxQueued + 10 {
		wg.Go(func() {
			err := s.write(ctx, "test", upstream.SecretRef{}, func(*tx) error { return nil })
			wantErr(t, err, context.Canceled)
		})
	}
	for deadline := time.Now().Add(5 * time.Second); s.Stats().Queued < maxQueued; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("only %d writes in line", s.Stats().Queued)
		}
	}
	cancel()
	wg.Wait()
}

func TestReadsDoNotWaitForAWrite(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	mustCreate(t, s, "a", "v0", "zero")
	defer holdWriter(t, s)()
	done := make(chan struct{})
	go func() {
		defer close(done)
		wantValue(t, s, "a", "zero")
		if out, err := s.ListSecrets(context.Background(), upstream.ListSecretsInput{}); err != nil || out.TotalCount != 1 {
			t.Errorf("list: %v, %v", out, err)
		}
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Error("a read waits for the writer")
	}
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

// TestOnChange: whoever is told that a write is done finds that the listeners have been told.
func TestOnChange(t *testing.T) {
	clock := newClock()
	opts := testOptions(t)
	opts.Now = clock.now
	s := mustOpen(t, opts)
	ctx := context.Background()
	heard := listen(t, s)
	want := func(what string, names ...string) {
		t.Helper()
		if got := heard(); !slices.Equal(got, names) {
			t.Errorf("after %s: heard of %v, want %v", what, got, names)
		}
	}
	mustCreate(t, s, "a", "v1", "one")
	want("create", "a")
	mustPut(t, s, "a", "v2", "two")
	want("put", "a")
	mustPut(t, s, "a", "v2", "two")
	want("a repeated put")
	stage := upstream.UpdateSecretVersionStageInput{SecretName: "a", VersionStage: "green", MoveToVersion: "v1"}
	if err := s.UpdateSecretVersionStage(ctx, stage); err != nil {
		t.Error(err)
	}
	want("stage", "a")
	if err := s.UpdateSecretVersionStage(ctx, stage); err != nil {
		t.Error(err)
	}
	want("a label that is there")
	if err := putter(s, "a", "v2", "other")(); err == nil {
		t.Error("rewritten")
	}
	want("a refused put")
	if _, err := s.DeleteSecret(ctx, upstream.DeleteSecretInput{SecretName: "a"}); err != nil {
		t.Error(err)
	}
	want("delete", "a")
	if err := s.RestoreSecret(ctx, "a"); err != nil {
		t.Error(err)
	}
	want("restore", "a")
	if _, err := s.DeleteSecret(ctx, upstream.DeleteSecretInput{SecretName: "a"}); err != nil {
		t.Error(err)
	}
	heard()
	clock.advance(31 * 24 * time.Hour)
	if _, err := s.purgeDue(ctx); err != nil {
		t.Error(err)
	}
	want("purge", "a")
	cancel := s.OnChange(func(upstream.SecretName) { t.Error("called after cancel") })
	cancel()
	cancel()
	mustCreate(t, s, "b", "v1", "one")
	if _, err := s.DeleteSecret(ctx, upstream.DeleteSecretInput{SecretName: "b", ForceDeleteWithoutRecovery: true}); err != nil {
		t.Error(err)
	}
	want("create and forced delete", "b", "b")
}

func TestClosed(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	mustCreate(t, s, "a", "v0", "zero")
	release := holdWriter(t, s)
	outcomes := queueWrites(t, s, putter(s, "a", "v1", "one"))
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	<-s.quit
	release()
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if err := outcomes()[0]; err != nil { // may still have been executed
		wantErr(t, err, ErrClosed)
	}
	_, err := get(s, "a")
	wantErr(t, err, ErrClosed)
	wantErr(t, err, upstream.ErrUnavailable)
	wantErr(t, putter(s, "a", "v2", "two")(), ErrClosed)
	_, err = s.RotateKey(context.Background())
	wantErr(t, err, ErrClosed)
	if err := s.Run(context.Background()); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestEverythingAtOnce calls every method from many goroutines. The race detector and the final
// check of the rules are what it is for.
func TestEverythingAtOnce(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	ctx, cancel := context.WithCancel(context.Background())
	var background sync.WaitGroup
	background.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	rounds := 60
	if testing.Short() {
		rounds = 15
	}
	unexpected := func(err error) {
		if err != nil && upstream.Status(err) >= 500 {
			t.Error(err)
		}
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range rounds {
				name := upstream.SecretName(fmt.Sprint("s/", (g+i)%5))
				_, err := s.CreateSecret(ctx, upstream.CreateSecretInput{SecretName: name, VersionID: "v0", SecretData: secret("x")})
				unexpected(err)
				unexpected(putter(s, string(name), fmt.Sprint("v", i%12), fmt.Sprint(i%2))())
				_, err = get(s, string(name))
				unexpected(err)
				unexpected(s.UpdateSecretVersionStage(ctx, upstream.UpdateSecretVersionStageInput{SecretName: name, VersionStage: "green", MoveToVersion: upstream.VersionID(fmt.Sprint("v", i%12))}))
				_, err = s.ListSecretVersionIDs(ctx, upstream.ListSecretVersionIDsInput{SecretName: name})
				unexpected(err)
				unexpected(s.TagResources(ctx, []upstream.SecretName{name}, []upstream.Tag{{Key: fmt.Sprint("k", i%20), Value: "v"}}))
				_, err = s.ListSecrets(ctx, upstream.ListSecretsInput{FetchTags: true})
				unexpected(err)
				_, err = s.ListTagResources(ctx, upstream.ListTagResourcesInput{SecretNames: []upstream.SecretName{name}})
				unexpected(err)
				_, err = s.DeleteSecret(ctx, upstream.DeleteSecretInput{SecretName: name, ForceDeleteWithoutRecovery: i%9 == 0})
				unexpected(err)
				unexpected(s.RestoreSecret(ctx, name))
				unexpected(s.UntagResources(ctx, upstream.UntagResourcesInput{SecretNames: []upstream.SecretName{name}, All: true}))
				s.OnChange(func(upstream.SecretName) {})()
				_ = s.Stats()
				if g == 0 && i%20 == 0 {
					_, err := s.RotateKey(ctx)
					unexpected(err)
				}
				if g == 1 && i%20 == 0 {
					unexpected(s.Reencrypt(ctx, func(int, int) {}))
					_, err := s.Keys()
					unexpected(err)
				}
			}
		})
	}
	wg.Wait()
	cancel()
	background.Wait()
	checkRules(t, s)
}
