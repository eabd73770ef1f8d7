// Package clients holds client programs in several languages; this test runs each of them on
// an agent, in the shape it was written for.
package clients

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"secretagent/agent"
	"secretagent/agent/config"
)

const value = `{"username":"app","password":"p w+é"}`

func TestClients(t *testing.T) {
	for _, mode := range []string{"kms", "aws"} {
		url, tokenFile := startAgent(t, mode)
		for _, argv := range [][]string{
			{"sh", "client.sh"}, {"python3", "client.py"}, {"node", "client.mjs"}, {"go", "run", "./goclient"},
		} {
			t.Run(mode+"/"+argv[0], func(t *testing.T) {
				tools := []string{argv[0]}
				if argv[0] == "sh" {
					tools = append(tools, "curl")
				}
				for _, tool := range tools {
					if _, err := exec.LookPath(tool); err != nil {
						t.Skipf("this client needs %s", tool)
					}
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				cmd := exec.CommandContext(ctx, argv[0], append(argv[1:], mode, "demo/db")...)
				variable := strings.ToUpper(mode) + "_TOKEN=file://" + tokenFile
				cmd.Env = append(os.Environ(), "AGENT="+url, variable)
				out, err := cmd.CombinedOutput()
				if got := strings.TrimSpace(string(out)); err != nil || got != value {
					t.Errorf("%v: %s", err, got)
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
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
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
