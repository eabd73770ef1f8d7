// Package observability holds alert rules and a dashboard; this test holds them against the
// metrics that running agents, and an etcd, really produce.
package observability

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"secretagent/agent"
	"secretagent/examples/internal/example"
	"secretagent/upstream/keyfile"
	"secretagent/upstream/upstreamtest"
)

// rules is what rules.yml holds.
type rules struct {
	Groups []struct {
		Name  string
		Rules []struct {
			Alert, Expr, For    string
			Labels, Annotations map[string]string
		}
	}
}

// produced is what /metrics shows: name → label → values.
type produced map[string]map[string][]string

func TestRulesAndDashboardNameRealMetrics(t *testing.T) {
	metrics, texts := everyMetric(t)
	t.Run("conventions", func(t *testing.T) {
		for _, text := range texts {
			promtool(t, text, "check", "metrics")
		}
	})
	var file rules
	read(t, "rules.yml", yaml.Unmarshal, &file)
	seen := map[string]bool{}
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			if seen[r.Alert] || r.Alert == "" {
				t.Errorf("%s/%s: the name is missing or there twice", g.Name, r.Alert)
			}
			seen[r.Alert] = true
			if _, err := model.ParseDuration(r.For); err != nil {
				t.Errorf("%s: for: %v", r.Alert, err)
			}
			if !slices.Contains([]string{"warning", "critical"}, r.Labels["severity"]) || r.Annotations["summary"] == "" || r.Annotations["runbook"] == "" {
				t.Errorf("%s lacks a severity, summary or runbook", r.Alert)
			}
			labels := metrics.mustCheck(t, r.Alert, r.Expr)
			for _, text := range r.Annotations {
				uses(t, r.Alert+", annotation", text, `\$labels\.(\w+)`, labels)
				metrics.mustCheck(t, r.Alert+", annotation", text)
			}
		}
	}
	if len(seen) < 10 {
		t.Errorf("only %d rules were read", len(seen))
	}

	var board struct {
		Panels []struct {
			Title, Type string
			Targets     []struct{ Expr, LegendFormat string }
		}
		Templating struct {
			List []struct{ Name, Definition string }
		}
	}
	read(t, "dashboard.json", json.Unmarshal, &board)
	targets := 0
	for _, p := range board.Panels {
		for _, target := range p.Targets {
			targets++
			labels := metrics.mustCheck(t, "dashboard, "+p.Title, target.Expr)
			uses(t, "dashboard, legend of "+p.Title, target.LegendFormat, `{{(\w+)}}`, labels)
		}
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("dashboard, %s: a panel without a query", p.Title)
		}
	}
	for _, v := range board.Templating.List {
		metrics.mustCheck(t, "dashboard, variable "+v.Name, v.Definition)
	}
	if targets < 20 {
		t.Errorf("only %d queries were read", targets)
	}
}

// uses checks that the labels that pattern finds in text are among those of the metrics.
func uses(t *testing.T, where, text, pattern string, labels []string) {
	t.Helper()
	for _, match := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		if !slices.Contains(labels, match[1]) {
			t.Errorf("%s uses %s, which its metrics do not have: %v", where, match[1], labels)
		}
	}
}

// promtool runs the tool of Prometheus, where it is installed.
func promtool(t *testing.T, stdin string, args ...string) {
	t.Helper()
	cmd := exec.Command(example.Tool(t, "promtool"), args...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %v: %v\n%s", args, err, out)
	}
}

// TestRulesFire runs the unit tests of the rules.
func TestRulesFire(t *testing.T) {
	promtool(t, "", "check", "rules", "rules.yml")
	promtool(t, "", "test", "rules", "rules_test.yml")
}

