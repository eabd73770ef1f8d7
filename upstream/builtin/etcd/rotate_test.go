package etcd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/builtin"
	"secretagent/upstream/keyfile"
	"secretagent/upstream/upstreamtest"
)

// member is an agent as far as keys are concerned: a store that runs, with a keyring file of its own.
type member struct {
	*Store
	keyring string
	log     upstreamtest.Buffer
	stop    func() // Run
}

// newMember starts one with a copy of the keyring.
func newMember(t *testing.T, opts Options) *member {
	t.Helper()
	m := &member{keyring: filepath.Join(t.TempDir(), "keyring.json")}
	m.copyKeyring(t, opts.Keyring)
	opts.Keyring, opts.Logger, opts.pulse = m.keyring, m.log.Logger(), 200*time.Millisecond
	m.Store = mustOpen(t, opts)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { wantErr(t, m.Run(ctx), nil) })
	m.stop = func() { cancel(); running.Wait() }
	t.Cleanup(m.stop)
	until(t, "it shows that it runs", func() bool { return m.db.presence.lease.Load() != 0 })
	return m
}

func (m *member) copyKeyring(t *testing.T, from string) {
	t.Helper()
	content, err := os.ReadFile(from)
	must(t, err)
	must(t, os.WriteFile(m.keyring, content, 0o600))
}

// give hands it the keyring of another one.
func (m *member) give(t *testing.T, from *member) {
	t.Helper()
	m.copyKeyring(t, from.keyring)
	commit, err := m.ReadKeyring(t.Context())
	must(t, err)
	commit()
}

// die ends it as a crash would: nobody is told.
func (m *member) die() {
	m.db.presence.lease.Store(0)
	m.db.cancel()
	m.stop()
}

// waiting returns how many agents a rotation waits for; -1 when there is none.
func (m *member) waiting(t *testing.T) int {
	t.Helper()
	state, err := m.ReadKeyState(context.Background())
	must(t, err)
	if state.Rotation == nil {
		return -1
	}
	return len(state.Rotation.Waiting)
}

func (m *member) primary(t *testing.T) string {
	t.Helper()
	state, err := m.ReadKeyState(context.Background())
	must(t, err)
	return state.Primary
}

// load writes through each store, and reads through the next one, until the returned function is called,
// which fails the test if a write was lost or a read was wrong.
func load(t *testing.T, members ...*member) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	last := make([]int, len(members))
	for i, m := range members {
		name := fmt.Sprint("load/", i)
		must(t, create(m, name, "0", "0"))
		running.Go(func() {
			for n := 1; ctx.Err() == nil; n++ {
				if err := put(m, name, fmt.Sprint(n), fmt.Sprint(n)); err != nil {
					t.Errorf("put %s: %v", name, err)
					return
				}
				last[i] = n
				if got, err := numberOf(members[(i+1)%len(members)].Store, name); err != nil || got != n {
					t.Errorf("%s is %d, %v; %d was put", name, got, err, n)
				}
				time.Sleep(2 * time.Millisecond)
			}
		})
	}
	t.Cleanup(func() { cancel(); running.Wait() })
	return func() {
		cancel()
		running.Wait()
		for i := range members {
			if got, err := numberOf(members[0].Store, fmt.Sprint("load/", i)); err != nil || got != last[i] || last[i] == 0 {
				t.Errorf("load/%d is %d, %v; %d was acknowledged", i, got, err, last[i])
			}
		}
	}
}

