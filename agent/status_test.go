package agent_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"secretagent/agent"
	"secretagent/render"
)

// statusOf returns the status that the caller with the token gets, and its text.
func (w *world) statusOf(token string) (agent.Status, string) {
	w.t.Helper()
	req, err := http.NewRequest(http.MethodGet, w.url+"/status", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("X-KMS-Token", token)
	res, err := w.client.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	var s agent.Status
	decoder := json.NewDecoder(strings.NewReader(string(text)))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&s); err != nil || res.StatusCode != http.StatusOK {
		w.t.Fatalf("/status: %d %s: %v", res.StatusCode, text, err)
	}
	return s, string(text)
}

func TestStatusTellsWhatTheAgentHolds(t *testing.T) {
	dir := shortTempDir(t)
	text := strings.Replace(basic, "secrets:\n", "secrets:\n  - {name: not/there}\n", 1) + `
exec:
  command: ` + obedient(dir) + `
  env: [{name: DB, secret: demo/db}]
  debounce: 1ms
`
	w := start(t, dir, text)
	w.obeys()
	w.eventually("the file and the application", func() bool {
		s, _ := w.statusOf(w.token())
		return len(s.Files) == 1 && s.Files[0].State == render.Current && s.Child != nil && s.Child.State == "running" && len(s.Problems) == 1
	})
	w.lookup("/v1/demo/db")
	s, body := w.statusOf(w.token())
	if s.Version != "test" || s.UptimeSeconds <= 0 || s.Ready || s.Problems[0].Subject != "secret not/there:ACSCurrent" {
		t.Errorf("version %q, uptime %v, ready %v, problems %v", s.Version, s.UptimeSeconds, s.Ready, s.Problems)
	}
	if u := s.Upstream; u.Kind != "local" || u.Local == nil || u.Local.Reads == 0 || u.Alibaba != nil || u.Outage != "" {
		t.Errorf("upstream %+v", u)
	}
	if len(s.Secrets) != 2 {
		t.Fatalf("secrets %+v", s.Secrets)
	}
	held, missing := s.Secrets[0], s.Secrets[1]
	if held.Secret != "demo/db:ACSCurrent" || held.VersionID != "v1" || !held.Held || !held.Fresh || !held.Declared ||
		held.ConfirmedAt.IsZero() || !held.FreshUntil.After(s.Time) || held.NextRefresh.IsZero() || held.Error != "" || held.Subscribers != 2 {
		t.Errorf("the held secret: %+v", held)
	}
	if missing.SecretName != "not/there" || missing.Held || missing.Fresh || !missing.Declared || missing.Error != "Forbidden.ResourceNotFound" || missing.ErrorAt.IsZero() {
		t.Errorf("the missing secret: %+v", missing)
	}
	f := s.Files[0]
	if f.Path != w.path("rendered/app.env") || f.ChangedAt.IsZero() || len(f.Versions) != 1 || f.Versions[0] != (agent.SecretVersion{SecretName: "demo/db", VersionID: "v1"}) || f.HookOwed || len(f.Files) > 0 {
		t.Errorf("the file: %+v", f)
	}
	if c := s.Child; c.PID == 0 || c.Command != "sh" || c.StartedAt.IsZero() {
		t.Errorf("the application: %+v", c)
	}
	var listeners []string
	for _, l := range s.Listeners {
		listeners = append(listeners, l.Serves+" "+l.Network)
	}
	if got := strings.Join(listeners, ", "); got != "endpoint tcp, endpoint unix, kms-api unix" {
		t.Errorf("listeners: %s", got)
	}
	if s.Reload != nil {
		t.Errorf("reload %+v, but there was none", s.Reload)
	}
	for _, secret := range []string{marker, w.token(), "argument-of-exec"} {
		if strings.Contains(body, secret) {
			t.Errorf("/status holds %s", secret)
		}
	}
}

