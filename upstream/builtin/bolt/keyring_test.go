package bolt

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"

	"secretagent/upstream"
	"secretagent/upstream/builtin"
	"secretagent/upstream/keyfile"
	"secretagent/upstream/upstreamtest"
)

func TestFilesBelongToTheirOwnerOnly(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no modes there")
	}
	opts := testOptions(t)
	defer openUmask()()
	must(t, mustOpen(t, opts).Close())
	// What killed processes left behind goes, whether the file is there already or not.
	for _, path := range []string{opts.Database, opts.Keyring} {
		for _, name := range []string{".new-1", "1234567890"} {
			must(t, os.WriteFile(filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+name), nil, 0o600))
		}
	}
	s := mustOpen(t, opts)
	mustCreate(t, s, "a", "v1", "one")
	check := func() {
		t.Helper()
		for _, path := range []string{opts.Database, opts.Keyring} {
			for path, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
				st, err := os.Stat(path)
				must(t, err)
				if got := st.Mode().Perm(); got != want {
					t.Errorf("%s has mode %04o, want %04o", path, got, want)
				}
			}
			if files, err := os.ReadDir(filepath.Dir(path)); err != nil || len(files) != 1 {
				t.Errorf("left behind beside %s: %v, %v", path, files, err)
			}
		}
	}
	check()
	mustRotate(t, s)
	check()
}

func TestABadKeyringIsRefusedBeforeAnythingIsCreated(t *testing.T) {
	keyring := filepath.Join(t.TempDir(), "keyring.json")
	_, err := keyfile.CreateKeyring(keyring)
	must(t, err)
	good := string(readFile(t, keyring))
	for _, test := range []struct {
		name, content string
		mode          os.FileMode
		credential    bool
		want          string // empty: it opens
	}{
		{"not a keyring", "something else", 0o600, false, "not a Tink keyset"},
		{"others can read it", good, 0o640, false, "chmod 600 " + keyring},
		{"others can read the credential", good, 0o444, true, "chmod 600 " + keyring},
		{"a credential", good, 0o440, true, ""},
		{"nobody can write it", good, 0o400, false, ""},
	} {
		if runtime.GOOS == "windows" && strings.Contains(test.want, "chmod") {
			continue // no modes there
		}
		must(t, errors.Join(os.Remove(keyring), os.WriteFile(keyring, []byte(test.content), test.mode), os.Chmod(keyring, test.mode)))
		opts := testOptions(t)
		opts.Keyring, opts.KeyringIsCredential = keyring, test.credential
		s, err := Open(opts)
		if err == nil {
			must(t, s.Close())
		}
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v", test.name, err)
		}
		if err != nil && exists(filepath.Dir(opts.Database)) {
			t.Errorf("%s: a database folder was created", test.name)
		}
	}
}

func TestWarnings(t *testing.T) {
	dir := t.TempDir()
	logOf := func(opts Options) string {
		var log upstreamtest.Buffer
		opts.Logger = log.Logger()
		must(t, mustOpen(t, opts).Close())
		return log.String()
	}
	shared := Options{Database: filepath.Join(dir, "secrets.db"), Options: builtin.Options{Keyring: filepath.Join(dir, "keyring.json")}}
	if log := logOf(shared); !strings.Contains(log, "level=WARN") || !strings.Contains(log, "move it to another volume") {
		t.Errorf("no warning about the shared folder: %s", log)
	}
	opts := testOptions(t)
	if log := logOf(opts); strings.Contains(log, "WARN") {
		t.Errorf("a warning without reason: %s", log)
	}
	if runtime.GOOS == "windows" {
		return
	}
	must(t, os.Chmod(opts.Database, 0o644))
	if log := logOf(opts); !strings.Contains(log, "chmod 600 "+opts.Database) {
		t.Errorf("no warning about the mode: %s", log)
	}
}

