package agent_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
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
	_ = flag.Set("test.parallel", "8") // those that are parallel wait rather than compute
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
	w := &world{t: t, dir: dir, log: &upstreamtest.Buffer{}, client: &http.Client{Transport: &http.Transport{}, Timeout: bound}}
	write(t, dir, map[string]string{"agent.yaml": text})
	var err error
	w.cfg, err = config.Load(w.path("agent.yaml"))
	must(t, err)
	logger, level, flush := agent.NewLogger(w.cfg.Log, agent.LogOutput{Writer: w.log})
	t.Cleanup(flush)
	w.agent, err = agent.New(t.Context(), w.cfg, agent.Deps{Logger: logger, Level: level, Version: "test", Stderr: w.log})
	must(t, err)
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

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// write writes files into dir: name → content.
func write(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
}

// edited returns text with the first of each old text replaced by the new one that follows it.
func edited(text string, oldNew ...string) string {
	for i := 0; i < len(oldNew); i += 2 {
		if !strings.Contains(text, oldNew[i]) {
			panic(oldNew[i] + " is not in the configuration")
		}
		text = strings.Replace(text, oldNew[i], oldNew[i+1], 1)
	}
	return text
}

// withSecrets returns basic with more under the key secrets.
func withSecrets(more string) string { return edited(basic, "secrets:\n", "secrets:\n"+more) }

// withKeys returns basic with access keys of the KMS API, of which each may do everything.
func withKeys(idAndFile string) string {
	return edited(basic, "api: {socket: ./run/kms.sock}",
		`api: {socket: ./run/kms.sock, listen: "127.0.0.1:0", accessKeys: [{`+idAndFile+`, actions: ["*"], secrets: ["*"]}]}`)
}

// shortTempDir returns a folder whose path leaves room for a socket's name.
func shortTempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sa")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// withObedient returns text with an application, of the name sh, that ends with 0 when it is
// asked to. It says with a file in dir from when on, see [world.obeys]: before its trap is set a
// signal kills it.
func withObedient(text, dir string) string {
	return text + `
exec:
  command: [sh, -c, 'trap "exit 0" TERM; : > "$0"; while :; do sleep 0.05; done', ` + dir + `/obeys, argument-of-exec]
  env: [{name: DB, secret: demo/db}]
  debounce: 1ms
`
}

// obeys waits until the application of [withObedient] can be stopped.
func (w *world) obeys() {
	w.t.Helper()
	w.eventually("the program has set its trap", func() bool {
		_, err := os.Stat(w.path("obeys"))
		return err == nil
	})
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func (w *world) read(name string) string {
	w.t.Helper()
	text, err := os.ReadFile(w.path(name))
	must(w.t, err)
	return strings.TrimSpace(string(text))
}

func (w *world) token() string { return w.read("run/token") }

// answer is what the endpoint answers.
type answer struct {
	*http.Response
	body string
}

// try sends a request, with a form unless that is nil, and headers: name, value, name, ….
func (w *world) try(method, url string, form url.Values, header ...string) (answer, error) {
	var body io.Reader
	if form != nil {
		body = strings.NewReader(form.Encode())
		header = append(header, "Content-Type", "application/x-www-form-urlencoded")
	}
	req, err := http.NewRequest(method, url, body)
	if err != nil {
		return answer{}, err
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := w.client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return answer{res, string(text)}, err
}

// ask asks the endpoint for path as the holder of token.
func (w *world) ask(path, token string) answer {
	w.t.Helper()
	got, err := w.try(http.MethodGet, w.url+path, nil, "X-KMS-Token", token)
	must(w.t, err)
	return got
}

// get asks the endpoint for path with the token of the agent.
func (w *world) get(path string) (status int, body string) {
	w.t.Helper()
	got := w.ask(path, w.token())
	return got.StatusCode, got.body
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
	m, closeManager, err := agent.OpenManager(ctx, w.cfg, slog.New(slog.DiscardHandler), agent.ExistingFiles)
	must(w.t, err)
	must(w.t, errors.Join(fn(ctx, m), closeManager()))
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
	for i := range 20 {
		version := fmt.Sprintf("r%d", i)
		w.put("demo/db", upstream.VersionID(version), `{"password":"`+version+`"}`)
		if got, _ := w.lookup("/v1/demo/db"); got != version {
			t.Fatalf("after %s was acknowledged, the lookup gave %s", version, got)
		}
		w.eventually("rendered "+version, func() bool { return w.rendered() == "PASSWORD="+version })
	}
	if version, _ := w.lookup("/v1/demo/db?versionStage=ACSPrevious"); version != "r18" {
		t.Errorf("ACSPrevious is %s", version)
	}
}

// TestRestartKeepsEverything also looks at the backend between the two agents, as the command
// line does when none runs.
func TestRestartKeepsEverything(t *testing.T) {
	dir := shortTempDir(t)
	w := start(t, dir, basic)
	w.ready()
	w.put("demo/db", "v2", `{"password":"second"}`)
	token := w.token()
	must(t, w.stop())
	for _, socket := range []string{"run/kms.sock", "run/agent.sock"} {
		if _, err := os.Stat(w.path(socket)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left behind: %v", socket, err)
		}
	}
	w.manage(func(ctx context.Context, m upstream.Manager) error {
		v, err := m.GetSecretValue(ctx, upstream.SecretRef{SecretName: "demo/db"})
		if err == nil && v.VersionID != "v2" {
			err = fmt.Errorf("got %s", v.VersionID)
		}
		return err
	})
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

// TestNewThatFailsTakesNothing fails on a database that another agent holds, and on a port.
func TestNewThatFailsTakesNothing(t *testing.T) {
	t.Parallel() // it waits
	dir := shortTempDir(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer taken.Close()
	write(t, dir, map[string]string{"agent.yaml": edited(basic, "127.0.0.1:0", taken.Addr().String())})
	cfg, err := config.Load(filepath.Join(dir, "agent.yaml"))
	must(t, err)
	if _, err := agent.New(t.Context(), cfg, agent.Deps{}); err == nil || !strings.Contains(err.Error(), "endpoint.listen") {
		t.Fatalf("a taken port gives: %v", err)
	}
	w := start(t, dir, basic) // would not get the database otherwise
	w.ready()
	_, err = agent.New(t.Context(), w.cfg, agent.Deps{})
	if upstream.ExitCode(err) != upstream.ExitUnavailable || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("the second agent got: %v", err)
	}
	if version, _ := w.lookup("/v1/demo/db"); version != "v1" {
		t.Errorf("lookup gave %s", version)
	}
	w.put("demo/db", "v2", "x")
}

func TestReadyNamesWhatIsMissing(t *testing.T) {
	text := edited(withSecrets("  - {name: not/there}\n"),
		"templates:\n", "templates:\n  - {contents: '{{ secret \"also/missing\" }}', destination: ./rendered/other}\n")
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
