package agent_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// TestLimitsOfTheConfiguration reaches every limit of the endpoint that clients can run into
// and that has no story of its own.
func TestLimitsOfTheConfiguration(t *testing.T) {
	w := start(t, shortTempDir(t), edited(basic, "endpoint:\n", "endpoint:\n  maxHeaderBytes: 1KiB\n  maxBatch: 2\n  maxRequestsPerConnection: 3\n  maxWait: 1s\n",
		"secrets:\n", "cache: {forcedRefresh: {perSecond: 0.01, burst: 2}}\nsecrets:\n"))
	w.ready()
	for path, want := range map[string]string{
		"/v1/demo/db?versionId=" + strings.Repeat("v", 1100):                         "431 HeaderTooLarge",
		"/secretsmanager/batch?secretId=demo/db&secretId=demo/db":                    "200",
		"/secretsmanager/batch?secretId=demo/db&secretId=demo/db&secretId=demo/db:x": "400 InvalidParameter",
		"/v1/demo/db?wait=2s": "400 InvalidParameter",
	} {
		status, body := w.get(path)
		_, code, _ := strings.Cut(body, `{"Code":"`)
		code, _, _ = strings.Cut(code, `"`)
		if got := strings.TrimSpace(fmt.Sprint(status, " ", code)); got != want {
			t.Errorf("%.60s: %s, want %s", path, got, want)
		}
	}
	throttled := 0
	for range 5 {
		if status, _ := w.get("/v1/demo/db?refreshNow=true"); status == http.StatusTooManyRequests {
			throttled++
		}
	}
	if throttled < 3 {
		t.Errorf("%d of 5 forced refreshes were throttled, the burst is 2", throttled)
	}
	if _, metrics := w.get("/metrics"); !strings.Contains(metrics, fmt.Sprintf("secretagent_cache_forced_refreshes_throttled_total %d\n", throttled)) {
		t.Error("the metric does not count them")
	}
	closed := 0
	w.client.CloseIdleConnections()
	for range 6 {
		if w.ask("/v1/demo/db", w.token()).Close {
			closed++
		}
	}
	if closed != 2 {
		t.Errorf("6 requests at 3 a connection ended %d connections", closed)
	}
}
