package command

import (
	"io/fs"
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
	for _, pattern := range []string{"help/*.md", "../../README*.md", "../../CONTRIBUTING.md"} {
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
		generated := false
		for i, line := range strings.Split(text, "\n") {
			if strings.HasPrefix(line, "<!-- ") {
				generated = strings.Contains(line, "generated")
			}
			if n := utf8.RuneCountInString(line); n > 120 && !generated {
				t.Errorf("%s:%d: %d characters, at most 120", file, i+1, n)
			}
		}
		if name := filepath.Base(file); strings.HasPrefix(name, "README") && len(text) > 9*1024 {
			t.Errorf("%s has %d bytes, at most 9 KiB: what explains belongs in a topic", file, len(text))
		}
	}
}

// TestREADMEsSayTheSame compares the README in English with that in Chinese: headings, links, names
// in code and commands are the same, in the same order; comments in commands are translated.
func TestREADMEsSayTheSame(t *testing.T) {
	outline := func(name string) (lines []string) {
		text, err := os.ReadFile("../../" + name)
		must(t, err)
		text = regexp.MustCompile(`(?m)^\[[^]]+\]\(README[^)]*\)$`).ReplaceAll(text, nil) // to each other
		code := false
		for line := range strings.Lines(string(text)) {
			switch line = strings.TrimSpace(line); {
			case strings.HasPrefix(line, "```"):
				code = !code
				lines = append(lines, line)
			case code:
				command, _, _ := strings.Cut(line, "  #")
				lines = append(lines, strings.TrimSpace(command))
			case strings.HasPrefix(line, "#"):
				level, _, _ := strings.Cut(line, " ")
				lines = append(lines, level)
			default:
				if strings.HasPrefix(line, "|") {
					lines = append(lines, "a row")
				}
				lines = append(lines, regexp.MustCompile("\\]\\([^)]+\\)|`[^`]+`|src(?:set)?=\"[^\"]+\"").FindAllString(line, -1)...)
			}
		}
		return lines
	}
	english, chinese := outline("README.md"), outline("README.zh-CN.md")
	if len(english) < 100 {
		t.Errorf("only %d parts were found", len(english))
	}
	for i := range max(len(english), len(chinese)) {
		var e, c string
		if i < len(english) {
			e = english[i]
		}
		if i < len(chinese) {
			c = chinese[i]
		}
		if e != c {
			t.Fatalf("part %d: README.md has %s where README.zh-CN.md has %s", i+1, e, c)
		}
	}
}

var (
	isLink    = regexp.MustCompile(`(?:\]\(|src="|srcset=")([^)"#]+)`)
	isExample = regexp.MustCompile("`(examples/[a-z/-]+)`")
	isTopic   = regexp.MustCompile("secretagent help ([a-z][a-z.-]*[a-z])")
)

// TestPagesNameWhatThereIs follows every link, example and topic that a page names. What the
// binary prints never sends its reader to the source code.
func TestPagesNameWhatThereIs(t *testing.T) {
	topics := (&app{}).topics()
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
			if _, ok := topics[m[1]]; !ok {
				t.Errorf("%s: there is no topic %s", file, m[1])
			}
		}
		if !strings.Contains(file, "README") && strings.Contains(text, "go doc") {
			t.Errorf("%s: sends a user of the binary to go doc", file)
		}
	}
}

var (
	isCode   = regexp.MustCompile("(?s)```[a-z]*\n(.*?)\n```|`([^`\n]+(?:\n[^`\n]+)?)`")
	isKey    = regexp.MustCompile(`^(upstream|cache|endpoint|render|exec|log|process|templates|sets|secrets|rotations)(\.[a-z][a-zA-Z]*(\[\])?)+$`)
	isMetric = regexp.MustCompile("`(secretagent_[a-z_]+)`")
	isCall   = regexp.MustCompile(`(?:^|[ /])secretagent ([^|#>\n&]*)`)
	isFlag   = regexp.MustCompile(`^--([a-z][a-z-]*)`)
)

