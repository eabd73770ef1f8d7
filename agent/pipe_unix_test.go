//go:build unix

package agent_test

import (
	"bufio"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"secretagent/agent"
	"secretagent/agent/config"
)

// Ensure that an audit log can go to a pipe that is read, as /dev/stdout often is, and that the
// agent refuses one that is not.
func TestAuditLogToAPipe(t *testing.T) {
	dir := shortTempDir(t)
	must(t, syscall.Mkfifo(dir+"/pipe", 0o600))
	reader, err := os.OpenFile(dir+"/pipe", os.O_RDONLY|syscall.O_NONBLOCK, 0)
	must(t, err)
	text := edited(basic, "endpoint:\n", "endpoint:\n  audit: {file: ./pipe}\n")
	w := start(t, dir, text)
	must(t, reader.SetReadDeadline(time.Now().Add(bound)))
	w.ready()
	w.lookup("/v1/demo/db")
	line, err := bufio.NewReader(reader).ReadString('\n')
	if err != nil || !strings.Contains(line, "demo/db") {
		t.Errorf("%q, %v", line, err)
	}
	must(t, w.stop())
	must(t, reader.Close())
	if _, err := config.Load(w.path("agent.yaml"), agent.Check); err == nil || !strings.Contains(err.Error(), "must not be a pipe") {
		t.Errorf("nobody reads: %v", err)
	}
}

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
			_, err := config.Load(path, agent.Check)
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

// Ensure that for an audit log of root the check says what the start does: a folder that its group
// may write to will do, also for a file that is there, and one of others will not.
func TestAuditLogOfRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give files away")
	}
	for _, c := range []struct {
		mode        os.FileMode
		uid         int
		there, isOK bool
	}{
		{0o775, 0, false, true},
		{0o775, 0, true, true},
		{0o777, 0, true, false},
		{0o755, 65533, true, false},
		{0o755, 65533, false, false},
	} {
		dir := shortTempDir(t)
		write(t, dir, map[string]string{"agent.yaml": edited(basic, "endpoint:\n", "endpoint:\n  audit: {file: ./log/audit}\n")})
		must(t, os.Mkdir(dir+"/log", 0o700))
		must(t, os.Chmod(dir+"/log", c.mode))
		must(t, os.Chown(dir+"/log", c.uid, -1))
		if c.there {
			must(t, os.WriteFile(dir+"/log/audit", nil, 0o600))
		}
		_, checked := config.Load(dir+"/agent.yaml", agent.Check)
		cfg, err := config.Load(dir + "/agent.yaml")
		must(t, err)
		a, started := agent.New(t.Context(), cfg, agent.Deps{})
		if started == nil {
			must(t, a.Close())
		}
		if (checked == nil) != c.isOK || (started == nil) != c.isOK {
			t.Errorf("%+v: the check says %v, the start %v", c, checked, started)
		}
	}
}
