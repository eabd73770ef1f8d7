package convert_test

import (
	"path/filepath"
	"strings"
	"testing"
	"text/template/parse"

	"github.com/goccy/go-yaml"
	"github.com/rogpeppe/go-internal/txtar"

	"secretagent/agent/convert"
)

// FuzzTemplate holds that what comes out is a template, which calls no function that is not here.
func FuzzTemplate(f *testing.F) {
	for _, src := range []string{
		`{{ with secret "secret/data/app" }}{{ .Data.data.password }}{{ end }}`,
		`{{- $s := secret "kv/app?version=3" -}}{{ $s.Data.x | toUpper | sprig_quote }}{{/* {{ */}}{{ $s = key "a" }}`,
		`{{ define "x" }}{{ .Data.data }}{{ end }}{{ template "x" (secret "a/b") }}{{ block "y" .Data }}{{ . }}{{ end }}`,
		"{{ if or .Data.data.x (env `H`) }}{{ else if (secret (printf \"a/data/%s\" 'c')).Data.data.y }}{{ else with 1 }}{{ end }}",
		`{{ range $i, $e := loop 1 3 }}{{ index .Data "data" "x" }}{{ break }}{{ end }}{{ "}}" | split "," }}`,
	} {
		f.Add(src, "", "")
		f.Add(strings.NewReplacer("{{", "[[", "}}", "]]").Replace(src), "[[", "]]")
	}
	inWord := func(r rune) bool {
		return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '_'
	}
	f.Fuzz(func(t *testing.T, src, left, right string) {
		if strings.ContainsFunc(left+right, inWord) {
			t.Skip("a delimiter hides where a function's name begins")
		}
		out, _, err := convert.Template("f", []byte(src), left, right, options("", noFile))
		if err != nil {
			return
		}
		known := map[string]any{}
		for _, word := range strings.FieldsFunc(out, func(r rune) bool { return !inWord(r) }) {
			if options("", nil).Function(word) {
				known[word] = true
			}
		}
		if _, err := parse.Parse("out", out, left, right, known); err != nil {
			t.Errorf("%q becomes %q: %v", src, out, err)
		}
	})
}

// FuzzConfig holds that what comes out is YAML, with the templates in it as they would be in files.
func FuzzConfig(f *testing.F) {
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(paths) == 0 {
		f.Fatal(err)
	}
	for _, path := range paths {
		archive, err := txtar.ParseFile(path)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range archive.Files {
			if ext := filepath.Ext(file.Name); ext == ".hcl" || ext == ".toml" || ext == ".json" {
				for from := range convert.Tools {
					f.Add(uint8(from), file.Data)
				}
			}
		}
	}
	f.Fuzz(func(t *testing.T, from uint8, src []byte) {
		opts := options(convert.Tools[int(from)%len(convert.Tools)], noFile)
		inline, err := convert.Config("f", src, opts)
		if err != nil {
			return
		}
		opts.Apart = true
		apart, err := convert.Config("f", src, opts)
		if err != nil {
			t.Fatal(err)
		}
		var doc struct {
			Templates []struct{ Contents string }
		}
		if err := yaml.Unmarshal([]byte(inline.Config), &doc); err != nil {
			t.Fatalf("%v\n%s", err, inline.Config)
		}
		if len(doc.Templates) != len(apart.Templates) {
			t.Fatalf("%d templates, %d files", len(doc.Templates), len(apart.Templates))
		}
		for i, file := range apart.Templates {
			if got := doc.Templates[i].Contents; got != file.Text {
				t.Errorf("in agent.yaml %q, in a file %q", got, file.Text)
			}
		}
	})
}
