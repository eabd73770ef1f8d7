package builtin

import (
	"fmt"

	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"

	"secretagent/upstream/keyfile"
)

// keys is a keyring, ready to use. It is immutable.
type keys struct {
	ring    *keyfile.Keyring
	primary uint32
	entries []keyEntry // in the order of the file
}

type keyEntry struct {
	id     uint32
	status keyset.KeyStatus
	aead   tink.AEAD // nil unless enabled
}

// readKeyring reads a keyring. The error matches [fs.ErrNotExist] when there is no file.
func readKeyring(path string, credential bool) (*keys, error) {
	ring, err := keyfile.ReadKeyring(path, credential)
	if err != nil {
		return nil, err
	}
	return newKeys(ring)
}

// extended returns the keyring with a fresh primary key added, which is on disk then.
func (k *keys) extended() (*keys, error) {
	ring, err := k.ring.Extend()
	if err != nil {
		return nil, err
	}
	return newKeys(ring)
}

// newKeys makes each key of a keyring usable by itself.
func newKeys(ring *keyfile.Keyring) (*keys, error) {
	list, err := ring.Keys()
	if err != nil {
		return nil, err
	}
	k := &keys{ring: ring, primary: ring.Primary()}
	for _, key := range list {
		k.entries = append(k.entries, keyEntry{key.ID, key.Status, key.AEAD})
	}
	return k, nil
}

// Format prints no key material, whatever the verb.
func (k keys) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "%d keys", len(k.entries)) }

// aead returns the enabled key of that id, nil when there is none.
func (k *keys) aead(id uint32) tink.AEAD {
	for _, e := range k.entries {
		if e.id == id {
			return e.aead
		}
	}
	return nil
}
