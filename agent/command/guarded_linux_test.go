package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"secretagent/agent"
	"secretagent/agent/config"
	"secretagent/upstream/upstreamtest"
)

// nobody is the user that agents and attackers of these tests are, when root runs them.
const nobody = 65534

// daemon is the program, run as a process of its own.
type daemon struct {
	t      *testing.T
	dir    string
	cmd    *exec.Cmd
	client *http.Client
	stderr *upstreamtest.Buffer
	end    func() error // waits for it
}

// folderFor returns a folder with a copy of this binary called name, both of which nobody may use.
func folderFor(t *testing.T, name string) (dir, bin string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "sa")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path, err := os.Executable()
	must(t, err)
	text, err := os.ReadFile(path)
	must(t, err)
	bin = filepath.Join(dir, name)
	must(t, os.WriteFile(bin, text, 0o755))
	give(t, dir)
	return dir, bin
}

func TestCheckTellsOfADatabaseOfOthers(t *testing.T) {
	dir, bin := folderFor(t, "secretagent")
	for path, text := range map[string]string{"agent.yaml": "upstream: {local: {database: ./data/secrets.db}}\n", "data/secrets.db": ""} {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, path), []byte(text), 0o644))
	}
	for _, c := range []struct {
		folder, file os.FileMode
		want         string
	}{
		{0o777, 0o666, ""},
		{0o777, 0, "upstream.local.database: cannot be used by this user: .*permission denied: .*secrets.db belongs to "},
		{0o555, 0, "upstream.local.database: cannot be used by this user: .*data: permission denied: .*data belongs to "},
	} {
		database := filepath.Join(dir, "data", "secrets.db")
		if c.folder == 0o555 {
			must(t, os.Remove(database))
		} else {
			must(t, os.Chmod(database, c.file))
		}
		must(t, os.Chmod(filepath.Dir(database), c.folder))
		cmd := exec.Command(bin, "check", "--config", filepath.Join(dir, "agent.yaml"))
		asNobody(cmd)
		out, err := cmd.CombinedOutput()
		if got := string(out); err != nil || !regexp.MustCompile(c.want).MatchString(got) || strings.Contains(got, "warning:") != (c.want != "") {
			t.Errorf("folder %o, file %o: %v\n%s", c.folder, c.file, err, got)
		}
	}
}

func give(t *testing.T, path string) {
	t.Helper()
	if os.Getuid() == 0 {
		must(t, os.Chown(path, nobody, nobody))
	}
}

func asNobody(cmd *exec.Cmd) { asUser(cmd, nobody) }

func asUser(cmd *exec.Cmd, id uint32) {
	if os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: id, Gid: id}}
	}
}

// runAgent starts the program on the configuration in dir, whose endpoint is ./agent.sock, and
// waits until it is alive.
func runAgent(t *testing.T, dir, bin, text string) *daemon {
	t.Helper()
	return runAgentWith(t, dir, bin, text, func(*exec.Cmd) {})
}

// runAgentWith does it after change has changed how the program is run.
func runAgentWith(t *testing.T, dir, bin, text string, change func(*exec.Cmd)) *daemon {
	t.Helper()
	path := filepath.Join(dir, "agent.yaml")
	must(t, os.WriteFile(path, []byte(text), 0o600))
	give(t, path)
	p := &daemon{t: t, dir: dir, stderr: &upstreamtest.Buffer{}}
	p.cmd = exec.Command(bin, "run", "--config", path)
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, p.stderr, p.stderr
	// As much as a crash can ever tell.
	p.cmd.Env = append(os.Environ(), "GOTRACEBACK=crash")
	asNobody(p.cmd)
	change(p.cmd)
	must(t, p.cmd.Start())
	p.end = sync.OnceValue(p.cmd.Wait)
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		_ = p.end()
	})
	p.client = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", filepath.Join(dir, "agent.sock"))
		},
	}}
	p.eventually("alive", func() bool { _, _, err := p.get("/live"); return err == nil })
	return p
}

func (p *daemon) eventually(what string, isTrue func() bool) {
	p.t.Helper()
	for deadline := time.Now().Add(time.Minute); !isTrue(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.t.Fatalf("%s: not so; the agent said:\n%s", what, p.stderr)
		}
	}
}

