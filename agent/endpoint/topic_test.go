package endpoint_test

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	gotoken "go/token"
	"go/types"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"secretagent/agent/command/help/helptest"
)

var update = flag.Bool("update", false, "write the table of refusals into the help topic errors")

// TestTheTopicErrorsHasEveryRefusal holds the table of "secretagent help errors" against every
// refusal of the source.
func TestTheTopicErrorsHasEveryRefusal(t *testing.T) {
	statuses := map[string]int{}
	for status := 400; status < 600; status++ {
		if text := http.StatusText(status); text != "" {
			statuses["http.Status"+strings.NewReplacer(" ", "", "-", "", "'", "").Replace(text)] = status
		}
	}
	table, rows := "| Status, code | Message |\n|---|---|\n", 0
	files, err := filepath.Glob("*.go")
	must(t, err)
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(gotoken.NewFileSet(), file, nil, 0)
		must(t, err)
		ast.Inspect(parsed, func(n ast.Node) bool {
			lit, ok := n.(*ast.CompositeLit)
			if !ok || lit.Type == nil || types.ExprString(lit.Type) != "refusal" || len(lit.Elts) < 3 {
				return true
			}
			status := statuses[types.ExprString(lit.Elts[1])]
			if status == 0 {
				t.Errorf("%s: %s is no status", file, types.ExprString(lit.Elts[1]))
			}
			code, err := strconv.Unquote(lit.Elts[0].(*ast.BasicLit).Value)
			must(t, err)
			message, err := strconv.Unquote(lit.Elts[2].(*ast.BasicLit).Value)
			must(t, err)
			table += fmt.Sprintf("| %d `%s` | %s |\n", status, code, message)
			rows++
			return true
		})
	}
	if rows < 25 {
		t.Errorf("only %d refusals were found", rows)
	}
	helptest.Hold(t, "errors", "refusals", table, *update)
}
