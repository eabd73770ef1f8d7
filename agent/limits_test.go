package agent_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// TestLimitsOfTheConfiguration reaches every limit of the endpoint that clients can run into
// and that has no story of its own.
func TestLimitsOfTheConfiguration(t *testing.T) {
	text := strings.Replace(basic, "endpoint:\n", "endpoint:\n  maxHeaderBytes: 1KiB\n  maxBatch: 2\n  maxRequestsPerConnection: 3\n  maxWait: 1s\n", 1)
	text = strings.Replace(text, "secrets:\n", "cache: {forcedRefresh: {perSecond: 0.01, burst: 2}}\nsecrets:\n", 1)
	w := start(t, shortTempDir(t), text)
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
		req, err := http.NewRequest(http.MethodGet, w.url+"/v1/demo/db", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-KMS-Token", w.token())
		res, err := w.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body) // or the client closes the connection
		res.Body.Close()
		if res.Close {
			closed++
		}
	}
	if closed != 2 {
		t.Errorf("6 requests at 3 a connection ended %d connections", closed)
	}
}
