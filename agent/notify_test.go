package agent_test

import (
	"context"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"secretagent/upstream"
)

// systemd stands in for systemd: a datagram socket that notes what the agent tells.
type systemd struct {
	t    *testing.T
	conn net.Conn
	told chan string
}

func newSystemd(t *testing.T, dir string) *systemd {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no systemd")
	}
	socket := filepath.Join(dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	s := &systemd{t, conn, make(chan string, 1<<16)}
	go func() {
		defer close(s.told)
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			s.told <- string(buf[:n])
		}
	}()
	t.Setenv("NOTIFY_SOCKET", socket)
	return s
}

// await waits for what begins with want and contains more. Nothing but signs of life and other
// states may come between.
func (s *systemd) await(want string, more ...string) {
	s.t.Helper()
	for {
		select {
		case got := <-s.told:
			missing := !strings.HasPrefix(got, want)
			for _, m := range more {
				missing = missing || !strings.Contains(got, m)
			}
			if !missing {
				return
			}
			if got != "WATCHDOG=1" && !strings.HasPrefix(got, "STATUS=") {
				s.t.Fatalf("%q instead of %q", got, want)
			}
		case <-time.After(bound):
			s.t.Fatalf("%q with %q was not told", want, more)
		}
	}
}

func TestTellsSystemd(t *testing.T) {
	dir := shortTempDir(t)
	s := newSystemd(t, dir)
	t.Setenv("WATCHDOG_USEC", "20000")
	w := start(t, dir, basic)
	s.await("READY=1\nSTATUS=")
	for range 3 {
		s.await("WATCHDOG=1")
	}
	w.ready()
	must(t, w.agent.Reload(t.Context()))
	s.await("RELOADING=1\nMONOTONIC_USEC=")
	s.await("READY=1")
	w.wantRefused(basic+"secrts: []\n", "secrts")
	s.await("RELOADING=1\n")
	s.await("READY=1")
	s.await("STATUS=ready; configuration, not reloaded: ", "secrts")
	must(t, w.stop())
	s.await("STOPPING=1")
	s.conn.Close()
	for got := range s.told {
		if got != "WATCHDOG=1" {
			t.Errorf("%q after the end", got)
		}
	}
}

// TestTellsSystemdNoOutput: everybody on the host can read the state of a service, and a program
// may print a secret as no masking knows it.
func TestTellsSystemdNoOutput(t *testing.T) {
	dir := shortTempDir(t)
	s := newSystemd(t, dir)
	w := start(t, dir, edited(basic, "templates:\n", `templates:
  - {contents: '{{ secret "demo/db" }}', destination: ./rendered/checked, check: {command: [sh, -c, "echo 2retnuh; exit 1", "{{ .Path }}"]}}
  - {contents: 'x', destination: ./rendered/hooked, hook: {command: [sh, -c, "echo 2retnuh; exit 1"]}}
`))
	s.await("READY=1\nSTATUS=")
	s.await("STATUS=not ready; ", "; file "+w.path("rendered/hooked")+": secretagent status says why", "file "+w.path("rendered/checked")+": secretagent status says why")
	if _, text := w.statusOf(w.token()); strings.Count(text, "2retnuh") < 2 {
		t.Errorf("the status does not say why: %s", text)
	}
	must(t, w.stop())
	s.conn.Close()
	for got := range s.told {
		if strings.Contains(got, "2retnuh") {
			t.Errorf("told %q", got)
		}
	}
}

// TestTellsSystemdWhenEverythingIsThere: with readyWhen, the service starts until then, also through a
// reload, and its state says what is missing.
func TestTellsSystemdWhenEverythingIsThere(t *testing.T) {
	dir := shortTempDir(t)
	s := newSystemd(t, dir)
	text := edited(withSecrets("  - {name: not/there}\n"), "templates:\n", "templates:\n  - {contents: '{{ secret \"not/there\" }}', destination: ./rendered/other}\n") +
		"readyWhen: rendered\n"
	w := start(t, dir, text)
	s.await("STATUS=not ready; secret not/there:ACSCurrent: ", "there is no secret", "; file "+w.path("rendered/other")+": failed: ")
	must(t, w.agent.Reload(t.Context()))
	w.manage(func(ctx context.Context, m upstream.Manager) error {
		_, err := m.CreateSecret(ctx, upstream.CreateSecretInput{SecretName: "not/there", VersionID: "v1", SecretData: upstream.NewSecretData([]byte("x"))})
		return err
	})
	s.await("READY=1\nSTATUS=ready")
	if w.read("rendered/other") != "x" {
		t.Error("the file is not there")
	}
	must(t, w.agent.Reload(t.Context()))
	s.await("RELOADING=1\n")
	s.await("READY=1")
}
