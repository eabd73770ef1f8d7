package command

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestProcessOneReaps runs an agent without a program as process 1 of a namespace. What a hook
// leaves behind is reaped, and the hook's own exit status is not taken.
func TestProcessOneReaps(t *testing.T) {
	if testing.Short() {
		t.Skip("the reaper takes some seconds")
	}
	namespace := []string{"unshare", "--pid", "--fork", "--kill-child", "--mount-proc"}
	if out, err := exec.Command(namespace[0], append(namespace[1:], "true")...).CombinedOutput(); err != nil {
		t.Skipf("no new process namespace here: %v: %s", err, out)
	}
	dir, bin := folderFor(t, "secretagent")
	must(t, os.Chown(dir, os.Getuid(), -1)) // this agent is not nobody's
	t.Parallel()
	p := runAgentWith(t, dir, bin, `
upstream: {local: {database: ./secrets.db, keyring: ./keys/keyring.json, api: {socket: off}}}
endpoint: {listen: off, socket: ./agent.sock, tokenFile: ./token}
templates: [{contents: x, destination: ./x, hook: {command: [sh, -c, 'for i in 1 2 3; do sleep 0.1 >&- 2>&- & done']}}]
`, func(cmd *exec.Cmd) {
		cmd.Path, _ = exec.LookPath(namespace[0])
		cmd.Args, cmd.SysProcAttr = append(namespace, cmd.Args...), nil
	})
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", p.cmd.Process.Pid))
	must(t, err)
	zombies := func() (n int) {
		stats, _ := filepath.Glob("/proc/[0-9]*/stat")
		for _, path := range stats {
			stat, _ := os.ReadFile(path)
			if _, rest, _ := bytes.Cut(stat, []byte(") ")); bytes.HasPrefix(rest, fmt.Appendf(nil, "Z %s", children)) {
				n++
			}
		}
		return n
	}
	p.eventually("the hook has run", func() bool { return strings.Contains(p.stderr.String(), "hook done") })
	p.eventually("it leaves zombies", func() bool { return zombies() == 3 })
	p.eventually("they are reaped", func() bool { return zombies() == 0 })
	if _, metrics, err := p.get("/metrics"); err != nil || !strings.Contains(metrics, `secretagent_render_hooks_total{outcome="succeeded"} 1`) || strings.Contains(p.stderr.String(), "ERR") {
		t.Errorf("the hook failed: %v\n%s", err, p.stderr)
	}
}
