package command

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

// pages returns the topics and the Markdown files of the top level, by their paths from here.
func pages(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, pattern := range []string{"help/*.md", "../../README*.md"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: nothing found: %v", pattern, err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			all[file] = string(text)
		}
	}
	return all
}

func TestREADMEIsAnEntry(t *testing.T) {
	for file, text := range pages(t) {
		for i, line := range strings.Split(text, "\n") {
			if n := utf8.RuneCountInString(line); n > 120 {
				t.Errorf("%s:%d: %d characters, at most 120", file, i+1, n)
			}
		}
		if name := filepath.Base(file); name == "README.md" && len(text) > 9*1024 {
			t.Errorf("%s has %d bytes, at most 9 KiB: what explains belongs in a topic", file, len(text))
		}
	}
}

var (
	isLink    = regexp.MustCompile(`(?:\]\(|src="|srcset=")([^)"#]+)`)
	isExample = regexp.MustCompile("`(examples/[a-z/-]+)`")
	isTopic   = regexp.MustCompile("secretagent help ([a-z][a-z-]*)")
)

// TestPagesNameWhatThereIs follows every link, example and topic that a page names. What the
// binary prints never sends its reader to the source code.
func TestPagesNameWhatThereIs(t *testing.T) {
	for file, text := range pages(t) {
		for _, m := range isLink.FindAllStringSubmatch(text, -1) {
			if strings.HasPrefix(m[1], "https://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(file), m[1])); err != nil {
				t.Errorf("%s: link to what is not there: %v", file, err)
			}
		}
		for _, m := range isExample.FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join("../..", m[1])); err != nil {
				t.Errorf("%s: names what is not there: %v", file, err)
			}
		}
		for _, m := range isTopic.FindAllStringSubmatch(text, -1) {
			if topics()[m[1]] == "" {
				t.Errorf("%s: there is no topic %s", file, m[1])
			}
		}
		if !strings.Contains(file, "README") && strings.Contains(text, "go doc") {
			t.Errorf("%s: sends a user of the binary to go doc", file)
		}
	}
}
