package agent_test

import (
	"context"
	"errors"
	"fmt"
	"io"
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

// difference returns how much each series has grown; what is not named in want is left out.
func difference(before, after map[string]float64, want map[string]float64) map[string]float64 {
	got := map[string]float64{}
	for name := range want {
		if n, ok := after[name]; ok {
			got[name] = n - before[name]
		}
	}
	return got
}

func TestMetricsCountWhatWasDone(t *testing.T) {
	w := start(t, shortTempDir(t), basic)
	w.ready()
	w.lookup("/v1/demo/db")
	w.lookup("/v1/demo/db?versionStage=ACSCurrent")
	before := w.series()

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
	w.manage(func(ctx context.Context, m upstream.Manager) error {
		if _, err := m.DescribeSecret(ctx, "not/there", false); !errors.Is(err, upstream.ErrNotFound) {
			return fmt.Errorf("describing what is not there: %w", err)
		}
		return nil
	})

	want := map[string]float64{
		`secretagent_endpoint_lookups_total{result="hit"}`:                                              7,
		`secretagent_endpoint_lookups_total{result="miss"}`:                                             1,
		`secretagent_endpoint_lookups_total{result="stale"}`:                                            0,
		`secretagent_endpoint_refusals_total{code="TokenMissing"}`:                                      3,
		`secretagent_endpoint_errors_total{code="Forbidden.ResourceNotFound"}`:                          2,
		`secretagent_render_renders_total{outcome="published"}`:                                         1,
		`secretagent_local_writes_total`:                                                                1,
		`secretagent_kms_api_requests_total{action="PutSecretValue",code="OK"}`:                         1,
		`secretagent_kms_api_requests_total{action="DescribeSecret",code="Forbidden.ResourceNotFound"}`: 1,
		`secretagent_kms_api_request_duration_seconds{action="PutSecretValue"}`:                         1,
		`secretagent_cache_fetches_total{outcome="gone"}`:                                               1,
		`secretagent_cache_fetch_duration_seconds{outcome="gone"}`:                                      1,
		`secretagent_ready`: 0,
		`secretagent_secret_available{secret="demo/db:ACSCurrent"}`:                       0,
		`secretagent_render_target_in_order{target="` + w.path("rendered/app.env") + `"}`: 0,
		`secretagent_reloads_total{outcome="failed"}`:                                     0,
	}
	// The last of it is counted after it is answered.
	var got map[string]float64
	w.eventually("the counts", func() bool {
		got = difference(before, w.series(), want)
		return got[`secretagent_kms_api_requests_total{action="DescribeSecret",code="Forbidden.ResourceNotFound"}`] == 1 &&
			got[`secretagent_render_renders_total{outcome="published"}`] == 1
	})
	if !maps.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	now := w.series()
	for name, want := range map[string]float64{
		`secretagent_ready`: 1,
		`secretagent_secret_available{secret="demo/db:ACSCurrent"}`:                                   1,
		`secretagent_secret_fresh{secret="demo/db:ACSCurrent"}`:                                       1,
		`secretagent_render_target_in_order{target="` + w.path("rendered/app.env") + `"}`:             1,
		`secretagent_render_target_out_of_order_seconds{target="` + w.path("rendered/app.env") + `"}`: 0,
		`secretagent_render_target_hook_owed{target="` + w.path("rendered/app.env") + `"}`:            0,
	} {
		if got, ok := now[name]; !ok || got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
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
	now := w.series()
	for name, want := range map[string]float64{
		`secretagent_ready`: 0,
		`secretagent_render_target_in_order{target="` + broken + `"}`:  0,
		`secretagent_render_target_in_order{target="` + hooked + `"}`:  1,
		`secretagent_render_target_hook_owed{target="` + hooked + `"}`: 1,
		`secretagent_child_failing`:                                    0,
		`secretagent_child_events_total{event="started"}`:              1,
	} {
		if got, ok := now[name]; !ok || got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
}

// TestMetricsAreBounded asks for thousands of names in every way that clients have.
func TestMetricsAreBounded(t *testing.T) {
	names := 2000
	if testing.Short() {
		names = 500
	}
	w := start(t, shortTempDir(t), basic)
	w.ready()
	api := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", w.path("run/kms.sock"))
	}}}
	defer api.CloseIdleConnections()
	ask := func(i int) {
		w.get(fmt.Sprintf("/v1/no/such/%d", i))
		switch i % 10 {
		case 0:
			w.get(fmt.Sprintf("/v1/demo/db?versionId=v%d", i+10))
		case 1:
			w.get(fmt.Sprintf("/v1/demo/db?versionStage=Label%d", i))
		case 2:
			w.get(fmt.Sprintf("/path-%d?parameter-%d=1", i, i))
		case 3:
			w.get(fmt.Sprintf("/v1/demo/db?parameter-%d=1", i))
		case 4:
			w.get(fmt.Sprintf("/secretsmanager/batch?secretId=no/batch/%d", i))
		case 5:
			for _, query := range []string{"Action=No%d&Version=2016-01-20", "Action=GetSecretValue&Version=2016-01-20&SecretName=no/%d", "Version=%d"} {
				res, err := api.Get("http://localhost/?" + fmt.Sprintf(query, i))
				if err != nil {
					t.Fatal(err)
				}
				_, err = io.Copy(io.Discard, res.Body)
				if err := errors.Join(err, res.Body.Close()); err != nil || res.StatusCode == http.StatusOK {
					t.Fatalf("%s: %s, %v", query, res.Status, err)
				}
			}
		}
	}
	for i := range 10 {
		ask(i)
	}
	w.manage(func(ctx context.Context, m upstream.Manager) error {
		if _, err := m.DescribeSecret(ctx, "no/such", false); !errors.Is(err, upstream.ErrNotFound) {
			return fmt.Errorf("describing what is not there: %w", err)
		}
		return nil
	})
	before := w.series()
	for i := 10; i < names; i++ {
		ask(i)
	}
	// Series of things that have happened since may come on top, such as an outcome of a render;
	// labels that clients choose would come by the hundred.
	var more []string
	for series := range w.series() {
		if _, there := before[series]; !there {
			more = append(more, series)
		}
	}
	if len(more) > 20 {
		t.Errorf("%d series before and %d more after, such as %v", len(before), len(more), more[:20])
	}
}

