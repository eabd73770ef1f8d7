package agent_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"secretagent/agent"
	"secretagent/render"
)

// statusOf returns the status that the caller with the token gets, and its text.
func (w *world) statusOf(token string) (s agent.Status, text string) {
	w.t.Helper()
	got := w.ask("/status", token)
	decoder := json.NewDecoder(strings.NewReader(got.body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&s); err != nil || got.StatusCode != http.StatusOK {
		w.t.Fatalf("/status: %d %s: %v", got.StatusCode, got.body, err)
	}
	return s, got.body
}

// varying is what differs from run to run in the text of a status, where it is not zero.
var varying = regexp.MustCompile(`\d{4}-\d\d-\d\dT[0-9:.]+(?:Z|[+-]\d\d:\d\d)|("(?:UptimeSeconds|AgeSeconds|PID|Failures|Count|Connections)":|127\.0\.0\.1:)0*[1-9.][0-9.e+-]*`)

// TestStatusTellsWhatTheAgentHolds compares all of it but the numbers of the backend; T is a time
// or number that is not zero.
func TestStatusTellsWhatTheAgentHolds(t *testing.T) {
	dir := shortTempDir(t)
	w := start(t, dir, withObedient(withSecrets("  - {name: not/there}\n"), dir))
	w.obeys()
	var s agent.Status
	var text string
	w.eventually("the file and the application", func() bool {
		s, text = w.statusOf(w.token())
		return s.Files[0].State == render.Current && s.Child.State == "running" && len(s.Problems) == 1 && s.Secrets[0].Subscribers == 2 && s.Secrets[1].Failures > 0
	})
	for _, secret := range []string{marker, w.token(), "argument-of-exec"} {
		if strings.Contains(text, secret) {
			t.Errorf("/status holds %s", secret)
		}
	}
	if !s.Secrets[0].FreshUntil.After(s.Time) || s.Upstream.Local.Reads == 0 {
		t.Errorf("fresh until %v, now it is %v; %d reads", s.Secrets[0].FreshUntil, s.Time, s.Upstream.Local.Reads)
	}
	s.Upstream.Local = nil
	s.Host = map[bool]string{true: "HOST"}[s.Host != ""]
	all, err := json.Marshal(s)
	must(t, err)
	got := varying.ReplaceAllString(strings.ReplaceAll(string(all), dir, "DIR"), "${1}T")
	want := strings.ReplaceAll(`{"Time":"T","Version":"test","PID":T,"Host":"HOST","Config":"DIR/agent.yaml","StartedAt":"T","UptimeSeconds":T,"Ready":false,
"Problems":[{"Subject":"secret not/there:ACSCurrent","Reason":"GetSecretValue not/there:ACSCurrent: there is no secret \"not/there\""}],
"Upstream":{"Kind":"local"},
"Secrets":[{"Secret":"demo/db:ACSCurrent","SecretName":"demo/db","VersionStage":"ACSCurrent","VersionId":"v1","VersionStages":["ACSCurrent"],
"Held":true,"Fresh":true,"Declared":true,"ConfirmedAt":"T","AgeSeconds":T,"FreshUntil":"T","NextRefresh":"T","Failures":0,"Subscribers":2,
"History":[{"Kind":"version","VersionId":"v1","First":"T","Last":"T","Count":T}]},
{"Secret":"not/there:ACSCurrent","SecretName":"not/there","VersionStage":"ACSCurrent","Held":false,"Fresh":false,"Declared":true,"NextRefresh":"T",
"Error":"Forbidden.ResourceNotFound","Cause":"there is no secret \"not/there\"","ErrorAt":"T","Failures":T,"Subscribers":0,
"History":[{"Kind":"gone","Code":"Forbidden.ResourceNotFound","First":"T","Last":"T","Count":T}]}],
"Files":[{"Path":"DIR/rendered/app.env","State":"current","Failures":0,"ChangedAt":"T","TriedAt":"T",
"Versions":[{"SecretName":"demo/db","VersionId":"v1"}],"HookOwed":false,"HookFailed":false}],
"Child":{"Command":"sh","State":"running","PID":T,"StartedAt":"T","Restarts":0,"Signals":0,"Outdated":false,"Failing":false},
"Callers":[{"Name":"token-holder","LastSeen":"T","Lookups":0,"Refusals":0,"Connections":T}],
"Listeners":[{"Serves":"endpoint","Network":"tcp","Address":"127.0.0.1:T","TLS":false,"Signed":false},
{"Serves":"endpoint","Network":"unix","Address":"DIR/run/agent.sock","TLS":false,"Signed":false},
{"Serves":"kms-api","Network":"unix","Address":"DIR/run/kms.sock","TLS":false,"Signed":false}]}`, "\n", "")
	if got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
}

func TestStatusTellsOfTheLastReload(t *testing.T) {
	t.Parallel() // it waits
	w := start(t, shortTempDir(t), basic)
	w.ready()
	w.reconfigure(edited(basic, "noDump: false", "noDump: true"))
	w.eventually("the failed reload", func() bool {
		s, _ := w.statusOf(w.token())
		return s.Reload != nil && s.Reload.Failed && strings.Contains(s.Reload.Error, "process") && s.Ready && len(s.Problems) == 1
	})
	w.reconfigure(basic)
	w.eventually("the next one", func() bool {
		s, _ := w.statusOf(w.token())
		return s.Reload != nil && !s.Reload.Failed && s.Reload.Error == "" && len(s.Problems) == 0
	})
}

// TestStatusIsForItsCaller: nothing that a caller may not read is named to it, in values,
// errors, versions, files or series, and of the callers it sees itself alone.
func TestStatusIsForItsCaller(t *testing.T) {
	w := start(t, shortTempDir(t), `
upstream:
  local:
    seed: [{name: web/db, versionId: v1, data: x}, {name: job/db, versionId: v1, data: x}]
    api: {socket: off}
endpoint:
  listen: 127.0.0.1:0
  callers:
    - {name: web, tokenFile: ./web.token, secrets: ["web/*"]}
    - {name: job, tokenFile: ./job.token, secrets: ["job/*"]}
    - {name: all, tokenFile: ./all.token, secrets: ["*"]}
    - {name: half, tokenFile: ./half.token, secrets: ["*"], status: false}
    - {name: ops, tokenFile: ./ops.token, status: true}
secrets: [{name: web/db}, {name: job/db}, {name: job/missing}]
templates:
  - {contents: '{{ secret "web/db" }}{{ secret "job/db" }}', destination: ./rendered/both}
  - {contents: '{{ secret "web/db" }}', destination: ./rendered/web, hook: {command: [sh, -c, "echo of web; exit 3"]}}
  - {contents: '{{ secret "job/absent" }}', destination: ./rendered/broken}
  - {contents: x, destination: ./rendered/hooked, hook: {command: [sh, -c, "echo its text; exit 3"]}}
process: {noDump: false}
`)
	token := func(name string) string { return w.read(name + ".token") }
	w.eventually("everything has been tried", func() bool {
		_, all := w.statusOf(token("all"))
		return strings.Contains(all, "job/absent") && strings.Contains(all, `"current"`) && strings.Contains(all, `"failed"`) && strings.Contains(all, "its text") && strings.Contains(all, "of web") &&
			!strings.Contains(all, "not fetched yet") && !strings.Contains(all, "not rendered yet")
	})
	sees := func(caller string) (all string) {
		s, _ := w.statusOf(token(caller))
		for _, x := range s.Secrets {
			all += fmt.Sprintf("secret %s by %q %t; ", x.SecretName, x.AskedBy, !x.AskedAt.IsZero())
		}
		for _, f := range s.Files {
			all += fmt.Sprintf("file %s %s %v %q; ", filepath.Base(f.Path), f.State, f.Versions, f.Error)
		}
		for _, c := range s.Callers {
			all += fmt.Sprintf("caller %s %d %t; ", c.Name, c.Lookups, !c.LastSeen.IsZero())
		}
		for _, p := range s.Problems {
			all += strings.ReplaceAll("problem "+p.Subject+" "+p.Reason, w.path("rendered")+"/", "") + "; "
		}
		return all
	}
	wantSeen := func(caller, want string) {
		t.Helper()
		if got := sees(caller); got != want {
			t.Errorf("%s sees\n     %s\nwant %s", caller, got, want)
		}
	}
	const files, problems = `file web current [{web/db v1 false}] ""; `, `problem file web the log says why; `
	const missing = `problem secret job/missing:ACSCurrent GetSecretValue job/missing:ACSCurrent: there is no secret "job/missing"; `
	wantSeen("job", `secret job/absent by "" false; secret job/db by "" false; secret job/missing by "" false; `+
		`caller job 0 true; `+missing)
	w.ask("/v1/web/db", token("web"))
	wantSeen("web", `secret web/db by "web" true; `+files+`caller web 1 true; `+problems)
	w.ask("/v1/web/db", token("all"))
	wantSeen("web", `secret web/db by "" true; `+files+`caller web 1 true; `+problems)
	everything := `secret job/absent by "" false; secret job/db by "" false; secret job/missing by "" false; secret web/db by "all" true; ` +
		`file both current [{job/db v1 false} {web/db v1 false}] ""; file web current [{web/db v1 false}] ""; ` +
		`file broken failed [] "broken (inline template):1:4: at secret \"job/absent\": GetSecretValue job/absent:ACSCurrent: there is no secret \"job/absent\""; file hooked current [] ""; ` +
		`%s` + missing +
		`problem file web hook: command sh: exit status 3: of web; problem file broken failed: broken (inline template):1:4: at secret "job/absent": GetSecretValue job/absent:ACSCurrent: there is no secret "job/absent"; ` +
		`problem file hooked hook: command sh: exit status 3: its text; `
	const callers = `caller web 1 true; caller job 0 true; caller all 1 true; caller half 0 false; caller ops 0 `
	wantSeen("all", fmt.Sprintf(everything, callers+`false; `))
	wantSeen("ops", fmt.Sprintf(everything, callers+`true; `))
	wantSeen("half", strings.Replace(fmt.Sprintf(everything, `caller half 0 true; `), `by "all"`, `by ""`, 1))
	for caller, hidden := range map[string]string{"web": "job/", "job": "web/"} {
		for _, path := range []string{"/status", "/ready", "/metrics"} {
			text := w.ask(path, token(caller)).body
			for _, name := range []string{hidden, "rendered/both", "rendered/broken", "rendered/hooked", `"all"`} {
				if strings.Contains(text, name) {
					t.Errorf("%s tells the caller %s of %s: %s", path, caller, name, text)
				}
			}
		}
	}
	wantSeries := func(caller string, want bool, series ...string) {
		t.Helper()
		text := w.ask("/metrics", token(caller)).body
		for _, s := range series {
			if strings.Contains(text, s) != want {
				t.Errorf("/metrics for %s has %s: %t", caller, s, !want)
			}
		}
	}
	others := []string{`{secret="job/db:ACSCurrent"}`, w.path("rendered/both"), w.path("rendered/hooked"), `caller="job"`}
	wantSeries("web", true, `secretagent_secret_available{secret="web/db:ACSCurrent"} 1`, w.path("rendered/web"), `caller="web"`, "secretagent_ready 0", "go_goroutines")
	wantSeries("web", false, others...)
	wantSeries("ops", false, others...) // status is another right
	wantSeries("all", true, others...)
	if got := w.ask("/v1/web/db", token("ops")); got.StatusCode != http.StatusForbidden {
		t.Errorf("the right to see the status reads a secret: %d", got.StatusCode)
	}
	got, err := w.try(http.MethodGet, w.url+"/status", nil)
	must(t, err)
	if got.StatusCode != http.StatusForbidden || strings.Contains(got.body, "web/") {
		t.Errorf("without a token: %d %s", got.StatusCode, got.body)
	}
}

// TestStatusHidesAFileOfAComputedName: a file is for those only who may read everything that it is
// made of, also what its template computes the name of, which nobody is shown.
func TestStatusHidesAFileOfAComputedName(t *testing.T) {
	w := start(t, shortTempDir(t), `
upstream:
  local:
    seed: [{name: web/db, versionId: v1, data: job/db}, {name: web/own, versionId: v1, data: web/db}, {name: job/db, versionId: v1, data: x}]
    api: {socket: off}
endpoint:
  listen: 127.0.0.1:0
  callers:
    - {name: web, tokenFile: ./web.token, secrets: ["web/*"]}
    - {name: all, tokenFile: ./all.token, secrets: ["*"]}
templates:
  - {contents: '{{ secret (secret "web/db") }}', destination: ./rendered/other}
  - {contents: '{{ secret (secret "web/own") }}', destination: ./rendered/own}
process: {noDump: false}
`)
	files := func(caller string) (all string) {
		s, _ := w.statusOf(w.read(caller + ".token"))
		for _, f := range s.Files {
			all += fmt.Sprintf("%s %s %d; ", filepath.Base(f.Path), f.State, len(f.Versions))
		}
		return all
	}
	w.eventually("both are rendered", func() bool { return files("all") == "other current 1; own current 2; " })
	if got := files("web"); got != "own current 2; " {
		t.Errorf("it sees %s", got)
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
