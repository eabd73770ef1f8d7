package command

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"secretagent/upstream"
)

// TestHealthChecksAreUnderstood runs the checks of the image and of the examples where no agent
// runs: a mistake in one would be exit code 2, which nobody would look at.
func TestHealthChecksAreUnderstood(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(path, []byte("upstream: {local: {}}\nendpoint: {listen: off, socket: ./nobody.sock}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
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
			at := slices.Index(args, "/etc/secretagent/agent.yaml")
			if at < 0 {
				t.Fatalf("%s: %v does not name the configuration", file, args)
			}
			args[at] = path
			asks = append(asks, args[1])
			var out bytes.Buffer
			code := Main(t.Context(), Process{Args: args, Stdin: new(bytes.Buffer), Stdout: &out, Stderr: &out, Getenv: func(string) string { return "" }, Version: "1.2.3"})
			if code != upstream.ExitUnavailable || !strings.Contains(out.String(), "cannot be reached") {
				t.Errorf("%s: %v ends with %d: %s", file, args, code, out.String())
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
