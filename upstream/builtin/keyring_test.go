package builtin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"

	"secretagent/upstream"
	"secretagent/upstream/keyfile"
	"secretagent/upstream/upstreamtest"
)

func TestFilesBelongToTheirOwnerOnly(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no modes there")
	}
	defer openUmask()()
	opts := testOptions(t)
	mustOpen(t, opts).Close()
	// What killed processes left behind goes, whether the file is there already or not.
	for _, path := range []string{opts.Database, opts.Keyring} {
		for _, name := range []string{".new-1", "1234567890"} {
			if err := os.WriteFile(filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	s := mustOpen(t, opts)
	mustCreate(t, s, "a", "v1", "one")
	check := func() {
		t.Helper()
		for path, want := range map[string]os.FileMode{
			opts.Database: 0o600, filepath.Dir(opts.Database): 0o700,
			opts.Keyring: 0o600, filepath.Dir(opts.Keyring): 0o700,
		} {
			st, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if got := st.Mode().Perm(); got != want {
				t.Errorf("%s has mode %04o, want %04o", path, got, want)
			}
		}
		for _, dir := range []string{filepath.Dir(opts.Database), filepath.Dir(opts.Keyring)} {
			if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
				t.Errorf("left behind in %s: %v, %v", dir, files, err)
			}
		}
	}
	check()
	if _, err := s.RotateKey(context.Background()); err != nil {
		t.Fatal(err)
	}
	check()
}

func TestABadKeyringIsRefusedBeforeAnythingIsCreated(t *testing.T) {
	keyring := filepath.Join(t.TempDir(), "keyring.json")
	if _, err := keyfile.CreateKeyring(keyring); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(keyring)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, content string
		mode          os.FileMode
		credential    bool
		want          string
	}{
		{"not a keyring", "something else", 0o600, false, "not a Tink keyset"},
		{"others can read it", string(good), 0o640, false, "chmod 600 " + keyring},
		{"others can read the credential", string(good), 0o444, true, "chmod 600 " + keyring},
		{"a credential", string(good), 0o440, true, ""},
		{"nobody can write it", string(good), 0o400, false, ""},
	} {
		if runtime.GOOS == "windows" && strings.Contains(test.want, "chmod") {
			continue // no modes there
		}
		if err := errors.Join(os.Remove(keyring), os.WriteFile(keyring, []byte(test.content), test.mode), os.Chmod(keyring, test.mode)); err != nil {
			t.Fatal(err)
		}
		opts := testOptions(t)
		opts.Keyring, opts.KeyringIsCredential = keyring, test.credential
		s, err := Open(opts)
		if test.want == "" {
			if err != nil {
				t.Errorf("%s: %v", test.name, err)
				continue
			}
			s.Close()
			continue
		}
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v", test.name, err)
		}
		if _, err := os.Stat(filepath.Dir(opts.Database)); err == nil {
			t.Errorf("%s: a database folder was created", test.name)
		}
	}
}

func TestWarnings(t *testing.T) {
	var log upstreamtest.Buffer
	dir := t.TempDir()
	opts := Options{Database: filepath.Join(dir, "secrets.db"), Keyring: filepath.Join(dir, "keyring.json"), Logger: log.Logger()}
	mustOpen(t, opts).Close()
	if !strings.Contains(log.String(), "level=WARN") || !strings.Contains(log.String(), "move it to another volume") {
		t.Errorf("no warning about the shared folder: %s", log.String())
	}
	opts = testOptions(t)
	log = upstreamtest.Buffer{}
	opts.Logger = log.Logger()
	mustOpen(t, opts).Close()
	if strings.Contains(log.String(), "WARN") {
		t.Errorf("a warning without reason: %s", log.String())
	}
	if runtime.GOOS == "windows" {
		return
	}
	if err := os.Chmod(opts.Database, 0o644); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, opts).Close()
	if !strings.Contains(log.String(), "chmod 600 "+opts.Database) {
		t.Errorf("no warning about the mode: %s", log.String())
	}
}