func (p *daemon) get(path string) (res *http.Response, body string, err error) {
	req, err := http.NewRequest(http.MethodGet, "http://localhost"+path, nil)
	if err != nil {
		return nil, "", err
	}
	token, _ := os.ReadFile(filepath.Join(p.dir, "token"))
	req.Header.Set("X-KMS-Token", strings.TrimSpace(string(token)))
	res, err = p.client.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return res, string(text), err
}

// crash ends the process with SIGABRT and reports whether the kernel wrote its memory down.
func (p *daemon) crash() (dumped bool) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGABRT); err != nil {
		p.t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := p.end(); !errors.As(err, &exit) {
		p.t.Fatalf("after SIGABRT: %v", err)
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() {
		p.t.Fatalf("after SIGABRT: %v", exit)
	}
	return status.CoreDump()
}

// victim names the process that [TestAttack] attacks.
const victim = "SECRETAGENT_TEST_VICTIM"

// TestAttack is run as a process of its own by [TestMemoryIsGuarded]. It says what it could do.
func TestAttack(t *testing.T) {
	pid, err := strconv.Atoi(os.Getenv(victim))
	if err != nil {
		t.Skip("runs in a process of its own")
	}
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	for _, name := range []string{"mem", "environ", "maps"} {
		if f, err := os.Open(filepath.Join(proc, name)); err == nil {
			fmt.Println("could open", name)
			_ = f.Close()
		}
	}
	if _, err := os.ReadDir(filepath.Join(proc, "fd")); err == nil {
		fmt.Println("could list fd")
	}
	if nc, err := net.Dial("unix", os.Getenv(victim+"_SOCKET")); err == nil {
		fmt.Println("could connect")
		_ = nc.Close()
	}
	runtime.LockOSThread()
	if err := syscall.PtraceAttach(pid); err == nil {
		fmt.Println("could attach")
		_, _ = syscall.Wait4(pid, nil, 0, nil)
		_ = syscall.PtraceDetach(pid)
	}
}

// TestMemoryIsGuarded lets a process of the same user try to read the memory of an agent, and
// crashes the agent where a core dump could be written. The same is done to an agent without
// guard, which shows that the attempts are worth something.
func TestMemoryIsGuarded(t *testing.T) {
	var limit syscall.Rlimit
	must(t, syscall.Getrlimit(syscall.RLIMIT_CORE, &limit))
	was := limit.Cur
	limit.Cur = limit.Max
	must(t, syscall.Setrlimit(syscall.RLIMIT_CORE, &limit))
	t.Cleanup(func() { limit.Cur = was; _ = syscall.Setrlimit(syscall.RLIMIT_CORE, &limit) })

	const marker = "MARKER-in-the-memory"
	try := func(noDump bool) (seen string, dumped bool) {
		dir, bin := folderFor(t, "secretagent")
		_, attacker := folderFor(t, "attack.test")
		p := runAgent(t, dir, bin, fmt.Sprintf(`
upstream: {local: {database: ./secrets.db, keyring: ./keys/keyring.json, seed: [{name: app/db, data: %s}], api: {socket: off}}}
endpoint: {listen: off, socket: ./agent.sock, tokenFile: ./token}
process: {noDump: %t}
log: {level: debug}
`, marker, noDump))
		if res, body, err := p.get("/v1/app/db"); err != nil || res.StatusCode != http.StatusOK || !strings.Contains(body, marker) {
			t.Fatalf("%v %s", err, body)
		}
		attackAs := func(user uint32, socket string) string {
			cmd := exec.Command(attacker, "-test.run=^TestAttack$")
			cmd.Env = append(os.Environ(), victim+"="+strconv.Itoa(p.cmd.Process.Pid), victim+"_SOCKET="+socket)
			asUser(cmd, user)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("attacker: %v: %s", err, out)
			}
			var could []string
			for line := range strings.Lines(string(out)) {
				if what, ok := strings.CutPrefix(strings.TrimSpace(line), "could "); ok {
					could = append(could, what)
				}
			}
			return strings.Join(could, ", ")
		}
		seen = attackAs(nobody, "")
		if os.Getuid() == 0 {
			for _, path := range []string{dir, filepath.Dir(attacker)} {
				must(t, os.Chmod(path, 0o755))
			}
			if got := attackAs(nobody-1, filepath.Join(dir, "agent.sock")); got != "" {
				t.Errorf("another user could %s", got)
			}
		}
		dumped = p.crash()
		if strings.Contains(p.stderr.String(), marker) {
			t.Error("what the agent said, its last words included, has the value")
		}
		if !strings.Contains(p.stderr.String(), "SIGABRT") {
			t.Errorf("no last words:\n%s", p.stderr)
		}
		cores, err := filepath.Glob(filepath.Join(dir, "*core*"))
		if err != nil || noDump && len(cores) > 0 {
			t.Errorf("core files: %v %v", cores, err)
		}
		return seen, dumped
	}
	seen, dumped := try(true)
	if seen != "" || dumped {
		t.Errorf("an agent with guard: a process of its user could %s; core dumped: %t", seen, dumped)
	}
	seen, dumped = try(false)
	t.Logf("without guard: %s; core dumped: %t", seen, dumped)
	if !strings.Contains(seen, "open mem") && !strings.Contains(seen, "open environ") {
		t.Errorf("without guard the attacker got nothing either, so this test proves nothing: %s", seen)
	}
}

