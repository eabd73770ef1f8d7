package builtin

import (
	"fmt"

	"github.com/tink-crypto/tink-go/v2/tink"

	"secretagent/upstream/keyfile"
)

// keys is a keyring, ready to use. It is immutable.
type keys struct {
	ring    *keyfile.Keyring
	primary uint32
	entries []keyfile.Key // in the order of the file
}

// newKeys makes each key of a keyring usable by itself. It takes what package keyfile returns,
// and returns its error as it is.
func newKeys(ring *keyfile.Keyring, err error) (*keys, error) {
	if err != nil {
		return nil, err
	}
	entries, err := ring.Keys()
	if err != nil {
		return nil, err
	}
	return &keys{ring, ring.Primary(), entries}, nil
}

// Format prints no key material, whatever the verb.
func (k keys) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "%d keys", len(k.entries)) }

// aead returns the enabled key of that id, nil when there is none.
func (k *keys) aead(id uint32) tink.AEAD {
	for _, e := range k.entries {
		if e.ID == id {
			return e.AEAD
		}
	}
	return nil
}
