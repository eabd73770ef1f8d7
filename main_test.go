package main

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// mayImport is the house: which packages of this module a package may import. Arrows point
// down only, siblings never import each other, and only agent knows which upstream was
// chosen. Tests are free: a conformance run joins packages that never meet otherwise.
var mayImport = map[string][]string{
	"secretagent":                             {"secretagent/agent/command"},
	"secretagent/agent/command":               {"secretagent/agent", "secretagent/agent/child", "secretagent/agent/config", "secretagent/agent/convert", "secretagent/agent/lines", "secretagent/upstream"},
	"secretagent/agent":                       {"secretagent/agent/child", "secretagent/agent/config", "secretagent/agent/credentials", "secretagent/agent/endpoint", "secretagent/agent/lines", "secretagent/agent/listen", "secretagent/cache", "secretagent/render", "secretagent/upstream", "secretagent/upstream/keyfile", "secretagent/upstream/kms", "secretagent/upstream/kmsserver", "secretagent/upstream/builtin", "secretagent/upstream/builtin/bolt"},
	"secretagent/agent/child":                 {"secretagent/upstream", "secretagent/upstream/keyfile"},
	"secretagent/agent/command/help/helptest": {},
	"secretagent/agent/config":                {"secretagent/upstream"},
	"secretagent/agent/convert":               {"secretagent/upstream"},
	"secretagent/agent/credentials":           {"secretagent/upstream", "secretagent/upstream/slots"},
	"secretagent/agent/endpoint":              {"secretagent/upstream", "secretagent/upstream/slots"},
	"secretagent/agent/lines":                 {},
	"secretagent/agent/listen":                {"secretagent/upstream", "secretagent/upstream/keyfile"},
	"secretagent/cache":                       {"secretagent/upstream", "secretagent/upstream/keyfile"},
	"secretagent/render":                      {"secretagent/upstream", "secretagent/upstream/keyfile"},
	"secretagent/upstream":                    {},
	"secretagent/upstream/kms":                {"secretagent/upstream", "secretagent/upstream/keyfile"},
	"secretagent/upstream/keyfile":            {"secretagent/upstream"},
	"secretagent/upstream/kmsserver":          {"secretagent/upstream", "secretagent/upstream/keyfile", "secretagent/upstream/slots"},
	"secretagent/upstream/slots":              {},
	"secretagent/upstream/builtin":            {"secretagent/upstream", "secretagent/upstream/keyfile"},
	"secretagent/upstream/builtin/bolt":       {"secretagent/upstream", "secretagent/upstream/builtin", "secretagent/upstream/keyfile"},
	"secretagent/upstream/upstreamtest":       {"secretagent/upstream"},
}

func TestArrowsPointDown(t *testing.T) {
	seen := map[string]bool{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || d.Name() == "examples" || strings.HasPrefix(d.Name(), ".") && path != ".") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		pkg := "secretagent"
		if dir := filepath.ToSlash(filepath.Dir(path)); dir != "." {
			pkg += "/" + dir
		}
		seen[pkg] = true
		allowed, known := mayImport[pkg]
		if !known {
			t.Errorf("%s has no place in the house", pkg)
		}
		src, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range src.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if strings.HasPrefix(imported, "secretagent") && !slices.Contains(allowed, imported) {
				t.Errorf("%s imports %s", path, imported)
			}
			if pkg == "secretagent/upstream" && strings.Contains(imported, ".") {
				t.Errorf("%s imports %s, which is not in the standard library", path, imported)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for pkg := range mayImport {
		if !seen[pkg] {
			t.Errorf("%s stands in the picture but has no code", pkg)
		}
	}
}

func TestTopLevelIsFixed(t *testing.T) {
	allowed := []string{
		"agent", "cache", "render", "upstream", "examples",
		"main.go", "main_test.go", "go.mod", "go.sum", "Dockerfile", "agent.example.yaml",
		"README.md", "SECURITY.md", "CHANGELOG.md", "LICENSE",
		"var",         // what a run from the checkout leaves behind, ignored by git
		"secretagent", // the binary, ignored by git
	}
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") && !slices.Contains(allowed, e.Name()) {
			t.Errorf("%s has no place at the top level", e.Name())
		}
	}
}
