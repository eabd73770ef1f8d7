package bolt

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/keyset"

	"secretagent/upstream/builtin"
)

// eventually waits for a condition that comes about by itself.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not come about: ", what)
		}
	}
}

// TestReencryptionInTheBackground begins one while others write and read, ends the process in the middle of it,
// and lets the next one go on.
func TestReencryptionInTheBackground(t *testing.T) {
	t.Parallel()
	s := mustOpen(t, testOptions(t))
	const secrets = 150
	value := func(i int) string { return fmt.Sprint(i, strings.Repeat("x", 30_000)) }
	for i := range secrets {
		mustCreate(t, s, fmt.Sprintf("s/%03d", i), "v1", value(i))
	}
	mustCreate(t, s, "written", "0", "0")
	old, first := ciphertexts(t, s), primaryOf(t, s).ID
	stop := run(t, s)
	var writing sync.WaitGroup
	done, last := make(chan struct{}), 0
	writing.Go(func() {
		for n := 1; ; n++ {
			select {
			case <-done:
				return
			default:
			}
			mustPut(t, s, "written", fmt.Sprint(n), fmt.Sprint(n))
			wantValue(t, s, "written", fmt.Sprint(n))
			last = n
			time.Sleep(time.Millisecond)
		}
	})
	second, err := s.RotateKey(t.Context(), true)
	must(t, err)
	eventually(t, "it has begun", func() bool { r := s.KeyState().Reencryption; return r != nil && r.Done > 0 })
	stop()
	close(done)
	writing.Wait()
	s = reopen(t, s)
	left := s.KeyState().Reencryption
	if left == nil || left.Key != second || left.Done == 0 || left.Done >= left.Total || left.Total != secrets+1 {
		t.Fatalf("left is %+v", left)
	}
	for i := range secrets {
		wantValue(t, s, fmt.Sprintf("s/%03d", i), value(i))
	}
	defer run(t, s)()
	eventually(t, "it is ended", func() bool { return s.KeyState().Reencryption == nil })
	keys := mustKeys(t, s)
	if keys[0].ID != first || keys[0].Secrets+keys[0].Values != 0 || keys[1].Secrets != secrets+1 {
		t.Errorf("%+v", keys)
	}
	for i := range secrets {
		wantValue(t, s, fmt.Sprintf("s/%03d", i), value(i))
	}
	wantValue(t, s, "written", fmt.Sprint(last))
	skipWithoutCompaction(t)
	must(t, s.db.compactOwed(t.Context()))
	wantGone(t, s, old)
	must(t, s.RemoveKey(t.Context(), first))
	wantValue(t, reopen(t, s), "s/001", value(1))
}

// TestWhatCannotBeReadIsPassedOver: a damaged value does not keep the others under the old key.
func TestWhatCannotBeReadIsPassedOver(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	first := primaryOf(t, s).ID
	for _, name := range []string{"a", "b", "c"} {
		mustCreate(t, s, name, "v1", "one")
		mustPut(t, s, name, "v2", "two")
	}
	must(t, s.db.Update(t.Context(), func(w builtin.Writer) error {
		sealed, err := w.Get(builtin.Values, []byte("b\x00v1"))
		if err != nil {
			return err
		}
		damaged := append([]byte(nil), sealed...)
		damaged[len(damaged)-1] ^= 1
		return w.Put(builtin.Values, []byte("b\x00v1"), damaged)
	}))
	must(t, only(s.RotateKey(t.Context(), true)))
	defer run(t, s)()
	eventually(t, "it is ended", func() bool { return s.KeyState().Reencryption == nil })
	if keys := mustKeys(t, s); keys[0].ID != first || keys[0].Secrets != 0 || keys[0].Values != 1 || keys[1].Values != 5 {
		t.Errorf("%+v", keys)
	}
	wantValue(t, s, "b", "two")
	wantErr(t, s.Store.Reencrypt(t.Context(), nil), builtin.ErrDamaged)
	wantErr(t, s.RemoveKey(t.Context(), first), builtin.ErrKeyInUse)
}

// TestTheKeyringIsReadAgain: a file that others have changed is taken over, unless it lacks what is needed.
func TestTheKeyringIsReadAgain(t *testing.T) {
	opts := testOptions(t)
	s := mustOpen(t, opts)
	mustCreate(t, s, "a", "v1", "one")
	first := primaryOf(t, s).ID
	read := func() error {
		use, err := s.ReadKeyring(t.Context())
		if err == nil {
			use()
		}
		return err
	}
	must(t, read())
	rewriteKeyring(t, opts.Keyring, func(m *keyset.Manager) error {
		id, err := m.Add(aead.AES256GCMKeyTemplate())
		return errors.Join(err, m.SetPrimary(id))
	})
	must(t, read())
	second := primaryOf(t, s)
	if second.ID == first || second.CreateTime.IsZero() {
		t.Errorf("%+v is primary; %s was before", second, first)
	}
	mustPut(t, s, "a", "v2", "two")
	wantSealed(t, s, second.ID, "a")
	rewriteKeyring(t, opts.Keyring, func(m *keyset.Manager) error { return m.Delete(mustKeyID(t, first)) })
	wantErr(t, read(), builtin.ErrKeyLost)
	wantValue(t, s, "a:ACSPrevious", "one")

	// A file that was read before this process has changed it is not taken over.
	s = mustOpen(t, testOptions(t))
	use, err := s.ReadKeyring(t.Context())
	must(t, err)
	third := mustRotate(t, s)
	use()
	if got := primaryOf(t, s).ID; got != third {
		t.Errorf("%s is primary, not %s", got, third)
	}
}
