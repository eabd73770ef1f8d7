package render

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Ensure that owner and group are set, before anything is visible, and repaired: the four
// states of ownership, and the second pass that does nothing.
func TestOwnership(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give files away")
	}
	for _, c := range []struct {
		user, group string
		uid, gid    uint32
	}{
		{"", "", 0, 0}, {"65534", "", 65534, 0}, {"", "65534", 0, 65534}, {"65534", "65534", 65534, 65534}, {"root", "root", 0, 0},
	} {
		dest := t.TempDir() + "/file"
		own := func(tg *Target) { tg.User, tg.Group, tg.Mode = c.user, c.group, 0o640 }
		mustRendered(t, dest, "x", own)
		wantOwner(t, dest, c.uid, c.gid)
		wantMode(t, dest, 0o640)
		before := inode(t, dest)
		mustRendered(t, dest, "x", own)
		if inode(t, dest) != before {
			t.Errorf("%+v: the second pass wrote", c)
		}
		if c.user == "" || c.group == "" {
			continue
		}
		if err := os.Chown(dest, 1, 1); err != nil {
			t.Fatal(err)
		}
		mustRendered(t, dest, "x", own)
		wantOwner(t, dest, c.uid, c.gid)
		if inode(t, dest) != before {
			t.Errorf("%+v: the repair wrote", c)
		}
	}

	dir := t.TempDir() + "/set"
	src := newFakeSource()
	src.put("a", "1")
	r := mustNew(t, src, Options{Sets: []Set{{
		Directory: dir, User: "65534", Group: "65534", Mode: 0o750, NoSync: true,
		Files: []SetFile{{Name: "x", Content: inline(`{{ secret "a" }}`), Mode: 0o440}, {Name: "y", Content: inline(`y`), User: "1"}},
	}}})
	mustRender(t, r)
	wantOwner(t, dir, 65534, 65534)
	wantMode(t, dir, 0o750)
	gen, err := os.Readlink(dir + "/..data")
	if err != nil {
		t.Fatal(err)
	}
	wantOwner(t, dir+"/"+gen, 65534, 65534)
	wantMode(t, dir+"/"+gen, 0o750)
	wantOwner(t, dir+"/"+gen+"/x", 65534, 65534)
	wantMode(t, dir+"/"+gen+"/x", 0o440)
	wantOwner(t, dir+"/"+gen+"/y", 1, 65534)
	if err := os.Chmod(dir+"/"+gen+"/x", 0o666); err != nil {
		t.Fatal(err)
	}
	mustRender(t, r)
	wantMode(t, dir+"/"+gen+"/x", 0o440)
}

func wantOwner(t *testing.T, path string, uid, gid uint32) {
	t.Helper()
	fi, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st := fi.Sys().(*syscall.Stat_t); st.Uid != uid || st.Gid != gid {
		t.Errorf("%s belongs to %d:%d, want %d:%d", path, st.Uid, st.Gid, uid, gid)
	}
}

// tmpfs mounts a small file system, or skips the test.
func tmpfs(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("a tmpfs cannot be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

// Ensure that whatever the file system refuses, the old content stays, the agent lives and
// says so, and heals by itself.
func TestFileSystemTrouble(t *testing.T) {
	for _, c := range []struct {
		name    string
		options string
		trouble func(t *testing.T, dir string)
		heal    func(t *testing.T, dir string)
		want    string
	}{
		{"disk full", "size=64k", func(t *testing.T, dir string) {
			f, err := os.Create(dir + "/filler")
			for err == nil {
				_, err = f.Write(make([]byte, 4096))
			}
			f.Close()
		}, func(t *testing.T, dir string) { _ = os.Remove(dir + "/filler") }, "no space left"},
		{"no inode left", "size=1m,nr_inodes=24", func(t *testing.T, dir string) {
			for i := 0; ; i++ {
				f, err := os.Create(fmt.Sprintf("%s/filler%d", dir, i))
				if err != nil {
					return
				}
				f.Close()
			}
		}, func(t *testing.T, dir string) {
			for i := range 20 {
				_ = os.Remove(fmt.Sprintf("%s/filler%d", dir, i))
			}
		}, "no space left"},
		{"read-only", "size=1m", func(t *testing.T, dir string) { remount(t, dir, syscall.MS_RDONLY) },
			func(t *testing.T, dir string) { remount(t, dir, 0) }, "read-only"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := tmpfs(t, c.options)
			src := newFakeSource()
			content := func(s string) string { return strings.Repeat(s, 10_000) }
			src.put("a", content("1"))
			r := mustNew(t, src, Options{
				Targets: []Target{{Content: inline(`{{ secret "a" }}`), Destination: dir + "/file"}},
				Sets:    []Set{{Directory: dir + "/set", Files: []SetFile{{Name: "x", Content: inline(`{{ secret "a" }}`)}, {Name: "y", Content: inline(`{{ secret "a" }}`)}}}},
			})
			stop := start(t, r)
			eventually(t, "render", func() bool { ok, _ := r.Ready(); return ok })
			c.trouble(t, dir)
			src.put("a", content("2"))
			eventually(t, "not ready", func() bool {
				s := r.Status()
				return s[0].State == Failed && s[1].State == Failed
			})
			_, why := r.Ready()
			for _, reason := range why {
				if !strings.Contains(reason, c.want) {
					t.Errorf("reason: %s", reason)
				}
			}
			for _, path := range []string{"/file", "/set/x", "/set/y"} {
				if got := mustRead(t, dir+path); got != content("1") {
					t.Errorf("%s: the old content is gone (%d bytes)", path, len(got))
				}
			}
			for _, name := range names(t, dir) {
				if strings.HasPrefix(name, tempPrefix) {
					t.Errorf("a temporary file is left: %s", name)
				}
			}
			c.heal(t, dir)
			eventually(t, "healed", func() bool { ok, _ := r.Ready(); return ok })
			stop()
			for _, path := range []string{"/file", "/set/x", "/set/y"} {
				if got := mustRead(t, dir+path); got != content("2") {
					t.Errorf("%s: not healed", path)
				}
			}
			if got := names(t, dir+"/set"); len(got) != 4 {
				t.Errorf("set holds %q", got)
			}
		})
	}
}

func remount(t *testing.T, dir string, flags uintptr) {
	t.Helper()
	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|flags, ""); err != nil {
		t.Skipf("cannot remount: %v", err)
	}
}

