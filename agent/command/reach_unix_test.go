//go:build unix

package command

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestAnAgentThatHangsIsAskedOnce(t *testing.T) {
	dir, err := os.MkdirTemp("", "hang") // a path short enough for a socket
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	for _, name := range []string{"agent.sock", "kms.sock"} {
		ln, err := net.Listen("unix", filepath.Join(dir, name)) // nobody accepts
		must(t, err)
		t.Cleanup(func() { _ = ln.Close() })
	}
	config := filepath.Join(dir, "agent.yaml")
	must(t, os.WriteFile(config, []byte("upstream: {local: {api: {socket: kms.sock}}}\nendpoint: {listen: off, socket: agent.sock}\n"), 0o600))
	a, _, _ := newApp("")
	a.configFlag = config
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err = a.askOperator(ctx, reachFlags{}, http.MethodGet, "/status")
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "agent.sock within 200ms") || hintFor(err, "") != hintHangs {
		t.Errorf("got %v", err)
	}
}