// TestPagesNameRealKeysMetricsAndFlags holds what pages name in code against the binary: keys of
// the configuration, metrics, commands and their flags.
func TestPagesNameRealKeysMetricsAndFlags(t *testing.T) {
	all := pages(t)
	generated := func(topic string) string { // which a test of the package holds against the code
		_, block, _ := strings.Cut(all["help/"+topic+".md"], "<!-- generated:")
		block, _, found := strings.Cut(block, "<!-- end -->")
		if !found {
			t.Fatalf("%s has no generated part", topic)
		}
		return block
	}
	keys, metrics := generated("configuration"), generated("metrics")
	calls, named, measured := 0, 0, 0
	for file, page := range all {
		for _, m := range isMetric.FindAllStringSubmatch(page, -1) {
			if measured++; !strings.Contains(metrics, m[0]) {
				t.Errorf("%s: there is no metric %s", file, m[1])
			}
		}
		for _, m := range isCode.FindAllStringSubmatch(page, -1) {
			code := m[1] + m[2]
			if isKey.MatchString(code) {
				if named++; !strings.Contains(keys, "`"+code+"`") && !strings.Contains(keys, "`"+code+".") && !strings.Contains(keys, "`"+code+"[]") {
					t.Errorf("%s: there is no key %s", file, code)
				}
			}
			for _, call := range isCall.FindAllStringSubmatch(strings.ReplaceAll(code, "\\\n", " "), -1) {
				calls++
				checkCall(t, file, strings.Fields(call[1]))
			}
		}
	}
	if calls < 30 || named < 40 || measured < 100 {
		t.Errorf("only %d calls, %d keys and %d metrics were found", calls, named, measured)
	}
}

// checkCall checks the words after "secretagent": a command that there is, with flags of its own.
func checkCall(t *testing.T, file string, words []string) {
	t.Helper()
	root := (&app{}).root()
	root.InitDefaultHelpCmd()
	cmd, path := root, []string{}
	for _, word := range words {
		if m := isFlag.FindStringSubmatch(strings.Trim(word, "[]`\"',.")); m != nil {
			if m[1] != "help" && m[1] != "version" && cmd.Flags().Lookup(m[1]) == nil && cmd.InheritedFlags().Lookup(m[1]) == nil {
				t.Errorf("%s: secretagent %s has no flag --%s", file, strings.Join(path, " "), m[1])
			}
			continue
		}
		if !cmd.HasSubCommands() || !regexp.MustCompile(`^[a-z][a-z-]*$`).MatchString(word) {
			continue // an argument, or the value of a flag
		}
		next, _, err := cmd.Find([]string{word})
		if err != nil || next == cmd {
			t.Errorf("%s: there is no command secretagent %s", file, strings.Join(append(path, word), " "))
			return
		}
		cmd, path = next, append(path, word)
	}
}

// TestExamplesSayWhereTheProgramComesFrom: who has nothing but the clone can type what an example
// says, since it makes the program or the image first.
func TestExamplesSayWhereTheProgramComesFrom(t *testing.T) {
	var files []string
	must(t, filepath.WalkDir("../../examples", func(path string, d fs.DirEntry, err error) error {
		if d != nil && d.Name() == "README.md" {
			files = append(files, path)
		}
		return err
	}))
	for _, file := range files {
		text, err := os.ReadFile(file)
		must(t, err)
		runs := regexp.MustCompile("(?ms)^```sh\n.*?\\b(secretagent|docker|kubectl|helm) .*?^```").Match(text)
		if runs && !regexp.MustCompile(`go build|docker build`).Match(text) {
			t.Errorf("%s: does not say how secretagent comes to be", file)
		}
	}
	if len(files) < 14 {
		t.Errorf("only %d examples were found", len(files))
	}
}
