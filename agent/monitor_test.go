package agent_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"secretagent/agent"
	"secretagent/agent/config"
)

// withMetrics returns basic with the section metrics.
func withMetrics(section string) string { return basic + "metrics: " + section + "\n" }

// monitor returns the URL of the metrics.
func (w *world) monitor() string {
	return "http://" + w.agent.MetricsAddrs()[0].String()
}

// scrape asks there, with headers.
func (w *world) scrape(path string, header ...string) (status int, body string) {
	w.t.Helper()
	got, err := w.try(http.MethodGet, w.monitor()+path, nil, header...)
	must(w.t, err)
	return got.StatusCode, got.body
}

// TestMetricsForTheNetwork: without a token others see numbers, and nothing by name; with the token
// they see what the holder of the agent's own token sees.
func TestMetricsForTheNetwork(t *testing.T) {
	w := start(t, shortTempDir(t), edited(withMetrics("{listen: 127.0.0.1:0}"), "secrets:\n", "secrets:\n  - {name: not/there}\n"))
	w.lookup("/v1/demo/db")
	w.eventually("rendered", func() bool { return w.rendered() != "" })
	names := []string{"demo/db", "not/there", "app.env", "token-holder", w.dir}

	if status, body := w.scrape("/ready"); status != http.StatusServiceUnavailable || body != "{\"Ready\":false}\n" {
		t.Errorf("/ready: %d %s", status, body)
	}
	if status, body := w.scrape("/live"); status != http.StatusOK {
		t.Errorf("/live: %d %s", status, body)
	}
	all := w.series() // first: some come up as something happens
	status, text := w.scrape("/metrics")
	if status != http.StatusOK {
		t.Fatalf("/metrics: %d %s", status, text)
	}
	for _, name := range append(names, marker, w.token()) {
		if strings.Contains(text, name) {
			t.Errorf("everybody sees %s in the metrics", name)
		}
	}
	numbers, problems := agent.ParseSeries(text)
	for name := range all {
		_, seen := numbers[name]
		if named := strings.Contains(name, "secret=") || strings.Contains(name, "target=") || strings.Contains(name, "caller="); named == seen {
			t.Errorf("%s: everybody sees it: %t", name, seen)
		}
	}
	wantSeries(t, numbers, map[string]float64{"secretagent_ready": 0, `secretagent_endpoint_lookups_total{result="miss"}`: all[`secretagent_endpoint_lookups_total{result="miss"}`]})
	for _, problem := range problems {
		t.Error(problem)
	}
	if status, body := w.scrape("/v1/demo/db", "X-KMS-Token", w.token()); status != http.StatusNotFound || strings.Contains(body, marker) {
		t.Errorf("a secret there: %d %s", status, body)
	}
	wantSeries(t, w.series(), map[string]float64{`secretagent_metrics_refusals_total{code="PathNotFound"}`: 1, "secretagent_metrics_connections_limit": 64})

	must(t, w.reload(withMetrics("{listen: 127.0.0.1:0, tokenFile: ./run/metrics.token}")))
	if status, body := w.scrape("/metrics"); status != http.StatusForbidden || !strings.Contains(body, "Authorization: Bearer TOKEN") {
		t.Errorf("without the token: %d %s", status, body)
	}
	if status, body := w.scrape("/metrics", "Authorization", "Bearer "+w.token()); status != http.StatusForbidden {
		t.Errorf("with the token of the endpoint: %d %s", status, body)
	}
	status, text = w.scrape("/metrics", "Authorization", "Bearer "+w.read("run/metrics.token"))
	if status != http.StatusOK || !strings.Contains(text, `secret="demo/db:ACSCurrent"`) || !strings.Contains(text, `caller="token-holder"`) {
		t.Errorf("with the token: %d %s", status, text)
	}
	if status, body := w.get("/v1/demo/db"); status != http.StatusOK {
		t.Errorf("the endpoint: %d %s", status, body)
	}
	if got := w.ask("/v1/demo/db", w.read("run/metrics.token")); got.StatusCode != http.StatusForbidden {
		t.Errorf("the endpoint with the token of the metrics: %d", got.StatusCode)
	}
	if _, body := w.get("/status"); !strings.Contains(body, `"Serves":"metrics","Network":"tcp","Address":"`+strings.TrimPrefix(w.monitor(), "http://")+`"`) {
		t.Errorf("/status does not show the listener: %s", body)
	}
}

