package agent_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
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
	for _, c := range []struct {
		fault  upstreamtest.Fault
		reason string
	}{
		{upstreamtest.TooManyRequests, "Rejected.Throttling"},
		{upstreamtest.Unavailable, "ServiceUnavailableTemporary"},
		{upstreamtest.Reset, "ServiceUnavailableTemporary"},
		{upstreamtest.BlackHole, "ServiceUnavailableTemporary"},
		{expired, "InvalidAccessKeyId.NotFound"}, // the code of every refused credential
	} {
		t.Run(c.fault.String(), func(t *testing.T) {
			t.Parallel()
			proxy := upstreamtest.NewFaulty(t, host)
			text := func(maxStale string) string {
				return strings.Replace(cloudConfig(proxy.Addr(), secretFile),
					"  sealed: {path: ./data/cache.db, keyring: ./keys/keyring.json}\n", "  ttl: 1s\n  maxStale: "+maxStale+"\n", 1)
			}
			w := startOnCloud(t, shortTempDir(t), text("1h"))
			w.ready()
			ask := func() (state, code string) {
				t.Helper()
				req, err := http.NewRequest(http.MethodGet, w.url+"/v1/app/db", nil)
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("X-KMS-Token", w.token())
				res, err := w.client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer res.Body.Close()
				body, err := io.ReadAll(res.Body)
				if err != nil {
					t.Fatal(err)
				}
				var v struct{ SecretData, Code string }
				if err := json.Unmarshal(body, &v); err != nil {
					t.Fatalf("%d %s", res.StatusCode, body)
				}
				if res.StatusCode == http.StatusOK {
					if v.SecretData != marker || res.Header.Get("Age") == "" {
						t.Fatalf("a wrong answer: %v", res.Header)
					}
					return fmt.Sprint("200 ", res.Header.Get("X-Cache")), res.Header.Get("X-Cache-Reason")
				}
				return fmt.Sprint(res.StatusCode), v.Code
			}
			until := func(want, code string, between ...string) {
				t.Helper()
				for deadline := time.Now().Add(40 * time.Second); ; time.Sleep(20 * time.Millisecond) {
					state, got := ask()
					if state == want && got == code {
						return
					}
					if time.Now().After(deadline) {
						t.Fatalf("%s %s, want %s %s; log:\n%s", state, got, want, code, w.log)
					}
					allowed := false
					for _, b := range between {
						allowed = allowed || state == b
					}
					if !allowed && state != want {
						t.Fatalf("%s %s on the way to %s", state, got, want)
					}
				}
			}
			until("200 hit", "", "200 miss")
			proxy.Set(c.fault)
			until("200 stale", c.reason, "200 hit")
			w.reconfigure(text("1s"))
			if err := w.reload(); err != nil {
				t.Fatal(err)
			}
			until("503", "ServiceUnavailableTemporary", "200 stale")
			if status, body := w.get("/ready"); status != http.StatusServiceUnavailable {
				t.Errorf("/ready: %d %s", status, body)
			}
			proxy.Set(upstreamtest.Fault{})
			until("200 hit", "", "503", "200 miss")
			if strings.Contains(w.log.String(), marker) {
				t.Error("the log shows the value")
			}
		})
	}
}
