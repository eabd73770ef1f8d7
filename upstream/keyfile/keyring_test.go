package keyfile_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/mac"

	"secretagent/upstream/keyfile"
)

func create(t *testing.T) (string, *keyfile.Keyring) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keys", "keyring.json")
	ring, err := keyfile.CreateKeyring(path)
	must(t, err)
	return path, ring
}

func TestKeyring(t *testing.T) {
	path, ring := create(t)
	all, err := ring.AEAD()
	must(t, err)
	sealed, err := all.Encrypt([]byte("plain"), []byte("ad"))
	must(t, err)
	if _, err := keyfile.CreateKeyring(path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over a keyring: %v", err)
	}
	link := filepath.Join(filepath.Dir(filepath.Dir(path)), "link")
	if err := os.Symlink(path, link); err != nil {
		t.Skip(err) // Windows wants a privilege for it
	}
	read, created, err := keyfile.OpenKeyring(link, false)
	if err != nil || created || read.Primary() != ring.Primary() {
		t.Fatalf("%v %v %v", read, created, err)
	}
	extended, err := read.Extend()
	if err != nil || extended.Primary() == ring.Primary() {
		t.Fatalf("%v %v", extended, err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode().Type() != fs.ModeSymlink {
		t.Errorf("the link was replaced: %v %v", info.Mode(), err)
	}
	if info, err := os.Stat(path); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	if left := names(t, filepath.Dir(path)); left != "keyring.json" {
		t.Errorf("left: %s", left)
	}
	if ring, err = keyfile.ReadKeyring(path, false); err != nil || ring.Primary() != extended.Primary() {
		t.Fatalf("%v %v", ring, err)
	}
	keys, err := ring.Keys()
	if err != nil || len(keys) != 2 || keys[1].ID != ring.Primary() {
		t.Fatalf("%v %v", keys, err)
	}
	if plain, err := keys[0].AEAD.Decrypt(sealed, []byte("ad")); err != nil || string(plain) != "plain" {
		t.Errorf("the old key: %v", err)
	}
	if _, err := keys[1].AEAD.Decrypt(sealed, []byte("ad")); err == nil {
		t.Error("another key opens it too")
	}
	if all, err = ring.AEAD(); err != nil {
		t.Fatal(err)
	}
	if plain, err := all.Decrypt(sealed, []byte("ad")); err != nil || string(plain) != "plain" {
		t.Errorf("all keys: %v", err)
	}
}

func TestAKeyringIsAPlainTinkKeyset(t *testing.T) {
	path, ring := create(t)
	ring, err := ring.Extend()
	must(t, err)
	// Others read the file too.
	text, err := os.ReadFile(path)
	must(t, err)
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(text, &fields); err != nil || len(fields) != 2 || fields["primaryKeyId"] == nil || fields["key"] == nil {
		t.Errorf("fields %v, %v", fields, err)
	}
	var file struct {
		Key []struct{ KeyData struct{ Value string } }
	}
	if err := json.Unmarshal(text, &file); err != nil || len(file.Key) != 2 || len(file.Key[0].KeyData.Value) < 40 {
		t.Fatal("no key material to look for", err)
	}
	for _, printed := range []string{fmt.Sprintf("%v %+v %#v %s %x", ring, ring, ring, ring, ring), fmt.Sprintf("%+v", *ring)} {
		if strings.Contains(printed, file.Key[0].KeyData.Value) || !strings.Contains(printed, "2 keys") {
			t.Errorf("printed: %s", printed)
		}
	}
}

func TestBadKeyrings(t *testing.T) {
	encode := func(change func(*keyset.Manager)) string {
		m := keyset.NewManager()
		id, err := m.Add(aead.AES256GCMKeyTemplate())
		if err == nil {
			err = m.SetPrimary(id)
		}
		must(t, err)
		change(m)
		handle, err := m.Handle()
		must(t, err)
		var buf bytes.Buffer
		must(t, insecurecleartextkeyset.Write(handle, keyset.NewJSONWriter(&buf)))
		return buf.String()
	}
	added := func(_ uint32, err error) { must(t, err) }
	for _, test := range []struct{ name, content, want string }{
		{"empty", "", "not a Tink keyset"},
		{"not JSON", marker, "not a Tink keyset"},
		{"JSON of something else", `{"key":[{"keyData":"` + marker + `"}]}`, "not a Tink keyset"},
		{"cut short", encode(func(*keyset.Manager) {})[:100], "not a Tink keyset"},
		{"a key of another kind", encode(func(m *keyset.Manager) { added(m.Add(mac.HMACSHA256Tag128KeyTemplate())) }), "AES256-GCM"},
		{"a key without prefix", encode(func(m *keyset.Manager) { added(m.Add(aead.AES256GCMNoPrefixKeyTemplate())) }), "prefix"},
		{"a short key", encode(func(m *keyset.Manager) { added(m.Add(aead.AES128GCMKeyTemplate())) }), "AES256-GCM"},
		{"endless", strings.Repeat(" ", 1<<20+1), "is larger than"},
	} {
		path := filepath.Join(t.TempDir(), "keyring.json")
		writeFile(t, path, test.content, 0o600)
		ring, _, err := keyfile.OpenKeyring(path, false)
		if err == nil {
			_, err = ring.Keys()
		}
		if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), marker) {
			t.Errorf("%s: got %v", test.name, err)
		}
		if text, readErr := os.ReadFile(path); readErr != nil || string(text) != test.content {
			t.Errorf("%s: the file was changed: %v", test.name, readErr)
		}
	}
	// Where the ids of keys do not matter, any AEAD does.
	path := filepath.Join(t.TempDir(), "keyring.json")
	writeFile(t, path, encode(func(m *keyset.Manager) { added(m.Add(aead.AES128GCMKeyTemplate())) }), 0o600)
	if ring, err := keyfile.ReadKeyring(path, false); err != nil {
		t.Error(err)
	} else if _, err := ring.AEAD(); err != nil {
		t.Error(err)
	}
	writeFile(t, path, encode(func(m *keyset.Manager) { added(m.Add(mac.HMACSHA256Tag128KeyTemplate())) }), 0o600)
	if ring, err := keyfile.ReadKeyring(path, false); err != nil {
		t.Error(err)
	} else if _, err := ring.AEAD(); err == nil || !strings.Contains(err.Error(), "not for AEAD") {
		t.Errorf("a key for something else: %v", err)
	}
}
