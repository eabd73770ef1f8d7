package render

import (
	"context"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "rewrite the wanted part of testdata/*.txtar")

// TestGolden renders the archives of testdata. An archive holds files named
//
//	secret REF     a value; REF is name, name:Label or name@version
//	template       a template, or
//	content.json   a Content
//	want           what it renders, or
//	error          what its error says
//
// The last line break of a file belongs to the archive, not to the file.
func TestGolden(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("testdata holds no archive: %v", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			must(t, err)
			src := newFakeSource()
			var content Content
			for _, f := range archive.Files {
				data := strings.TrimSuffix(string(f.Data), "\n")
				name, isSecret := strings.CutPrefix(f.Name, "secret ")
				switch {
				case isSecret:
					src.put(name, data)
				case f.Name == "template":
					content.Contents = data
				case f.Name == "content.json":
					must(t, json.Unmarshal(f.Data, &content))
				case f.Name == "want", f.Name == "error":
				default:
					t.Fatalf("%s holds a file of an unknown kind: %s", path, f.Name)
				}
			}
			kind, got := renderContent(src, content)
			if *update {
				last := &archive.Files[len(archive.Files)-1]
				if last.Name != "want" && last.Name != "error" {
					archive.Files = append(archive.Files, txtar.File{})
					last = &archive.Files[len(archive.Files)-1]
				}
				last.Name, last.Data = kind, []byte(got+"\n")
				must(t, os.WriteFile(path, txtar.Format(archive), 0o644))
				return
			}
			want := archive.Files[len(archive.Files)-1]
			if want.Name != kind || strings.TrimSuffix(string(want.Data), "\n") != got {
				t.Errorf("got %s:\n%s\nwant %s:\n%s", kind, got, want.Name, want.Data)
			}
		})
	}
}

// testFuncs is what every template of the tests may call.
var testFuncs = helpers()

// renderContent renders without a file. kind is want or error.
func renderContent(src Source, spec Content) (kind, text string) {
	b := &builder{funcs: testFuncs}
	made := b.content("", &spec, "file")
	if len(b.problems) > 0 {
		return "error", b.problems[0].Reason
	}
	out, err := computeOne(src, made)
	if err != nil {
		return "error", err.Error()
	}
	return "want", string(out.bytes)
}

// wantRender renders an inline template that gives want.
func wantRender(t *testing.T, src Source, text, want string) {
	t.Helper()
	if kind, got := renderContent(src, inline(text)); kind != "want" || got != want {
		t.Errorf("%s: %s %q, want %q", text, kind, got, want)
	}
}

// computeOne renders c as the only file of a target.
func computeOne(src Source, c content) (*output, error) {
	t := &target{name: "file", files: []string{"file"}, contents: []content{c}}
	result, err := t.compute(context.Background(), src, time.Second, nil)
	if err != nil {
		return nil, err
	}
	return result.outs[0], nil
}
