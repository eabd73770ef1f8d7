package command

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"secretagent/upstream/upstreamtest"
)

// oneScreen is a terminal that is left when something is drawn.
type oneScreen struct {
	bytes.Buffer
	drawn func()
}

func (s *oneScreen) Write(p []byte) (int, error) {
	defer s.drawn()
	return s.Buffer.Write(p)
}

// TestNothingThatIsShownIsSecret runs an agent whose templates fail on values and whose hook
// prints them, rotates values and tokens, and searches metrics and the status in every form for
// a marker in all values and for every token and key there is.
func TestNothingThatIsShownIsSecret(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the agent uses sh")
	}
	const marker = "MARKER-hunter2"
	dir, err := os.MkdirTemp("", "sa") // leaves room for the name of a socket
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "agent.yaml")
	text := fmt.Sprintf(`
upstream:
  local:
    seed: [{name: demo/db, versionId: v1, data: '{"password":"%[1]s"}'}, {name: demo/text, versionId: v1, data: '%[1]s is no JSON'}]
    api: {socket: kms.sock, listen: "127.0.0.1:0", accessKeys: [{id: key, secretFile: key.secret, actions: ["*"], secrets: ["*"]}]}
endpoint:
  listen: off
  socket: agent.sock
  callers:
    - {name: web, tokenFile: web.token, secrets: ["demo/*"]}
    - {name: ops, tokenFile: ops.token, secrets: ["*"]}
secrets: [{name: demo/db}, {name: demo/text}]
templates:
  - {contents: '{{ (secretJSON "demo/text").password }}', destination: broken}
  - {contents: '{{ (secretJSON "demo/db").password }}', destination: hooked, hook: {command: [sh, -c, 'cat hooked >&2; exit 1']}}
exec: {command: [sh, -c, 'trap "exit 0" TERM; while :; do sleep 0.05; done'], env: [{name: DB, secret: demo/db}]}
process: {noDump: false}
`, marker)
	must(t, os.WriteFile(path, []byte(text), 0o600))
	command := func(args ...string) (string, int) {
		var out upstreamtest.Buffer
		code := Main(t.Context(), Process{
			Args: append(args, "--config", path), Stdin: strings.NewReader(""), Stdout: &out, Stderr: &out,
			Getenv: func(string) string { return "" }, Build: Build{Version: "1.2.3"},
		})
		return out.String(), code
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan int, 1)
	go func() {
		done <- Main(ctx, Process{Args: []string{"run", "--config", path}, Stdin: strings.NewReader(""), Stdout: new(bytes.Buffer),
			Stderr: new(bytes.Buffer), Getenv: func(string) string { return "" }, Build: Build{Version: "1.2.3"}})
	}()
	t.Cleanup(func() { cancel(); <-done })
	eventually := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				text, _ := command("status", "--caller", "ops")
				t.Fatalf("%s did not come true:\n%s", what, text)
			}
		}
	}
	eventually("a failed template and a failed hook", func() bool {
		text, code := command("status", "--caller", "ops")
		return code == 1 && strings.Contains(text, "broken: ") && strings.Contains(text, "failed")
	})
	var secrets []string
	remember := func(files ...string) {
		for _, file := range files {
			text, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil || len(text) < 16 {
				t.Fatalf("%s: %d bytes, %v", file, len(text), err)
			}
			secrets = append(secrets, strings.TrimSpace(string(text)))
		}
	}
	remember("web.token", "ops.token", "key.secret")
	keyring, err := os.ReadFile(filepath.Join(dir, "var", "keys", "keyring.json"))
	must(t, err)
	for word := range strings.FieldsFuncSeq(string(keyring), func(r rune) bool { return strings.ContainsRune(`{}[]",: `+"\n", r) }) {
		if len(word) > 24 && !strings.HasPrefix(word, "type.googleapis.com/") {
			secrets = append(secrets, word)
		}
	}

	// Rotate a value and a token; refuse and deny.
	command("get", "demo/db", "--caller", "web")
	command("get", "not/yours", "--caller", "web")
	if out, code := command("secret", "put", "demo/db", "--version-id", "v2", "--data", `{"password":"`+marker+`-second"}`); code != 0 {
		t.Fatal(out)
	}
	must(t, os.WriteFile(filepath.Join(dir, "web.token"), []byte(strings.Repeat("another-token", 3)), 0o600))
	remember("web.token")
	eventually("the overlap of tokens", func() bool {
		text, _ := command("status", "--caller", "ops")
		return strings.Contains(text, "left")
	})
	command("get", "demo/db", "--caller", "web")

	shown := map[string]string{}
	for _, caller := range []string{"web", "ops"} {
		shown["text for "+caller], _ = command("status", "--caller", caller)
		shown["JSON for "+caller], _ = command("status", "--caller", caller, "--output", "json")
	}
	shown["live"], _ = command("status", "--live")
	shown["ready"], _ = command("status", "--ready", "--output", "json")
	client, err := client(&app{configFlag: path}, "ops")
	must(t, err)
	watched, stop := context.WithCancel(t.Context())
	screen := &oneScreen{drawn: stop}
	a := &app{Process: Process{Stdout: screen, Getenv: func(string) string { return "" }}}
	must(t, a.watchStatus(watched, func(ctx context.Context) ([]byte, error) { return client.call(ctx, http.MethodGet, "/status", nil) }))
	metrics, err := client.call(t.Context(), http.MethodGet, "/metrics", nil)
	must(t, err)
	shown["watch"], shown["metrics"] = screen.String(), string(metrics)

	wantNoSecretIn(t, shown, append(secrets, marker))
	var status struct{ Callers []struct{ Name string } }
	if err := json.Unmarshal([]byte(shown["JSON for web"]), &status); err != nil || len(status.Callers) != 1 || status.Callers[0].Name != "web" {
		t.Errorf("web sees the callers %v, %v", status.Callers, err)
	}
}

// wantNoSecretIn searches what was shown for secrets, and for what shows that it is the right
// thing to search.
func wantNoSecretIn(t *testing.T, shown map[string]string, secrets []string) {
	t.Helper()
	for where, text := range shown {
		for _, secret := range secrets {
			if i := strings.Index(text, secret); i >= 0 {
				t.Errorf("%s holds a secret: …%s…", where, text[max(0, i-80):min(len(text), i+20)])
			}
		}
	}
	for where, want := range map[string]string{"text for web": "demo/db", "JSON for ops": `"HookFailed": true`, "metrics": `caller="web"`, "live": "live", "ready": "false", "watch": "demo/db"} {
		if !strings.Contains(shown[where], want) {
			t.Errorf("%s lacks %s: %s", where, want, shown[where])
		}
	}
	if len(secrets) < 6 {
		t.Errorf("only %d secrets were looked for", len(secrets))
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
