package agent_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"secretagent/agent"
	"secretagent/agent/config"
)

// Ensure that a keyring may have the mode of a systemd credential where systemd put it, and
// nowhere else.
func TestKeyringAsACredential(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no modes there")
	}
	folder := t.TempDir()
	keyring := filepath.Join(folder, "keyring.json")
	_, err := agent.CreateKeyring(keyring)
	must(t, err)
	must(t, os.Chmod(keyring, 0o440))
	for credentials, good := range map[string]bool{"": false, folder: true, folder + "/": true, filepath.Dir(folder): false, keyring: false} {
		t.Setenv("CREDENTIALS_DIRECTORY", credentials)
		local := &config.Local{Database: config.Path(filepath.Join(t.TempDir(), "secrets.db")), Keyring: config.Path(keyring), MaxVersions: 10}
		cfg := &config.Config{Upstream: config.Upstream{Local: local}}
		_, closeManager, err := agent.OpenManager(t.Context(), cfg, slog.New(slog.DiscardHandler), agent.MissingFiles)
		if (err == nil) != good {
			t.Errorf("credentials in %q: %v", credentials, err)
		}
		if err == nil {
			must(t, closeManager())
		}
	}
}
