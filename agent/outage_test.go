package agent_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"secretagent/upstream/upstreamtest"
)

// TestOutagesOfTheCloud takes a whole agent, with the client of the cloud and a service that
// speaks its protocol, through the ways in which the service fails: the last good value is
// served, marked; once it is older than maxStale, 503; and when the service is back, the value.
func TestOutagesOfTheCloud(t *testing.T) {
	_, host, secretFile := startKMS(t, marker)
	expired := upstreamtest.AnswerWith("expired STS", http.StatusBadRequest,
		`{"HttpStatus":400,"Code":"InvalidSecurityToken.Expired","Message":"Specified SecurityToken is expired.","RequestId":"r","HostId":"h","Recommend":""}`)
	overdue := upstreamtest.AnswerWith("overdue account", http.StatusForbidden,
		`{"HttpStatus":403,"Code":"Forbidden.ProhibitedByServiceOverdue","Message":"pay","RequestId":"r","HostId":"h","Recommend":""}`)
	empty := upstreamtest.AnswerWith("value without data", http.StatusOK,
		`{"SecretName":"app/db","VersionId":"v2","SecretDataType":"text","SecretType":"Generic","VersionStages":{"VersionStage":["ACSCurrent"]},"RequestId":"r"}`)
	for _, c := range []struct {
		fault  upstreamtest.Fault
		reason string
	}{
		{upstreamtest.TooManyRequests, "Rejected.Throttling"},
		{upstreamtest.Unavailable, "ServiceUnavailableTemporary"},
		{upstreamtest.Reset, "ServiceUnavailableTemporary"},
		{upstreamtest.BlackHole, "ServiceUnavailableTemporary"},
		{expired, "InvalidSecurityToken.Expired"},
		{overdue, "Forbidden.ProhibitedByServiceOverdue"},
		{empty, "InvalidAnswer"},
	} {
		t.Run(c.fault.String(), func(t *testing.T) {
			if testing.Short() && c.fault.String() != upstreamtest.Reset.String() {
				t.Skip("one outage is enough between edits")
			}
			t.Parallel()
			proxy := upstreamtest.NewFaulty(t, host)
			text := func(maxStale string) string {
				return edited(cloudConfig(proxy.Addr(), secretFile),
					"  sealed: {path: ./data/cache.db, keyring: ./keys/keyring.json}\n", "  ttl: 1s\n  maxStale: "+maxStale+"\n",
					"timeout: 30s\n    deadline: 30s\n", "timeout: 500ms\n    deadline: 1s\n", "lookupTimeout: 30s", "lookupTimeout: 2s")
			}
			w := startOnCloud(t, shortTempDir(t), text("1h"))
			w.ready()
			// until asks until the answer begins with want; before that it may begin with one of between.
			until := func(want string, between ...string) {
				t.Helper()
				w.eventually(want, func() bool {
					got := w.ask("/v1/app/db", w.token())
					var v struct{ SecretData, Code string }
					if err := json.Unmarshal([]byte(got.body), &v); err != nil {
						t.Fatalf("%s %s", got.Status, got.body)
					}
					if ok := got.StatusCode == http.StatusOK; ok != (v.SecretData == marker) || ok != (got.Header.Get("Age") != "") {
						t.Fatalf("a wrong answer: %s %v", got.Status, got.Header)
					}
					state := fmt.Sprint(got.StatusCode, " ", v.Code, got.Header.Get("X-Cache"), " ", got.Header.Get("X-Cache-Reason"))
					if strings.HasPrefix(state, want) {
						return true
					}
					if !slices.ContainsFunc(between, func(b string) bool { return strings.HasPrefix(state, b) }) {
						t.Fatalf("%s on the way to %s", state, want)
					}
					return false
				})
			}
			until("200 hit", "200")
			proxy.Set(c.fault)
			until("200 stale "+c.reason, "200")
			const served = `secretagent_secret_served_until_timestamp_seconds{secret="app/db:ACSCurrent"}`
			s, _ := w.statusOf(w.token())
			if until := s.Secrets[0].ServedUntil; !until.Equal(s.Secrets[0].ConfirmedAt.Add(time.Hour)) || w.series()[served] != float64(until.UnixMilli())/1000 {
				t.Errorf("served until %s in the status and %f in the metrics, confirmed at %s", until, w.series()[served], s.Secrets[0].ConfirmedAt)
			}
			must(t, w.reload(text("1s")))
			until("503 ServiceUnavailableTemporary", "200 stale", "503")
			if status, body := w.get("/ready"); status != http.StatusServiceUnavailable {
				t.Errorf("/ready: %d %s", status, body)
			}
			proxy.Set(upstreamtest.Fault{})
			until("200 hit", "503", "200")
			if s, _ := w.statusOf(w.token()); !s.Secrets[0].ServedUntil.IsZero() || w.series()[served] != 0 {
				t.Errorf("an end is told although the upstream answers: %s", s.Secrets[0].ServedUntil)
			}
			if strings.Contains(w.log.String(), marker) {
				t.Error("the log shows the value")
			}
		})
	}
}

// TestReloadKeepsFilesReadyDuringAnOutage edits one of three templates while the upstream hangs and
// what is cached has expired: the files of the others are there and unchanged.
func TestReloadKeepsFilesReadyDuringAnOutage(t *testing.T) {
	t.Parallel() // it waits
	_, host, secretFile := startKMS(t, marker)
	proxy := upstreamtest.NewFaulty(t, host)
	text := edited(cloudConfig(proxy.Addr(), secretFile), "  sealed: {path: ./data/cache.db, keyring: ./keys/keyring.json}\n", "  ttl: 1s\n",
		"timeout: 30s\n    deadline: 30s\n", "timeout: 500ms\n    deadline: 1s\n") + "templates:\n"
	for i := range 3 {
		text += fmt.Sprintf("  - {contents: 'T%d={{ secret \"app/db\" }}', destination: ./rendered/t%d}\n", i, i)
	}
	w := startOnCloud(t, shortTempDir(t), text)
	w.ready()
	proxy.Set(upstreamtest.BlackHole)
	w.eventually("a stale answer", func() bool { return w.ask("/v1/app/db", w.token()).Header.Get("X-Cache") == "stale" })
	must(t, w.reload(edited(text, "T0=", "NEW=")))
	seen := 0
	w.eventually("the new template", func() bool {
		_, body := w.get("/ready")
		if seen++; strings.Contains(body, "rendered/t1") || strings.Contains(body, "rendered/t2") {
			t.Fatalf("asked for the time %d, /ready says %s", seen, body)
		}
		content, _ := os.ReadFile(w.path("rendered/t0"))
		return string(content) == "NEW="+marker
	})
	w.ready()
}
