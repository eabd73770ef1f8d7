package agent_test

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	"secretagent/agent"
	"secretagent/agent/config"
)

// startKMS runs a built-in backend with a KMS API over TCP, as a stand-in for the cloud. Its
// secret app/db has the given value; more is seed for others.
func startKMS(t *testing.T, value string, more ...string) (w *world, host, secretFile string) {
	t.Helper()
	w = start(t, shortTempDir(t), `
upstream:
  local:
    seed:
      - {name: app/db, data: "`+value+`"}`+strings.Join(more, "")+`
    api:
      socket: off
      listen: 127.0.0.1:0
      accessKeys: [{id: agent, secretFile: ./agent.secret, actions: [GetSecretValue], secrets: ["app/*"]}]
endpoint: {listen: off, socket: ./run/agent.sock}
process: {noDump: false}
`)
	return w, w.agent.APIAddrs()[0].String(), w.path("agent.secret")
}

// cloudConfig is an agent on the KMS at host, with a sealed cache.
func cloudConfig(host, secretFile string) string {
	return `
upstream:
  alibaba:
    endpoints: [{region: cn-hangzhou, host: "` + host + `", scheme: http}]
    credentials: {type: access_key, accessKeyIdFile: ./id, accessKeySecretFile: ` + secretFile + `}
    timeout: 500ms
    deadline: 1s
    retry: {maxAttempts: 2, base: 1ms, cap: 5ms}
cache:
  sealed: {path: ./data/cache.db, keyring: ./keys/keyring.json}
endpoint: {listen: "127.0.0.1:0", tokenFile: ./run/token, lookupTimeout: 2s}
secrets: [{name: app/db}]
process: {noDump: false}
`
}

func startOnCloud(t *testing.T, dir, text string) *world {
	t.Helper()
	if err := os.WriteFile(dir+"/id", []byte("agent\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return start(t, dir, text)
}

func TestReloadMovesToAnotherEndpoint(t *testing.T) {
	_, hostA, fileA := startKMS(t, "from A")
	_, hostB, fileB := startKMS(t, "from B")
	w := startOnCloud(t, shortTempDir(t), cloudConfig(hostA, fileA))
	w.ready()
	if _, data := w.lookup("/v1/app/db"); data != "from A" {
		t.Fatalf("got %q", data)
	}
	w.reconfigure(cloudConfig(hostB, fileB))
	if err := w.reload(); err != nil {
		t.Fatal(err)
	}
	if _, data := w.lookup("/v1/app/db?refreshNow=true"); data != "from B" {
		t.Errorf("after the reload, a refresh gave %q", data)
	}
	w.reconfigure(strings.Replace(cloudConfig(hostA, fileA), "deadline: 1s", "deadline: 2s", 1))
	if err := w.reload(); err == nil || !strings.Contains(err.Error(), "upstream.alibaba.deadline cannot change") {
		t.Errorf("a bound that the cache has taken over: %v", err)
	}
	if _, body := w.get("/metrics"); !strings.Contains(body, `secretagent_upstream_calls_total{code="OK",operation="GetSecretValue"} 2`) {
		t.Error("both clients together are not counted as two calls")
	}
}

func TestRestartWhileTheCloudIsGoneServesTheSealedCache(t *testing.T) {
	cloud, host, file := startKMS(t, marker)
	dir := shortTempDir(t)
	w := startOnCloud(t, dir, cloudConfig(host, file))
	w.ready()
	w.lookup("/v1/app/db")
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	if err := cloud.stop(); err != nil {
		t.Fatal(err)
	}

	w = startOnCloud(t, dir, cloudConfig(host, file))
	w.ready()
	req, err := http.NewRequest(http.MethodGet, w.url+"/v1/app/db", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-KMS-Token", w.token())
	res, err := w.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if got := fmt.Sprint(res.StatusCode, " ", res.Header.Get("X-Cache"), " ", res.Header.Get("X-Cache-Reason")); got != "200 stale ServiceUnavailableTemporary" {
		t.Errorf("got %s", got)
	}
	if _, data := w.lookup("/v1/app/db"); data != marker {
		t.Error("the value is another one")
	}
	sealed, err := os.ReadFile(w.path("data/cache.db"))
	if err != nil || strings.Contains(string(sealed), marker) {
		t.Errorf("the sealed cache shows the value, or %v", err)
	}
	if strings.Contains(w.log.String(), marker) {
		t.Error("the log shows the value")
	}
}

func TestProbeNamesTheSource(t *testing.T) {
	_, host, file := startKMS(t, marker)
	w := startOnCloud(t, shortTempDir(t), cloudConfig(host, file))
	cfg, err := config.Load(w.path("agent.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	results, err := agent.Probe(t.Context(), cfg, nil)
	if err != nil || len(results) != 1 {
		t.Fatalf("%+v, %v", results, err)
	}
	if r := results[0]; r.Endpoint != host || r.Credential != "access_key" || r.Secret != "app/db" || r.Err != nil {
		t.Errorf("%+v", r)
	}
}
