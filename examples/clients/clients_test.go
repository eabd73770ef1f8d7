// Package clients holds client programs in several languages; these tests run all of them on one
// agent.
package clients

import (
	"path/filepath"
	"strings"
	"testing"

	"secretagent/examples/internal/example"
)

const value = `{"username":"app","password":"p w+é"}`

func TestClients(t *testing.T) {
	if testing.Short() {
		t.Skip("the interpreters of four languages take seconds")
	}
	dir := t.TempDir()
	a, _ := example.Within(t, dir, `
upstream: {local: {seed: [{name: demo/db, data: '`+value+`'}], api: {socket: off}}}
endpoint: {listen: "127.0.0.1:0", tokenFile: token}
process: {noDump: false}
`)
	for _, mode := range []string{"kms", "aws"} {
		for _, argv := range [][]string{
			{"sh", "client.sh"}, {"python3", "client.py"}, {"node", "client.mjs"}, {"go", "run", "./goclient"},
		} {
			t.Run(mode+"/"+argv[0], func(t *testing.T) {
				tool := example.Tool(t, argv[0])
				if argv[0] == "sh" {
					example.Tool(t, "curl")
				}
				env := []string{"AGENT=http://" + a.Addrs()[0].String(), strings.ToUpper(mode) + "_TOKEN=file://" + filepath.Join(dir, "token")}
				out, code := example.Output(t, "", env, append([]string{tool}, append(argv[1:], mode, "demo/db")...)...)
				if got := strings.TrimSpace(out); code != 0 || got != value {
					t.Errorf("exit code %d: %s", code, got)
				}
			})
		}
	}
}
