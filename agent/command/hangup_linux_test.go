package command

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// TestHangup sends SIGHUP to an agent whose configuration is wrong and whose audit log was
// rotated away, while clients ask: they notice nothing, the old configuration stays, and no
// audit line is lost.
func TestHangup(t *testing.T) {
	const good = `
upstream: {local: {database: ./secrets.db, keyring: ./keys/keyring.json, seed: [{name: app/db, data: x}], api: {socket: off}}}
endpoint: {listen: off, socket: ./agent.sock, tokenFile: ./token, audit: {file: ./audit.jsonl}}
`
	dir, bin := folderFor(t, "secretagent")
	p := runAgent(t, dir, bin, good)
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return ""
		}
		return string(text)
	}
	asked := 0
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			asked++
			if res, body, err := p.get("/v1/app/db"); err != nil || res.StatusCode != http.StatusOK {
				t.Errorf("lookup %d: %v %s", asked, err, body)
				return
			}
		}
	})
	p.eventually("audited", func() bool { return strings.Count(read("audit.jsonl"), "GetSecretValue") > 0 })

	// The new configuration appears by rename, as editors make it: by itself it is noticed too.
	next := filepath.Join(dir, "next.yaml")
	must(t, os.WriteFile(next, []byte(good+"cache: {ttl: -5s}\n"), 0o600))
	give(t, next)
	for from, to := range map[string]string{"audit.jsonl": "audit.jsonl.1", "next.yaml": "agent.yaml"} {
		must(t, os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)))
	}
	must(t, p.cmd.Process.Signal(syscall.SIGHUP))
	p.eventually("refused and rotated", func() bool {
		return strings.Contains(p.stderr.String(), "cache.ttl") && strings.Contains(read("audit.jsonl"), "GetSecretValue")
	})
	if _, metrics, err := p.get("/metrics"); err != nil || strings.Contains(metrics, `secretagent_reloads_total{outcome="failed"} 0`) {
		t.Errorf("the refused reload is not counted: %v", err)
	}
	close(stop)
	wg.Wait()
	p.eventually("every line is there", func() bool {
		return strings.Count(read("audit.jsonl")+read("audit.jsonl.1"), `"Operation":"GetSecretValue"`) == asked
	})
	must(t, p.cmd.Process.Signal(syscall.SIGTERM))
	if err := p.end(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
}
