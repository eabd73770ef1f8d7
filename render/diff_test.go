package render

import (
	"slices"
	"strings"
	"testing"
)

func TestDiff(t *testing.T) {
	dir := t.TempDir()
	src := sourceOf("db", `{"user":"app-user","password":"`+marker+`-1"}`, "pem", "-----\nline-one-secret\nline-two-secret\n")
	opts := Options{
		Targets: []Target{
			fileAt(dir+"/app.conf", "# comment\nuser={{ secretField \"db\" \"user\" }}\npassword={{ secretField \"db\" \"password\" }};\nb64={{ secretField \"db\" \"password\" | b64enc }}\nend\n"),
			{Content: Content{Format: YAML, Secrets: []FormatSecret{{Ref: ref("db")}}}, Destination: dir + "/db.yaml", NoSync: true},
			fileAt(dir+"/same", "nothing secret\n"),
			fileAt(dir+"/pem", "{{ secret \"pem\" }}"),
		},
		Sets: []Set{{Directory: dir + "/set", NoSync: true, Files: []SetFile{{Name: "u", Content: inline(`{{ secretField "db" "user" }}`)}, {Name: "p", Content: inline(`p={{ secretField "db" "password" }}`)}}}},
	}
	show := func() string {
		t.Helper()
		diffs, err := mustNew(t, src, opts).Diff(t.Context())
		must(t, err)
		var b strings.Builder
		for _, d := range diffs {
			b.WriteString(strings.ReplaceAll(d.String(), dir+"/", ""))
		}
		return b.String()
	}
	got := show()
	want := `app.conf (new)
+   1  # comment
+   2  user=[masked]
+   3  password=[masked];
+   4  b64=[masked]
+   5  end
db.yaml (new)
+   1  password: [masked]
+   2  user: [masked]
same (new)
+   1  nothing secret
pem (new)
+   1  [masked]
+   2  [masked]
+   3  [masked]
set/u (new)
+   1  [masked]
set/p (new)
+   1  p=[masked]
`
	if got != want {
		t.Errorf("new files:\n%s\nwant:\n%s", got, want)
	}
	if left := names(t, dir); len(left) != 0 {
		t.Errorf("Diff wrote %q", left)
	}
	mustRender(t, mustNew(t, src, opts))
	if got := show(); got != "" {
		t.Errorf("no change:\n%s", got)
	}

	src.put("db", `{"user":"app-user","password":"`+marker+`-2"}`)
	opts.Targets[0].Contents = strings.Replace(opts.Targets[0].Contents, "end", "the end", 1)
	got = show()
	want = `app.conf
-   3  password=[masked];
-   4  b64=[masked]
-   5  [masked]
+   3  password=[masked];
+   4  b64=[masked]
+   5  the end
db.yaml
-   1  password: [masked]
+   1  password: [masked]
set/p
-   1  p=[masked]
+   1  p=[masked]
`
	if got != want {
		t.Errorf("rotation:\n%s\nwant:\n%s", got, want)
	}

	src.fail("pem", unavailable())
	diffs, err := mustNew(t, src, opts).Diff(t.Context())
	if err == nil || !strings.Contains(err.Error(), "/pem: ") || len(diffs) != 3 {
		t.Errorf("a failure hides the rest: %v, %d files", err, len(diffs))
	}
}

// Ensure that the work for large files has a bound, and that what is not looked at is masked.
func TestDiffOfLargeFiles(t *testing.T) {
	var old strings.Builder
	out := &output{}
	for range 40_000 {
		old.WriteString("key=" + marker + "\n")
		out.text("key=")
		out.value("new")
		out.text("\n")
	}
	diff := diffLines(old.String(), out) // minutes without a bound
	if first, last := diff[0].Text, diff[len(diff)/2-1].Text; first != "key="+masked || last != masked {
		t.Errorf("shown: %q and %q", first, last)
	}
}

// FuzzDiff holds that applying a difference to the old file gives the new one, and that no
// line shows a value.
func FuzzDiff(f *testing.F) {
	f.Add("a\nb\nc", "a\nx\nc", "secret")
	f.Add("", "a", "two\nlines")
	f.Add("a\na\na\n", "a\n", "")
	f.Fuzz(func(t *testing.T, old, fresh, value string) {
		out := &output{}
		out.text(fresh)
		out.value(value)
		out.text("\n")
		lines := out.lines()
		diff := diffLines(old, out)

		removed, added := map[int]bool{}, map[int]bool{}
		for _, d := range diff {
			if d.Removed {
				removed[d.Number] = true
			} else if added[d.Number] = true; d.Text != lines[d.Number-1].String() {
				t.Fatalf("line %d is shown as %q", d.Number, d.Text)
			}
		}
		var kept, common []string
		for i, line := range strings.Split(strings.TrimSuffix(old, "\n"), "\n") {
			if !removed[i+1] && old != "" {
				kept = append(kept, line)
			}
		}
		for i, line := range lines {
			if !added[i+1] {
				common = append(common, line.real)
			}
		}
		if !slices.Equal(kept, common) {
			t.Errorf("what stays differs: %q and %q", kept, common)
		}
		var all []string
		for _, l := range lines {
			all = append(all, l.real)
		}
		if got := strings.Join(all, "\n") + "\n"; got != string(out.bytes) {
			t.Errorf("lines lose text: %q, %q", got, out.bytes)
		}
	})
}
