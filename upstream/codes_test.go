package upstream

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the table of codes into the help topic errors")

// TestTheTopicErrorsHasEveryCode holds the table of "secretagent help errors" against classes.
func TestTheTopicErrorsHasEveryCode(t *testing.T) {
	const file, begin, end = "../agent/command/help/errors.md", "<!-- upstream codes -->\n", "<!-- end -->"
	held := map[verdict]string{outage: "served, stale", alone: "served, stale", gone: "dropped", mistake: "not concerned"}
	table := "\n| Code | Status | Exit | Asked again | A value that is held | Means |\n|---|---|---|---|---|---|\n"
	for _, c := range classes {
		again := "no"
		if c.retry {
			again = "yes"
		}
		table += fmt.Sprintf("| `%s` | %d | %d | %s | %s | %s |\n", c.code, c.status, c.exit, again, held[c.verdict], c.sentinel)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), begin)
	old, after, ended := strings.Cut(rest, end)
	if !found || !ended {
		t.Fatalf("%s has no place for the table", file)
	}
	if table += "\n"; old == table {
		return
	}
	if !*update {
		t.Fatalf("%s has another table; go test ./upstream -run %s -update writes\n%s", file, t.Name(), table)
	}
	if err := os.WriteFile(file, []byte(before+begin+table+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}
