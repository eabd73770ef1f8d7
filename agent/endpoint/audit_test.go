package endpoint_test

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"

	"secretagent/agent/endpoint"
	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

func TestAuditLines(t *testing.T) {
	out := &upstreamtest.Buffer{}
	log := endpoint.NewAuditLog(out, 0)
	r := start(t, endpoint.Options{Audit: log, Callers: []endpoint.Caller{callerWith(t, "web", []string{"web/*"}, token)}})
	r.put(value("web/db", "v2", marker, upstream.ACSCurrent))
	r.put(value("web/db", "v1", marker, upstream.ACSPrevious))
	r.fail("web/gone", &upstream.Error{Err: upstream.ErrNotFound})
	ids := []string{}
	ask := func(target string, header ...string) reply {
		got := r.get(t, target, header...)
		ids = append(ids, got.header.Get("X-Request-Id"))
		return got
	}
	tag := ask("/v1/web/db").header.Get("Etag")
	ask("/v1/web/db", "If-None-Match: "+tag)
	ask("/v1/web/db:ACSPrevious")
	ask("/v1/web/gone")
	ask("/v1/other")
	ask("/secretsmanager/batch?secretId=web/db&secretId=other&secretId=web/gone")
	c := r.dial(t)
	c.send(request("GET", "/v1/web/db", hostLine, "X-KMS-Token: not-the-token-at-all"))
	c.receive("GET")
	var lines []string
	for _, line := range strings.Split(strings.TrimSpace(out.String()), "\n") {
		var e struct {
			Time                                                                             time.Time
			Caller, From, Operation, SecretName, VersionStage, VersionId, Outcome, RequestId string
			Status                                                                           int
		}
		dec := json.NewDecoder(strings.NewReader(line))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&e); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if time.Since(e.Time) > time.Minute || !regexp.MustCompile(`^127\.0\.0\.1:\d+$`).MatchString(e.From) || len(e.RequestId) != 36 {
			t.Errorf("%s", line)
		}
		lines = append(lines, strings.Join([]string{e.Caller, e.Operation, e.SecretName, e.VersionStage, e.VersionId, e.Outcome, itoa(e.Status)}, " "))
		if len(lines) <= 5 && e.RequestId != ids[len(lines)-1] {
			t.Errorf("line %d has request id %s, the answer %s", len(lines), e.RequestId, ids[len(lines)-1])
		}
	}
	want := []string{
		"web GetSecretValue web/db ACSCurrent v2 hit 200",
		"web GetSecretValue web/db ACSCurrent v2 not-modified 304",
		"web GetSecretValue web/db ACSPrevious v1 hit 200",
		"web GetSecretValue web/gone ACSCurrent  Forbidden.ResourceNotFound 404",
		"web GetSecretValue other ACSCurrent  Forbidden.NoPermission 403",
		"web BatchGetSecretValue web/db ACSCurrent v2 hit 200",
		"web BatchGetSecretValue other ACSCurrent  Forbidden.NoPermission 403",
		"web BatchGetSecretValue web/gone ACSCurrent  Forbidden.ResourceNotFound 404",
		" GetSecretValue    TokenInvalid 403",
	}
	if strings.Join(lines, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
}

func itoa(n int) string { b, _ := json.Marshal(n); return string(b) }

func TestAuditSampling(t *testing.T) {
	out := &upstreamtest.Buffer{}
	log := endpoint.NewAuditLog(out, 10)
	r := start(t, endpoint.Options{Audit: log})
	r.put(value("a", "v1", "x", upstream.ACSCurrent))
	c := r.dial(t)
	for range 50 {
		c.ask("/v1/a")
		c.ask("/v1/none")
	}
	if hits, failures := strings.Count(out.String(), `"hit"`), strings.Count(out.String(), "ResourceNotFound"); hits != 5 || failures != 50 {
		t.Errorf("%d hits and %d failures of 50 each", hits, failures)
	}
}

// TestRefusalsCannotFillTheAudit floods the logs as a stranger and as one caller. Both are cut
// short, and neither hides what another caller is refused.
func TestRefusalsCannotFillTheAudit(t *testing.T) {
	out := &upstreamtest.Buffer{}
	const other = "another-token-0123456789abcdef"
	callers := []endpoint.Caller{callerWith(t, "web", []string{"web/*"}, token), callerWith(t, "noisy", []string{"noisy/*"}, other)}
	log := endpoint.NewAuditLog(out, 0)
	inBubble(t, endpoint.Options{Audit: log, Callers: callers}, func(t *testing.T, r *rig) {
		c := r.dial(t)
		ask := func(target string, header ...string) {
			t.Helper()
			c.send(request("GET", target, append(header, hostLine)...))
			if got := c.receive("GET"); got.status != 403 {
				t.Fatal(got.status)
			}
		}
		for range 500 {
			ask("/v1/stranger")
			ask("/v1/flood", "X-KMS-Token: "+other)
		}
		ask("/v1/taken", "X-KMS-Token: "+token)
		c.send(request("GET", "/secretsmanager/batch?secretId=flood&secretId=flood2", "X-KMS-Token: "+other, hostLine))
		if got := c.receive("GET"); got.status != 200 {
			t.Fatal(got.status)
		}
		if lines, dropped := strings.Count(out.String(), "\n"), r.srv.Stats().AuditDropped; lines != 2*200+1 || dropped != 2*300+2 {
			t.Errorf("%d lines and %d dropped of 1003 refusals", lines, dropped)
		}
		if !strings.Contains(out.String(), `"Caller":"web","From"`) || !strings.Contains(out.String(), `"SecretName":"taken"`) {
			t.Error("the flood hides what web was refused")
		}
		if n := strings.Count(r.log.String(), "request refused"); n != 20 {
			t.Errorf("%d log lines", n)
		}
	})
}
