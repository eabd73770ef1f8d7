package command

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

// TestInitPassesCheck writes a configuration for every answer to every question, and what check
// says of each as it is written, and of each with all of its comments in force.
func TestInitPassesCheck(t *testing.T) {
	written := 0
	for _, place := range initFor {
		for _, upstream := range initUpstream {
			credentials := []option{{}}
			if upstream.word == "alibaba" {
				credentials = initCredentials
			}
			for _, c := range credentials {
				for _, secrets := range []string{"", "app/db app/tls:Green"} {
					dir := t.TempDir()
					args := []string{"init", "--for", place.word, "--upstream", upstream.word, "--out", filepath.Join(dir, "agent.yaml")}
					if upstream.word == "etcd" {
						args = append(args, "--endpoints", "https://etcd-0:2379,https://etcd-1:2379")
					}
					if c.word != "" {
						args = append(args, "--region", "cn-hangzhou", "--credentials", c.word)
					}
					for name := range strings.FieldsSeq(secrets) {
						args = append(args, "--secret", name)
					}
					t.Run(strings.Join(args[2:len(args)-2], " ")+" "+secrets, func(t *testing.T) {
						calls(t, 0, args...)
						check := []string{"check", "--config", filepath.Join(dir, "agent.yaml")}
						if upstream.word == "etcd" { // it is not made at a start: all agents have the same
							keyring := filepath.Join(dir, "keyring.json")
							calls(t, 0, "keys", "init", keyring)
							check = append(check, "--keyring", keyring)
						}
						calls(t, 0, check...)
						text, err := os.ReadFile(filepath.Join(dir, "agent.yaml"))
						must(t, err)
						for line := range strings.Lines(string(text)) {
							if strings.TrimRight(line, " \n") != strings.TrimSuffix(line, "\n") {
								t.Errorf("%q ends with blanks", line)
							}
						}
						if err := yaml.Unmarshal(uncommented(text), new(any)); err != nil {
							t.Errorf("with the comments that are keys: %v\n%s", err, uncommented(text))
						}
						// A file that is there stays as it is.
						calls(t, 2, args...)
						again, err := os.ReadFile(filepath.Join(dir, "agent.yaml"))
						must(t, err)
						if !bytes.Equal(text, again) {
							t.Error("the file was replaced")
						}
					})
					written++
				}
			}
		}
	}
	if written < 40 {
		t.Errorf("only %d were written", written)
	}
}

// uncommented sets the keys that a configuration has as comments: those without a space after #.
func uncommented(text []byte) []byte {
	var out []byte
	for line := range bytes.Lines(text) {
		indent := len(line) - len(bytes.TrimLeft(line, " "))
		if rest, ok := bytes.CutPrefix(line[indent:], []byte("#")); ok && len(rest) > 1 && rest[0] != ' ' {
			line = append(bytes.Repeat([]byte(" "), indent), rest...)
		}
		out = append(out, line...)
	}
	return out
}

// calls runs a command and holds its exit code.
func calls(t *testing.T, want int, args ...string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := Main(t.Context(), Process{
		Args: args, Stdin: strings.NewReader(""), Stdout: &stdout, Stderr: &stderr,
		Getenv: func(string) string { return "" }, Build: Build{Version: "1.2.3"},
	})
	if code != want {
		t.Fatalf("secretagent %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), code, want, fmt.Sprint(stdout.String()), stderr.String())
	}
}