// TestRotationWhileAgentsRun rotates to a key that is handed to one agent after the other, while all of them
// write: it becomes primary when the last one that lives has it, once, and everything is brought under it.
func TestRotationWhileAgentsRun(t *testing.T) {
	t.Parallel()
	opts := testOptions(t)
	a, b, c := newMember(t, opts), newMember(t, opts), newMember(t, opts)
	for i := range 70 {
		must(t, create(a, fmt.Sprint("s/", i), "v1", fmt.Sprint(i)))
	}
	old := a.primary(t)
	endLoad := load(t, a, b, c)

	next, err := a.RotateKey(t.Context(), true)
	must(t, err)
	if again, err := a.RotateKey(t.Context(), false); err != nil || again != next {
		t.Errorf("the same rotation once more: %s, %v; it is to %s", again, err, next)
	}
	_, err = b.RotateKey(t.Context(), true)
	wantErr(t, err, builtin.ErrKeyLost)
	if !contains(err, next) {
		t.Errorf("unclear: %v", err)
	}
	late := newMember(t, opts) // with the old keyring
	until(t, "b, c and the late one are waited for", func() bool { return a.waiting(t) == 3 })
	b.give(t, a)
	until(t, "c and the late one are waited for", func() bool { return a.waiting(t) == 2 })
	dead := newMember(t, opts)
	until(t, "c, the late one and the one that is to die are waited for", func() bool { return a.waiting(t) == 3 })
	late.give(t, b)
	c.give(t, a)
	until(t, "the one that is to die is waited for", func() bool { return a.waiting(t) == 1 })
	if got := a.primary(t); got != old {
		t.Errorf("%s is primary while one that lives lacks it", got)
	}
	dead.die()
	until(t, "the dead one is waited for no longer", func() bool { return a.primary(t) == next })
	until(t, "everything is re-encrypted", func() bool {
		keys, err := b.Keys(t.Context())
		must(t, err)
		return keys[0].ID == old && keys[0].Secrets == 0 && keys[0].Values == 0 && b.KeyState().Reencryption == nil
	})
	endLoad()
	for i := range 70 {
		wantValue(t, []*member{a, b, c, late}[i%4], fmt.Sprint("s/", i), fmt.Sprint(i))
	}
	rotated, worked := 0, 0
	for _, m := range []*member{a, b, c, late} {
		rotated += strings.Count(m.log.String(), "key rotated")
		worked += strings.Count(m.log.String(), "secrets re-encrypted")
		if n := m.Unreadable(); n != 0 || strings.Contains(m.log.String(), "cannot be read") {
			t.Errorf("%d secrets cannot be read; %s", n, m.log.String())
		}
	}
	if rotated != 1 || worked != 1 {
		t.Errorf("%d have rotated, %d re-encrypted; it was to be one", rotated, worked)
	}

	// An agent that comes with the old keyring now reads nothing, and says why.
	stale := newMember(t, opts)
	_, err = stale.GetSecretValue(t.Context(), upstream.SecretRef{SecretName: "s/1"})
	wantErr(t, err, builtin.ErrKeyLost)
	err = create(stale, "mine", "v1", "x")
	wantErr(t, err, builtin.ErrKeyLost)
	if !contains(err, next) {
		t.Errorf("unclear: %v", err)
	}
	until(t, "it knows what it lacks", func() bool { return slices.Equal(stale.KeyState().Lacking, []string{next}) })
	if !strings.Contains(stale.log.String(), "the keyring lacks keys") {
		t.Errorf("the log does not tell: %s", stale.log.String())
	}
	stale.give(t, a)
	until(t, "it reads everything", func() bool { return stale.Unreadable() == 0 && len(stale.KeyState().Lacking) == 0 })
	must(t, create(stale, "mine", "v1", "x"))

	// The old key can go, from the others' files later.
	must(t, a.RemoveKey(t.Context(), old))
	wantErr(t, a.RemoveKey(t.Context(), next), builtin.ErrKeyInUse)
	b.give(t, a)
	must(t, put(b, "mine", "v2", "y"))
	wantValue(t, stale, "mine", "y")
}

