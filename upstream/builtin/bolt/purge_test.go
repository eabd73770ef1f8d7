package bolt

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/bbolt"

	"secretagent/upstream"
	"secretagent/upstream/builtin"
	"secretagent/upstream/upstreamtest"
)

const day = 24 * time.Hour

// wantInFile checks which secrets the database still holds, whatever their state.
func wantInFile(t *testing.T, s *Store, want ...string) {
	t.Helper()
	synctest.Wait()
	var names []string
	err := s.db.bolt.View(func(tx *bbolt.Tx) error {
		if n := tx.Bucket(buckets[builtin.Values]).Stats().KeyN; n < tx.Bucket(buckets[builtin.Records]).Stats().KeyN {
			t.Errorf("only %d values", n)
		}
		return tx.Bucket(buckets[builtin.Records]).ForEach(func(k, _ []byte) error {
			names = append(names, string(k))
			return nil
		})
	})
	if err != nil || !slices.Equal(names, want) {
		t.Errorf("the file holds %v, %v; want %v", names, err, want)
	}
}

// run runs the purge until stop is called.
func run(t *testing.T, s *Store) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan error, 1)
	go func() { stopped <- s.Run(ctx) }()
	return func() { cancel(); wantErr(t, <-stopped, nil) }
}

// inTime runs a test on a clock of its own and returns the log.
func inTime(t *testing.T, test func(t *testing.T, s *Store)) string {
	t.Helper()
	var log upstreamtest.Buffer
	synctest.Test(t, func(t *testing.T) {
		opts := testOptions(t)
		opts.Logger = log.Logger()
		test(t, mustOpen(t, opts))
	})
	return log.String()
}

func TestPurge(t *testing.T) {
	log := inTime(t, func(t *testing.T, s *Store) {
		heard := listen(t, s)
		for _, name := range []string{"kept", "restored", "seven", "thirty"} {
			mustCreate(t, s, name, "v1", name)
		}
		defer run(t, s)()
		time.Sleep(time.Minute)
		if at := mustDelete(t, s, "seven", 7); at != time.Now().Truncate(time.Second).Add(7*day).UTC() {
			t.Errorf("planned for %v", at)
		}
		mustDelete(t, s, "restored", 7)
		mustDelete(t, s, "thirty", 0)
		wantErr(t, s.RestoreSecret(t.Context(), "restored"), nil)
		heard()

		time.Sleep(7*day - time.Second)
		wantInFile(t, s, "kept", "restored", "seven", "thirty")
		_, err := get(s, "seven")
		wantErr(t, err, upstream.ErrPendingDeletion)
		time.Sleep(2 * time.Second)
		wantInFile(t, s, "kept", "restored", "thirty")
		if got := heard(); !slices.Equal(got, []string{"seven"}) {
			t.Errorf("heard of %v", got)
		}
		time.Sleep(24 * day)
		wantInFile(t, s, "kept", "restored")
		if n := s.Stats().Purged; n != 2 {
			t.Errorf("%d purged", n)
		}
		wantValue(t, s, "restored", "restored")
	})
	if !strings.Contains(log, "secret=seven") {
		t.Errorf("the log does not tell: %s", log)
	}
}

// TestPurgeAfterARestart: the plan is in the database, and time passes while nobody looks.
func TestPurgeAfterARestart(t *testing.T) {
	inTime(t, func(t *testing.T, s *Store) {
		for _, name := range []string{"past", "future", "kept"} {
			mustCreate(t, s, name, "v1", name)
		}
		mustDelete(t, s, "past", 7)
		mustDelete(t, s, "future", 30)
		must(t, s.Close())
		time.Sleep(10 * day)
		s = mustOpen(t, s.opts)
		// Its name is free before the purge has run, and nothing of it comes back.
		mustCreate(t, s, "past", "v2", "new")
		_, err := s.GetSecretValue(t.Context(), upstream.SecretRef{SecretName: "past", VersionID: "v1"})
		wantErr(t, err, upstream.ErrNotFound)
		defer run(t, s)()
		time.Sleep(21 * day)
		wantInFile(t, s, "kept", "past")
		wantValue(t, s, "past", "new")
	})
}

// TestPurgeIsTriedAgain: a purge that fails is reported and comes again.
func TestPurgeIsTriedAgain(t *testing.T) {
	log := inTime(t, func(t *testing.T, s *Store) {
		mustCreate(t, s, "a", "v1", "one")
		mustDelete(t, s, "a", 7)
		time.Sleep(8 * day)
		failCommits(s, 1)
		defer run(t, s)()
		wantInFile(t, s, "a")
		time.Sleep(2 * time.Minute)
		wantInFile(t, s)
	})
	if !strings.Contains(log, "level=WARN") || !strings.Contains(log, "no space left") {
		t.Errorf("the log does not tell: %s", log)
	}
}

// TestPurgeSparesWhatWasRestored: what is not due any more after the purge looked for what is.
func TestPurgeSparesWhatWasRestored(t *testing.T) {
	opts, clock, looks := testOptions(t), upstreamtest.NewClock(), false
	opts.Now = func() time.Time {
		if looks { // for what is due, and then the clock is set back
			looks = false
			return clock.Now().Add(8 * day)
		}
		return clock.Now()
	}
	s := mustOpen(t, opts)
	mustCreate(t, s, "planned", "v1", "two")
	mustDelete(t, s, "planned", 7)
	looks = true
	must(t, only(s.Purge(t.Context())))
	wantErr(t, s.RestoreSecret(t.Context(), "planned"), nil)
	wantValue(t, s, "planned", "two")
}

// TestPurgeGoesOnPastDamage: a record that cannot be read is reported, and holds up no other.
func TestPurgeGoesOnPastDamage(t *testing.T) {
	inTime(t, func(t *testing.T, s *Store) {
		for _, name := range []string{"a", "b", "c"} {
			mustCreate(t, s, name, "v1", name)
			mustDelete(t, s, name, 7)
		}
		spoil(t, s, "b")
		time.Sleep(8 * day)
		wantErr(t, only(s.Purge(t.Context())), builtin.ErrDamaged)
		wantInFile(t, s, "b")
	})
}
