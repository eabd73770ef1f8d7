package render

import (
	"cmp"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// rendered publishes content at dest with the given changes to the target, and returns the
// error.
func rendered(t *testing.T, dest, content string, mutate func(*Target), opts Options) error {
	t.Helper()
	src := sourceOf("a", content)
	tg := fileAt(dest, `{{ secret "a" }}`)
	if mutate != nil {
		mutate(&tg)
	}
	opts.Targets = []Target{tg}
	return mustNew(t, src, opts).RenderOnce(t.Context())
}

func mustRendered(t *testing.T, dest, content string, mutate func(*Target)) {
	t.Helper()
	must(t, rendered(t, dest, content, mutate, Options{}))
}

func inode(t *testing.T, path string) string {
	t.Helper()
	fi, err := os.Lstat(path)
	must(t, err)
	return identity(fi)
}

// Ensure that content, mode and owner are what the target says and that nothing is written
// that is there already: the cases that users of template renderers rely on.
func TestPublish(t *testing.T) {
	dir := t.TempDir()
	long := strings.Repeat("n", 255)
	for _, c := range []struct {
		name    string // of the file
		content string
		mode    fs.FileMode // zero: not given
		before  fs.FileMode // the mode that the file drifted to before; zero: none
		written bool        // it is another file than before
	}{
		{"a/b/c/file", "x", 0, 0, true}, // parent folders are made
		{"file", "old", 0, 0, true},
		{"file", "old", 0, 0, false},
		{"file", "new", 0, 0, true},      // of equal size
		{"file", "new", 0, 0o644, false}, // drifted mode is repaired without writing
		{"file", "newer", 0, 0o644, true},
		{"file", "newest", 0o664, 0, true}, // not narrowed by the umask
		{"file", "newest", 0o400, 0, false},
		{"file", "", 0, 0, true},
		{"file", "", 0, 0, false},
		{long, "x", 0, 0, true},
	} {
		dest := dir + "/" + c.name
		before := ""
		if _, err := os.Lstat(dest); err == nil {
			before = inode(t, dest)
		}
		if c.before != 0 {
			must(t, os.Chmod(dest, c.before))
		}
		mustRendered(t, dest, c.content, func(tg *Target) { tg.Mode, tg.NoSync = c.mode, false })
		wantMode(t, dest, cmp.Or(c.mode, 0o600))
		wantFile(t, dest, c.content)
		if written := inode(t, dest) != before; written != c.written {
			t.Errorf("%+v: written: %v", c, written)
		}
	}
	wantNames(t, dir, "a", "file", long) // no temporary file is left
}

// Others get to a file that they may read, also when a private one was first in its folder.
func TestFoldersLetInWhomTheFilesDo(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(o *Options)
		want   fs.FileMode
	}{
		{"private files", func(*Options) {}, 0o700},
		{"one for the group", func(o *Options) { o.Targets[1].Mode = 0o640 }, 0o711},
		{"one for all, below a root", func(o *Options) {
			o.Targets[1].Mode, o.Root = 0o644, filepath.Dir(filepath.Dir(o.Targets[0].Destination))
		}, 0o711},
		{"as it is said", func(o *Options) { o.FolderMode = 0o750 }, 0o750},
		{"a set that others may enter", func(o *Options) {
			o.Sets = []Set{{Directory: filepath.Dir(o.Targets[0].Destination) + "/set", Mode: 0o750, Files: []SetFile{{Name: "f", Content: Content{Contents: "x"}}}}}
		}, 0o711},
	} {
		dir := t.TempDir() + "/made"
		o := Options{Targets: []Target{
			{Destination: dir + "/a", Content: Content{Contents: "x"}},
			{Destination: dir + "/b", Content: Content{Contents: "x"}},
		}}
		c.change(&o)
		r := mustNew(t, sourceOf("a", "x"), o)
		must(t, r.RenderOnce(t.Context()))
		if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != c.want {
			t.Errorf("%s: %v, %v, want %04o", c.name, fi.Mode(), err, c.want)
		}
	}
	for _, mode := range []fs.FileMode{0o600, 0o070, 0o720, 0o777} {
		err := Options{FolderMode: mode}.Validate()
		if err == nil || !strings.Contains(err.Error(), "render.folderMode") {
			t.Errorf("%04o: %v", mode, err)
		}
	}
}

func wantMode(t *testing.T, path string, want fs.FileMode) {
	t.Helper()
	fi, err := os.Lstat(path)
	must(t, err)
	if fi.Mode().Perm() != want {
		t.Errorf("%s has mode %#o, want %#o", path, fi.Mode().Perm(), want)
	}
}

