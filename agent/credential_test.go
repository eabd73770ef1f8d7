package agent_test

import (
	"io"
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
	if _, err := agent.CreateKeyring(keyring); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(keyring, 0o440); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		credentials string
		good        bool
	}{{"", false}, {folder, true}, {folder + "/", true}, {filepath.Dir(folder), false}, {folder + "/keyring.json", false}} {
		t.Setenv("CREDENTIALS_DIRECTORY", c.credentials)
		cfg := &config.Local{Database: config.Path(filepath.Join(t.TempDir(), "secrets.db")), Keyring: config.Path(keyring), MaxVersions: 10}
		store, err := agent.OpenStore(cfg, slog.New(slog.NewTextHandler(io.Discard, nil)))
		if (err == nil) != c.good {
			t.Errorf("credentials in %q: %v", c.credentials, err)
		}
		if err == nil {
			store.Close()
		}
	}
}
