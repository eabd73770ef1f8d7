// Package systemd holds a hardened service; this test has systemd judge it.
package systemd

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"secretagent/agent/config"
	"secretagent/examples/internal/example"
)

func TestVerify(t *testing.T) {
	analyze := example.Tool(t, "systemd-analyze")
	bin := example.Build(t)
	unit := strings.ReplaceAll(example.Read(t, "secretagent.service"), "/usr/local/bin/secretagent", bin)
	path := filepath.Join(t.TempDir(), "secretagent.service")
	example.Write(t, path, unit)
	// man pages need not be installed where this runs.
	out, code := example.Output(t, "", nil, analyze, "verify", "--man=no", path)
	if code != 0 || strings.Contains(out, "secretagent.service") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	// The same check must be able to fail.
	example.Write(t, path, strings.Replace(unit, "ProtectSystem=strict", "ProtectSystems=strict", 1))
	if out, _ := example.Output(t, "", nil, analyze, "verify", "--man=no", path); !strings.Contains(out, "ProtectSystems") {
		t.Errorf("a wrong key is not noticed:\n%s", out)
	}
}

// TestVerifyTheApplications: their units are such, and the one asks for what the agent's configuration gives.
func TestVerifyTheApplications(t *testing.T) {
	unit := example.Read(t, "app.service")
	cfg, err := config.Load("agent.yaml")
	example.Must(t, err)
	asked := regexp.MustCompile(`(?m)^LoadCredential=([a-z-]+):(.*)$`).FindAllStringSubmatch(unit, -1)
	if c := cfg.Endpoint.Credentials; len(asked) != 2 || len(c.Units["app.service"]) != 1 || c.Units["app.service"][0].Secret != "app/*" {
		t.Errorf("%v %+v", asked, c)
	}
	for _, a := range asked {
		if a[2] != string(cfg.Endpoint.Credentials.Socket) {
			t.Errorf("%s: the agent listens on %s", a[0], cfg.Endpoint.Credentials.Socket)
		}
	}
	analyze := example.Tool(t, "systemd-analyze")
	dir := t.TempDir()
	other := filepath.Join(dir, "app-file.service")
	example.Write(t, other, example.Read(t, "app-file.service"))
	example.Write(t, filepath.Join(dir, "secretagent.service"), strings.ReplaceAll(example.Read(t, "secretagent.service"), "/usr/local/bin/secretagent", "/bin/true"))
	path := filepath.Join(dir, "app.service")
	example.Write(t, path, unit)
	if out, code := example.Output(t, "", nil, analyze, "verify", "--man=no", path, other); code != 0 || strings.Contains(out, "app.service") || strings.Contains(out, "app-file.service") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
}

func TestScoreIsTheOneInTheReadme(t *testing.T) {
	analyze := example.Tool(t, "systemd-analyze")
	stated := regexp.MustCompile(`\*\*(\d+\.\d)\*\*`).FindStringSubmatch(example.Read(t, "README.md"))
	if stated == nil {
		t.Fatal("README.md states no score")
	}
	want, err := strconv.ParseFloat(stated[1], 64)
	example.Must(t, err)
	out, _ := example.Output(t, "", nil, analyze, "security", "--no-pager", "--offline=true", "secretagent.service")
	found := regexp.MustCompile(`Overall exposure level for secretagent\.service: (\d+\.\d)`).FindStringSubmatch(out)
	if found == nil {
		t.Skipf("this systemd-analyze cannot judge a file (systemd 250 can): %s", out)
	}
	if got, err := strconv.ParseFloat(found[1], 64); err != nil || got > want {
		t.Errorf("the score is %s, README.md states %s", found[1], stated[1])
	}
}

