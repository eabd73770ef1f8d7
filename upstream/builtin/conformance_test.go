package builtin_test

import (
	"path/filepath"
	"sync"
	"testing"
	"time"

	"secretagent/upstream/builtin"
	"secretagent/upstream/upstreamtest"
)

func TestConformance(t *testing.T) {
	upstreamtest.Run(t, func(t *testing.T) upstreamtest.Harness {
		var (
			mu    sync.Mutex
			ahead time.Duration
		)
		dir := t.TempDir()
		store, err := builtin.Open(builtin.Options{
			Database: filepath.Join(dir, "data", "secrets.db"),
			Keyring:  filepath.Join(dir, "keys", "keyring.json"),
			Now: func() time.Time {
				mu.Lock()
				defer mu.Unlock()
				return time.Now().Add(ahead)
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := store.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		})
		return upstreamtest.Harness{
			Manager: store,
			Advance: func(d time.Duration) {
				mu.Lock()
				defer mu.Unlock()
				ahead += d
			},
		}
	})
}