// TestKilledAgentServesTheSealedCache kills an agent with SIGKILL while the cloud is there, and
// starts it again when the cloud is gone.
func TestKilledAgentServesTheSealedCache(t *testing.T) {
	if testing.Short() {
		t.Skip("it waits for agents to start and to come back")
	}
	cloudDir := t.TempDir()
	path := filepath.Join(cloudDir, "cloud.yaml")
	err := os.WriteFile(path, []byte(`
upstream:
  local:
    database: ./secrets.db
    keyring: ./keys/keyring.json
    seed: [{name: app/a, data: first}, {name: app/b, data: second}]
    api: {socket: off, listen: 127.0.0.1:0, accessKeys: [{id: agent, secretFile: ./secret, actions: [GetSecretValue], secrets: ["app/*"]}]}
endpoint: {listen: off, socket: ./cloud.sock}
process: {noDump: false}
`), 0o600)
	must(t, err)
	cfg, err := config.Load(path)
	must(t, err)
	cloud, err := agent.New(t.Context(), cfg, agent.Deps{})
	must(t, err)
	ctx, stopCloud := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- cloud.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		stopCloud()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)

	dir, bin := folderFor(t, "secretagent")
	for name, from := range map[string]string{"id": "", "secret": filepath.Join(cloudDir, "secret")} {
		text := []byte("agent\n")
		if from != "" {
			if text, err = os.ReadFile(from); err != nil {
				t.Fatal(err)
			}
		}
		must(t, os.WriteFile(filepath.Join(dir, name), text, 0o600))
		give(t, filepath.Join(dir, name))
	}
	text := `
upstream:
  alibaba:
    endpoints: [{region: cn-hangzhou, host: "` + cloud.APIAddrs()[0].String() + `", scheme: http}]
    credentials: {type: access_key, accessKeyIdFile: ./id, accessKeySecretFile: ./secret}
    timeout: 500ms
    deadline: 1s
cache: {sealed: {path: ./data/cache.db, keyring: ./keys/keyring.json}}
endpoint: {listen: off, socket: ./agent.sock, tokenFile: ./token}
secrets: [{name: app/a}]
`
	p := runAgent(t, dir, bin, text)
	p.eventually("both are held and sealed", func() bool {
		_, _, _ = p.get("/v1/app/b")
		_, metrics, err := p.get("/metrics")
		return err == nil && strings.Contains(metrics, "\nsecretagent_cache_sealed_records 2\n") && strings.Contains(metrics, "\nsecretagent_cache_sealed_pending 0\n")
	})
	must(t, p.cmd.Process.Kill())
	_ = p.end()
	stop()

	p = runAgent(t, dir, bin, text)
	for name, want := range map[string]string{"app/a": "first", "app/b": "second"} {
		res, body, err := p.get("/v1/" + name + "?format=raw")
		if err != nil || res.StatusCode != http.StatusOK || body != want || res.Header.Get("X-Cache") != "stale" || res.Header.Get("X-Cache-Reason") == "" {
			t.Errorf("%s after the restart: %v %v %q", name, err, res, body)
		}
	}
}
