package agent_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"secretagent/agent"
	"secretagent/agent/config"
)

// withCallers is a configuration with callers, and what else may stand below endpoint.
func withCallers(callers string) string {
	return `
upstream:
  local:
    seed: [{name: web/db, versionId: v1, data: x}, {name: job/db, versionId: v1, data: x}]
    api: {socket: off}
endpoint:
  listen: 127.0.0.1:0
  socket: ./agent.sock
  callers:
` + callers + `
process: {noDump: false}
`
}

const threeCallers = `
    - {name: web, tokenFile: ./web.token, secrets: ["web/*"]}
    - {name: job, tokenFile: ./job.token, secrets: ["job/*", "web/*"]}
    - {name: all, tokenFile: ./all.token, secrets: ["*"]}
`

// statuses returns what the tokens get for a name, in their order.
func (w *world) statuses(name string, tokens ...string) (all []int) {
	w.t.Helper()
	for _, token := range tokens {
		all = append(all, w.ask("/v1/"+name, token).StatusCode)
	}
	return all
}

func (w *world) wantStatuses(when, name string, tokens []string, want ...int) {
	w.t.Helper()
	if got := w.statuses(name, tokens...); fmt.Sprint(got) != fmt.Sprint(want) {
		w.t.Errorf("%s: %s: %v, want %v", when, name, got, want)
	}
}

// wantShutOut looks at everything that tells an operator of a caller that is shut out, and that
// the others are not told.
func (w *world) wantShutOut(name, reason, operator, other string) {
	w.t.Helper()
	subject := "caller " + name + ", shut out"
	if got := w.ask("/ready", operator); got.StatusCode != http.StatusOK || !strings.Contains(got.body, subject) || !strings.Contains(got.body, reason) {
		w.t.Errorf("/ready: %d %s", got.StatusCode, got.body)
	}
	if got := w.ask("/ready", other); got.StatusCode != http.StatusOK || strings.Contains(got.body, "shut out") {
		w.t.Errorf("/ready of another caller: %d %s", got.StatusCode, got.body)
	}
	s, text := w.statusOf(operator)
	if !strings.Contains(text, subject) || !s.Ready {
		w.t.Errorf("/status: %s", text)
	}
	for _, c := range s.Callers {
		if strings.Contains(c.ShutOut, reason) != (c.Name == name) {
			w.t.Errorf("the status of the caller %s: %q", c.Name, c.ShutOut)
		}
	}
	series, _ := agent.ParseSeries(w.ask("/metrics", operator).body)
	wantSeries(w.t, series, map[string]float64{`secretagent_endpoint_caller_shut_out{caller="` + name + `"}`: 1, `secretagent_endpoint_caller_shut_out{caller="all"}`: 0})
	w.eventually("a line in the log", func() bool { return strings.Contains(w.log.String(), "ERR a caller is shut out") })
}

// TestATokenFileOfNoUseShutsOutItsCallerAlone ruins a token file in each way that its application
// has. The rights of another caller are narrowed by the same reload, and a restart starts.
func TestATokenFileOfNoUseShutsOutItsCallerAlone(t *testing.T) {
	t.Parallel() // it waits
	for name, ruin := range map[string]func(path string) error{
		"16 are needed":         func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"not printable":         func(path string) error { return os.WriteFile(path, []byte(strings.Repeat("é", 20)), 0o600) },
		"is larger than":        func(path string) error { return os.WriteFile(path, make([]byte, 1<<16), 0o600) },
		"not a regular file":    func(path string) error { return os.Remove(path) },
		"too many levels":       func(path string) error { return os.Remove(path) },
		"the token of the call": func(path string) error { return os.Remove(path) },
		"can change it":         func(path string) error { return os.Chmod(path, 0o666) },
		"belongs to uid 65533":  func(path string) error { return os.Chown(path, 65533, 65533) },
		"the link":              func(path string) error { return os.Rename(path, path+".real") },
	} {
		t.Run(name, func(t *testing.T) {
			needsOwners(t)
			w := start(t, shortTempDir(t), withCallers(threeCallers))
			tokens := []string{w.read("web.token"), w.read("job.token"), w.read("all.token")}
			w.wantStatuses("before", "web/db", tokens, 200, 200, 200)
			must(t, ruin(w.path("web.token")))
			switch name {
			case "not a regular file":
				must(t, os.Mkdir(w.path("web.token"), 0o700))
			case "too many levels":
				must(t, os.Symlink("web.token", w.path("web.token")))
			case "the token of the call":
				must(t, os.WriteFile(w.path("web.token"), []byte(tokens[1]), 0o600))
			case "the link":
				must(t, os.Symlink("web.token.real", w.path("web.token")))
				must(t, os.Lchown(w.path("web.token"), 65533, 65533))
			}
			must(t, w.reload(withCallers(strings.Replace(threeCallers, `["job/*", "web/*"]`, `["job/*"]`, 1))))
			w.wantStatuses("after the reload", "web/db", tokens, 403, 403, 200)
			w.wantStatuses("after the reload", "job/db", tokens, 403, 200, 200)
			w.wantShutOut("web", name, tokens[2], tokens[1])
			if _, err := config.Load(w.path("agent.yaml"), agent.Check); err != nil {
				t.Errorf("the check refuses what runs: %v", err)
			}
			if _, err := config.Load(w.path("agent.yaml"), agent.Warnings); err == nil || !strings.Contains(err.Error(), "endpoint.callers[0].tokenFile") {
				t.Errorf("the check does not warn: %v", err)
			}

			must(t, w.stop())
			w = start(t, w.dir, withCallers(strings.Replace(threeCallers, `["job/*", "web/*"]`, `["job/*"]`, 1)))
			if name == "the token of the call" { // nothing tells whose it is
				w.wantStatuses("after a restart", "job/db", tokens, 403, 403, 200)
				return
			}
			w.wantStatuses("after a restart", "job/db", tokens, 403, 200, 200)
			w.wantShutOut("web", name, tokens[2], tokens[1])

			must(t, os.RemoveAll(w.path("web.token")))
			must(t, os.WriteFile(w.path("web.token"), []byte(tokens[0]), 0o600))
			w.eventually("the caller is back", func() bool { return w.statuses("web/db", tokens[0])[0] == 200 })
		})
	}
}

