package main

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
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
	"secretagent/agent":                       {"secretagent/agent/child", "secretagent/agent/config", "secretagent/agent/credentials", "secretagent/agent/endpoint", "secretagent/agent/lines", "secretagent/agent/listen", "secretagent/agent/rotation", "secretagent/cache", "secretagent/render", "secretagent/upstream", "secretagent/upstream/keyfile", "secretagent/upstream/kms", "secretagent/upstream/kmsserver", "secretagent/upstream/builtin", "secretagent/upstream/builtin/bolt", "secretagent/upstream/builtin/etcd"},
	"secretagent/agent/child":                 {"secretagent/upstream", "secretagent/upstream/keyfile"},
	"secretagent/agent/command/help/helptest": {},
	"secretagent/agent/config":                {"secretagent/upstream"},
	"secretagent/agent/convert":               {"secretagent/upstream"},
	"secretagent/agent/credentials":           {"secretagent/upstream", "secretagent/upstream/slots"},
	"secretagent/agent/endpoint":              {"secretagent/upstream", "secretagent/upstream/slots"},
	"secretagent/agent/lines":                 {},
	"secretagent/agent/listen":                {"secretagent/upstream", "secretagent/upstream/keyfile"},
	"secretagent/agent/rotation":              {"secretagent/upstream"},
	"secretagent/cache":                       {"secretagent/upstream", "secretagent/upstream/keyfile"},
	"secretagent/render":                      {"secretagent/upstream", "secretagent/upstream/keyfile"},
	"secretagent/upstream":                    {},
	"secretagent/upstream/kms":                {"secretagent/upstream", "secretagent/upstream/keyfile"},
	"secretagent/upstream/keyfile":            {"secretagent/upstream"},
	"secretagent/upstream/kmsserver":          {"secretagent/upstream", "secretagent/upstream/keyfile", "secretagent/upstream/slots"},
	"secretagent/upstream/slots":              {},
	"secretagent/upstream/builtin":            {"secretagent/upstream", "secretagent/upstream/keyfile"},
	"secretagent/upstream/builtin/bolt":       {"secretagent/upstream", "secretagent/upstream/builtin", "secretagent/upstream/keyfile"},
	"secretagent/upstream/builtin/etcd":       {"secretagent/upstream", "secretagent/upstream/builtin", "secretagent/upstream/keyfile"},
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
		"README.md", "README.zh-CN.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "LICENSE",
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

// TestDockerfile holds what each builder needs of it, and where the pieces of the image must agree.
// Builders themselves are not run here.
func TestDockerfile(t *testing.T) {
	src, err := os.ReadFile("Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	joined := regexp.MustCompile(`\\\n *`).ReplaceAllString(string(src), "")
	lines := strings.Split(joined, "\n")
	for what, line := range map[string]string{
		"the classic builder knows no BUILDPLATFORM, and BuildKit's must stay": "ARG BUILDPLATFORM=${BUILDPLATFORM:-linux}",
		"podman 4 refuses a default in FROM":                                   "FROM --platform=$BUILDPLATFORM golang:${GO_VERSION} AS build",
		"builds behind a proxy":                                                "ARG GOPROXY",
		"commands find configuration and state":                                "ENV SECRETAGENT_CONFIG=/etc/secretagent/agent.yaml STATE_DIRECTORY=/var/lib/secretagent",
		"the state directory survives the container":                           "VOLUME /var/lib/secretagent",
		"the state directory is the user's":                                    "COPY --from=build --chown=65532:65532 /state/ /var/lib/",
		"a scratch image has no names of users":                                "USER 65532:65532",
		"no shell for the health check":                                        `HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["/secretagent", "status", "--live"]`,
		"no shell for the program":                                             `ENTRYPOINT ["/secretagent"]`,
	} {
		if !slices.Contains(lines, line) {
			t.Errorf("%s: there is no line\n%s", what, line)
		}
	}
	if !regexp.MustCompile(`(?m)^ARG GO_VERSION=\S+@sha256:[0-9a-f]{64}$`).MatchString(joined) {
		t.Error("the base is not named by its digest")
	}
	for _, label := range []string{"title", "description", "licenses", "version", "revision"} {
		if !strings.Contains(joined, "org.opencontainers.image."+label+`="`) {
			t.Errorf("there is no label %s", label)
		}
	}
	if only := regexp.MustCompile(`(?mi)^# *syntax=|--mount=|--link|<<|COPY.*--chmod`).FindString(joined); only != "" {
		t.Errorf("%q is for BuildKit alone", only)
	}
	// A file that is mounted by itself stays the old one, and is made a folder where it is missing.
	if strings.Contains(string(src), "agent.yaml:/etc") || !strings.Contains(string(src), `-v "$PWD/conf:/etc/secretagent:ro"`) {
		t.Error("the printed line does not mount a folder that it has made")
	}
}

// TestImagesHaveTags looks for names of images that mean another image every day.
func TestImagesHaveTags(t *testing.T) {
	seen := 0
	err := filepath.WalkDir("examples", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".yaml" && filepath.Base(path) != "Dockerfile" {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range regexp.MustCompile(`(?m)^ *(?:- )?(?:image: *|FROM |ARG (?:AGENT|BASE)=)"?([^\s"$]+)`).FindAllStringSubmatch(string(text), -1) {
			seen++
			if _, tag, _ := strings.Cut(m[1][strings.LastIndex(m[1], "/")+1:], ":"); (tag == "" || tag == "latest") && m[1] != "scratch" && m[1] != "{{" { // a chart's are in what it renders
				t.Errorf("%s: %s has no tag of its own", path, m[1])
			}
		}
		return err
	})
	if err != nil || seen < 5 {
		t.Errorf("%d images, %v", seen, err)
	}
}
