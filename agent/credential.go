package agent

import (
	"os"
	"path/filepath"

	"secretagent/agent/config"
	"secretagent/upstream/builtin"
)

// isCredential reports whether systemd hands path to this service, as a file of the folder
// that LoadCredential= fills for it.
func isCredential(path config.Path) bool {
	folder := os.Getenv("CREDENTIALS_DIRECTORY")
	return folder != "" && filepath.Dir(string(path)) == filepath.Clean(folder)
}

// CreateKeyring makes a keyring for the built-in backend or a sealed cache, readable by its
// owner alone, and returns the id of its one key. It never touches a file that is there: the
// error then matches [fs.ErrExist].
func CreateKeyring(path string) (keyID string, err error) { return builtin.CreateKeyring(path) }