func TestConfigurationFitsTheUnit(t *testing.T) {
	t.Setenv("STATE_DIRECTORY", "")
	unit := example.Read(t, "secretagent.service")
	for _, state := range []string{"", "/var/lib/secretagent"} { // root's, and the service's
		t.Setenv("STATE_DIRECTORY", state)
		cfg, err := config.Source{File: "/etc/secretagent/agent.yaml"}.Parse([]byte(example.Read(t, "agent.yaml")))
		example.Must(t, err)
		// Everything is written to the two folders that the unit makes.
		for _, path := range []config.Path{
			cfg.Upstream.Local.Database, cfg.Upstream.Local.API.Socket, cfg.Endpoint.TokenFile,
			cfg.Endpoint.Credentials.Socket, cfg.Render.StateDir, cfg.Templates[0].Destination,
		} {
			if p := string(path); !strings.HasPrefix(p, "/var/lib/secretagent/") && !strings.HasPrefix(p, "/run/secretagent/") {
				t.Errorf("%s is in no folder of the service", p)
			}
		}
		// Root's keyring is what systemd copies.
		if !strings.Contains(unit, "\nLoadCredential=keyring.json:"+string(cfg.Upstream.Local.Keyring)+"\n") || !strings.Contains(unit, " --keyring %d/keyring.json\n") {
			t.Errorf("the unit does not hand over %s", cfg.Upstream.Local.Keyring)
		}
		if !strings.Contains(example.Read(t, "app-file.service"), "\nEnvironmentFile="+string(cfg.Templates[0].Destination)+"\n") || cfg.ReadyWhen != "rendered" {
			t.Errorf("the application does not wait for %s", cfg.Templates[0].Destination)
		}
	}
}

// host is the paths of the unit in a folder, and what systemd does with them.
type host struct {
	t            *testing.T
	bin, dir     string
	notified     *net.UnixConn
	statuses     []string
	env, command []string // of the service
}

func newHost(t *testing.T) *host {
	if runtime.GOOS == "windows" {
		t.Skip("no systemd")
	}
	h := &host{t: t, bin: example.Build(t), dir: example.Copy(t)}
	moved := strings.NewReplacer("/etc/secretagent", h.dir+"/etc", "/var/lib/secretagent", h.dir+"/lib", "/run/secretagent", h.dir+"/run", "127.0.0.1:2025", "127.0.0.1:0")
	example.Must(t, os.Mkdir(h.dir+"/etc", 0o755))
	example.Write(t, h.dir+"/etc/agent.yaml", moved.Replace(example.Read(t, "agent.yaml")))
	line := regexp.MustCompile(`(?m)^ExecStart=\S+ (.*)$`).FindStringSubmatch(example.Read(t, "secretagent.service"))
	h.command = strings.Fields(strings.NewReplacer("%d", h.dir+"/credentials").Replace(moved.Replace(line[1])))
	h.env = []string{"STATE_DIRECTORY=" + h.dir + "/lib", "CREDENTIALS_DIRECTORY=" + h.dir + "/credentials", "NOTIFY_SOCKET=" + h.dir + "/notify", "LC_ALL=C"}
	var err error
	h.notified, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: h.dir + "/notify", Net: "unixgram"})
	example.Must(t, err)
	t.Cleanup(func() { _ = h.notified.Close() })
	return h
}

// root runs a command as root would at the command line, without the variables of the service.
func (h *host) root(args ...string) string {
	h.t.Helper()
	args = append(args, "--config", h.dir+"/etc/agent.yaml", "--state-dir", h.dir+"/lib") // where /etc/secretagent means it
	out, code := example.Output(h.t, h.dir, nil, append([]string{h.bin}, args...)...)
	if code != 0 {
		h.t.Fatalf("%v: exit code %d\n%s", args, code, out)
	}
	return out
}

