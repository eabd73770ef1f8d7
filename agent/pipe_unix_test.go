//go:build unix

package agent_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"secretagent/agent"
)

// Ensure that a pipe in the place of a file that the configuration names is refused at once: to
// open one waits for its writer.
func TestPipesAreNoFiles(t *testing.T) {
	local := "upstream: {local: {api: {socket: off}}}\n"
	cloud := "upstream: {alibaba: {endpoints: [{region: cn-hangzhou, caFile: pipe}], credentials: {type: ecs_ram_role, roleName: r}}}\n"
	for _, text := range []string{
		local + "templates: [{source: pipe, destination: a}]",
		local + "sets: [{directory: a, files: [{name: a, source: pipe}]}]",
		local + "endpoint: {tokenFile: pipe}",
		local + "endpoint: {tls: {certFile: pipe, keyFile: pipe, clientCAFile: pipe}}",
		"upstream: {local: {keyring: pipe}}",
		local + "endpoint: {audit: {file: pipe}}",
		cloud,
	} {
		path := filepath.Join(t.TempDir(), "agent.yaml")
		must(t, os.WriteFile(path, []byte(text), 0o600))
		must(t, syscall.Mkfifo(filepath.Dir(path)+"/pipe", 0o600))
		checked := make(chan error, 1)
		go func() {
			_, err := agent.Load(path)
			checked <- err
		}()
		select {
		case err := <-checked:
			if n := strings.Count(text, "pipe"); err == nil || strings.Count(err.Error(), "is not a regular file")+strings.Count(err.Error(), "must not be a pipe") != n {
				t.Errorf("%s: got %v, want %d problems", text, err, n)
			}
		case <-time.After(time.Minute):
			t.Errorf("%s: it waits for a writer", text)
		}
	}
}
