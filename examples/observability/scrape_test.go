package observability

import (
	"encoding/json"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"secretagent/examples/internal/example"
)

// TestPrometheusScrapes runs Prometheus with the configuration of the example: it gets the metrics
// over TLS with the token, names of secrets included, and none without the token.
func TestPrometheusScrapes(t *testing.T) {
	if testing.Short() {
		t.Skip("Prometheus takes a second to start")
	}
	prometheus := example.Tool(t, "prometheus")
	dir := example.Copy(t)
	cert, key := example.Certificate(t, 1)
	for name, text := range map[string]string{"tls.crt": cert, "tls.key": key} {
		example.Write(t, filepath.Join(dir, name), text)
	}
	r := start(t, filepath.Join(dir, "agent"), `
upstream: {local: {seed: [{name: demo/db, data: first}], api: {socket: off}}}
endpoint: {listen: off, socket: agent.sock, tokenFile: token}
secrets: [{name: demo/db}]
metrics: {listen: "127.0.0.1:0", tls: {certFile: ../tls.crt, keyFile: ../tls.key}, tokenFile: ../metrics.token}
process: {noDump: false}
`)
	_, port, _ := strings.Cut(r.MetricsAddrs()[0].String(), ":")
	text := strings.NewReplacer("localhost:9102", "localhost:"+port, "tls/tls.crt", "tls.crt").Replace(example.Read(t, "prometheus.yml"))
	job := text[strings.Index(text, "  - job_name"):]
	without := regexp.MustCompile(`(?m)^ *authorization:.*\n`).ReplaceAllString(strings.Replace(job, "secretagent", "without", 1), "")
	example.Write(t, filepath.Join(dir, "prometheus.yml"), "global: {scrape_interval: 100ms, scrape_timeout: 100ms}\n"+text+without)

	cmd := exec.Command(prometheus, "--config.file=prometheus.yml", "--storage.tsdb.path=data", "--web.listen-address=127.0.0.1:0")
	cmd.Dir = dir
	var log example.Buffer
	cmd.Stderr = &log
	example.Must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	listening := regexp.MustCompile(`msg="Listening on" address=(\S+)`)
	address := ""
	example.Eventually(t, "Prometheus listens", func() bool {
		found := listening.FindStringSubmatch(log.String())
		if found != nil {
			address = found[1]
		}
		return found != nil
	})
	query := func(expr string) (series []map[string]string) {
		res, err := http.Get("http://" + address + "/api/v1/query?query=" + url.QueryEscape(expr))
		example.Must(t, err)
		defer res.Body.Close()
		var answer struct {
			Data struct {
				Result []struct{ Metric map[string]string }
			}
		}
		if res.StatusCode != http.StatusOK { // it is not ready at once
			return nil
		}
		example.Must(t, json.NewDecoder(res.Body).Decode(&answer))
		for _, s := range answer.Data.Result {
			series = append(series, s.Metric)
		}
		return series
	}
	example.Eventually(t, "a scrape with the token, and one without", func() bool {
		return len(query(`up{job="secretagent"} == 1`)) == 1 && len(query(`up{job="without"} == 0`)) == 1
	})
	if fresh := query("secretagent_secret_fresh == 1"); len(fresh) != 1 || fresh[0]["secret"] != "demo/db:ACSCurrent" || fresh[0]["job"] != "secretagent" {
		t.Errorf("declared secrets: %v", fresh)
	}
}
