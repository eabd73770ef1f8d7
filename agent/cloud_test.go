package agent_test

import (
	"net/http"
	"strings"
	"testing"

	"secretagent/agent"
)

// startKMS runs a built-in backend with a KMS API over TCP, as a stand-in for the cloud. Its
// secret app/db has the given value; more is seed for others, or what else stands below it.
func startKMS(t *testing.T, value string, more ...string) (w *world, host, secretFile string) {
	t.Helper()
	w = start(t, shortTempDir(t), `
endpoint: {listen: off, socket: ./run/agent.sock}
process: {noDump: false}
upstream:
  local:
    api:
      listen: 127.0.0.1:0
      accessKeys: [{id: agent, secretFile: ./agent.secret, actions: [GetSecretValue], secrets: ["app/*"]}]
    seed:
      - {name: app/db, versionId: v1, data: '`+value+`'}`+strings.Join(more, "")+"\n")
	return w, w.agent.APIAddrs()[1].String(), w.path("agent.secret")
}

// cloudConfig is an agent on the KMS at host, with a sealed cache.
func cloudConfig(host, secretFile string) string {
	return `
upstream:
  alibaba:
    endpoints: [{region: cn-hangzhou, host: "` + host + `", scheme: http}]
    credentials: {type: access_key, accessKeyIdFile: ./id, accessKeySecretFile: ` + secretFile + `}
    timeout: 30s
    deadline: 30s
    retry: {maxAttempts: 2, base: 1ms, cap: 5ms}
cache:
  sealed: {path: ./data/cache.db, keyring: ./keys/keyring.json}
endpoint: {listen: "127.0.0.1:0", tokenFile: ./run/token, lookupTimeout: 30s}
secrets: [{name: app/db}]
process: {noDump: false}
`
}

func startOnCloud(t *testing.T, dir, text string) *world {
	t.Helper()
	write(t, dir, map[string]string{"id": "agent\n"})
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
	must(t, w.reload(cloudConfig(hostB, fileB)))
	if _, data := w.lookup("/v1/app/db?refreshNow=true"); data != "from B" {
		t.Errorf("after the reload, a refresh gave %q", data)
	}
	w.wantRefused(edited(cloudConfig(hostA, fileA), "deadline: 30s", "deadline: 40s"), "upstream.alibaba.deadline cannot change") // the cache has taken it over
	// And a third where the change of clients may have missed a change, see [kms.Client.Watch].
	if n := w.series()[`secretagent_upstream_calls_total{code="OK",operation="GetSecretValue"}`]; n != 2 && n != 3 {
		t.Errorf("both clients together are counted as %v calls", n)
	}
}

func TestRestartWhileTheCloudIsGoneServesTheSealedCache(t *testing.T) {
	cloud, host, file := startKMS(t, marker)
	dir := shortTempDir(t)
	w := startOnCloud(t, dir, cloudConfig(host, file))
	w.ready()
	w.lookup("/v1/app/db")
	must(t, w.stop())
	must(t, cloud.stop())

	w = startOnCloud(t, dir, cloudConfig(host, file))
	w.ready()
	got := w.ask("/v1/app/db", w.token())
	if got.StatusCode != http.StatusOK || got.Header.Get("X-Cache")+" "+got.Header.Get("X-Cache-Reason") != "stale ServiceUnavailableTemporary" ||
		!strings.Contains(got.body, `"SecretData":"`+marker+`"`) {
		t.Errorf("got %s %v", got.Status, got.Header)
	}
	if strings.Contains(w.read("data/cache.db"), marker) {
		t.Error("the sealed cache shows the value")
	}
	if strings.Contains(w.log.String(), marker) {
		t.Error("the log shows the value")
	}
}

func TestProbeNamesTheSource(t *testing.T) {
	_, host, file := startKMS(t, marker)
	w := startOnCloud(t, shortTempDir(t), cloudConfig(host, file))
	results, err := agent.Probe(t.Context(), w.cfg, nil)
	if err != nil || len(results) != 1 {
		t.Fatalf("%+v, %v", results, err)
	}
	if r := results[0]; r.Endpoint != host || r.Credential != "access_key" || r.Secret != "app/db" || r.Err != nil {
		t.Errorf("%+v", r)
	}
}