func TestALostKeyringIsNotReplaced(t *testing.T) {
	opts, other := testOptions(t), testOptions(t)
	must(t, errors.Join(mustOpen(t, opts).Close(), mustOpen(t, other).Close(), os.Remove(opts.Keyring)))
	s := mustOpen(t, opts) // without secrets nothing is lost
	mustCreate(t, s, "a", "v1", "one")
	must(t, s.Close())
	text := readFile(t, opts.Keyring)
	must(t, os.Remove(opts.Keyring))
	_, err := Open(opts)
	wantErr(t, err, builtin.ErrKeyLost)
	wantErr(t, err, upstream.ErrKeyNotFound)
	if exists(opts.Keyring) {
		t.Error("a new keyring was made over existing data")
	}
	mixed := opts
	mixed.Keyring = other.Keyring
	_, err = Open(mixed)
	wantErr(t, err, builtin.ErrKeyLost)
	if err != nil && !strings.Contains(err.Error(), `"a"`) {
		t.Errorf("the error names no secret: %v", err)
	}
	must(t, os.WriteFile(opts.Keyring, text, 0o600))
	wantValue(t, mustOpen(t, opts), "a", "one")
}

// wantKey checks the EncryptionKeyId of secrets.
func wantKey(t *testing.T, s *Store, want string, names ...upstream.SecretName) {
	t.Helper()
	for _, name := range names {
		if m, err := s.DescribeSecret(t.Context(), name, false); err != nil || m.EncryptionKeyID != want {
			t.Errorf("%s: key %s, %v; want %s", name, m.EncryptionKeyID, err, want)
		}
	}
}

// wantSealed checks which key protects the current version of secrets.
func wantSealed(t *testing.T, s *Store, want string, names ...upstream.SecretName) {
	t.Helper()
	for _, name := range names {
		v, err := s.GetSecretValue(t.Context(), upstream.SecretRef{SecretName: name})
		must(t, err)
		must(t, s.db.View(t.Context(), func(r builtin.Reader) error {
			sealed, err := r.Get(builtin.Values, []byte(string(name)+"\x00"+string(v.VersionID)))
			must(t, err)
			if got := keyIDOf(sealed); got != want {
				t.Errorf("%s is sealed with key %s, want %s", name, got, want)
			}
			return nil
		}))
	}
}

// keyIDOf returns the key that something is sealed with: Tink puts it behind the first byte.
func keyIDOf(sealed []byte) string { return fmt.Sprint(binary.BigEndian.Uint32(sealed[1:])) }

func mustKeys(tb testing.TB, s *Store) []builtin.Key {
	tb.Helper()
	keys, err := s.Keys(tb.Context())
	must(tb, err)
	return keys
}

func primaryOf(tb testing.TB, s *Store) builtin.Key {
	tb.Helper()
	keys := mustKeys(tb, s)
	return keys[slices.IndexFunc(keys, func(k builtin.Key) bool { return k.Primary })]
}

func TestRotation(t *testing.T) {
	clock := upstreamtest.NewClock()
	opts := testOptions(t)
	opts.Now = clock.Now
	s := mustOpen(t, opts)
	ctx := t.Context()
	first := primaryOf(t, s).ID
	create := func(name upstream.SecretName, key string) error {
		_, err := s.CreateSecret(ctx, upstream.CreateSecretInput{SecretName: name, VersionID: "v1", SecretData: secret("one"), EncryptionKeyID: key})
		return err
	}
	must(t, errors.Join(create("plain", ""), create("named", first)))
	for _, unknown := range []string{"1", "x", "-1", "0", "00" + first, "4294967296"} {
		wantErr(t, create("unknown", unknown), upstream.ErrKeyNotFound)
	}
	wantSealed(t, s, first, "plain", "named")
	wantNamed := func() { // whatever seals them
		t.Helper()
		wantKey(t, s, "", "plain")
		wantKey(t, s, first, "named")
	}
	wantNamed()

	clock.Advance(time.Hour)
	second := mustRotate(t, s)
	if second == first || primaryOf(t, s).ID != second {
		t.Errorf("primary is %s after a rotation from %s to %s", primaryOf(t, s).ID, first, second)
	}
	wantValue(t, s, "plain", "one")
	wantSealed(t, s, first, "plain")
	mustPut(t, s, "plain", "v2", "two")
	mustPut(t, s, "named", "v2", "two")
	wantSealed(t, s, second, "plain")
	wantSealed(t, s, first, "named") // a key of its own
	wantNamed()
	start := upstreamtest.NewClock().Now()
	if keys, want := mustKeys(t, s), []builtin.Key{
		{ID: first, Status: "enabled", CreateTime: start, Secrets: 1, Values: 3},
		{ID: second, Status: "enabled", Primary: true, CreateTime: start.Add(time.Hour), Secrets: 1, Values: 1},
	}; !slices.Equal(keys, want) {
		t.Errorf("keys:\n got %+v\nwant %+v", keys, want)
	}

	var progress []string
	must(t, s.Reencrypt(ctx, func(done, total int) { progress = append(progress, fmt.Sprint(done, "/", total)) }))
	if len(progress) == 0 || progress[len(progress)-1] != "2/2" {
		t.Errorf("progress %v", progress)
	}
	wantSealed(t, s, second, "plain", "named")
	wantNamed()
	commits := s.Stats().Commits
	must(t, s.Reencrypt(ctx, nil))
	if s.Stats().Commits != commits {
		t.Error("re-encrypting again wrote something")
	}
	must(t, s.Close())

	// The old key is no longer needed and can be taken out.
	rewriteKeyring(t, opts.Keyring, func(m *keyset.Manager) error { return m.Delete(mustKeyID(t, first)) })
	s = mustOpen(t, opts)
	for _, name := range []string{"plain", "named"} {
		wantValue(t, s, name, "two")
		wantValue(t, s, name+":ACSPrevious", "one")
	}
	wantNamed()
	if keys := mustKeys(t, s); len(keys) != 1 || keys[0].Values != 4 || keys[0].Secrets != 2 {
		t.Errorf("keys %+v", keys)
	}
}