func TestALostKeyringIsNotReplaced(t *testing.T) {
	opts := testOptions(t)
	s := mustOpen(t, opts)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// Without secrets nothing is lost.
	if err := os.Remove(opts.Keyring); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, opts)
	mustCreate(t, s, "a", "v1", "one")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(opts.Keyring)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(opts.Keyring); err != nil {
		t.Fatal(err)
	}
	_, err = Open(opts)
	wantErr(t, err, ErrKeyLost)
	wantErr(t, err, upstream.ErrKeyNotFound)
	if _, err := os.Stat(opts.Keyring); err == nil {
		t.Error("a new keyring was made over existing data")
	}

	other := testOptions(t)
	mustOpen(t, other).Close()
	mixed := opts
	mixed.Keyring = other.Keyring
	_, err = Open(mixed)
	wantErr(t, err, ErrKeyLost)
	if err != nil && !strings.Contains(err.Error(), `"a"`) {
		t.Errorf("the error names no secret: %v", err)
	}

	if err := os.WriteFile(opts.Keyring, text, 0o600); err != nil {
		t.Fatal(err)
	}
	wantValue(t, mustOpen(t, opts), "a", "one")
}

// keyOf returns the EncryptionKeyId of a secret.
func keyOf(t *testing.T, s *Store, name string) string {
	t.Helper()
	m, err := s.DescribeSecret(context.Background(), upstream.SecretName(name), false)
	if err != nil {
		t.Fatal(err)
	}
	return m.EncryptionKeyID
}

func primaryOf(t *testing.T, s *Store) string {
	t.Helper()
	keys, err := s.Keys()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(keys, func(k Key) bool { return k.Primary })
	return keys[i].ID
}

