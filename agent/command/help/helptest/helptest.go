// Package helptest holds what the help topics list against what the code has. A test makes the
// list from its own table and calls [Hold]; with -update it is written.
package helptest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Hold fails the test unless the block called name of the topic is want, or writes want there when
// update is set. A block begins with the line <!-- generated: name --> and ends with <!-- end -->.
func Hold(t *testing.T, topic, name, want string, update bool) {
	t.Helper()
	file := filepath.Join(root(t), "agent", "command", "help", topic+".md")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	begin, end := "<!-- generated: "+name+" -->\n", "<!-- end -->"
	before, rest, found := strings.Cut(string(text), begin)
	old, after, ended := strings.Cut(rest, end)
	if !found || !ended {
		t.Fatalf("%s has no block %q", file, name)
	}
	want = "\n" + strings.Trim(want, "\n") + "\n\n"
	if old == want {
		return
	}
	if !update {
		t.Fatalf("%s: the block %q is not what the code has; after a look, go test -run '^%s$' -update", file, name, t.Name())
	}
	if err := os.WriteFile(file, []byte(before+begin+want+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

// root returns the folder of the module.
func root(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if parent := filepath.Dir(dir); parent != dir {
			dir = parent
			continue
		}
		t.Fatal("there is no go.mod above this test")
	}
}