func mustKeyID(t *testing.T, text string) uint32 {
	t.Helper()
	id, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		t.Fatalf("key id %q", text)
	}
	return uint32(id)
}

// rewriteKeyring changes a keyring as another program would.
func rewriteKeyring(t *testing.T, path string, change func(*keyset.Manager) error) {
	t.Helper()
	handle, err := insecurecleartextkeyset.Read(keyset.NewJSONReader(bytes.NewReader(readFile(t, path))))
	must(t, err)
	m := keyset.NewManagerFromHandle(handle)
	must(t, change(m))
	handle, err = m.Handle()
	must(t, err)
	var buf bytes.Buffer
	must(t, insecurecleartextkeyset.Write(handle, keyset.NewJSONWriter(&buf)))
	must(t, os.WriteFile(path, buf.Bytes(), 0o600))
}

func TestADisabledKeyThatIsNeeded(t *testing.T) {
	opts := testOptions(t)
	s := mustOpen(t, opts)
	first := primaryOf(t, s).ID
	mustCreate(t, s, "a", "v1", "one")
	mustRotate(t, s)
	mustPut(t, s, "a", "v2", "two") // seals the metadata with the new key; v1 still needs the old one
	must(t, s.Close())
	rewriteKeyring(t, opts.Keyring, func(m *keyset.Manager) error { return m.Disable(mustKeyID(t, first)) })
	_, err := Open(opts)
	wantErr(t, err, builtin.ErrKeyLost)
	if err != nil && !strings.Contains(err.Error(), first) {
		t.Errorf("the error names no key: %v", err)
	}
	rewriteKeyring(t, opts.Keyring, func(m *keyset.Manager) error { return m.Enable(mustKeyID(t, first)) })
	wantValue(t, mustOpen(t, opts), "a:ACSPrevious", "one")
}

func TestRotationMindsTheFile(t *testing.T) {
	opts := testOptions(t)
	s := mustOpen(t, opts)
	mustCreate(t, s, "a", "v1", "one")
	// A key that another program has added stays.
	var added uint32
	rewriteKeyring(t, opts.Keyring, func(m *keyset.Manager) (err error) {
		added, err = m.Add(aead.AES256GCMKeyTemplate())
		return err
	})
	mustRotate(t, s)
	if keys := mustKeys(t, s); len(keys) != 3 || keys[1].ID != fmt.Sprint(added) {
		t.Errorf("keys %+v", keys)
	}
	// A keyring that is not the one in use is left alone.
	other := testOptions(t)
	must(t, mustOpen(t, other).Close())
	text := readFile(t, other.Keyring)
	must(t, os.WriteFile(opts.Keyring, text, 0o600))
	_, err := s.RotateKey(t.Context(), false)
	wantErr(t, err, builtin.ErrKeyLost)
	if !bytes.Equal(readFile(t, opts.Keyring), text) {
		t.Error("the file was changed")
	}
	must(t, os.Remove(opts.Keyring))
	if _, err = s.RotateKey(t.Context(), false); err == nil || exists(opts.Keyring) {
		t.Errorf("rotated without a file: %v", err)
	}
	wantValue(t, s, "a", "one")
	mustPut(t, s, "a", "v2", "two")
}

