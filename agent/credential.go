package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"secretagent/agent/config"
	"secretagent/upstream/keyfile"
)

// credentialsDirectory is the variable by which systemd says where the credentials of a service are.
const credentialsDirectory = "CREDENTIALS_DIRECTORY"

// isCredential reports whether systemd hands path to this service, as a file of the folder
// that LoadCredential= fills for it.
func isCredential(path config.Path) bool {
	folder := os.Getenv(credentialsDirectory)
	return folder != "" && filepath.Dir(string(path)) == filepath.Clean(folder)
}

// CreateKeyring makes a keyring for the built-in backend or a sealed cache, readable by its
// owner alone, and returns the id of its one key. It never touches a file that is there: the
// error then matches [fs.ErrExist].
func CreateKeyring(path string) (keyID string, err error) {
	ring, err := keyfile.CreateKeyring(path)
	if err != nil {
		return "", fmt.Errorf("keyring %w", err)
	}
	return strconv.FormatUint(uint64(ring.Primary()), 10), nil
}
