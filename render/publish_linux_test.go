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
		before := ""
		for pass := range 3 {
			mustRendered(t, dest, "x", func(tg *Target) { tg.User, tg.Group, tg.Mode = c.user, c.group, 0o640 })
			wantOwner(t, dest, c.uid, c.gid)
			wantMode(t, dest, 0o640)
			if pass > 0 && inode(t, dest) != before {
				t.Errorf("%+v: pass %d wrote", c, pass)
			}
			before = inode(t, dest)
			if pass == 1 && c.user != "" && c.group != "" {
				must(t, os.Chown(dest, 1, 1))
			}
		}
	}

	dir := t.TempDir() + "/set"
	r := mustNew(t, newFakeSource(), Options{Sets: []Set{{
		Directory: dir, User: "65534", Group: "65534", Mode: 0o750, NoSync: true,
		Files: []SetFile{{Name: "x", Content: inline(`x`), Mode: 0o440}, {Name: "y", Content: inline(`y`), User: "1"}},
	}}})
	mustRender(t, r)
	generation := dir + "/" + mustLink(t, dir+"/..data")
	for _, folder := range []string{dir, generation} {
		wantOwner(t, folder, 65534, 65534)
		wantMode(t, folder, 0o750)
	}
	wantOwner(t, generation+"/x", 65534, 65534)
	wantMode(t, generation+"/x", 0o440)
	wantOwner(t, generation+"/y", 1, 65534)
	must(t, os.Chmod(generation+"/x", 0o666))
	mustRender(t, r)
	wantMode(t, generation+"/x", 0o440)
}

func wantOwner(t *testing.T, path string, uid, gid uint32) {
	t.Helper()
	fi, err := os.Lstat(path)
	must(t, err)
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
	fill := func(dir string, size int) {
		for i := 0; ; i++ {
			if err := os.WriteFile(fmt.Sprintf("%s/filler%d", dir, i), make([]byte, size), 0o600); err != nil {
				return
			}
		}
	}
	empty := func(_ *testing.T, dir string) {
		fillers, _ := filepath.Glob(dir + "/filler*")
		for _, filler := range fillers {
			_ = os.Remove(filler)
		}
	}
	for _, c := range []struct {
		name    string
		options string
		trouble func(t *testing.T, dir string)
		heal    func(t *testing.T, dir string)
		want    string
	}{
		{"disk full", "size=64k", func(_ *testing.T, dir string) { fill(dir, 4096) }, empty, "no space left"},
		{"no inode left", "size=1m,nr_inodes=24", func(_ *testing.T, dir string) { fill(dir, 0) }, empty, "no space left"},
		{"read-only", "size=1m", func(t *testing.T, dir string) { remount(t, dir, syscall.MS_RDONLY) },
			func(t *testing.T, dir string) { remount(t, dir, 0) }, "read-only"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := tmpfs(t, c.options)
			keepsAndHeals(t, dir, c.want, func() { c.trouble(t, dir) }, func() { c.heal(t, dir) })
		})
	}
}

// keepsAndHeals renders a file and a set in dir and changes them under trouble, of which
// reasons must say want.
func keepsAndHeals(t *testing.T, dir, want string, trouble, heal func()) {
	t.Helper()
	content := func(s string) string { return strings.Repeat(s, 10_000) }
	src := sourceOf("a", content("1"))
	text := inline(`{{ secret "a" }}`)
	opts := Options{
		Targets: []Target{{Content: text, Destination: dir + "/file"}},
		Sets:    []Set{{Directory: dir + "/set", Files: []SetFile{{Name: "x", Content: text}, {Name: "y", Content: text}}}},
	}
	inBubble(t, src, opts, func(t *testing.T, r *Renderer, pass func(time.Duration)) {
		hold := func(want string) {
			t.Helper()
			for _, path := range []string{"/file", "/set/x", "/set/y"} {
				wantFile(t, dir+path, content(want))
			}
			temps, _ := filepath.Glob(dir + "/" + tempPrefix + "*")
			if set := names(t, dir+"/set"); len(set) != 4 || len(temps) != 0 {
				t.Errorf("set holds %q, and there is %q", set, temps)
			}
		}
		trouble()
		src.put("a", content("2"))
		pass(0)
		_, why := r.Ready()
		if len(why) != 2 || !strings.Contains(why[0], want) || !strings.Contains(why[1], want) {
			t.Errorf("reasons: %q", why)
		}
		hold("1")
		heal()
		pass(time.Minute)
		if ok, why := r.Ready(); !ok {
			t.Errorf("not healed: %q", why)
		}
		hold("2")
	})
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
	chmod := func(mode fs.FileMode) {
		must(t, errors.Join(os.Chmod(dir, mode), os.Chmod(dir+"/set", mode)))
	}
	defer chmod(0o700)
	keepsAndHeals(t, dir, "permission denied", func() { chmod(0o500) }, func() { chmod(0o700) })
	must(t, os.Chmod(dir+"/file", 0)) // what cannot be read any more is replaced
	mustRendered(t, dir+"/file", strings.Repeat("2", 10_000), nil)
	wantMode(t, dir+"/file", 0o600)
}

// asNobody runs the test that calls it once more, without root's right to write everywhere.
func asNobody(t *testing.T) {
	t.Helper()
	// A copy, where an ordinary user may read it.
	dir, err := os.MkdirTemp("", "as-nobody-")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	self, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	bin := filepath.Join(dir, "render.test")
	must(t, errors.Join(os.WriteFile(bin, self, 0o755), os.Chmod(bin, 0o755), os.Chmod(dir, 0o777)))
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
	must(t, syscall.Mkfifo(dest, 0o600))
	wantErr(t, rendered(t, dest, "x", nil, Options{}), "not a regular file")
	if fi, err := os.Lstat(dest); err != nil || fi.Mode()&fs.ModeNamedPipe == 0 {
		t.Error("the pipe is gone")
	}
}
