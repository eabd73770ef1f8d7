package cache

import (
	"fmt"

	"github.com/tink-crypto/tink-go/v2/tink"

	"secretagent/upstream/keyfile"
)

// openKeyring returns the AEAD of the keyring at path, which is made when nothing is there.
func openKeyring(path string, credential bool) (tink.AEAD, error) {
	ring, _, err := keyfile.OpenKeyring(path, credential)
	if err != nil {
		return nil, fmt.Errorf("sealed.keyring: %w", err)
	}
	primitive, err := ring.AEAD()
	if err != nil {
		return nil, fmt.Errorf("sealed.keyring: %w", err)
	}
	return primitive, nil
}

// syncFolder puts the entries of a folder on disk.
func syncFolder(dir string) error { return keyfile.SyncFolder(dir) }