// TestEveryRuleIsTested: each alert has a moment in rules_test.yml at which it fires and one at
// which it does not.
func TestEveryRuleIsTested(t *testing.T) {
	var file rules
	read(t, "rules.yml", yaml.Unmarshal, &file)
	var tests struct {
		Tests []struct {
			Cases []struct {
				Alert  string           `yaml:"alertname"`
				Expect []map[string]any `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}
	read(t, "rules_test.yml", yaml.Unmarshal, &tests)
	fires, rests := map[string]bool{}, map[string]bool{}
	for _, test := range tests.Tests {
		for _, c := range test.Cases {
			fires[c.Alert] = fires[c.Alert] || len(c.Expect) > 0
			rests[c.Alert] = rests[c.Alert] || len(c.Expect) == 0
		}
	}
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			if !fires[r.Alert] || !rests[r.Alert] {
				t.Errorf("%s: tested that it fires: %v; that it does not: %v", r.Alert, fires[r.Alert], rests[r.Alert])
			}
		}
	}
}

var (
	selectors = regexp.MustCompile(`\b((?:secretagent|etcd)_\w+)(\{[^}]*\})?`)
	matchers  = regexp.MustCompile(`(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"`)
	groupings = regexp.MustCompile(`\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)`)
)

// check returns the labels that the metrics in expr have, and every metric, label and label
// value there that is not produced.
func (p produced) check(expr string) (labels, problems []string) {
	problem := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	labels = []string{"instance", "job"} // of the scrape
	for _, s := range selectors.FindAllStringSubmatch(expr, -1) {
		have, ok := p[s[1]]
		if !ok {
			problem("there is no metric %s", s[1])
			continue
		}
		labels = slices.AppendSeq(labels, maps.Keys(have))
		for _, m := range matchers.FindAllStringSubmatch(s[2], -1) {
			label, op, value := m[1], m[2], m[3]
			switch values, ok := have[label]; {
			case label == "instance" || label == "job":
			case !ok:
				problem("%s has no label %s", s[1], label)
			case op == "=" && !slices.Contains(values, value):
				problem("%s has no %s %q, but %q", s[1], label, value, values)
			}
		}
	}
	for _, g := range groupings.FindAllStringSubmatch(expr, -1) {
		for label := range strings.SplitSeq(g[1], ",") {
			if label = strings.TrimSpace(label); label != "" && !slices.Contains(labels, label) {
				problem("grouping by %s, which no metric there has", label)
			}
		}
	}
	return labels, problems
}

// mustCheck fails the test for each problem of expr.
func (p produced) mustCheck(t *testing.T, where, expr string) (labels []string) {
	t.Helper()
	labels, problems := p.check(expr)
	for _, problem := range problems {
		t.Errorf("%s: %s", where, problem)
	}
	return labels
}

// TestCheckFindsWhatIsWrong keeps the test above honest.
func TestCheckFindsWhatIsWrong(t *testing.T) {
	p := produced{"secretagent_a": {"state": {"open"}}}
	for expr, right := range map[string]bool{
		`secretagent_a{state="open",job=~"$job"} == 1`: true,
		`sum by (state, instance) (secretagent_a)`:     true,
		`secretagent_b`:                      false,
		`etcd_b`:                             false,
		`secretagent_a{state="shut"}`:        false,
		`secretagent_a{stat=~"open"}`:        false,
		`sum by (status) (secretagent_a)`:    false,
		`secretagent_a and on(x) vector(0)`:  false,
		`rate(secretagent_a_total[5m]) > 99`: false,
	} {
		if _, problems := p.check(expr); (len(problems) == 0) != right {
			t.Errorf("%s: problems %q", expr, problems)
		}
	}
}

func read(t *testing.T, file string, unmarshal func([]byte, any) error, into any) {
	t.Helper()
	if err := unmarshal([]byte(example.Read(t, file)), into); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

// everyMetric runs one agent on the built-in backend, one on etcd, and another that takes the first for
// the cloud, and lets happen what makes metrics appear.
func everyMetric(t *testing.T) (all produced, texts []string) {
	if runtime.GOOS == "windows" {
		t.Skip("the agents use unix sockets and sh")
	}
	dir, err := os.MkdirTemp("", "sa") // leaves room for the name of a socket
	example.Must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	cert, key := example.Certificate(t, 1)
	for name, text := range map[string]string{"cert.pem": cert, "key.pem": key, "id": "demo"} {
		example.Write(t, filepath.Join(dir, name), text)
	}
	backend := start(t, filepath.Join(dir, "backend"), `
upstream:
  local:
    seed: [{name: demo/db, data: first}]
    api: {socket: off, listen: "127.0.0.1:0", accessKeys: [{id: demo, secretFile: ../secret, actions: ["*"], secrets: ["*"]}]}
endpoint: {listen: off, socket: agent.sock, tokenFile: token}
process: {noDump: false}
`)
	front := start(t, filepath.Join(dir, "front"), fmt.Sprintf(`
upstream:
  alibaba:
    endpoints: [{region: cn-hangzhou, host: "%s", scheme: http}]
    credentials: {type: access_key, accessKeyIdFile: ../id, accessKeySecretFile: ../secret}
    retry: {maxAttempts: 2, base: 10ms}
cache: {ttl: 1s, sealed: {path: ./cache.db, keyring: ./keyring.json}}
endpoint:
  listen: 127.0.0.1:0
  tls: {certFile: ../cert.pem, keyFile: ../key.pem}
  socket: agent.sock
  tokenFile: token
  audit: {file: audit.log}
secrets: [{name: demo/db}]
templates: [{contents: '{{ secret "demo/db" }}', destination: ./out, check: {command: [test, -s, "{{ .Path }}"]}, hook: {command: ["false"]}}]
rotations: [{secret: demo/db, every: 720h, new: {password: {}}}]
exec: {command: [sh, -c, 'trap "exit 0" TERM; while :; do sleep 0.02; done'], env: [{name: DB, secret: demo/db}]}
process: {noDump: false}
`, backend.APIAddrs()[0]))

	assumed := start(t, filepath.Join(dir, "assumed"), fmt.Sprintf(`
upstream:
  alibaba:
    endpoints: [{region: cn-hangzhou, host: "%s", scheme: http}]
    credentials: {type: ram_role_arn, roleArn: "acs:ram::1:role/app", accessKeyIdFile: ../id, accessKeySecretFile: ../secret, stsEndpoint: "%s"}
endpoint: {listen: off, socket: agent.sock, tokenFile: token}
secrets: [{name: demo/db}]
process: {noDump: false}
`, backend.APIAddrs()[0], fakeSTS(t)))

	etcd := upstreamtest.NewEtcd(t, nil)
	_, err = keyfile.CreateKeyring(filepath.Join(dir, "keyring.json"))
	example.Must(t, err)
	shared := start(t, filepath.Join(dir, "shared"), fmt.Sprintf(`
upstream:
  etcd: {endpoints: ["%s"], prefix: /test/, keyring: ../keyring.json, api: {socket: off}}
endpoint: {listen: off, socket: agent.sock, tokenFile: token}
process: {noDump: false}
`, etcd.URL))
	ofEtcd, err := http.Get(etcd.URL + "/metrics")
	example.Must(t, err)
	defer ofEtcd.Body.Close()
	names, err := io.ReadAll(ofEtcd.Body)
	example.Must(t, err)

	ask(t, front, "/v1/demo/db", http.StatusOK)
	ask(t, front, "/v1/not/there", http.StatusNotFound)
	ask(t, front, "/v1/demo/db?what=1", http.StatusBadRequest)
	askAs(t, front, "/v1/demo/db", "", http.StatusForbidden)
	all = produced{}
	take := func(r *running) string {
		text := ask(t, r, "/metrics", http.StatusOK)
		all.add(t, text)
		return text
	}
	appear := func(names ...string) bool {
		return !slices.ContainsFunc(names, func(name string) bool { return all[name] == nil })
	}
	all.add(t, string(names))
	texts = append(texts, take(backend), take(shared))
	example.Eventually(t, "an assumed role", func() bool {
		take(assumed)
		return appear("secretagent_upstream_credential_expiry_timestamp_seconds")
	})
	backend.stop()
	example.Eventually(t, "what appears in an outage, and with the first runs of hooks", func() bool {
		ask(t, front, "/v1/demo/db", http.StatusOK)
		take(front)
		return appear("secretagent_cache_stale_answers_total", "secretagent_render_hooks_total", "secretagent_upstream_retries_total")
	})
	return all, append(texts, take(front), take(assumed))
}

// fakeSTS serves sessions of a role, and has the credential library, which knows no authorities
// but those of the default transport, trust it. It returns the host.
func fakeSTS(t *testing.T) string {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"RequestId":"r","Credentials":{"AccessKeyId":"STS.1","AccessKeySecret":"s","SecurityToken":"t","Expiration":"%s"}}`,
			time.Now().Add(time.Hour).UTC().Format("2006-01-02T15:04:05Z"))
	}))
	srv.Config.SetKeepAlivesEnabled(false) // the library makes a transport for each request
	t.Cleanup(srv.Close)
	transport := http.DefaultTransport.(*http.Transport)
	before := transport.TLSClientConfig
	transport.TLSClientConfig = srv.Client().Transport.(*http.Transport).TLSClientConfig
	t.Cleanup(func() { transport.TLSClientConfig = before })
	return srv.Listener.Addr().String()
}

// add puts the metrics of a text into p.
func (p produced) add(t *testing.T, text string) {
	t.Helper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	example.Must(t, err)
	for name, family := range families {
		names := []string{name}
		if family.GetType() == dto.MetricType_HISTOGRAM {
			names = []string{name + "_bucket", name + "_sum", name + "_count"}
		}
		for _, name := range names {
			if p[name] == nil {
				p[name] = map[string][]string{}
			}
			if strings.HasSuffix(name, "_bucket") {
				p[name]["le"] = nil
			}
			for _, m := range family.GetMetric() {
				for _, l := range m.GetLabel() {
					p[name][l.GetName()] = append(p[name][l.GetName()], l.GetValue())
				}
			}
		}
	}
}

// running is an agent and how to end it.
type running struct {
	*agent.Agent
	dir  string
	stop func()
}

func start(t *testing.T, dir, text string) *running {
	t.Helper()
	a, stop := example.Within(t, dir, text)
	return &running{a, dir, stop}
}

func ask(t *testing.T, r *running, path string, want int) string {
	t.Helper()
	return askAs(t, r, path, strings.TrimSpace(example.Read(t, filepath.Join(r.dir, "token"))), want)
}

// askAs asks over the unix socket.
func askAs(t *testing.T, r *running, path, token string, want int) string {
	t.Helper()
	client := &http.Client{Timeout: example.Patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(r.dir, "agent.sock"))
		},
	}}
	req, _ := http.NewRequest(http.MethodGet, "http://localhost"+path, nil)
	if token != "" {
		req.Header.Set("X-KMS-Token", token)
	}
	res, err := client.Do(req)
	example.Must(t, err)
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != want {
		t.Fatalf("%s: %d %s %v", path, res.StatusCode, text, err)
	}
	return string(text)
}
