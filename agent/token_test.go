package agent_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"secretagent/agent"
)

func TestReadTokenTakesWhatTheEndpointWouldTake(t *testing.T) {
	const token = "0123456789abcdef"
	path := filepath.Join(t.TempDir(), "token")
	for content, want := range map[string]string{
		token: token, " " + token + "\r\n": token,
		"": "", "\n": "", token[1:]: "", token + "\n" + token: "", strings.Repeat("x", 5000): "",
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := agent.ReadToken(path)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%.40q: %q, %v", content, got, err)
		}
		if err != nil && len(content) > 1 && strings.Contains(err.Error(), content) {
			t.Errorf("the token is shown: %v", err)
		}
	}
}
