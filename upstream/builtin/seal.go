package builtin

import (
	"errors"
	"strconv"

	"secretagent/upstream"
)

// Associated data binds each ciphertext to the place that it is kept in and to what it is for there, so
// that none can take the place of another. The parts cannot contain the separator.

func (t *tx) recordAssociatedData(name upstream.SecretName) []byte {
	return t.join(t.place.Binding, "record", string(name))
}

func (t *tx) valueAssociatedData(name upstream.SecretName, id upstream.VersionID, dataType string) []byte {
	return t.join(t.place.Binding, "value", string(name), string(id), dataType)
}

func (t *tx) keyAssociatedData(id uint32) []byte {
	return t.join(t.place.Binding, "key", formatKeyID(id))
}

func (t *tx) noteAssociatedData(name string) []byte {
	return t.join(t.place.Binding, "note", name)
}

// join returns texts with the separator between them, until it is called again.
func (t *tx) join(texts ...string) []byte {
	b := t.joined[:0]
	for i, text := range texts {
		if i > 0 {
			b = append(b, 0)
		}
		b = append(b, text...)
	}
	return b
}

func formatKeyID(id uint32) string { return strconv.FormatUint(uint64(id), 10) }

// parseKeyID reads what [formatKeyID] wrote.
func parseKeyID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && s == strconv.FormatUint(n, 10)
}

var (
	errNoSuchKey = errors.New("sealed with a key that is not in the keyring")
	errSeal      = errors.New("does not authenticate")
)

// tinkPrefix is the first byte of every Tink ciphertext; the key id follows in four bytes.
const (
	tinkPrefix    = 0x01
	tinkPrefixLen = 5
)

// sealKey returns the id of the key that sealed has been sealed with.
func sealKey(sealed []byte) (uint32, bool) {
	if len(sealed) < tinkPrefixLen || sealed[0] != tinkPrefix {
		return 0, false
	}
	return uint32(sealed[1])<<24 | uint32(sealed[2])<<16 | uint32(sealed[3])<<8 | uint32(sealed[4]), true
}

// seal encrypts plaintext with key id.
func (k *keys) seal(id uint32, plaintext, associatedData []byte) ([]byte, error) {
	aead := k.aead(id)
	if aead == nil {
		return nil, errUnknownKey(id)
	}
	return aead.Encrypt(plaintext, associatedData)
}

// open decrypts what [keys.seal] returned. It fails with errNoSuchKey or errSeal.
func (k *keys) open(sealed, associatedData []byte) ([]byte, error) {
	id, ok := sealKey(sealed)
	if !ok {
		return nil, errSeal
	}
	aead := k.aead(id)
	if aead == nil {
		return nil, errNoSuchKey
	}
	plaintext, err := aead.Decrypt(sealed, associatedData)
	if err != nil {
		return nil, errSeal // Tink's own text says nothing more
	}
	return plaintext, nil
}

func errUnknownKey(id uint32) error {
	return Errorf(upstream.ErrKeyNotFound, "the keyring has no enabled key %d", id)
}
