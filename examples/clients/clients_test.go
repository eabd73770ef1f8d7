// Package clients holds client programs in several languages; this test runs each of them on
// an agent, in the shape it was written for.
package clients

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"secretagent/agent"
	"secretagent/agent/config"
	"secretagent/examples/internal/example"
)

const value = `{"username":"app","password":"p w+é"}`

func TestClients(t *testing.T) {
	if testing.Short() {
		t.Skip("the interpreters of four languages take seconds")
	}
	for _, mode := range []string{"kms", "aws"} {
		url, tokenFile := startAgent(t, mode)
		for _, argv := range [][]string{
			{"sh", "client.sh"}, {"python3", "client.py"}, {"node", "client.mjs"}, {"go", "run", "./goclient"},
		} {
			t.Run(mode+"/"+argv[0], func(t *testing.T) {
				tool := example.Tool(t, argv[0])
				if argv[0] == "sh" {
					example.Tool(t, "curl")
				}
				env := []string{"AGENT=" + url, strings.ToUpper(mode) + "_TOKEN=file://" + tokenFile}
				out, code := example.Output(t, "", env, append([]string{tool}, append(argv[1:], mode, "demo/db")...)...)
				if got := strings.TrimSpace(out); code != 0 || got != value {
					t.Errorf("exit code %d: %s", code, got)
				}
			})
		}
	}
}

// startAgent runs an agent that answers in the given shape until the test ends.
func startAgent(t *testing.T, format string) (url, tokenFile string) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "agent.yaml")
	text := `
upstream: {local: {seed: [{name: demo/db, data: '` + value + `'}], api: {socket: off}}}
endpoint: {listen: "127.0.0.1:0", format: ` + format + `}
process: {noDump: false}
`
	example.Write(t, path, text)
	cfg, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	a, err := agent.New(t.Context(), cfg, agent.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return "http://" + a.Addrs()[0].String(), string(cfg.Endpoint.TokenFile)
}