// TestMetricsOfAThousandSecrets bounds what one scrape costs, and says how much that is.
func TestMetricsOfAThousandSecrets(t *testing.T) {
	const secrets = 1000
	var seed, declared strings.Builder
	for i := range secrets {
		fmt.Fprintf(&seed, "      - {name: service-%03d/database, versionId: v1, data: x}\n", i)
		fmt.Fprintf(&declared, "  - {name: service-%03d/database}\n", i)
	}
	w := start(t, shortTempDir(t), `
upstream:
  local:
    api: {socket: off}
    seed:
`+seed.String()+`
endpoint: {listen: 127.0.0.1:0, tokenFile: ./run/token}
secrets:
`+declared.String()+`
process: {noDump: false}
`)
	w.ready()
	began := time.Now()
	_, text := w.get("/metrics")
	took := time.Since(began)
	series := len(w.series())
	t.Logf("/metrics with %d declared secrets: %d bytes, %d series, %v", secrets, len(text), series, took)
	if len(text) > secrets*700 || series > secrets*6 {
		t.Errorf("%d bytes and %d series for %d secrets", len(text), series, secrets)
	}
	for i := range secrets {
		if name := fmt.Sprintf(`secretagent_secret_age_seconds{secret="service-%03d/database:ACSCurrent"}`, i); !strings.Contains(text, name) {
			t.Fatalf("%s is missing", name)
		}
	}
}
