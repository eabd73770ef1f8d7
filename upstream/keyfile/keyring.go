package keyfile

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/aead/aesgcm"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"
)

// Keyring is the content of a keyring file, a Tink keyset in JSON. It is immutable.
type Keyring struct {
	path    string
	handle  *keyset.Handle
	primary uint32
}

// Key is one key of a keyring.
type Key struct {
	ID     uint32
	Status keyset.KeyStatus
	AEAD   tink.AEAD // nil unless enabled
}

// Format prints no key material, whatever the verb.
func (r Keyring) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "%d keys", r.handle.Len()) }

// ReadKeyring reads the keyring at path. Others than its owner must not be able to touch it;
// of a credential the group may read. The error matches [fs.ErrNotExist] when there is no file.
func ReadKeyring(path string, credential bool) (*Keyring, error) {
	kind := KeyringFile
	if credential {
		kind = KeyringCredential
	}
	text, err := kind.Read(path)
	if err != nil {
		return nil, err
	}
	defer clear(text)
	// The parser's own error is not passed on: it can quote key material.
	handle, err := insecurecleartextkeyset.Read(keyset.NewJSONReader(bytes.NewReader(text)))
	if err != nil {
		return nil, fmt.Errorf("%s: is not a Tink keyset in JSON; put a good copy in place", path)
	}
	return newKeyring(path, handle)
}

func newKeyring(path string, handle *keyset.Handle) (*Keyring, error) {
	primary, err := handle.Primary()
	if err != nil || primary.KeyStatus() != keyset.Enabled {
		return nil, fmt.Errorf("%s: has no enabled primary key", path)
	}
	return &Keyring{path: path, handle: handle, primary: primary.KeyID()}, nil
}

// CreateKeyring makes a keyring with one fresh key. A file that is there already stays as it
// is: the error then matches [fs.ErrExist].
func CreateKeyring(path string) (*Keyring, error) {
	handle, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	if err != nil {
		return nil, fmt.Errorf("new key: %w", err)
	}
	return keep(path, handle, KeyringFile.Create)
}

// CheckKeyring returns why [OpenKeyring] would fail, as far as that shows without changing
// anything.
func CheckKeyring(path string, credential bool) error {
	if _, err := ReadKeyring(path, credential); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return KeyringFile.Check(path) // could it be made?
}

// OpenKeyring reads the keyring at path, which it makes where it is missing. created says that
// it did.
func OpenKeyring(path string, credential bool) (ring *Keyring, created bool, err error) {
	KeyringFile.Clean(path)
	if ring, err = ReadKeyring(path, credential); !errors.Is(err, fs.ErrNotExist) {
		return ring, false, err
	}
	if ring, err = CreateKeyring(path); !errors.Is(err, fs.ErrExist) {
		return ring, err == nil, err
	}
	ring, err = ReadKeyring(path, credential) // another process was faster
	return ring, false, err
}

// Extend adds a fresh key, makes it primary and replaces the file, or what a symbolic link in
// its place points to. It returns after that is on disk. On error the file is as it was, unless
// the error says that only its folder could not be put on disk: then it holds the fresh key.
func (r *Keyring) Extend() (*Keyring, error) {
	m := keyset.NewManagerFromHandle(r.handle)
	id, err := m.Add(aead.AES256GCMKeyTemplate())
	if err == nil {
		err = m.SetPrimary(id)
	}
	if err != nil {
		return nil, fmt.Errorf("new key: %w", err)
	}
	handle, err := m.Handle()
	if err != nil {
		return nil, err
	}
	return keep(r.path, handle, KeyringFile.replace)
}

// Remove takes a key out that is not the one that is to be primary from then on, and replaces the file as
// Extend does.
func (r *Keyring) Remove(id, primary uint32) (*Keyring, error) {
	m := keyset.NewManagerFromHandle(r.handle)
	err := m.SetPrimary(primary)
	if err == nil {
		err = m.Delete(id)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: key %d cannot be removed: %w", r.path, id, err)
	}
	handle, err := m.Handle()
	if err != nil {
		return nil, err
	}
	return keep(r.path, handle, KeyringFile.replace)
}

// Primary returns the id of the key that seals what is written from now on.
func (r *Keyring) Primary() uint32 { return r.primary }

// AEAD returns one AEAD for all keys: it seals with the primary one and opens with any.
func (r *Keyring) AEAD() (tink.AEAD, error) {
	primitive, err := aead.New(r.handle)
	if err != nil {
		return nil, fmt.Errorf("%s: holds keys that are not for AEAD", r.path)
	}
	return primitive, nil
}

// Keys returns each key by itself, in the order of the file. All of them must be AES256-GCM
// keys whose ciphertext tells the key's id.
func (r *Keyring) Keys() ([]Key, error) {
	var keys []Key
	seen := map[uint32]bool{}
	for i := range r.handle.Len() {
		entry, err := r.handle.Entry(i)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", r.path, err)
		}
		k := Key{ID: entry.KeyID(), Status: entry.KeyStatus()}
		if seen[k.ID] {
			return nil, fmt.Errorf("%s: key %d is there twice", r.path, k.ID)
		}
		seen[k.ID] = true
		if k.Status == keyset.Enabled {
			if k.AEAD, err = newAEAD(entry); err != nil {
				return nil, fmt.Errorf("%s: key %d: %w", r.path, k.ID, err)
			}
		}
		keys = append(keys, k)
	}
	return keys, nil
}

func newAEAD(entry *keyset.Entry) (tink.AEAD, error) {
	key, ok := entry.Key().(*aesgcm.Key)
	if ok {
		params := key.Parameters().(*aesgcm.Parameters)
		ok = params.Variant() == aesgcm.VariantTink && params.KeySizeInBytes() == 32
	}
	if !ok {
		return nil, errors.New("is not an AES256-GCM key with the Tink output prefix")
	}
	return aesgcm.NewAEAD(key)
}

// keep puts a keyring into the file at path, and returns it.
func keep(path string, handle *keyset.Handle, file func(path string, content []byte) error) (*Keyring, error) {
	var buf bytes.Buffer
	if err := insecurecleartextkeyset.Write(handle, keyset.NewJSONWriter(&buf)); err != nil {
		return nil, err
	}
	text := append(buf.Bytes(), '\n')
	defer clear(text)
	if err := file(path, text); err != nil {
		return nil, err
	}
	return newKeyring(path, handle)
}