// TestReloadMovesTheMetrics turns the listener on, moves it, and turns it off.
func TestReloadMovesTheMetrics(t *testing.T) {
	w := start(t, shortTempDir(t), basic)
	w.ready()
	if n := len(w.agent.MetricsAddrs()); n != 0 {
		t.Fatalf("%d listeners without metrics.listen", n)
	}
	live := func(url string) error {
		w.client.CloseIdleConnections()
		_, err := w.try(http.MethodGet, url+"/live", nil)
		return err
	}
	must(t, w.reload(withMetrics("{listen: 127.0.0.1:0}")))
	first := w.monitor()
	must(t, live(first))
	must(t, w.reload(withMetrics("{listen: localhost:0}")))
	second := w.monitor()
	must(t, live(second))
	if first == second || live(first) == nil {
		t.Error("the listener did not move")
	}
	w.wantRefused(withMetrics("{listen: localhost:0, tokenFile: ./agent.yaml/token}"), "metrics.tokenFile")
	w.wantRefused(withMetrics("{listen: nowhere}"), "metrics.listen")
	must(t, live(second))
	must(t, w.reload(basic))
	if live(second) == nil {
		t.Error("the listener did not end")
	}
}

func TestMetricsOverTLS(t *testing.T) {
	model := httptest.NewTLSServer(http.NotFoundHandler())
	pair := model.TLS.Certificates[0]
	model.Close()
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	must(t, err)
	dir := shortTempDir(t)
	write(t, dir, map[string]string{
		"tls.crt": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]})),
		"tls.key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
	})
	const section = "{listen: 127.0.0.1:0, tls: {certFile: ./tls.crt, keyFile: ./tls.key}}"
	w := start(t, dir, withMetrics(section))
	roots := x509.NewCertPool()
	roots.AddCert(model.Certificate())
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "example.com"}}, Timeout: bound}
	defer client.CloseIdleConnections()
	got, err := client.Get("https" + strings.TrimPrefix(w.monitor(), "http") + "/metrics")
	must(t, err)
	must(t, got.Body.Close())
	if got.StatusCode != http.StatusOK {
		t.Errorf("over TLS: %d", got.StatusCode)
	}
	if status, body := w.scrape("/metrics"); status != http.StatusBadRequest || !strings.Contains(body, "https") {
		t.Errorf("without TLS: %d %s", status, body)
	}
	w.wantRefused(withMetrics("{listen: 127.0.0.1:0}"), "metrics.tls, on the same address, cannot change")
}

// TestATokenInTheClearIsWorthAWarning: only the token, which opens names, asks for TLS.
func TestATokenInTheClearIsWorthAWarning(t *testing.T) {
	for section, want := range map[string]string{
		`{listen: "0.0.0.0:9102"}`:                                                     "",
		`{listen: "127.0.0.1:9102", tokenFile: ./token}`:                               "",
		`{listen: "0.0.0.0:9102", tokenFile: ./token}`:                                 "metrics.tokenFile",
		`{listen: "0.0.0.0:9102", tls: {certFile: a, keyFile: b}, tokenFile: ./token}`: "",
	} {
		dir := shortTempDir(t)
		write(t, dir, map[string]string{"agent.yaml": withMetrics(section)})
		_, err := config.Load(dir+"/agent.yaml", agent.Warnings)
		problems, _ := errors.AsType[config.Problems](err)
		if got := len(problems); got > 1 || got == 1 && problems[0].Key != want || got == 0 && want != "" {
			t.Errorf("%s: %v", section, err)
		}
	}
}