func TestBackup(t *testing.T) {
	dir := t.TempDir()
	dest := dir + "/file"
	backup := func(tg *Target) { tg.Backup, tg.Mode = true, 0o644 }
	mustRendered(t, dest, "1", backup)
	wantNames(t, dir, "file") // nothing to keep yet
	mustRendered(t, dest, "2", backup)
	wantFile(t, dest, "2")
	wantFile(t, dest+".bak", "1")
	wantMode(t, dest+".bak", 0o600)
	mustRendered(t, dest, "2", backup) // no change: the backup stays what it was
	mustRendered(t, dest, "3", backup)
	wantFile(t, dest, "3")
	wantFile(t, dest+".bak", "2")
	wantNames(t, dir, "file", "file.bak") // no backup of the backup
	// A link in the place of the backup is replaced, not followed.
	mustWrite(t, dir+"/victim", "victim")
	must(t, os.Remove(dest+".bak"))
	must(t, os.Symlink(dir+"/victim", dest+".bak"))
	mustRendered(t, dest, "4", backup)
	wantFile(t, dir+"/victim", "victim")
	wantFile(t, dest+".bak", "3")
	// What cannot be kept does not keep the new content from going out.
	must(t, os.Truncate(dest, maxOutput+1))
	mustRendered(t, dest, "5", backup)
	wantFile(t, dest, "5")
	wantFile(t, dest+".bak", "3")
}

// Ensure that nothing but a regular file inside the root is ever replaced.
func TestRefusedDestinations(t *testing.T) {
	for _, c := range []struct {
		dest, root string
		want       string // of the error; empty: it is published
	}{
		{"/link", "", "is a symbolic link"},
		{"/dangling", "", "is a symbolic link"},
		{"/out", "", "is a folder"},
		{"/root/away/victim", "/root", "escapes"},
		{"/root/relative/new/file", "/root", "escapes"},
		{"/root/inside/file", "/root", ""},
		{"/root/new/folder/file", "/root", ""},
	} {
		dir := t.TempDir()
		mustWrite(t, dir+"/out/victim", "victim")
		mustWrite(t, dir+"/root/real/x", "")
		for name, to := range map[string]string{
			"/link": dir + "/out/victim", "/dangling": dir + "/none", "/root/away": dir + "/out", "/root/relative": "../out", "/root/inside": "real",
		} {
			mustSymlink(t, to, dir+name)
		}
		root := ""
		if c.root != "" {
			root = dir + c.root
		}
		before := tree(t, dir)
		err := rendered(t, dir+c.dest, "x", nil, Options{Root: root})
		if c.want == "" {
			if err != nil || mustRead(t, dir+c.dest) != "x" {
				t.Errorf("%s: %v", c.dest, err)
			}
			continue
		}
		wantErr(t, err, c.want)
		if after := tree(t, dir); !slices.Equal(after, before) {
			t.Errorf("%s: it changed %q to %q", c.dest, before, after)
		}
	}
}

func mustSymlink(t *testing.T, target, name string) {
	t.Helper()
	must(t, os.Symlink(target, name))
}

// tree returns every path below dir with its content.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		content := ""
		if d.Type().IsRegular() {
			content = mustRead(t, path)
		}
		all = append(all, path+" "+d.Type().String()+" "+content)
		return nil
	})
	must(t, err)
	return all
}

// Ensure that temporary files of a killed agent go, and nothing else.
func TestLeftovers(t *testing.T) {
	dir := t.TempDir()
	others := []string{tempName("other"), ".secretagent-notes", ".secretagent-0000-x.tmp", ".other.tmp"}
	for _, name := range append(others, tempName("file")) {
		mustWrite(t, dir+"/"+name, marker)
	}
	mustRendered(t, dir+"/file", "x", nil)
	wantNames(t, dir, append(others, "file")...)
}

// Ensure that the folder may vanish while the agent runs.
func TestFolderRemoved(t *testing.T) {
	dir := t.TempDir()
	src := sourceOf("a", "1")
	inBubble(t, src, Options{Targets: []Target{fileAt(dir+"/sub/file", `{{ secret "a" }}`)}}, func(t *testing.T, r *Renderer, pass func(time.Duration)) {
		must(t, os.RemoveAll(dir+"/sub"))
		src.put("a", "2")
		pass(0)
		wantFile(t, dir+"/sub/file", "2")
		must(t, os.RemoveAll(dir+"/sub"))
		mustWrite(t, dir+"/sub", "in the way")
		src.put("a", "3")
		pass(0)
		if ok, _ := r.Ready(); ok {
			t.Error("ready, with a file in the place of the folder")
		}
		must(t, os.Remove(dir+"/sub"))
		pass(time.Minute) // the next attempt heals it
		if ok, why := r.Ready(); !ok || mustRead(t, dir+"/sub/file") != "3" {
			t.Errorf("not healed: %q", why)
		}
	})
}

// Ensure that readers see a whole version, old or new, however often it changes.
func TestReadersNeverSeeATornFile(t *testing.T) {
	dir := t.TempDir()
	src := newFakeSource()
	content := func(i int) string { return strings.Repeat(string(rune('a'+i%26)), 20_000) }
	src.put("a", content(0))
	_, stop := follow(t, src, Options{Targets: []Target{fileAt(dir+"/file", `{{ secret "a" }}`)}})
	for i := 1; i < 200; i++ {
		src.put("a", content(i))
		eventually(t, "it changes", func() bool {
			got := mustRead(t, dir+"/file")
			if len(got) != 20_000 || strings.Count(got, got[:1]) != len(got) {
				t.Fatalf("torn: %d bytes", len(got))
			}
			return got == content(i)
		})
	}
	stop()
}
