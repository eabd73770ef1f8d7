package command

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

// TestHealthChecksAreUnderstood runs the checks of the image and of the examples where no agent
// runs: a mistake in one would be exit code 2, which nobody would look at.
func TestHealthChecksAreUnderstood(t *testing.T) {
	nobody := freeAddress(t)
	check := regexp.MustCompile(`\[(?:"CMD", )?"?/secretagent"?, "?status"?,[^\]]*\]`)
	for file, want := range map[string][]string{
		"../../Dockerfile":                       {"--live"},
		"../../examples/compose/compose.yaml":    {"--ready"},
		"../../examples/kubernetes/sidecar.yaml": {"--ready", "--live"},
	} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var asks []string
		for _, found := range check.FindAllString(string(text), -1) {
			words := strings.FieldsFunc(found, func(r rune) bool { return strings.ContainsRune(`[]", `, r) })
			args := words[slices.Index(words, "/secretagent")+1:]
			for i, arg := range args {
				if strings.HasPrefix(arg, "/etc/") || strings.HasPrefix(arg, "127.0.0.1:") {
					args[i] = nobody
				}
			}
			if args[len(args)-1] == "--live" {
				args = append(args, "--config", nobody) // the image says it with SECRETAGENT_CONFIG
			}
			args = append(args, "--wait", "0s") // the last one counts
			asks = append(asks, args[1])
			code, out := status(args[1:]...)
			if code != upstream.ExitUnavailable || !strings.Contains(out, "cannot be reached") {
				t.Errorf("%s: %v ends with %d: %s", file, args, code, out)
			}
		}
		if !slices.Equal(asks, want) {
			t.Errorf("%s asks %q, want %q", file, asks, want)
		}
	}
}

// TestHealthOfSomethingElse: what answers on the address need not be an agent.
func TestHealthOfSomethingElse(t *testing.T) {
	for body, right := range map[string]bool{`{"Live":true}`: true, `{"Ready":true}`: false, `{}`: false, `[]`: false, `null`: false, `<html>`: false, "": false} {
		if got := holds([]byte(body), "Live"); got != right {
			t.Errorf("%q is an answer: %v", body, got)
		}
	}
}

// status runs the verb in an environment without variables and returns what it prints.
func status(args ...string) (code int, out string) {
	var all upstreamtest.Buffer
	code = Main(context.Background(), Process{
		Args: append([]string{"status"}, args...), Stdin: new(bytes.Buffer), Stdout: &all, Stderr: &all,
		Getenv: func(string) string { return "" }, Build: Build{Version: "1.2.3"},
	})
	return code, all.String()
}

// freeAddress returns an address where nobody answered a moment ago.
func freeAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// answering starts what answers health checks with the status, until the test ends.
func answering(t *testing.T, ready func() int) (address string) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(r.Header.Get("X-KMS-Token")) > 0 {
			t.Error("a token is sent")
		}
		code := ready()
		w.WriteHeader(code)
		fmt.Fprintf(w, "{%q:%v}", map[string]string{"/live": "Live", "/ready": "Ready"}[r.URL.Path], code == http.StatusOK)
	}))
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// Ensure that no mistake in a configuration makes an agent unhealthy that runs and has refused
// it, and that a check which finds nobody says where it looked and what it could not read.
func TestHealthDoesNotDependOnTheConfiguration(t *testing.T) {
	address := answering(t, func() int { return http.StatusOK })
	path := filepath.Join(t.TempDir(), "agent.yaml")
	for _, mistake := range []string{"", "secrts: []\n", "cache: {ttl: 0s}\n", "log: [\n", "<<<<<<< HEAD\n", "upstream: 7\n"} {
		write(t, path, mistake+"endpoint: {listen: '"+address+"'}\n"+mistake)
		for _, check := range []string{"--live", "--ready"} {
			if code, out := status(check, "--config", path); code != upstream.ExitOK || out != check[2:]+"\n" {
				t.Errorf("%s with %q ends with %d: %s", check, mistake, code, out)
			}
		}
	}
	// The socket that the file names now is not the one that the agent has.
	write(t, path, "endpoint: {listen: '"+address+"', socket: ./new.sock}\nsecrts: []\n")
	if code, out := status("--live", "--config", path); code != upstream.ExitOK {
		t.Errorf("with a new socket it ends with %d: %s", code, out)
	}
	// No file at all is read.
	if code, out := status("--live", "--config", path+"x", "--address", address); code != upstream.ExitOK {
		t.Errorf("with --address it ends with %d: %s", code, out)
	}
	if code, out := status("--live", "--config", path+"x", "--socket", path+".sock"); code != upstream.ExitUnavailable || !strings.Contains(out, path+".sock") || strings.Contains(out, "hint") {
		t.Errorf("with --socket it ends with %d: %s", code, out)
	}
	nobody := freeAddress(t)
	write(t, path, "endpoint: {listen: '"+nobody+"', socket: ./no.sock}\nlog: [\n")
	code, out := status("--live", "--config", path)
	for _, want := range []string{"no.sock", nobody, path + ":", "not YAML", "--address"} {
		if code != upstream.ExitUnavailable || !strings.Contains(out, want) {
			t.Errorf("%q is not said, exit code %d: %s", want, code, out)
		}
	}
	write(t, path, "endpoint: {listen: 7, socket: off}\n")
	if code, out := status("--config", path); code != upstream.ExitUsage || !strings.Contains(out, "endpoint.listen") {
		t.Errorf("a token goes to a guessed address, exit code %d: %s", code, out)
	}
	for _, args := range [][]string{
		{"--live", "--address", "example.com:80"}, {"--live", "--address", "127.0.0.1"}, {"--live", "--address", "10.0.0.1:2025"},
		{"--address", address}, {"--live", "--address", address, "--socket", "x"}, {"--caller", "web", "--address", address},
		{"--live", "--token-file", "x"}, {"--wait", "1s"}, {"--live", "--wait", "-1s"},
	} {
		if code, out := status(args...); code != upstream.ExitUsage {
			t.Errorf("%q ends with %d: %s", args, code, out)
		}
	}
}

// Ensure that --wait ends as soon as it is so, and otherwise says what it saw last.
func TestHealthIsWaitedFor(t *testing.T) {
	asked := 0
	address := answering(t, func() int {
		if asked++; asked < 3 {
			return http.StatusServiceUnavailable
		}
		return http.StatusOK
	})
	if code, out := status("--ready", "--address", address, "--wait", "1m"); code != upstream.ExitOK || out != "ready\n" || asked != 3 {
		t.Errorf("asked %d times, it ends with %d: %s", asked, code, out)
	}
	never := answering(t, func() int { return http.StatusServiceUnavailable })
	if code, out := status("--ready", "--address", never, "--wait", "150ms"); code != upstream.ExitFailed || out != "not ready\n" {
		t.Errorf("it ends with %d: %s", code, out)
	}
	if code, out := status("--ready", "--address", freeAddress(t), "--wait", "150ms"); code != upstream.ExitUnavailable {
		t.Errorf("where nobody answers it ends with %d: %s", code, out)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
