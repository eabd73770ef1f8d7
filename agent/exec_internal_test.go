package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"secretagent/agent/config"
)

// observedBackend tells that its work in the background has begun, and fails when it is told to.
type observedBackend struct {
	backend
	began chan struct{}
	fail  chan error
}

func (b observedBackend) run(ctx context.Context) error {
	close(b.began)
	select {
	case err := <-b.fail:
		return err
	case <-ctx.Done():
		return b.backend.run(ctx)
	}
}

// TestProgramDoesNotOutliveWhatItNeeds lets the backend fail that exec has opened. The program is
// asked to end, and the error is that of the backend.
func TestProgramDoesNotOutliveWhatItNeeds(t *testing.T) {
	dir, err := os.MkdirTemp("", "sa") // short enough for a socket
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "agent.yaml")
	must(t, os.WriteFile(path, []byte("upstream: {local: {database: ./secrets.db, keyring: ./keys/keyring.json, api: {socket: ./kms.sock}}}\nexec: {command: [sleep, '1000']}\n"), 0o600))
	cfg, err := config.Load(path)
	must(t, err)
	child, err := NewChild(t.Context(), cfg, Deps{}, nil)
	must(t, err)
	own := observedBackend{child.own, make(chan struct{}), make(chan error, 1)}
	child.own = own
	ended := make(chan error, 1)
	go func() { ended <- child.Run(context.Background()) }()
	<-own.began
	defect := errors.New("a defect")
	own.fail <- defect
	select {
	case err := <-ended:
		if _, exited := errors.AsType[*ExitError](err); !errors.Is(err, defect) || exited {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the program goes on")
	}
}
