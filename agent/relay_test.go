package agent_test

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"

	"secretagent/upstream"
)

// startBehind runs an agent whose upstream is the KMS API of another, and that reads again by
// itself only after an hour.
func startBehind(t *testing.T, host, secretFile string) *world {
	t.Helper()
	w := startOnCloud(t, shortTempDir(t), edited(cloudConfig(host, secretFile),
		"  sealed: {path: ./data/cache.db, keyring: ./keys/keyring.json}\n", "  ttl: 1h\n")+
		`templates: [{contents: '{{ secret "app/db" }}', destination: ./rendered/file}]`+"\n")
	w.ready()
	w.eventually("the watch", func() bool { return w.watchState() == "on" })
	return w
}

func (w *world) watchState() string {
	s, _ := w.statusOf(w.token())
	return s.Upstream.Alibaba.Watch.State
}

func (w *world) wantFile(content string) {
	w.t.Helper()
	w.eventually("the file with "+content, func() bool { return w.read("rendered/file") == content })
}

// TestAnAgentBehindAnAgentHearsOfChanges: what is put at the first reaches the files of the second
// without its ttl, also what was put while the first was away.
func TestAnAgentBehindAnAgentHearsOfChanges(t *testing.T) {
	first, host, secretFile := startKMS(t, "one")
	second := startBehind(t, host, secretFile)
	second.wantFile("one")
	first.put("app/db", "v2", "two")
	second.wantFile("two")
	if _, got := second.lookup("/v1/app/db"); got != "two" {
		t.Errorf("the endpoint has %q", got)
	}
	if s := second.series(); s["secretagent_upstream_watch_up"] != 1 || s["secretagent_upstream_watch_broken"] != 0 || s["secretagent_upstream_watch_changes_total"] < 1 {
		t.Errorf("metrics: %v", s)
	}
	// Another client, that a reload has made, may have missed something: it looks.
	must(t, second.reload(edited(second.read("agent.yaml"), "cap: 5ms", "cap: 6ms")))
	second.eventually("the watch of the new client", func() bool { return second.watchState() == "on" })
	first.put("app/db", "v3", "three")
	second.wantFile("three")

	must(t, first.stop())
	second.eventually("a broken watch", func() bool { return second.watchState() == "broken" })
	again := start(t, first.dir, edited(first.read("agent.yaml"), "listen: 127.0.0.1:0", "listen: "+host))
	again.put("app/db", "v4", "four")
	second.wantFile("four")
	if second.watchState() != "on" {
		t.Error("the watch is not back")
	}
	if strings.Contains(second.log.String(), "four") || strings.Contains(again.log.String(), "four") {
		t.Error("a log shows a value")
	}
}

// TestNarrowerRightsReachAnAgentBehind: a value that the second may not read any more is gone there.
func TestNarrowerRightsReachAnAgentBehind(t *testing.T) {
	first, host, secretFile := startKMS(t, "one", "\n      - {name: app/other, data: x}")
	second := startBehind(t, host, secretFile)
	must(t, first.reload(edited(first.read("agent.yaml"), `secrets: ["app/*"]`, `secrets: ["app/other"]`)))
	second.eventually("the end of the value", func() bool {
		return second.ask("/v1/app/db", second.token()).StatusCode == http.StatusForbidden
	})
	if got := second.ask("/v1/app/other", second.token()).StatusCode; got != http.StatusOK {
		t.Errorf("the secret that is left: %d", got)
	}
}

// TestTheAPIInFrontOfTheCloud: reads come from the cache and cost the cloud nothing, changes are
// passed on, and a key reaches no secret of another account by the rights of the agent.
func TestTheAPIInFrontOfTheCloud(t *testing.T) {
	cloud, host, secretFile := startKMS(t, "one")
	dir := shortTempDir(t)
	node := startOnCloud(t, dir, edited(cloudConfig(host, secretFile), "    timeout: 30s\n",
		"    api: {socket: off, listen: \"127.0.0.1:0\", accessKeys: [{id: agent, secretFile: ./key, actions: [GetSecretValue], secrets: [\"app/*\"]}]}\n    timeout: 30s\n"))
	node.ready()
	node.eventually("the watch", func() bool { return node.watchState() == "on" })
	const calls = `secretagent_upstream_calls_total{code="OK",operation="GetSecretValue"}`
	before := node.series()[calls] // 1, and one more where the watch has missed something
	second := startBehind(t, node.agent.APIAddrs()[0].String(), node.path("key"))
	second.wantFile("one")
	if n := node.series()[calls]; n != before {
		t.Errorf("for the agent behind the cloud was asked %v times", n-before)
	}
	cloud.put("app/db", "v2", "two")
	second.wantFile("two")
	if got := second.ask("/v1/acs%3Akms%3Acn-x%3A1%3Asecret%2Fapp%2Fdb", second.token()); got.StatusCode != http.StatusNotFound || !strings.Contains(got.body, "names alone") {
		t.Errorf("an ARN: %s %s", got.Status, got.body)
	}
}

// silent returns the host of a KMS that tells of no changes, as the cloud does, in front of another.
func silent(t *testing.T, host string) string {
	t.Helper()
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: host})
	proxy.ModifyResponse = func(answer *http.Response) error {
		answer.Header.Del(upstream.WatchHeader)
		return nil
	}
	server := httptest.NewServer(proxy)
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

// TestWhoWatchesIsWaitedFor: what only agents behind hold, which do not ask for an hour, is looked
// at within the ttl of the agent in front of the cloud.
func TestWhoWatchesIsWaitedFor(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the ttl")
	}
	t.Parallel() // it waits
	cloud, host, secretFile := startKMS(t, "one")
	node := startOnCloud(t, shortTempDir(t), edited(edited(cloudConfig(silent(t, host), secretFile), "    timeout: 30s\n",
		"    api: {socket: off, listen: \"127.0.0.1:0\", accessKeys: [{id: agent, secretFile: ./key, actions: [GetSecretValue], secrets: [\"app/*\"]}]}\n    timeout: 30s\n"),
		"  sealed: {path: ./data/cache.db, keyring: ./keys/keyring.json}\n", "  ttl: 1s\n", "secrets: [{name: app/db}]\n", ""))
	node.ready()
	second := startBehind(t, node.agent.APIAddrs()[0].String(), node.path("key"))
	second.wantFile("one")
	const calls = `secretagent_upstream_calls_total{code="OK",operation="GetSecretValue"}`
	for _, value := range []string{"two", "three"} {
		before := node.series()[calls]
		node.eventually("a few lifetimes", func() bool { return node.series()[calls] >= before+3 })
		cloud.put("app/db", upstream.VersionID(value), value)
		second.wantFile(value)
	}
}
