package agent_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"secretagent/agent"
	"secretagent/upstream"
)

// series reads /metrics.
func (w *world) series() map[string]float64 {
	w.t.Helper()
	status, text := w.get("/metrics")
	if status != http.StatusOK {
		w.t.Fatalf("/metrics: %d %s", status, text)
	}
	all, problems := agent.ParseSeries(text)
	for _, problem := range problems {
		w.t.Error(problem)
	}
	return all
}

// seriesFrom reads /metrics until none of some series is below its least value, or bound has
// passed: some of what happens is counted after it is answered. It checks nothing.
func (w *world) seriesFrom(least map[string]float64) map[string]float64 {
	w.t.Helper()
	for deadline := time.Now().Add(bound); ; time.Sleep(time.Millisecond) {
		now, below := w.series(), false
		for name, n := range least {
			below = below || now[name] < n
		}
		if !below || time.Now().After(deadline) {
			return now
		}
	}
}

// wantSeries compares some of the series.
func wantSeries(t *testing.T, got, want map[string]float64) {
	t.Helper()
	for name, want := range want {
		if got, ok := got[name]; !ok || got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
}

// describeNothing asks the KMS API for a secret that is not there.
func (w *world) describeNothing() {
	w.t.Helper()
	w.manage(func(ctx context.Context, m upstream.Manager) error {
		if _, err := m.DescribeSecret(ctx, "not/there", false); !errors.Is(err, upstream.ErrNotFound) {
			return fmt.Errorf("describing what is not there: %w", err)
		}
		return nil
	})
}

func TestMetricsCountWhatWasDone(t *testing.T) {
	w := start(t, shortTempDir(t), basic+"cache: {ttl: 1h, negativeTTL: 1h}\n")
	w.ready()
	w.lookup("/v1/demo/db")
	w.lookup("/v1/demo/db?versionStage=ACSCurrent")
	file := `{target="` + w.path("rendered/app.env") + `"}`
	const published = `secretagent_render_renders_total{outcome="published"}`
	before := w.seriesFrom(map[string]float64{published: 1}) // counted after the agent is ready

	for range 7 {
		w.lookup("/v1/demo/db") // hits
	}
	if status, _ := w.get("/v1/demo/db?versionId=v1"); status != http.StatusOK { // a miss
		t.Fatalf("version v1: %d", status)
	}
	for range 2 { // asked once, and remembered
		if status, _ := w.get("/v1/not/there"); status != http.StatusNotFound {
			t.Fatalf("a name that does not exist: %d", status)
		}
	}
	for range 3 { // refusals
		if got, err := w.try(http.MethodGet, w.url+"/v1/demo/db", nil); err != nil || got.StatusCode != http.StatusForbidden {
			t.Fatalf("without a token: %s %v", got.body, err)
		}
	}
	w.put("demo/db", "v2", `{"password":"`+marker+`-second"}`)
	w.eventually("rendered", func() bool { return strings.HasSuffix(w.rendered(), "-second") })
	w.describeNothing()

	want := map[string]float64{
		`secretagent_endpoint_lookups_total{result="hit"}`:                     7,
		`secretagent_endpoint_lookups_total{result="miss"}`:                    1,
		`secretagent_endpoint_lookups_total{result="stale"}`:                   0,
		`secretagent_endpoint_refusals_total{code="TokenMissing"}`:             3,
		`secretagent_endpoint_errors_total{code="Forbidden.ResourceNotFound"}`: 2,
		published:                        1,
		`secretagent_local_writes_total`: 1,
		`secretagent_kms_api_requests_total{action="PutSecretValue",code="OK"}`:                         1,
		`secretagent_kms_api_requests_total{action="DescribeSecret",code="Forbidden.ResourceNotFound"}`: 1,
		`secretagent_kms_api_request_duration_seconds{action="PutSecretValue"}`:                         1,
		`secretagent_kms_api_connections_evicted_total{network="unix"}`:                                 0,
		`secretagent_cache_fetches_total{outcome="gone"}`:                                               1,
		`secretagent_cache_fetch_duration_seconds{outcome="gone"}`:                                      1,
		`secretagent_ready`: 0,
		`secretagent_secret_available{secret="demo/db:ACSCurrent"}`: 0,
		`secretagent_render_target_in_order` + file:                 0,
		`secretagent_reloads_total{outcome="failed"}`:               0,
	}
	least := map[string]float64{}
	for name, n := range want {
		least[name] = before[name] + n
	}
	now := w.seriesFrom(least)
	grown := map[string]float64{}
	for name, n := range now {
		grown[name] = n - before[name]
	}
	wantSeries(t, grown, want)
	wantSeries(t, now, map[string]float64{
		`secretagent_ready`: 1,
		`secretagent_secret_available{secret="demo/db:ACSCurrent"}`: 1,
		`secretagent_secret_fresh{secret="demo/db:ACSCurrent"}`:     1,
		`secretagent_render_target_in_order` + file:                 1,
		`secretagent_render_target_out_of_order_seconds` + file:     0,
		`secretagent_render_target_hook_owed` + file:                0,
	})
	_, text := w.get("/metrics")
	for _, secret := range []string{marker, w.token()} {
		if strings.Contains(text, secret) {
			t.Error("/metrics holds a secret")
		}
	}
}

func TestMetricsOfWhatIsNotInOrder(t *testing.T) {
	dir := shortTempDir(t)
	text := edited(withObedient(basic, dir), "templates:\n", `templates:
  - {contents: '{{ secret "not/there" }}', destination: ./rendered/other}
  - {contents: '{{ secret "demo/db" }}', destination: ./rendered/hooked, hook: {command: ["false"]}}
`)
	w := start(t, dir, text)
	broken, hooked := w.path("rendered/other"), w.path("rendered/hooked")
	w.eventually("everything has been tried", func() bool {
		now := w.series()
		return now[`secretagent_child_state{state="running"}`] == 1 && now[`secretagent_render_hooks_total{outcome="failed"}`] >= 1 &&
			now[`secretagent_render_target_out_of_order_seconds{target="`+broken+`"}`] > 0 && now[`secretagent_render_renders_total{outcome="failed"}`] >= 1
	})
	w.obeys()
	must(t, os.Remove(w.path("obeys"))) // the next one makes it again
	w.put("demo/db", "v2", "other")
	w.obeys()
	w.eventually("a restart", func() bool {
		now := w.series()
		return now[`secretagent_child_restarts_total`] == 1 && now[`secretagent_child_events_total{event="restarted"}`] == 1
	})
	wantSeries(t, w.series(), map[string]float64{
		`secretagent_ready`: 0,
		`secretagent_render_target_in_order{target="` + broken + `"}`:  0,
		`secretagent_render_target_in_order{target="` + hooked + `"}`:  1,
		`secretagent_render_target_hook_owed{target="` + hooked + `"}`: 1,
		`secretagent_child_failing`:                                    0,
		`secretagent_child_events_total{event="started"}`:              1,
	})
}

// TestMetricsAreBounded asks for hundreds of names in every way that clients have. Series of
// things that have happened since may come on top, such as an outcome of a render; labels that
// clients choose would come by the dozen.
func TestMetricsAreBounded(t *testing.T) {
	w := start(t, shortTempDir(t), basic)
	w.ready()
	api := *w
	api.client = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", w.path("run/kms.sock"))
	}}}
	defer api.client.CloseIdleConnections()
	ask := func(i int) {
		for _, path := range []string{"/v1/no/such/%d", "/v1/demo/db?versionId=v1%d", "/v1/demo/db?versionStage=Label%d", "/path-%d?parameter-%[1]d=1",
			"/v1/demo/db?parameter-%d=1", "/secretsmanager/batch?secretId=no/batch/%d"} {
			w.get(fmt.Sprintf(path, i))
		}
		for _, query := range []string{"Action=No%d&Version=2016-01-20", "Action=GetSecretValue&Version=2016-01-20&SecretName=no/%d", "Version=%d"} {
			if got, err := api.try(http.MethodGet, "http://localhost/?"+fmt.Sprintf(query, i), nil); err != nil || got.StatusCode == http.StatusOK {
				t.Fatalf("%s: %s, %v", query, got.body, err)
			}
		}
	}
	ask(0)
	w.describeNothing()
	before := w.series()
	for i := range 60 {
		ask(i + 1)
	}
	more := w.series()
	maps.DeleteFunc(more, func(name string, _ float64) bool { _, there := before[name]; return there })
	if len(more) > 20 {
		t.Errorf("%d series before and %d more after: %v", len(before), len(more), more)
	}
}

// TestMetricsOfManySecrets bounds what a secret adds to a scrape.
func TestMetricsOfManySecrets(t *testing.T) {
	const secrets = 40
	var seed, declared strings.Builder
	for i := range secrets {
		fmt.Fprintf(&seed, "      - {name: service-%03d/database, versionId: v1, data: x}\n", i)
		fmt.Fprintf(&declared, "  - {name: service-%03d/database}\n", i)
	}
	w := start(t, shortTempDir(t), edited(withSecrets(declared.String()), "    seed:\n", "    seed:\n"+seed.String()))
	w.ready()
	_, text := w.get("/metrics")
	lines, size, ages := 0, 0, 0
	for line := range strings.Lines(text) {
		if strings.Contains(line, `{secret="service-`) {
			lines++
			size += len(line)
		}
		if strings.HasPrefix(line, `secretagent_secret_age_seconds{secret="service-`) {
			ages++
		}
	}
	if lines > secrets*6 || size > secrets*700 || ages != secrets {
		t.Errorf("%d bytes and %d series for %d secrets, and %d ages", size, lines, secrets, ages)
	}
}