// needsOwners skips where files cannot be given to others.
func needsOwners(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give files away")
	}
}

func TestTokenModeAndGroupAreChecked(t *testing.T) {
	dir := shortTempDir(t)
	for text, want := range map[string]string{
		edited(threeCallers, "web.token, ", `web.token, tokenMode: "0660", `):              `endpoint.callers[0].tokenMode: 0660: must let the owner read and write, and others read at most, as "0640" does`,
		edited(threeCallers, "job.token, ", `job.token, tokenMode: "0440", `):              `endpoint.callers[1].tokenMode: 0440: must let`,
		edited(threeCallers, "web.token, ", `web.token, tokenGroup: no-such-group-here, `): `endpoint.callers[0].tokenGroup: no-such-group-here: `,
		edited(threeCallers, "tokenFile: ./web.token, ", `uids: [1], tokenMode: "0640", `): `endpoint.callers[0].tokenMode: has no use without tokenFile`,
		threeCallers + "\n  tokenGroup: root\n":                                            `endpoint.tokenGroup: root: opens nothing where endpoint.callers are set: give it to one of them`,
	} {
		write(t, dir, map[string]string{"agent.yaml": withCallers(text)})
		if _, err := config.Load(filepath.Join(dir, "agent.yaml"), agent.Check); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n%v\nwant %s", text, err, want)
		}
	}
}

func TestTwoCallersSwapTheirTokens(t *testing.T) {
	w := start(t, shortTempDir(t), withCallers(threeCallers))
	web, job := w.read("web.token"), w.read("job.token")
	write(t, w.dir, map[string]string{"web.token": job, "job.token": web})
	must(t, w.reload(withCallers(threeCallers)))
	w.wantStatuses("swapped", "job/db", []string{web, job}, 200, 403)
	w.wantStatuses("swapped", "web/db", []string{web, job}, 200, 200)
}

// TestACallerMovesFromItsTokenToItsUser: what it is known by counts at once, whatever is still
// accepted for a while.
func TestACallerMovesFromItsTokenToItsUser(t *testing.T) {
	byUser := fmt.Sprintf("\n    - {name: web, uids: [%d], secrets: [\"web/*\"]}\n", os.Getuid())
	w := start(t, shortTempDir(t), withCallers("\n    - {name: web, tokenFile: ./web.token, secrets: [\"web/*\"]}\n"))
	token := w.read("web.token")
	must(t, w.reload(withCallers(byUser)))
	over := *w
	over.client = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", w.path("agent.sock"))
	}}}
	defer over.client.CloseIdleConnections()
	if got, err := over.try(http.MethodGet, "http://localhost/v1/web/db", nil); err != nil || got.StatusCode != http.StatusOK {
		t.Errorf("by its user: %v %s", err, got.body)
	}
	if got, err := over.try(http.MethodGet, "http://localhost/v1/web/db", nil, "X-KMS-Token", token); err != nil || got.StatusCode != http.StatusOK {
		t.Errorf("by its user, with the token of before: %v %s", err, got.body)
	}
	if got := w.ask("/v1/web/db", token); got.StatusCode != http.StatusForbidden {
		t.Errorf("by the token of before alone: %d", got.StatusCode)
	}
}