// TestAKeyIsAddedElsewhere: where the keyring file cannot be changed, a key that was added to its original is taken.
// A rotation can be given up.
func TestAKeyIsAddedElsewhere(t *testing.T) {
	t.Parallel()
	opts := testOptions(t)
	a, b := newMember(t, opts), newMember(t, opts)
	must(t, create(a, "a", "v1", "one"))
	old := a.primary(t)
	ring, err := keyfile.ReadKeyring(opts.Keyring, false)
	must(t, err)
	ring, err = ring.Extend()
	must(t, err)
	added := fmt.Sprint(ring.Primary())
	a.copyKeyring(t, opts.Keyring)
	id, err := a.RotateKey(t.Context(), false)
	if err != nil || id != added || a.primary(t) != old {
		t.Errorf("rotated to %s, %v, and %s is primary; %s was added", id, err, a.primary(t), added)
	}
	must(t, a.RemoveKey(t.Context(), added))
	if n := a.waiting(t); n != -1 {
		t.Errorf("it still waits for %d agents", n)
	}
	a.copyKeyring(t, opts.Keyring) // and b with the old one
	_, err = a.RotateKey(t.Context(), false)
	must(t, err)
	b.copyKeyring(t, opts.Keyring)
	commit, err := b.ReadKeyring(t.Context())
	must(t, err)
	commit()
	until(t, "the last one completes the rotation", func() bool { return b.primary(t) == added })
	must(t, put(b, "a", "v2", "two"))
	wantValue(t, a, "a", "two")
	wantErr(t, a.RemoveKey(t.Context(), old), builtin.ErrKeyInUse)

	// Nor does a key get in use by a secret that names it before all have it.
	ring, err = keyfile.ReadKeyring(a.keyring, false)
	must(t, err)
	ring, err = ring.Extend()
	must(t, err)
	commit, err = a.ReadKeyring(t.Context())
	must(t, err)
	commit()
	_, err = a.CreateSecret(t.Context(), upstream.CreateSecretInput{
		SecretName: "own", VersionID: "v1", SecretData: upstream.NewSecretData([]byte("x")), EncryptionKeyID: fmt.Sprint(ring.Primary()),
	})
	wantErr(t, err, builtin.ErrKeyLost)
	must(t, create(a, "own", "v1", "x"))
	if got := a.primary(t); got != added {
		t.Errorf("%s is primary: the file of one agent decides", got)
	}
}

// TestReencryptionIsTakenOver from an agent that dies in the middle of it, and from a command that leaves.
func TestReencryptionIsTakenOver(t *testing.T) {
	t.Parallel()
	opts := testOptions(t)
	s := mustOpen(t, opts) // of a command: nobody waits for it
	const secrets = 200
	for i := range secrets {
		must(t, create(s, fmt.Sprintf("s/%03d", i), "v1", fmt.Sprint(i)))
	}
	old, err := s.ReadKeyState(t.Context())
	must(t, err)
	must(t, only(s.RotateKey(t.Context(), true)))
	ctx, leave := context.WithCancel(t.Context())
	seen := 0
	wantErr(t, s.Reencrypt(ctx, func(done, total int) {
		if seen = done; done >= 32 {
			leave()
		}
		if total != secrets {
			t.Errorf("%d of %d", done, total)
		}
	}), context.Canceled)
	state, err := s.ReadKeyState(t.Context())
	if err != nil || state.Reencryption == nil || state.Reencryption.Done != seen || seen == secrets {
		t.Fatalf("%+v, %v after %d", state, err, seen)
	}
	dies := newMember(t, opts)
	until(t, "an agent goes on", func() bool {
		state := dies.KeyState()
		return state.Reencryption == nil || state.Reencryption.Done > seen
	})
	dies.die()
	before, err := s.ReadKeyState(t.Context())
	must(t, err)
	if r := before.Reencryption; r == nil || r.Done >= secrets {
		t.Skip("it was too fast")
	}
	other := newMember(t, opts)
	until(t, "the other one ends it", func() bool {
		state, err := other.ReadKeyState(t.Context())
		return err == nil && state.Reencryption == nil
	})
	if strings.Contains(other.log.String(), "not everything is re-encrypted") {
		t.Errorf("a warning without reason: %s", other.log.String())
	}
	keys, err := s.Keys(t.Context())
	if err != nil || keys[0].ID != old.Primary || keys[0].Secrets+keys[0].Values != 0 || keys[1].Values != secrets {
		t.Errorf("%+v, %v", keys, err)
	}
	for i := range secrets {
		wantValue(t, other, fmt.Sprintf("s/%03d", i), fmt.Sprint(i))
	}
	if err := s.Reencrypt(t.Context(), nil); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