func TestRotation(t *testing.T) {
	clock := newClock()
	opts := testOptions(t)
	opts.Now = clock.now
	s := mustOpen(t, opts)
	ctx := context.Background()
	first := primaryOf(t, s)
	mustCreate(t, s, "plain", "v1", "one")
	_, err := s.CreateSecret(ctx, upstream.CreateSecretInput{SecretName: "named", VersionID: "v1", SecretData: secret("one"), EncryptionKeyID: first})
	if err != nil {
		t.Fatal(err)
	}
	for _, unknown := range []string{"1", "x", "-1", "0", "00" + first, "4294967296"} {
		_, err := s.CreateSecret(ctx, upstream.CreateSecretInput{SecretName: "unknown", VersionID: "v1", SecretData: secret("x"), EncryptionKeyID: unknown})
		wantErr(t, err, upstream.ErrKeyNotFound)
	}
	if got := keyOf(t, s, "plain"); got != first {
		t.Errorf("key %s, want %s", got, first)
	}

	clock.advance(time.Hour)
	second, err := s.RotateKey(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if second == first || primaryOf(t, s) != second {
		t.Errorf("primary is %s after a rotation from %s to %s", primaryOf(t, s), first, second)
	}
	wantValue(t, s, "plain", "one")
	if got := keyOf(t, s, "plain"); got != first {
		t.Errorf("the current value is sealed with %s, but described with %s", first, got)
	}
	mustPut(t, s, "plain", "v2", "two")
	mustPut(t, s, "named", "v2", "two")
	if got := keyOf(t, s, "plain"); got != second {
		t.Errorf("a new value: key %s, want the new primary %s", got, second)
	}
	if got := keyOf(t, s, "named"); got != first {
		t.Errorf("a secret with a key of its own: key %s, want %s", got, first)
	}
	keys, err := s.Keys()
	if err != nil {
		t.Fatal(err)
	}
	start := newClock().now()
	if want := []Key{
		{ID: first, Status: "enabled", CreateTime: start, Secrets: 1, Values: 3},
		{ID: second, Status: "enabled", Primary: true, CreateTime: start.Add(time.Hour), Secrets: 1, Values: 1},
	}; !slices.Equal(keys, want) {
		t.Errorf("keys:\n got %+v\nwant %+v", keys, want)
	}

	var progress []string
	if err := s.Reencrypt(ctx, func(done, total int) { progress = append(progress, fmt.Sprint(done, "/", total)) }); err != nil {
		t.Fatal(err)
	}
	if len(progress) == 0 || progress[len(progress)-1] != "2/2" {
		t.Errorf("progress %v", progress)
	}
	for _, name := range []string{"plain", "named"} {
		if got := keyOf(t, s, name); got != second {
			t.Errorf("%s after re-encryption: key %s, want %s", name, got, second)
		}
		wantValue(t, s, name, "two")
		wantValue(t, s, name+":ACSPrevious", "one")
	}
	commits := s.Stats().Commits
	if err := s.Reencrypt(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if s.Stats().Commits != commits {
		t.Error("re-encrypting again wrote something")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	// The old key is no longer needed and can be taken out.
	rewriteKeyring(t, opts.Keyring, func(m *keyset.Manager) error { return m.Delete(mustKeyID(t, first)) })
	s = mustOpen(t, opts)
	wantValue(t, s, "named:ACSPrevious", "one")
	if keys, err := s.Keys(); err != nil || len(keys) != 1 || keys[0].Values != 4 || keys[0].Secrets != 2 {
		t.Errorf("keys %+v, %v", keys, err)
	}
}

func mustKeyID(t *testing.T, text string) uint32 {
	t.Helper()
	id, ok := parseKeyID(text)
	if !ok {
		t.Fatalf("key id %q", text)
	}
	return id
}

// rewriteKeyring changes a keyring as another program would.
func rewriteKeyring(t *testing.T, path string, change func(*keyset.Manager) error) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	handle, err := insecurecleartextkeyset.Read(keyset.NewJSONReader(bytes.NewReader(text)))
	if err != nil {
		t.Fatal(err)
	}
	m := keyset.NewManagerFromHandle(handle)
	if err := change(m); err != nil {
		t.Fatal(err)
	}
	if handle, err = m.Handle(); err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	if err := insecurecleartextkeyset.Write(handle, keyset.NewJSONWriter(&buf)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, buf.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestADisabledKeyThatIsNeeded(t *testing.T) {
	opts := testOptions(t)
	s := mustOpen(t, opts)
	first := primaryOf(t, s)
	mustCreate(t, s, "a", "v1", "one")
	if _, err := s.RotateKey(context.Background()); err != nil {
		t.Fatal(err)
	}
	mustPut(t, s, "a", "v2", "two") // seals the metadata with the new key; v1 still needs the old one
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	rewriteKeyring(t, opts.Keyring, func(m *keyset.Manager) error { return m.Disable(mustKeyID(t, first)) })
	_, err := Open(opts)
	wantErr(t, err, ErrKeyLost)
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
	if _, err := s.RotateKey(context.Background()); err != nil {
		t.Fatal(err)
	}
	keys, err := s.Keys()
	if err != nil || len(keys) != 3 || keys[1].ID != formatKeyID(added) {
		t.Errorf("keys %+v, %v", keys, err)
	}
	// A keyring that is not the one in use is left alone.
	other := testOptions(t)
	mustOpen(t, other).Close()
	text, err := os.ReadFile(other.Keyring)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(opts.Keyring, text, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = s.RotateKey(context.Background())
	wantErr(t, err, ErrKeyLost)
	if after, _ := os.ReadFile(opts.Keyring); !bytes.Equal(after, text) {
		t.Error("the file was changed")
	}
	if err := os.Remove(opts.Keyring); err != nil {
		t.Fatal(err)
	}
	if _, err = s.RotateKey(context.Background()); err == nil {
		t.Error("rotated without a file")
	}
	if _, err := os.Stat(opts.Keyring); err == nil {
		t.Error("a file was made")
	}
	wantValue(t, s, "a", "one")
	mustPut(t, s, "a", "v2", "two")
}

func TestAReencryptionThatIsCancelled(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	for i := range 100 {
		mustCreate(t, s, fmt.Sprint("s/", i), "v1", strings.Repeat("x", 30_000))
	}
	if _, err := s.RotateKey(context.Background()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	err := s.Reencrypt(ctx, func(done, total int) {
		if done >= total {
			t.Error("it all fits into one batch: the test shows nothing")
		}
		cancel()
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	var dones []int
	if err := s.Reencrypt(context.Background(), func(done, _ int) { dones = append(dones, done) }); err != nil {
		t.Fatal(err)
	}
	if !slices.IsSorted(dones) || dones[len(dones)-1] != 100 || len(dones) < 2 {
		t.Errorf("progress %v", dones)
	}
	if n := valuesUnder(mustKeys(t, s), primaryOf(t, s)); n != 100 {
		t.Errorf("%d values are under the primary key", n)
	}
}

func mustKeys(t *testing.T, s *Store) []Key {
	t.Helper()
	keys, err := s.Keys()
	if err != nil {
		t.Fatal(err)
	}
	return keys
}
