package agent_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"secretagent/agent"
	"secretagent/agent/config"
	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// fasthttp's servers leave a goroutine that ends within ten seconds, and one that
		// lives as long as the process.
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"))
}

// bound is how long a test waits for anything; on an idle machine all of it takes milliseconds.
const bound = time.Minute

// marker is a value that must not be found anywhere but where it was asked for.
const marker = "MARKER-first-secret"

// basic is a configuration with everything on: TCP, both sockets, a seed and a template.
const basic = `
upstream:
  local:
    database: ./data/secrets.db
    keyring: ./keys/keyring.json
    seed:
      - {name: demo/db, versionId: v1, data: '{"username":"app","password":"` + marker + `"}'}
    api: {socket: ./run/kms.sock}
endpoint:
  listen: 127.0.0.1:0
  socket: ./run/agent.sock
  tokenFile: ./run/token
secrets:
  - {name: demo/db}
templates:
  - contents: 'PASSWORD={{ (secretJSON "demo/db").password }}'
    destination: ./rendered/app.env
render: {stateDir: ./state}
process: {noDump: false}
log: {level: debug}
`

// world is a running agent and what a test does with it.
type world struct {
	t      *testing.T
	dir    string
	cfg    *config.Config
	agent  *agent.Agent
	url    string // of the endpoint over TCP
	client *http.Client
	log    *upstreamtest.Buffer
	stop   func() error // waits for the agent to end
}

