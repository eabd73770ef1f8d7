package command

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestReaderOfTheLogThatStops starts an agent whose standard error is a pipe that is full and is
// not read, or one that nobody reads any more. It answers, renders what has changed, counts what
// is lost, ends well and soon when it is asked to, and leaves the pipe as it was.
func TestReaderOfTheLogThatStops(t *testing.T) {
	for _, gone := range []bool{false, true} {
		t.Run(fmt.Sprintf("gone=%t", gone), func(t *testing.T) {
			dir, bin := folderFor(t, "secretagent") // while no other test starts processes
			t.Parallel()
			r, w, err := os.Pipe()
			must(t, err)
			defer w.Close()
			defer r.Close()
			if gone {
				must(t, r.Close())
			} else {
				must(t, w.SetWriteDeadline(time.Now().Add(100*time.Millisecond)))
				_, _ = w.Write(make([]byte, 1<<20)) // more than any pipe holds
			}
			p := runAgentWith(t, dir, bin, `
upstream: {local: {database: ./secrets.db, keyring: ./keys/keyring.json, seed: [{name: app/db, data: first}], api: {socket: ./kms.sock}}}
endpoint: {listen: off, socket: ./agent.sock, tokenFile: ./token}
templates: [{contents: '{{ secret "app/db" }}', destination: ./app.env}]
log: {level: debug}
`, func(cmd *exec.Cmd) { cmd.Stderr = w })
			rendered := func(text string) {
				p.eventually("rendered: "+text, func() bool {
					b, _ := os.ReadFile(filepath.Join(dir, "app.env"))
					return string(b) == text
				})
			}
			rendered("first")
			put := exec.Command(bin, "secret", "put", "app/db", "--config", filepath.Join(dir, "agent.yaml"), "--data", "second")
			asNobody(put)
			if out, err := put.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			rendered("second")
			for path, want := range map[string]string{"/v1/app/db": "second", "/ready": "", "/metrics": "secretagent_log_lines_failed_total"} {
				if res, body, err := p.get(path); err != nil || res.StatusCode != http.StatusOK || !strings.Contains(body, want) {
					t.Errorf("%s: %v %s", path, err, body)
				} else if none := strings.Contains(body, want+" 0\n"); path == "/metrics" && none == gone {
					t.Errorf("lines are lost: %t, and counted: %t", gone, !none)
				}
			}
			must(t, p.cmd.Process.Signal(syscall.SIGTERM))
			asked := time.Now()
			if err := p.end(); err != nil || time.Since(asked) > 20*time.Second {
				t.Errorf("it ended with %v after %v", err, time.Since(asked))
			}
			conn, err := w.SyscallConn()
			must(t, err)
			must(t, conn.Control(func(fd uintptr) {
				if flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK != 0 {
					t.Errorf("it has changed the pipe, which it shares with others: %v", err)
				}
			}))
		})
	}
}
