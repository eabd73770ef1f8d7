package endpoint_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"secretagent/agent/endpoint"
	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

func TestAuditLines(t *testing.T) {
	out := &upstreamtest.Buffer{}
	log := endpoint.NewAuditLog(out, endpoint.AuditOptions{})
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
	flush(t, log)
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

func TestAuditFileIsReopened(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	log, err := endpoint.OpenAuditLog(path, endpoint.AuditOptions{})
	must(t, err)
	r := start(t, endpoint.Options{Audit: log})
	r.put(value("a", "v1", "x", upstream.ACSCurrent))
	r.get(t, "/v1/a")
	must(t, os.Rename(path, path+".1"))
	if err := log.Reopen(); err != nil {
		t.Fatal(err)
	}
	r.get(t, "/v1/a")
	r.get(t, "/v1/a")
	// Without a flush: lines arrive by themselves.
	count := func(path string) int {
		b, _ := os.ReadFile(path)
		return strings.Count(string(b), "\n")
	}
	eventually(t, "the lines are written", func() bool { return count(path+".1") == 1 && count(path) == 2 })
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	r.get(t, "/v1/a")
	if err := log.Close(); err != nil {
		t.Error(err)
	}
	if n := count(path); n != 3 {
		t.Errorf("%d lines after Close", n)
	}
	r.get(t, "/v1/a") // and the server lives on
	if err := log.Reopen(); err == nil {
		t.Error("a closed log was reopened")
	}
	if _, err := endpoint.OpenAuditLog(filepath.Join(path, "x"), endpoint.AuditOptions{}); err == nil {
		t.Error("a file below a file was opened")
	}
}

// full is a disk with room for so many bytes.
type full struct {
	upstreamtest.Buffer
	room int
}

func (d *full) Write(p []byte) (int, error) {
	n := min(len(p), d.room)
	d.room -= n
	if _, err := d.Buffer.Write(p[:n]); err != nil || n == len(p) {
		return n, err
	}
	return n, errors.New("no space left on device")
}

// TestAuditOnAFullDisk writes until the disk is full in the middle of a line, and goes on when
// there is room again: requests are answered all the while, it is told once, and every line but
// those that were counted as lost is whole.
func TestAuditOnAFullDisk(t *testing.T) {
	disk := &full{room: 1000}
	var told []string
	log := endpoint.NewAuditLog(disk, endpoint.AuditOptions{
		OnError:    func(err error) { told = append(told, err.Error()) },
		OnRecovery: func(lost uint64) { told = append(told, fmt.Sprint(lost, " lost")) },
	})
	r := start(t, endpoint.Options{Audit: log})
	r.put(value("a", "v1", "x", upstream.ACSCurrent))
	c := r.dial(t)
	ask := func(n int) {
		for range n {
			if got := c.ask("/v1/a"); got.status != 200 {
				t.Fatalf("%d", got.status)
			}
		}
		flush(t, log)
	}
	ask(10)
	ask(5)
	lost := log.Failed()
	if disk.room = 1 << 20; lost < 5 {
		t.Fatalf("%d lines counted as lost", lost)
	}
	ask(20)
	whole := 0
	for line := range strings.Lines(disk.String()) {
		if json.Valid([]byte(line)) {
			whole++
		}
	}
	if log.Failed() != lost || whole+int(lost) != 35 {
		t.Errorf("%d whole lines and %d lost of 35", whole, log.Failed())
	}
	if want := []string{"audit log: no space left on device", fmt.Sprint(lost, " lost")}; !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
}

// TestAuditRotationUnderLoad renames the file away again and again while clients ask. No line
// is lost or cut.
func TestAuditRotationUnderLoad(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.log")
	log, err := endpoint.OpenAuditLog(path, endpoint.AuditOptions{})
	must(t, err)
	r := start(t, endpoint.Options{Audit: log})
	r.put(value("a", "v1", "x", upstream.ACSCurrent))
	const clients, each = 4, 500
	var asking atomic.Int64
	asking.Store(clients)
	for range clients {
		c := r.dial(t)
		go func() {
			defer asking.Add(-1)
			for range each {
				c.ask("/v1/a")
			}
		}()
	}
	for i := 0; i < 3 || asking.Load() > 0; i++ {
		must(t, os.Rename(path, fmt.Sprint(path, ".", i)))
		if err := log.Reopen(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Millisecond) // the clients' turn
	}
	must(t, log.Close())
	files, err := filepath.Glob(path + "*")
	must(t, err)
	ids := map[string]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		must(t, err)
		for line := range strings.Lines(string(text)) {
			var e struct{ RequestId string }
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			ids[e.RequestId] = true
		}
	}
	if len(ids) != clients*each || log.Failed() != 0 || len(files) < 3 {
		t.Errorf("%d lines in %d files for %d requests, %d lost", len(ids), len(files), clients*each, log.Failed())
	}
}

func TestAuditSampling(t *testing.T) {
	out := &upstreamtest.Buffer{}
	log := endpoint.NewAuditLog(out, endpoint.AuditOptions{Sample: 10})
	r := start(t, endpoint.Options{Audit: log})
	r.put(value("a", "v1", "x", upstream.ACSCurrent))
	c := r.dial(t)
	for range 50 {
		c.ask("/v1/a")
		c.ask("/v1/none")
	}
	flush(t, log)
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
	log := endpoint.NewAuditLog(out, endpoint.AuditOptions{})
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
		flush(t, log)
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