// start runs an agent on configuration text in dir until the test ends.
func start(t *testing.T, dir, text string) *world {
	t.Helper()
	w := &world{t: t, dir: dir, log: &upstreamtest.Buffer{}}
	path := filepath.Join(dir, "agent.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	if w.cfg, err = config.Load(path); err != nil {
		t.Fatal(err)
	}
	logger, level, flush := agent.NewLogger(w.cfg.Log, agent.LogOutput{Writer: w.log})
	t.Cleanup(flush)
	if w.agent, err = agent.New(t.Context(), w.cfg, agent.Deps{Logger: logger, Level: level, Version: "test", Stderr: w.log}); err != nil {
		t.Fatal(err)
	}
	w.client = &http.Client{Transport: &http.Transport{}, Timeout: bound}
	for _, addr := range w.agent.Addrs() {
		if addr.Network() == "tcp" {
			w.url = "http://" + addr.String()
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.agent.Run(ctx) }()
	w.stop = sync.OnceValue(func() error {
		w.client.CloseIdleConnections()
		cancel()
		return <-done
	})
	t.Cleanup(func() {
		if err := w.stop(); err != nil {
			t.Errorf("the agent ended with: %v", err)
		}
	})
	return w
}

// shortTempDir returns a folder whose path leaves room for a socket's name.
func shortTempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sa")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// obedient is a program for exec.command, as YAML, that ends with 0 when it is asked to. It says
// with a file in dir from when on, see [world.obeys]: before its trap is set a signal kills it.
func obedient(dir string) string {
	return `[sh, -c, 'trap "exit 0" TERM; : > "$0"; while :; do sleep 0.05; done', ` + dir + `/obeys, argument-of-exec]`
}

// obeys waits until the program of obedient can be stopped.
func (w *world) obeys() {
	w.t.Helper()
	w.eventually("the program has set its trap", func() bool {
		_, err := os.Stat(w.path("obeys"))
		return err == nil
	})
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func (w *world) token() string {
	w.t.Helper()
	text, err := os.ReadFile(w.path("run/token"))
	if err != nil {
		w.t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// get asks the endpoint for path with the token.
func (w *world) get(path string) (status int, body string) {
	w.t.Helper()
	req, err := http.NewRequest(http.MethodGet, w.url+path, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("X-KMS-Token", w.token())
	res, err := w.client.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

// lookup returns the version and data that the endpoint answers.
func (w *world) lookup(path string) (version, data string) {
	w.t.Helper()
	status, body := w.get(path)
	var v struct{ VersionId, SecretData string }
	if err := json.Unmarshal([]byte(body), &v); status != http.StatusOK || err != nil {
		w.t.Fatalf("GET %s: %d %s %v", path, status, body, err)
	}
	return v.VersionId, v.SecretData
}

// manage calls fn with the backend, as the command line reaches it.
func (w *world) manage(fn func(context.Context, upstream.Manager) error) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	m, closeManager, err := agent.OpenManager(ctx, w.cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		w.t.Fatal(err)
	}
	if err := errors.Join(fn(ctx, m), closeManager()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) put(name upstream.SecretName, version upstream.VersionID, data string) {
	w.t.Helper()
	w.manage(func(ctx context.Context, m upstream.Manager) error {
		_, err := m.PutSecretValue(ctx, upstream.PutSecretValueInput{SecretName: name, VersionID: version, SecretData: upstream.NewSecretData([]byte(data))})
		return err
	})
}

// eventually waits for what to become true.
func (w *world) eventually(what string, isTrue func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(bound); !isTrue(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("%s did not come true; log:\n%s", what, w.log)
		}
	}
}

func (w *world) ready() {
	w.eventually("ready", func() bool { s, _ := w.get("/ready"); return s == http.StatusOK })
}

func (w *world) rendered() string {
	text, _ := os.ReadFile(w.path("rendered/app.env"))
	return string(text)
}

func TestServesRendersAndFollowsChanges(t *testing.T) {
	w := start(t, shortTempDir(t), basic)
	w.ready()
	if version, data := w.lookup("/v1/demo/db"); version != "v1" || !strings.Contains(data, marker) {
		t.Errorf("the first lookup gave %s", version)
	}
	if got, want := w.rendered(), "PASSWORD="+marker; got != want {
		t.Errorf("rendered %q", got)
	}
	for name, want := range map[string]os.FileMode{
		"rendered/app.env": 0o600, "run/token": 0o600, "run/kms.sock": 0o600, "run/agent.sock": 0o600,
		"data/secrets.db": 0o600, "keys/keyring.json": 0o600, "rendered": 0o700, "data": 0o700, "keys": 0o700,
	} {
		info, err := os.Stat(w.path(name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v; want %v", name, info.Mode(), err, want)
		}
	}

	// An acknowledged write is what the very next lookup answers, every time.
	for i := range 50 {
		version := fmt.Sprintf("r%d", i)
		w.put("demo/db", upstream.VersionID(version), `{"password":"`+version+`"}`)
		if got, _ := w.lookup("/v1/demo/db"); got != version {
			t.Fatalf("after %s was acknowledged, the lookup gave %s", version, got)
		}
		w.eventually("rendered "+version, func() bool { return w.rendered() == "PASSWORD="+version })
	}
	if version, _ := w.lookup("/v1/demo/db?versionStage=ACSPrevious"); version != "r48" {
		t.Errorf("ACSPrevious is %s", version)
	}
}

func TestRestartKeepsEverything(t *testing.T) {
	dir := shortTempDir(t)
	w := start(t, dir, basic)
	w.ready()
	w.put("demo/db", "v2", `{"password":"second"}`)
	token := w.token()
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	for _, socket := range []string{"run/kms.sock", "run/agent.sock"} {
		if _, err := os.Stat(w.path(socket)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left behind: %v", socket, err)
		}
	}
	w = start(t, dir, basic)
	w.ready()
	if w.token() != token {
		t.Error("the token changed")
	}
	if version, _ := w.lookup("/v1/demo/db"); version != "v2" {
		t.Errorf("the seed undid version v2: %s", version)
	}
	if version, _ := w.lookup("/v1/demo/db?versionStage=ACSPrevious"); version != "v1" {
		t.Errorf("ACSPrevious is %s", version)
	}
}

func TestCommandsOpenTheBackendWhenNoAgentRuns(t *testing.T) {
	w := start(t, shortTempDir(t), basic)
	w.ready()
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	w.manage(func(ctx context.Context, m upstream.Manager) error {
		v, err := m.GetSecretValue(ctx, upstream.SecretRef{SecretName: "demo/db"})
		if err == nil && v.VersionID != "v1" {
			err = fmt.Errorf("got %s", v.VersionID)
		}
		return err
	})
}

func TestTwoAgentsOnOneDatabase(t *testing.T) {
	w := start(t, shortTempDir(t), basic)
	w.ready()
	_, err := agent.New(t.Context(), w.cfg, agent.Deps{})
	if upstream.ExitCode(err) != upstream.ExitUnavailable || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("the second agent got: %v", err)
	}
	// The failed one took nothing away from the first.
	if version, _ := w.lookup("/v1/demo/db"); version != "v1" {
		t.Errorf("lookup gave %s", version)
	}
	w.put("demo/db", "v2", "x")
}

func TestNewReleasesEverythingWhenItFails(t *testing.T) {
	dir := shortTempDir(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	path := filepath.Join(dir, "agent.yaml")
	text := strings.Replace(basic, "127.0.0.1:0", taken.Addr().String(), 1)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := agent.New(t.Context(), cfg, agent.Deps{}); err == nil || !strings.Contains(err.Error(), "endpoint.listen") {
		t.Fatalf("a taken port gives: %v", err)
	}
	start(t, dir, basic).ready() // would not get the database otherwise
}

func TestReadyNamesWhatIsMissing(t *testing.T) {
	text := strings.Replace(basic, "secrets:\n", "secrets:\n  - {name: not/there}\n", 1)
	text = strings.Replace(text, "templates:\n", "templates:\n  - {contents: '{{ secret \"also/missing\" }}', destination: ./rendered/other}\n", 1)
	w := start(t, shortTempDir(t), text)
	w.eventually("both problems", func() bool {
		status, body := w.get("/ready")
		return status == http.StatusServiceUnavailable && strings.Contains(body, "not/there") && strings.Contains(body, "also/missing")
	})
	w.manage(func(ctx context.Context, m upstream.Manager) error {
		for _, name := range []upstream.SecretName{"not/there", "also/missing"} {
			if _, err := m.CreateSecret(ctx, upstream.CreateSecretInput{SecretName: name, VersionID: "v1", SecretData: upstream.NewSecretData([]byte("x"))}); err != nil {
				return err
			}
		}
		return nil
	})
	w.ready()
}

// TestNoSecretIsLeftAnywhere drives every part with a marker and looks for it in everything
// the agent writes that is not its product.
func TestNoSecretIsLeftAnywhere(t *testing.T) {
	w := start(t, shortTempDir(t), basic)
	w.ready()
	w.lookup("/v1/demo/db")
	w.get("/v1/demo/db?versionId=nope")
	for _, query := range []string{"?field=password&format=raw", "?format=aws", "?format=vault", "?refreshNow=true", "?foo=1"} {
		w.get("/v1/demo/db" + query)
	}
	w.put("demo/db", "v2", marker+"-second")
	w.manage(func(ctx context.Context, m upstream.Manager) error {
		_, err := m.PutSecretValue(ctx, upstream.PutSecretValueInput{SecretName: "demo/db", VersionID: "v2", SecretData: upstream.NewSecretData([]byte(marker + "-other"))})
		if !errors.Is(err, upstream.ErrExists) || strings.Contains(err.Error(), marker) {
			return fmt.Errorf("a refused rewrite: %w", err)
		}
		return nil
	})
	_, ready := w.get("/ready")
	_, metrics := w.get("/metrics")
	token := w.token()
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	found := map[string]string{"log": w.log.String(), "ready": ready, "metrics": metrics, "config": fmt.Sprintf("%+v", w.cfg)}
	err := filepath.WalkDir(w.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if slices.Contains([]string{"agent.yaml", "app.env", "token"}, d.Name()) {
			return nil // the seed, the product, the token's own file
		}
		text, err := os.ReadFile(path)
		found[path] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for where, text := range found {
		for _, secret := range []string{marker, token} {
			if i := strings.Index(text, secret); i >= 0 {
				t.Errorf("%s holds a secret: …%s…", where, text[max(0, i-80):min(len(text), i+80)])
			}
		}
	}
}
