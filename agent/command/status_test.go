package command

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
	"unicode/utf8"

	"secretagent/agent"
	"secretagent/agent/endpoint"
	"secretagent/render"
	"secretagent/upstream"
	"secretagent/upstream/kms"
)

// busy is a status in which everything is long, or wrong, or hostile.
func busy(now time.Time) agent.Status {
	long := strings.Repeat("very/long/name-", 8)
	hostile := "\x1b[31mred\x1b[0m\r\n\u202eevil\u009b"
	return agent.Status{
		Time: now, Version: "1.2.3", UptimeSeconds: 3 * 86400, PID: 7, Host: "db-1", Config: "/" + long + "/agent.yaml",
		Problems: []endpoint.Problem{
			{Subject: "secret " + long, Reason: "Forbidden.ResourceNotFound: " + strings.Repeat("there is no such thing ", 10)},
			{Subject: "file x", Reason: hostile + strings.Repeat("é", 300)},
		},
		Upstream: agent.UpstreamStatus{Kind: "alibaba", Outage: "Rejected.Throttling", Cause: "too many calls", Alibaba: &agent.AlibabaStatus{Status: kms.Status{
			Endpoint:   "kms-vpc.cn-hangzhou.aliyuncs.com",
			Endpoints:  []kms.EndpointStatus{{Name: "kms-vpc.cn-hangzhou.aliyuncs.com", State: "ready"}, {Name: "kms.cn-hangzhou.aliyuncs.com", State: "resting", LastFailure: "ServiceUnavailable", LastCause: "no answer: connection refused"}},
			Credential: kms.CredentialStatus{Type: "default", Source: "default/oidc_role_arn", RenewedAt: now.Add(-time.Hour), Expires: now.Add(30 * time.Minute)},
			Breaker:    kms.BreakerStatus{State: "open", Until: now.Add(20 * time.Second)}, Budget: kms.BudgetStatus{CallsPerSecond: 12.5, MaxCallsPerSecond: 50, Calls: -3, Waiting: 4},
		}}},
		Secrets: []agent.SecretStatus{
			{Secret: "demo/db:ACSCurrent", VersionID: "v1", Held: true, Fresh: true, ConfirmedAt: now.Add(-90 * time.Second), FreshUntil: now.Add(210 * time.Second), NextRefresh: now.Add(time.Minute), AskedBy: "web", AskedAt: now.Add(-5 * time.Second)},
			{Secret: "demo/db:ACSPrevious", VersionID: "v0", Held: true, ConfirmedAt: now.Add(-100 * time.Hour), Error: "ServiceUnavailable", Failures: 1234, ServedUntil: now.Add(3 * time.Hour)},
			{Secret: long + ":ACSCurrent", VersionID: upstream.VersionID(strings.Repeat("0123456789", 6)), Held: true, Fresh: true, ConfirmedAt: now.Add(-9999 * 24 * time.Hour), Error: strings.Repeat("Code.", 20), Failures: 1, AskedBy: long, AskedAt: now},
			{Secret: "asked:ACSCurrent", Error: "Forbidden.ResourceNotFound", Failures: 2},
			{Secret: "gone:ACSCurrent", Declared: true, Error: "Forbidden.ResourceNotFound", Cause: "there is no secret of this name", Failures: 2},
			{Secret: "idle:ACSCurrent", VersionStage: upstream.ACSCurrent, VersionID: "v7", VersionStages: []upstream.VersionStage{upstream.ACSCurrent, "a"}, Held: true, ConfirmedAt: now.Add(-10 * time.Minute)},
			{Secret: "same:ACSCurrent", VersionID: "v1", Held: true, ServedUntil: now.Add(3 * time.Hour), Error: "Rejected.Throttling", Cause: "too many calls", Failures: 1},
			{Secret: "cut:ACSCurrent", VersionID: "v1", Held: true, ServedUntil: now.Add(23 * time.Hour), Error: "ServiceUnavailable", Cause: "no answer: the name of the cloud is not known to any server", Failures: 1},
			{Secret: "new:ACSCurrent", Declared: true},
		},
		SecretsOmitted: 17,
		Callers: []agent.CallerStatus{
			{Name: "web", LastSeen: now.Add(-5 * time.Second), Connections: 3, Lookups: 1234567, Refusals: 2, OldTokenUntil: now.Add(10 * time.Minute)},
			{Name: "job", LastSeen: now.Add(-5 * time.Second), ShutOut: "its tokenFile is of no use"},
			{Name: strings.Repeat("caller-", 9), Lookups: 1e12, Refusals: 1e9, OldTokenUntil: now.Add(time.Hour)},
		},
		Listeners: []agent.ListenerStatus{
			{Serves: "endpoint", Network: "tcp", Address: "127.0.0.1:2025", TLS: true, CertificateExpires: now.Add(72 * time.Hour), ClientCAExpires: now.Add(time.Hour)},
			{Serves: "endpoint", Network: "unix", Address: "/" + long + "/agent.sock"},
			{Serves: "systemd", Network: "unix", Address: "/run/secretagent/credentials.sock"},
			{Serves: "metrics", Network: "tcp", Address: "0.0.0.0:9102"},
			{Serves: "metrics", Network: "tcp", Address: "0.0.0.0:9103", Token: true},
			{Serves: "kms-api", Network: "tcp", Address: "127.0.0.1:2026", Signed: true},
			{Serves: "kms-api", Network: "unix", Address: "/run/kms.sock"},
		},
		Files: []agent.FileStatus{
			{Path: "/run/app/app.env", State: render.Current, ChangedAt: now.Add(-time.Minute), HookOwed: true, HookFailed: true, HookError: "exit status 3"},
			{Path: "/" + long + "/the-end.env", State: render.Failed, Failures: 12, HookOwed: true, HookFailed: true},
		},
		Child:  &agent.ChildStatus{Command: "/" + long + "/app", State: "running", PID: 4194304, StartedAt: now.Add(-time.Hour), Restarts: 3, Outdated: true, Failing: true, Error: hostile},
		Reload: &agent.ReloadStatus{At: now.Add(-time.Hour), Failed: true},
	}
}