func TestStatusTellsOfTheLastReload(t *testing.T) {
	w := start(t, shortTempDir(t), basic)
	w.ready()
	if err := os.WriteFile(w.path("agent.yaml"), []byte(strings.Replace(basic, "noDump: false", "noDump: true", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	w.eventually("the failed reload", func() bool {
		s, _ := w.statusOf(w.token())
		return s.Reload != nil && s.Reload.Failed && strings.Contains(s.Reload.Error, "process") && s.Ready && len(s.Problems) == 1
	})
	if err := os.WriteFile(w.path("agent.yaml"), []byte(basic), 0o600); err != nil {
		t.Fatal(err)
	}
	w.eventually("the next one", func() bool {
		s, _ := w.statusOf(w.token())
		return s.Reload != nil && !s.Reload.Failed && s.Reload.Error == "" && len(s.Problems) == 0
	})
}

// TestStatusIsForItsCaller: nothing that a caller may not read is named to it, in values,
// errors or versions.
func TestStatusIsForItsCaller(t *testing.T) {
	w := start(t, shortTempDir(t), `
upstream:
  local:
    seed: [{name: web/db, data: x}, {name: job/db, data: x}]
    api: {socket: off}
endpoint:
  listen: 127.0.0.1:0
  callers:
    - {name: web, tokenFile: ./web.token, secrets: ["web/*"]}
    - {name: job, tokenFile: ./job.token, secrets: ["job/*"]}
    - {name: all, tokenFile: ./all.token, secrets: ["*"]}
secrets: [{name: web/db}, {name: job/db}, {name: job/missing}]
templates:
  - {contents: '{{ secret "web/db" }}{{ secret "job/db" }}', destination: ./rendered/both}
  - {contents: '{{ secret "job/absent" }}', destination: ./rendered/broken}
process: {noDump: false}
`)
	token := func(name string) string {
		text, err := os.ReadFile(w.path(name + ".token"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}
	w.eventually("everything has been tried", func() bool {
		_, all := w.statusOf(token("all"))
		return strings.Contains(all, "job/absent") && strings.Contains(all, `"current"`)
	})
	s, text := w.statusOf(token("web"))
	if strings.Contains(text, "job/") {
		t.Errorf("the caller web hears of secrets of job: %s", text)
	}
	if len(s.Secrets) != 1 || len(s.Files) != 2 || len(s.Files[0].Versions) != 1 || s.Files[1].Error != "the log says why" || s.Files[1].State != render.Failed || s.Ready {
		t.Errorf("the caller web sees %s", text)
	}
	if _, text := w.statusOf(token("job")); strings.Contains(text, "web/") {
		t.Errorf("the caller job hears of secrets of web: %s", text)
	}
	// Whom a caller sees among the callers, and as who asked last.
	ask := func(caller string) {
		req, err := http.NewRequest(http.MethodGet, w.url+"/v1/web/db", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-KMS-Token", token(caller))
		res, err := w.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, res.Body)
		if err := errors.Join(err, res.Body.Close()); err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("%s: %d, %v", caller, res.StatusCode, err)
		}
	}
	ask("web")
	if s, _ := w.statusOf(token("web")); len(s.Callers) != 1 || s.Callers[0].Name != "web" || s.Callers[0].Lookups != 1 || s.Callers[0].LastSeen.IsZero() || s.Secrets[0].AskedBy != "web" {
		t.Errorf("web sees callers %+v, and its secret last asked for by %q", s.Callers, s.Secrets[0].AskedBy)
	}
	ask("all")
	if s, _ := w.statusOf(token("web")); s.Secrets[0].AskedBy != "" || s.Secrets[0].AskedAt.IsZero() {
		t.Errorf("web sees its secret last asked for by %q at %v", s.Secrets[0].AskedBy, s.Secrets[0].AskedAt)
	}
	if s, _ := w.statusOf(token("all")); len(s.Callers) != 3 || s.Callers[0].Lookups != 1 || s.Callers[2].Lookups != 1 || !slices.ContainsFunc(s.Secrets, func(s agent.SecretStatus) bool { return s.SecretName == "web/db" && s.AskedBy == "all" }) {
		t.Errorf("all sees callers %+v and secrets %+v", s.Callers, s.Secrets)
	}
	if s, text := w.statusOf(token("all")); !strings.Contains(s.Files[1].Error, "job/absent") || len(s.Files[0].Versions) != 2 {
		t.Errorf("the caller all sees %s", text)
	}
	res, err := w.client.Get(w.url + "/status")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if body, _ := io.ReadAll(res.Body); res.StatusCode != http.StatusForbidden || strings.Contains(string(body), "web/") {
		t.Errorf("without a token: %d %s", res.StatusCode, body)
	}
}

func TestStatusTellsTheHistoryOfASecret(t *testing.T) {
	w := start(t, shortTempDir(t), basic)
	w.ready()
	w.put("demo/db", "v2", `{"username":"app","password":"second"}`)
	w.eventually("both versions", func() bool {
		s, _ := w.statusOf(w.token())
		h := s.Secrets[0].History
		return len(h) == 2 && h[0].Kind == "version" && h[0].VersionID == "v1" && h[1].Kind == "version" && h[1].VersionID == "v2" && !h[1].First.Before(h[0].First)
	})
}