// start starts the service with a copy of root's keyring, and stops it when the test ends.
func (h *host) start() {
	h.t.Helper()
	ring, err := os.ReadFile(h.dir + "/etc/keyring.json")
	example.Must(h.t, err)
	example.Must(h.t, os.MkdirAll(h.dir+"/credentials", 0o700))
	example.Must(h.t, os.MkdirAll(h.dir+"/run", 0o700))
	example.Must(h.t, os.WriteFile(h.dir+"/credentials/keyring.json", ring, 0o400))
	example.Must(h.t, os.Rename(h.dir+"/etc/keyring.json", h.dir+"/etc/of-root")) // closed to the service
	cmd := exec.Command(h.bin, h.command...)
	cmd.Env = h.env
	log := &example.Buffer{}
	cmd.Stderr = log
	example.Must(h.t, cmd.Start())
	h.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil || h.t.Failed() {
			h.t.Errorf("the service ended with %v\n%s", err, log.String())
		}
	})
}

// await reads what the service tells systemd until it tells what.
func (h *host) await(what string) {
	h.t.Helper()
	b := make([]byte, 4096)
	for {
		example.Must(h.t, h.notified.SetReadDeadline(time.Now().Add(example.Patience)))
		n, err := h.notified.Read(b)
		if err != nil {
			h.t.Fatalf("%s was not told, only %q", what, h.statuses)
		}
		h.statuses = append(h.statuses, string(b[:n]))
		if strings.Contains(string(b[:n]), what) {
			return
		}
	}
}

// Ensure that a secret that was created before the first start is there after it, and that the file
// is there when systemd starts what is ordered after the service.
func TestSecretBeforeTheFirstStart(t *testing.T) {
	h := newHost(t)
	h.root("secret", "create", "app/db", "--data", `{"username":"app","password":"first"}`)
	h.start()
	h.await("READY=1")
	if text := example.Read(t, h.dir+"/run/app.env"); !strings.Contains(text, "DB_PASSWORD=first") || !strings.Contains(text, "DB_USERNAME=app") {
		t.Errorf("the application gets %q", text)
	}
	if out := h.root("secret", "get", "app/db"); !strings.Contains(out, "first") {
		t.Errorf("root gets %q", out)
	}
}

// Ensure that a service that was started too early says what it waits for, and is there when it has it.
func TestSecretAfterTheFirstStart(t *testing.T) {
	h := newHost(t)
	h.root("keys", "init", h.dir+"/etc/keyring.json")
	h.start()
	h.await("STATUS=not ready; secret app/db:ACSCurrent: ")
	h.root("secret", "create", "app/db", "--data", `{"username":"app","password":"first"}`)
	h.await("READY=1")
	if text := example.Read(t, h.dir+"/run/app.env"); !strings.Contains(text, "DB_PASSWORD=first") {
		t.Errorf("the application gets %q", text)
	}
	if early := strings.Join(h.statuses[:len(h.statuses)-1], "\n"); strings.Contains(early, "READY=1") {
		t.Errorf("told too early: %q", h.statuses)
	}
}

func TestVerifyTheTimer(t *testing.T) {
	cfg, err := config.Load("agent.yaml")
	example.Must(t, err)
	unit := example.Read(t, "secretagent-rotate.service")
	if len(cfg.Rotations) != 1 || cfg.Rotations[0].Every != 0 || !strings.Contains(unit, "secret rotate "+string(cfg.Rotations[0].Secret)+" ") {
		t.Errorf("rotations %+v", cfg.Rotations)
	}
	analyze := example.Tool(t, "systemd-analyze")
	dir := t.TempDir()
	var paths []string
	for _, name := range []string{"secretagent.service", "secretagent-rotate.service", "secretagent-rotate.timer"} {
		paths = append(paths, filepath.Join(dir, name))
		example.Write(t, filepath.Join(dir, name), strings.ReplaceAll(example.Read(t, name), "/usr/local/bin/secretagent", "/bin/true"))
	}
	if out, code := example.Output(t, "", nil, append([]string{analyze, "verify", "--man=no"}, paths...)...); code != 0 || strings.Contains(out, "secretagent") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
}
