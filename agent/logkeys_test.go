package agent_test

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// logCall is a call in the source that writes a log line or prepares one.
type logCall struct {
	where string
	level string // "" for With
	text  string
	keys  []string
}

// messageAt says where the message of a log call stands; the keys follow it.
var messageAt = map[string]int{
	"Debug": 0, "Info": 0, "Warn": 0, "Error": 0, // slog
	"note": 1, // of a flight in package cache: level, message
	"With": -1,
}

// TestLogKeysAreDocumented reads every log call of the source. The keys are those of the table
// in the topic logs, in both directions; every warning and error has a hint; keys and messages are
// constants, so that a value can be neither.
func TestLogKeysAreDocumented(t *testing.T) {
	documented := documentedKeys(t)
	used := map[string]string{"time": "slog", "level": "slog", "msg": "slog"}
	calls := 0
	for _, c := range logCalls(t, "..") {
		if c.level != "" {
			calls++
			if strings.ToLower(c.text[:1]) != c.text[:1] || strings.ContainsAny(c.text, "\n.") && !strings.Contains(c.text, "endpoint.listen") && !strings.Contains(c.text, "process.mlockall") {
				t.Errorf("%s: message %q: must be one lower-case phrase", c.where, c.text)
			}
		}
		if (c.level == "Warn" || c.level == "Error") && !slices.Contains(c.keys, "hint") {
			t.Errorf("%s: %q: has no hint: say what an operator can do", c.where, c.text)
		}
		for _, key := range c.keys {
			if !slices.Contains(documented, key) {
				t.Errorf("%s: key %q: is not in the table of the topic logs", c.where, key)
			}
			used[key] = c.where
		}
	}
	for _, key := range documented {
		if used[key] == "" {
			t.Errorf("the topic logs: key %q: no log call uses it", key)
		}
	}
	if calls < 70 {
		t.Errorf("only %d log calls were found", calls)
	}
}

// documentedKeys returns the first column of the table of keys in the topic logs.
func documentedKeys(t *testing.T) (keys []string) {
	t.Helper()
	text, err := os.ReadFile("command/help/logs.md")
	must(t, err)
	_, table, found := strings.Cut(string(text), "| Key | Meaning |\n|---|---|\n")
	if !found {
		t.Fatal("the topic logs: there is no table of keys")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	for row := range strings.Lines(table) {
		cell, _, _ := strings.Cut(strings.TrimPrefix(row, "| "), " |")
		for _, m := range regexp.MustCompile("`([^`]*)`").FindAllStringSubmatch(cell, -1) {
			if slices.Contains(keys, m[1]) {
				t.Errorf("the topic logs: key %q stands twice in the table", m[1])
			}
			keys = append(keys, m[1])
		}
	}
	return keys
}

// logCalls returns the log calls of every file below root that is no test and belongs to the
// running agent.
func logCalls(t *testing.T, root string) (calls []logCall) {
	t.Helper()
	must(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (strings.HasPrefix(d.Name(), ".") && path != root || d.Name() == "examples" || d.Name() == "upstreamtest" || d.Name() == "testdata"):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				c := logCall{where: set.Position(call.Pos()).String()}
				if err := c.read(call); err != nil {
					t.Errorf("%s: %v", c.where, err)
				}
				if c.level != "" || c.keys != nil {
					calls = append(calls, c)
				}
			}
			return true
		})
		return nil
	}))
	return calls
}

var (
	isLogger = regexp.MustCompile(`(?i)(^|\.)(log|logger)$`)
	isSlog   = regexp.MustCompile(`^slog\.(String|Int|Int64|Uint64|Float64|Bool|Time|Duration|Any|Group)$`)
)

// read fills c if call is a log call or makes an attribute.
func (c *logCall) read(call *ast.CallExpr) error {
	fun, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return nil
	}
	if isSlog.MatchString(types.ExprString(fun)) {
		if key, ok := constant(call.Args[0]); ok { // otherwise a handler passes on what it got
			c.keys = []string{key}
		}
		return nil
	}
	name, of := fun.Sel.Name, types.ExprString(fun.X)
	at, known := messageAt[name]
	if !known || (name == "note") != (of == "f") || name != "note" && !isLogger.MatchString(of) {
		return nil
	}
	if at >= 0 {
		if c.text, ok = constant(call.Args[at]); !ok || c.text == "" {
			return errors.New("the message is no constant")
		}
		if c.level = name; name == "note" {
			c.level = strings.TrimPrefix(types.ExprString(call.Args[0]), "slog.Level")
		}
		if c.level == "level" { // decided at run time: the stricter rule holds
			c.level = "Warn"
		}
	}
	for rest := call.Args[at+1:]; len(rest) > 0; {
		text := types.ExprString(rest[0])
		if key, ok := constant(rest[0]); ok {
			c.keys, rest = append(c.keys, key), rest[1:] // and its value
		} else if !strings.HasSuffix(text, ".Attr()") && !strings.HasPrefix(text, "slog.") {
			return fmt.Errorf("%s stands where a constant key belongs", text)
		}
		rest = rest[min(1, len(rest)):]
	}
	return nil
}

// constant returns the text of a literal.
func constant(e ast.Expr) (string, bool) {
	lit, ok := e.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return "", false
	}
	s, err := strconv.Unquote(lit.Value)
	return s, err == nil
}
