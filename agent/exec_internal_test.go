package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"secretagent/agent/config"
)

// observedBackend tells that its work in the background has begun, and fails when it is told to.
type observedBackend struct {
	backend
	began chan struct{}
	fail  chan error
	atEnd error // how it ends when it is stopped
}

func (b observedBackend) run(ctx context.Context) error {
	close(b.began)
	select {
	case err := <-b.fail:
		return err
	case <-ctx.Done():
		return errors.Join(b.backend.run(ctx), b.atEnd)
	}
}

// observedChild returns a child that has opened a backend, which is observed.
func observedChild(t *testing.T, command string) (*Child, observedBackend) {
	t.Helper()
	dir, err := os.MkdirTemp("", "sa") // short enough for a socket
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "agent.yaml")
	must(t, os.WriteFile(path, []byte("upstream: {local: {database: ./secrets.db, keyring: ./keys/keyring.json, api: {socket: ./kms.sock}}}\nexec: {command: "+command+"}\n"), 0o600))
	cfg, err := config.Load(path)
	must(t, err)
	child, err := NewChild(t.Context(), cfg, Deps{}, nil)
	must(t, err)
	own := observedBackend{child.own, make(chan struct{}), make(chan error, 1), nil}
	child.own = own
	return child, own
}

// TestProgramDoesNotOutliveWhatItNeeds lets the backend fail that exec has opened. The program is
// asked to end, and the error is that of the backend.
func TestProgramDoesNotOutliveWhatItNeeds(t *testing.T) {
	child, own := observedChild(t, "[sleep, '1000']")
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

// TestTheExitCodeSurvivesAPartThatEndsBadly lets the backend fail when the program is asked to end
// already, or has ended by itself: its exit code is what the caller learns, beside the failure.
func TestTheExitCodeSurvivesAPartThatEndsBadly(t *testing.T) {
	defect := errors.New("a defect")
	for name, command := range map[string]string{
		"by itself": "[sh, -c, 'exit 7']",
		"asked to":  "[sh, -c, 'trap \"exit 7\" TERM; : > '$READY'; while :; do sleep 0.01; done']",
	} {
		t.Run(name, func(t *testing.T) {
			ready := filepath.Join(t.TempDir(), "ready")
			child, own := observedChild(t, strings.ReplaceAll(command, "'$READY'", ready))
			own.atEnd = defect
			child.own = own
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if name == "asked to" {
				go func() {
					defer cancel()
					for t.Context().Err() == nil {
						if _, err := os.Stat(ready); err == nil {
							return
						}
						runtime.Gosched()
					}
				}()
			}
			err := child.Run(ctx)
			if exit, exited := errors.AsType[*ExitError](err); !exited || exit.Code != 7 || !errors.Is(err, defect) {
				t.Errorf("it ended with %v", err)
			}
		})
	}
}
