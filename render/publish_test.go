package render

import (
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
	src := newFakeSource()
	src.put("a", content)
	tg := fileAt(dest, `{{ secret "a" }}`)
	if mutate != nil {
		mutate(&tg)
	}
	opts.Targets = []Target{tg}
	return mustNew(t, src, opts).RenderOnce(t.Context())
}

func mustRendered(t *testing.T, dest, content string, mutate func(*Target)) {
	t.Helper()
	if err := rendered(t, dest, content, mutate, Options{}); err != nil {
		t.Fatal(err)
	}
}

func inode(t *testing.T, path string) string {
	t.Helper()
	fi, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return identity(fi)
}

// The renderer cases that users of template renderers rely on.
func TestPublish(t *testing.T) {
	t.Run("parent folders are made", func(t *testing.T) {
		dest := t.TempDir() + "/a/b/c/file"
		mustRendered(t, dest, "x", func(tg *Target) { tg.NoSync = false })
		if got := mustRead(t, dest); got != "x" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("the mode asked for replaces that of the old file", func(t *testing.T) {
		dest := t.TempDir() + "/file"
		mustWrite(t, dest, "old")
		if err := os.Chmod(dest, 0o644); err != nil {
			t.Fatal(err)
		}
		mustRendered(t, dest, "new", nil)
		wantMode(t, dest, 0o600)
		mustRendered(t, dest, "newer", func(tg *Target) { tg.Mode = 0o640 })
		wantMode(t, dest, 0o640)
	})
	t.Run("a mode is not narrowed by the umask", func(t *testing.T) {
		dest := t.TempDir() + "/file"
		mustRendered(t, dest, "new", func(tg *Target) { tg.Mode = 0o664 })
		wantMode(t, dest, 0o664)
	})
	t.Run("equal content is not written again", func(t *testing.T) {
		dest := t.TempDir() + "/file"
		mustRendered(t, dest, "same", nil)
		before := inode(t, dest)
		mustRendered(t, dest, "same", nil)
		if inode(t, dest) != before {
			t.Error("it was written again")
		}
		mustRendered(t, dest, "diff", nil) // of equal size
		if inode(t, dest) == before || mustRead(t, dest) != "diff" {
			t.Error("it was not written")
		}
	})
	t.Run("drifted mode is repaired without writing", func(t *testing.T) {
		dest := t.TempDir() + "/file"
		mustRendered(t, dest, "same", nil)
		before := inode(t, dest)
		if err := os.Chmod(dest, 0o644); err != nil {
			t.Fatal(err)
		}
		mustRendered(t, dest, "same", nil)
		wantMode(t, dest, 0o600)
		if inode(t, dest) != before {
			t.Error("it was written again")
		}
	})
	t.Run("an empty file", func(t *testing.T) {
		dest := t.TempDir() + "/file"
		mustRendered(t, dest, "", nil)
		if got := mustRead(t, dest); got != "" {
			t.Errorf("got %q", got)
		}
		mustRendered(t, dest, "x", nil)
		mustRendered(t, dest, "", nil)
		if got := mustRead(t, dest); got != "" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("no temporary file is left", func(t *testing.T) {
		dir := t.TempDir()
		mustRendered(t, dir+"/file", "x", nil)
		wantNames(t, dir, "file")
	})
	t.Run("a long name", func(t *testing.T) {
		dest := t.TempDir() + "/" + strings.Repeat("n", 255)
		mustRendered(t, dest, "x", nil)
	})
}

func wantMode(t *testing.T, path string, want fs.FileMode) {
	t.Helper()
	fi, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
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
	if got := mustRead(t, dest) + mustRead(t, dest+".bak"); got != "21" {
		t.Errorf("got %q", got)
	}
	wantMode(t, dest+".bak", 0o600)
	mustRendered(t, dest, "2", backup) // no change: the backup stays what it was
	mustRendered(t, dest, "3", backup)
	if got := mustRead(t, dest) + mustRead(t, dest+".bak"); got != "32" {
		t.Errorf("got %q", got)
	}
	wantNames(t, dir, "file", "file.bak") // no backup of the backup
	// A link in the place of the backup is replaced, not followed.
	mustWrite(t, dir+"/victim", "victim")
	if err := os.Remove(dest + ".bak"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir+"/victim", dest+".bak"); err != nil {
		t.Fatal(err)
	}
	mustRendered(t, dest, "4", backup)
	if got := mustRead(t, dir+"/victim") + mustRead(t, dest+".bak"); got != "victim3" {
		t.Errorf("got %q", got)
	}
}

// Ensure that nothing but a regular file inside the root is ever replaced.
func TestRefusedDestinations(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(t *testing.T, dir string) (dest, root string)
		want string
	}{
		{"a symbolic link", func(t *testing.T, dir string) (string, string) {
			mustWrite(t, dir+"/victim", "victim")
			mustSymlink(t, dir+"/victim", dir+"/link")
			return dir + "/link", ""
		}, "is a symbolic link"},
		{"a dangling symbolic link", func(t *testing.T, dir string) (string, string) {
			mustSymlink(t, dir+"/none", dir+"/link")
			return dir + "/link", ""
		}, "is a symbolic link"},
		{"a folder", func(t *testing.T, dir string) (string, string) {
			mustWrite(t, dir+"/folder/x", "")
			return dir + "/folder", ""
		}, "is a folder"},
		{"a parent link that leads out of the root", func(t *testing.T, dir string) (string, string) {
			mustWrite(t, dir+"/out/victim", "victim")
			mustWrite(t, dir+"/root/x", "")
			mustSymlink(t, dir+"/out", dir+"/root/sub")
			return dir + "/root/sub/victim", dir + "/root"
		}, "escapes"},
		{"a relative parent link that leads out of the root", func(t *testing.T, dir string) (string, string) {
			mustWrite(t, dir+"/out/victim", "victim")
			mustWrite(t, dir+"/root/x", "")
			mustSymlink(t, "../out", dir+"/root/sub")
			return dir + "/root/sub/new/file", dir + "/root"
		}, "escapes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			dest, root := c.make(t, dir)
			before := tree(t, dir)
			err := rendered(t, dest, "x", nil, Options{Root: root})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error: %v, want %q", err, c.want)
			}
			if after := tree(t, dir); !slices.Equal(after, before) {
				t.Errorf("it changed %q to %q", before, after)
			}
		})
	}
	t.Run("a parent link that stays inside the root is followed", func(t *testing.T) {
		dir := t.TempDir()
		mustWrite(t, dir+"/root/real/x", "")
		mustSymlink(t, "real", dir+"/root/sub")
		if err := rendered(t, dir+"/root/sub/file", "x", nil, Options{Root: dir + "/root"}); err != nil {
			t.Error(err)
		}
		if got := mustRead(t, dir+"/root/real/file"); got != "x" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("missing folders inside the root are made", func(t *testing.T) {
		dir := t.TempDir()
		if err := rendered(t, dir+"/a/b/file", "x", nil, Options{Root: dir}); err != nil {
			t.Error(err)
		}
		wantMode(t, dir+"/a/b", 0o700)
	})
}

func mustSymlink(t *testing.T, target, name string) {
	t.Helper()
	if err := os.Symlink(target, name); err != nil {
		t.Fatal(err)
	}
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
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// Ensure that temporary files of a killed agent go, and nothing else.
func TestLeftovers(t *testing.T) {
	dir := t.TempDir()
	ours := tempName("file")
	others := tempName("other")
	for _, name := range []string{ours, others, ".secretagent-notes", ".secretagent-0000-x.tmp", ".other.tmp"} {
		mustWrite(t, dir+"/"+name, marker)
	}
	mustRendered(t, dir+"/file", "x", nil)
	got := names(t, dir)
	if slices.Contains(got, ours) {
		t.Error("our leftover is still there")
	}
	if len(got) != 5 {
		t.Errorf("left: %q", got)
	}
}

// Ensure that the folder may vanish while the agent runs.
func TestFolderRemoved(t *testing.T) {
	dir := t.TempDir()
	src := newFakeSource()
	src.put("a", "1")
	r := mustNew(t, src, Options{Targets: []Target{fileAt(dir+"/sub/file", `{{ secret "a" }}`)}})
	stop := start(t, r)
	eventually(t, "render", func() bool { ok, _ := r.Ready(); return ok })
	if err := os.RemoveAll(dir + "/sub"); err != nil {
		t.Fatal(err)
	}
	src.put("a", "2")
	eventually(t, "it is back", func() bool { b, _ := os.ReadFile(dir + "/sub/file"); return string(b) == "2" })
	// A file in the place of the folder: not ready, and healed when it goes.
	if err := os.RemoveAll(dir + "/sub"); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, dir+"/sub", "in the way")
	src.put("a", "3")
	eventually(t, "not ready", func() bool { ok, _ := r.Ready(); return !ok })
	if err := os.Remove(dir + "/sub"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "healed", func() bool { b, _ := os.ReadFile(dir + "/sub/file"); return string(b) == "3" })
	stop()
}

// Ensure that readers see a whole version, old or new, however often it changes.
func TestReadersNeverSeeATornFile(t *testing.T) {
	dir := t.TempDir()
	src := newFakeSource()
	content := func(i int) string { return strings.Repeat(string(rune('a'+i%26)), 20_000) }
	src.put("a", content(0))
	r := mustNew(t, src, Options{Targets: []Target{fileAt(dir+"/file", `{{ secret "a" }}`)}})
	stop := start(t, r)
	eventually(t, "render", func() bool { ok, _ := r.Ready(); return ok })
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 300 {
			src.put("a", content(i))
			time.Sleep(time.Millisecond)
		}
	}()
	reads := 0
	for running := true; running; reads++ {
		select {
		case <-done:
			running = false
		default:
		}
		got := mustRead(t, dir+"/file")
		if len(got) != 20_000 || strings.Count(got, got[:1]) != len(got) {
			t.Fatalf("torn: %d bytes", len(got))
		}
	}
	stop()
	t.Logf("%d reads", reads)
}