// TestAReencryptionThatIsCancelled: every value stays readable, and the next one goes on where
// this one was.
func TestAReencryptionThatIsCancelled(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	const secrets = 100
	value := func(i int) string { return fmt.Sprint(i, strings.Repeat("x", 30_000)) }
	for i := range secrets {
		mustCreate(t, s, fmt.Sprint("s/", i), "v1", value(i))
	}
	mustRotate(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	done := 0
	wantErr(t, s.Reencrypt(ctx, func(n, _ int) { done = n; cancel() }), context.Canceled)
	s = reopen(t, s)
	for i := range secrets {
		wantValue(t, s, fmt.Sprint("s/", i), value(i))
	}
	if n := primaryOf(t, s).Values; n == 0 || n != done || n == secrets {
		t.Errorf("%d values are under the primary key, %d are said to be", n, done)
	}
	var dones []int
	must(t, s.Reencrypt(t.Context(), func(done, _ int) { dones = append(dones, done) }))
	if !slices.IsSorted(dones) || len(dones) < 2 || dones[len(dones)-1] != secrets || primaryOf(t, s).Values != secrets {
		t.Errorf("progress %v, then %d values are under the primary key", dones, primaryOf(t, s).Values)
	}
}

// TestKeyringIsNotMadeWhereItWouldBeLost names places that the keyring would vanish from while the
// database stays. Nothing is made then, and what is there already is used.
func TestKeyringIsNotMadeWhereItWouldBeLost(t *testing.T) {
	memory, err := os.MkdirTemp("/dev/shm", "secretagent-test-")
	if err == nil {
		t.Cleanup(func() { os.RemoveAll(memory) })
	}
	for name, c := range map[string]struct {
		keyring    string // in place of that of the test
		credential bool
		want       string
	}{
		"a credential":         {"", true, "what lies among the credentials of a service is lost"},
		"another's credential": {"/run/credentials/secretagent-test.service/keyring.json", false, ""},
		"memory":               {filepath.Join(memory, "keyring.json"), false, "that file system is kept in memory"},
	} {
		t.Run(name, func(t *testing.T) {
			opts := testOptions(t)
			if c.keyring != "" {
				opts.Keyring = c.keyring
			}
			opts.KeyringIsCredential = c.credential
			if name == "memory" && (!keyfile.InMemory(memory) || keyfile.InMemory(opts.Database)) {
				t.Skip("needs a folder in memory and one that is not")
			}
			s, err := Open(opts)
			if err == nil {
				s.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || exists(opts.Database) || exists(opts.Keyring) || exists(filepath.Dir(c.keyring)) && name != "memory" && c.keyring != "" {
				t.Errorf("made: database %v, keyring %v; %v", exists(opts.Database), exists(opts.Keyring), err)
			}
			if c.credential || name == "memory" {
				must(t, only(keyfile.CreateKeyring(opts.Keyring)))
				mustOpen(t, opts)
			}
		})
	}
}

// TestExistingMakesNothing opens what is not there, and what has no keyring yet.
func TestExistingMakesNothing(t *testing.T) {
	opts := testOptions(t)
	existing := opts
	existing.Existing = true
	wantErr(t, only(Open(existing)), ErrNoDatabase)
	wantErr(t, only(Open(existing)), upstream.ErrNotFound)
	if exists(filepath.Dir(opts.Database)) || exists(filepath.Dir(opts.Keyring)) {
		t.Error("a folder was made")
	}
	mustOpen(t, opts).Close()
	must(t, os.Remove(opts.Keyring))
	wantErr(t, only(Open(existing)), ErrNoDatabase)
	if exists(opts.Keyring) {
		t.Error("a keyring was made")
	}
	s := mustOpen(t, opts)
	mustCreate(t, s, "a", "v1", "x")
	s.Close()
	wantValue(t, mustOpen(t, existing), "a", "x")
}
