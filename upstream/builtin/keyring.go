package builtin

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/aead/aesgcm"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"
)

// maxKeyringSize bounds the file: a key takes about 200 bytes of it.
const maxKeyringSize = 1 << 20

// keys is the content of a keyring file, ready to use. It is immutable.
type keys struct {
	handle  *keyset.Handle
	primary uint32
	entries []keyEntry // in the order of the file
}

type keyEntry struct {
	id     uint32
	status keyset.KeyStatus
	aead   tink.AEAD // nil unless enabled
}

// Format prints no key material, whatever the verb.
func (k keys) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "%d keys", len(k.entries)) }

func (k *keys) find(id uint32) *keyEntry {
	for i := range k.entries {
		if k.entries[i].id == id {
			return &k.entries[i]
		}
	}
	return nil
}

// aead returns the enabled key of that id, nil when there is none.
func (k *keys) aead(id uint32) tink.AEAD {
	if e := k.find(id); e != nil {
		return e.aead
	}
	return nil
}

// readKeyring reads the file and refuses it when others than its owner can touch it; of a
// credential the group may read. The error matches fs.ErrNotExist when there is no file.
func readKeyring(path string, credential bool) (*keys, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("keyring: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("keyring: %w", err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("keyring %s: is not a regular file", path)
	}
	foreign := fs.FileMode(0o077)
	if credential {
		foreign = 0o037
	}
	if perm := st.Mode().Perm(); perm&foreign != 0 && runtime.GOOS != "windows" {
		return nil, fmt.Errorf("keyring %s: has mode %04o, so others than its owner can read or change it; run: chmod 600 %s", path, perm, path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKeyringSize+1))
	if err != nil {
		return nil, fmt.Errorf("keyring %s: %w", path, err)
	}
	if len(text) > maxKeyringSize {
		return nil, fmt.Errorf("keyring %s: is larger than 1 MiB, which no keyring is", path)
	}
	// The parser's own error is not passed on: it can quote key material.
	handle, err := insecurecleartextkeyset.Read(keyset.NewJSONReader(bytes.NewReader(text)))
	if err != nil {
		return nil, fmt.Errorf("keyring %s: is not a Tink keyset in JSON; put a good copy in place", path)
	}
	k, err := newKeys(handle)
	if err != nil {
		return nil, fmt.Errorf("keyring %s: %w", path, err)
	}
	return k, nil
}

// newKeys makes each key of the keyset usable by itself.
func newKeys(handle *keyset.Handle) (*keys, error) {
	k := &keys{handle: handle}
	for i := range handle.Len() {
		entry, err := handle.Entry(i)
		if err != nil {
			return nil, err
		}
		e := keyEntry{id: entry.KeyID(), status: entry.KeyStatus()}
		if entry.IsPrimary() {
			k.primary = e.id
		}
		if k.find(e.id) != nil {
			return nil, fmt.Errorf("key %d is there twice", e.id)
		}
		if e.status == keyset.Enabled {
			if e.aead, err = newAEAD(entry); err != nil {
				return nil, fmt.Errorf("key %d: %w", e.id, err)
			}
		}
		k.entries = append(k.entries, e)
	}
	if k.aead(k.primary) == nil {
		return nil, errors.New("has no enabled primary key")
	}
	return k, nil
}

func newAEAD(entry *keyset.Entry) (tink.AEAD, error) {
	params, ok := entry.Key().Parameters().(*aesgcm.Parameters)
	if !ok || params.Variant() != aesgcm.VariantTink || params.KeySizeInBytes() != 32 {
		return nil, errors.New("is not an AES256-GCM key with the Tink output prefix")
	}
	m := keyset.NewManager()
	id, err := m.AddKey(entry.Key())
	if err != nil {
		return nil, err
	}
	if err := m.SetPrimary(id); err != nil {
		return nil, err
	}
	handle, err := m.Handle()
	if err != nil {
		return nil, err
	}
	return aead.New(handle)
}

// createKeyring writes a keyring with one fresh key, unless a file has appeared at path in
// the meantime, and returns what is there then. It returns after the file is on disk.
func createKeyring(path string) (*keys, error) {
	handle, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	if err != nil {
		return nil, fmt.Errorf("keyring: new key: %w", err)
	}
	if err := makeFolder(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("keyring: %w", err)
	}
	text, err := encodeKeyring(handle)
	if err != nil {
		return nil, err
	}
	if err := createFile(path, text); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("keyring: %w", err)
	}
	return readKeyring(path, false)
}

// CreateKeyring makes a keyring with one fresh key, mode 0600 in a folder of mode 0700, and
// returns the id of the key. A file that is there already stays as it is: the error then
// matches fs.ErrExist.
func CreateKeyring(path string) (keyID string, err error) {
	if _, err := os.Lstat(path); err == nil {
		return "", fmt.Errorf("keyring %s: %w", path, fs.ErrExist)
	}
	k, err := createKeyring(path)
	if err != nil {
		return "", err
	}
	return formatKeyID(k.primary), nil
}

// extended returns k with a fresh primary key added, and its encoding.
func (k *keys) extended() (*keys, []byte, error) {
	m := keyset.NewManagerFromHandle(k.handle)
	id, err := m.Add(aead.AES256GCMKeyTemplate())
	if err != nil {
		return nil, nil, fmt.Errorf("keyring: new key: %w", err)
	}
	if err := m.SetPrimary(id); err != nil {
		return nil, nil, fmt.Errorf("keyring: %w", err)
	}
	handle, err := m.Handle()
	if err != nil {
		return nil, nil, fmt.Errorf("keyring: %w", err)
	}
	next, err := newKeys(handle)
	if err != nil {
		return nil, nil, fmt.Errorf("keyring: %w", err)
	}
	text, err := encodeKeyring(handle)
	return next, text, err
}

func encodeKeyring(handle *keyset.Handle) ([]byte, error) {
	var buf bytes.Buffer
	if err := insecurecleartextkeyset.Write(handle, keyset.NewJSONWriter(&buf)); err != nil {
		return nil, fmt.Errorf("keyring: %w", err)
	}
	return append(buf.Bytes(), '\n'), nil
}
