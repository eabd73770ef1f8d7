package command

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"secretagent/upstream/upstreamtest"
)

// onWrite calls do with everything that is written by then.
type onWrite struct {
	upstreamtest.Buffer
	do func(text string)
}

func (w *onWrite) Write(p []byte) (int, error) {
	n, err := w.Buffer.Write(p)
	w.do(w.String())
	return n, err
}

// TestSignalWhileSeeding ends the context of the command line, as SIGTERM and SIGINT do, when the first of
// many secrets is seeded. The others are not, and that is no failure of run, while exec has not
// run its program.
func TestSignalWhileSeeding(t *testing.T) {
	const secrets = 2000
	for _, c := range []struct {
		verb string
		sig  syscall.Signal
		exit int
	}{{"run", syscall.SIGTERM, 0}, {"exec", syscall.SIGTERM, 143}, {"exec", syscall.SIGINT, 130}} {
		t.Run(fmt.Sprint(c.verb, " ", c.sig), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "agent.yaml")
			text := "upstream: {local: {database: ./secrets.db, keyring: ./keys/keyring.json, api: {socket: off}, seed: ["
			for n := range secrets {
				text += fmt.Sprintf("{name: app/%d, data: x},", n)
			}
			must(t, os.WriteFile(path, []byte(text+"]}}\nendpoint: {listen: off}\nexec: {command: [sleep, '1000']}\n"), 0o600))
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			stderr := &onWrite{do: func(text string) {
				if strings.Contains(text, "seeded") {
					cancel(signalled{c.sig})
				}
			}}
			exit := Main(ctx, Process{
				Args: []string{c.verb, "--config", path}, Stdin: strings.NewReader(""), Stdout: &upstreamtest.Buffer{}, Stderr: stderr,
				Getenv: func(string) string { return "" }, Build: Build{Version: "1.2.3"},
			})
			said := stderr.String()
			if n := strings.Count(said, " seeded "); exit != c.exit || n == 0 || n == secrets || strings.Contains(said, "secretagent: ") {
				t.Errorf("exit code %d with %d secrets seeded; the end of it:\n%s", exit, n, said[max(0, len(said)-500):])
			}
		})
	}
}
