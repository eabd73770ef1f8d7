package upstream

import (
	"flag"
	"fmt"
	"testing"

	"secretagent/agent/command/help/helptest"
)

var update = flag.Bool("update", false, "write the table of codes into the help topic errors")

// TestTheTopicErrorsHasEveryCode holds the table of "secretagent help errors" against classes.
func TestTheTopicErrorsHasEveryCode(t *testing.T) {
	held := map[verdict]string{outage: "served, stale", alone: "served, stale", gone: "dropped", mistake: "not concerned"}
	table := "| Code | Status | Exit | Asked again | A value that is held | Means |\n|---|---|---|---|---|---|\n"
	for _, c := range classes {
		again := "no"
		if c.retry {
			again = "yes"
		}
		table += fmt.Sprintf("| `%s` | %d | %d | %s | %s | %s |\n", c.code, c.status, c.exit, again, held[c.verdict], c.sentinel)
	}
	helptest.Hold(t, "errors", "codes", table, *update)
}