// Ensure that a folder without write permission leaves the old content, is said so, and heals.
func TestReadOnlyFolder(t *testing.T) {
	if os.Getuid() == 0 {
		asNobody(t)
		return
	}
	dir := t.TempDir()
	src := newFakeSource()
	src.put("a", "1")
	r := mustNew(t, src, Options{
		Targets: []Target{fileAt(dir+"/file", `{{ secret "a" }}`)},
		Sets:    []Set{{Directory: dir + "/set", NoSync: true, Files: []SetFile{{Name: "x", Content: inline(`{{ secret "a" }}`)}}}},
	})
	stop := start(t, r)
	defer stop()
	eventually(t, "render", func() bool { ok, _ := r.Ready(); return ok })
	folders := []string{dir, dir + "/set"}
	chmod := func(mode fs.FileMode) {
		for _, folder := range folders {
			if err := os.Chmod(folder, mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	chmod(0o500)
	defer chmod(0o700)
	src.put("a", "2")
	eventually(t, "not ready", func() bool { _, why := r.Ready(); return len(why) == 2 })
	_, why := r.Ready()
	for _, reason := range why {
		if !strings.Contains(reason, "permission denied") {
			t.Errorf("reason: %s", reason)
		}
	}
	for _, path := range []string{"/file", "/set/x"} {
		if got := mustRead(t, dir+path); got != "1" {
			t.Errorf("%s holds %q", path, got)
		}
	}
	chmod(0o700)
	eventually(t, "healed", func() bool { ok, _ := r.Ready(); return ok })
	for _, path := range []string{"/file", "/set/x"} {
		if got := mustRead(t, dir+path); got != "2" {
			t.Errorf("%s holds %q", path, got)
		}
	}
}

// asNobody runs the test that calls it once more, without root's right to write everywhere.
func asNobody(t *testing.T) {
	t.Helper()
	// A copy, where an ordinary user may read it.
	dir, err := os.MkdirTemp("", "as-nobody-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "render.test")
	if err := errors.Join(os.WriteFile(bin, self, 0o755), os.Chmod(bin, 0o755), os.Chmod(dir, 0o777)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "-test.run", "^"+t.Name()+"$", "-test.v")
	cmd.Dir, cmd.Env = dir, []string{"TMPDIR=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("as nobody: %v\n%s", err, out)
	}
}

// Ensure that neither a pipe nor a device in the place of a file blocks or is replaced.
func TestSpecialFiles(t *testing.T) {
	dest := t.TempDir() + "/pipe"
	if err := syscall.Mkfifo(dest, 0o600); err != nil {
		t.Skip(err)
	}
	done := make(chan error, 1)
	go func() { done <- rendered(t, dest, "x", nil, Options{}) }()
	select {
	case err := <-done:
		if err == nil || !strings.Contains(err.Error(), "not a regular file") {
			t.Errorf("got %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("blocked on the pipe")
	}
	if fi, err := os.Lstat(dest); err != nil || fi.Mode()&fs.ModeNamedPipe == 0 {
		t.Error("the pipe is gone")
	}
}