func TestStatusFitsTheScreen(t *testing.T) {
	text := statusText(busy(time.Now()), false)
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if n := utf8.RuneCountInString(line); n > 80 || strings.HasSuffix(line, " ") {
			t.Errorf("%d columns: %q", n, line)
		}
		for _, r := range line {
			if !unicode.IsPrint(r) {
				t.Errorf("%q in %q can control the terminal", r, line)
			}
		}
	}
	for _, want := range []string{
		"secretagent 1.2.3  not ready  up 3d\n",
		"upstream: alibaba is DOWN: too many calls; last good values are served, the first until ", "; kms-vpc.cn-hangzhou.aliyuncs.com",
		"\npid 7 on db-1, configuration", "\nasked for, and not there: asked\n", "! file /run/app/app.env: its hook failed: exit status 3",
		"ready (in use);", "resting after no answer: connection refused;", "renewed 60m ago ends in 30m;", "breaker open for 20s;", "4 calls wait for", "budget 12.5 of 50 calls/s,",
		"configuration reloaded in vain 60m ago\n",
		"\nand 17 more\n", "\ncut: no answer: the name of the cloud is not known to any server\n", "the-end.env", "failed ×12\n", "very/long/name-",
	} {
		if !strings.Contains(text, want) && !strings.Contains(strings.Join(strings.Fields(text), " "), want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	if strings.Contains(text, "left: too many") {
		t.Errorf("a secret repeats what the upstream has said\n%s", text)
	}
	for _, want := range [][]string{
		{"demo/db", "v1", "90s", "3m", "60s", "5s", "web", "fresh"},
		{"web", "5s", "3", "1234567", "2", "10m", "left"},
		{"job", "shut", "out", "0", "0", "0", "-"},
		{"systemd", "…cretagent/credentials.sock", "root,", "by", "unit"},
		{"metrics", "0.0.0.0:9102", "none"},
		{"metrics", "0.0.0.0:9103", "token"},
		{"kms-api", "127.0.0.1:2026", "signature"},
		{"kms-api", "/run/kms.sock", "file", "mode"},
		{"demo/db:ACSPrevious", "v0", "4d", "-", "-", "-", "stale,", "3h", "left:"},
		{"gone", "-", "-", "-", "-", "-", "there"},
		{"idle", "v7", "+a", "10m", "-", "-", "-", "expired"},
		{"new", "-", "-", "-", "-", "-", "not", "fetched", "yet"},
		{"endpoint", "127.0.0.1:2025", "callers,", "TLS", "ends", "in", "3d,", "client", "CA", "in", "60m"},
		{"/run/app/app.env", "60s", "failed", "current"},
	} {
		found := false
		for line := range strings.Lines(text) {
			fields := strings.Fields(line)
			match := len(fields) >= len(want)
			for i := 0; match && i < len(want); i++ {
				match = strings.HasPrefix(fields[i], want[i])
			}
			found = found || match
		}
		if !found {
			t.Errorf("no line with %q in\n%s", want, text)
		}
	}
}

func TestStatusColoursChangeNothingElse(t *testing.T) {
	now := time.Now()
	plainText, coloured := statusText(busy(now), false), statusText(busy(now), true)
	if !strings.Contains(coloured, "\x1b[31m") || !strings.Contains(coloured, "\x1b[32mfresh") {
		t.Error("nothing is coloured")
	}
	for _, code := range []string{"\x1b[0m", "\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[33m"} {
		coloured = strings.ReplaceAll(coloured, code, "")
	}
	if coloured != plainText {
		t.Errorf("without its colours it is\n%s\nand plain it is\n%s", coloured, plainText)
	}
}

func TestShortDurations(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Hour: "0s", 0: "0s", 999 * time.Millisecond: "0s", time.Second: "1s", 119 * time.Second: "119s", 2 * time.Minute: "2m",
		119 * time.Minute: "119m", 2 * time.Hour: "2h", 47 * time.Hour: "47h", 48 * time.Hour: "2d", 100000 * time.Hour: "999d",
	} {
		if got := short(d); got != want {
			t.Errorf("short(%v) = %s, want %s", d, got, want)
		}
	}
}

func TestWatchDrawsWhatHasChangedAndEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		a := &app{Process: Process{Stdout: &out, Getenv: func(string) string { return "" }}}
		ctx, cancel := context.WithTimeout(t.Context(), 4500*time.Millisecond)
		defer cancel()
		asked := 0
		err := a.watchStatus(ctx, func(context.Context) ([]byte, error) {
			asked++
			if asked == 3 {
				return nil, &upstream.Error{Message: "the agent cannot be reached", Err: upstream.ErrUnavailable}
			}
			return json.Marshal(agent.Status{Version: "1.2.3", Ready: true})
		})
		if err != nil || asked != 5 {
			t.Fatalf("asked %d times in 4.5s, %v", asked, err)
		}
		screens := strings.Split(out.String(), clearScreen)[1:]
		// The second and the fifth look like those before them.
		if len(screens) != 3 || !strings.Contains(screens[1], "cannot be reached") || !strings.HasPrefix(screens[2], "secretagent 1.2.3  ready") {
			t.Errorf("screens: %q", screens)
		}
	})
	// A mistake of the user does not go away.
	a := &app{Process: Process{Stdout: new(bytes.Buffer)}}
	err := a.watchStatus(t.Context(), func(context.Context) ([]byte, error) { return nil, usagef("--caller: which one") })
	if _, usage := errors.AsType[usageError](err); !usage {
		t.Errorf("got %v", err)
	}
}

func TestStatusOfSomethingElse(t *testing.T) {
	for _, body := range []string{"", "{}", "[]", "null", "<html>", `{"Version": 7}`} {
		if _, err := parseStatus([]byte(body)); upstream.ExitCode(err) != upstream.ExitUnavailable {
			t.Errorf("%q: %v", body, err)
		}
	}
}
