//go:build unix

package keyfile_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"secretagent/upstream/keyfile"
)

// stranger is a user who is neither root nor in a group of root.
const stranger = 65533

// tree makes what the lines say below a new folder, which it returns: "path mode uid" of a
// folder, or "path -> target" of a link. OUT in a target stands for that folder.
func tree(t *testing.T, lines ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, line := range lines {
		words := strings.Fields(line)
		path := filepath.Join(dir, words[0])
		if words[1] == "->" {
			must(t, os.Symlink(strings.ReplaceAll(words[2], "OUT", dir), path))
			if len(words) == 4 {
				must(t, os.Lchown(path, stranger, stranger))
			}
			continue
		}
		mode := map[string]fs.FileMode{"755": 0o755, "775": 0o775, "777": 0o777, "1777": 0o777 | fs.ModeSticky, "700": 0o700}[words[1]]
		must(t, os.Mkdir(path, 0o700))
		must(t, os.Chmod(path, mode))
		if words[2] != "root" {
			must(t, os.Chown(path, stranger, stranger))
		}
	}
	return dir
}

// Ensure that root takes a path only when nobody else could lead it elsewhere, and that the
// error names the component.
func TestCheckPath(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give files away")
	}
	const missing = "missing"
	for _, c := range []struct {
		tree []string
		path string
		want string // the component that is refused; empty: none
	}{
		{[]string{"a 755 root", "a/b 700 root"}, "a/b", ""},
		{[]string{"a 755 root"}, "a/b/c", missing},
		{[]string{"a 755 stranger"}, "a", "a"},
		{[]string{"a 755 stranger", "a/b 755 root"}, "a/b", "a"},
		{[]string{"a 755 stranger"}, "a/b/c", "a"},
		{[]string{"a 777 root", "a/b 755 root"}, "a/b", "a"}, // a volume that all containers of a pod may write to
		{[]string{"a 775 root"}, "a", "a"},
		{[]string{"a 1777 root", "a/b 755 root"}, "a/b", ""}, // like /tmp
		{[]string{"a 1777 root", "a/b 755 stranger"}, "a/b", "a/b"},
		{[]string{"a 1777 stranger"}, "a", "a"},
		{[]string{"a 755 root", "l -> a"}, "l", ""},
		{[]string{"a 755 root", "l -> OUT/a"}, "l/b", missing},
		{[]string{"a 755 root", "l -> a stranger"}, "l", "l"},
		{[]string{"a 755 stranger", "a/b 755 root", "l -> a/b"}, "l", "a"}, // root's link through a folder of others
		{[]string{"a 755 root", "b 755 root", "a/l -> ../b"}, "a/l", ""},
		{[]string{"a 1777 root", "a/l -> /etc stranger"}, "a/l", "a/l"},
		{[]string{"a 755 stranger", "a/b 755 root", "l -> OUT/a/b"}, "l/../f", "a"}, // the kernel opens a/f, not f
		{[]string{"a 755 root", "b 755 stranger", "a/l -> OUT/b"}, "a/l/../a", "b"},
		{[]string{"a 755 root", "b 755 root", "a/l -> ../b"}, "a/l/.././b//.", ""},
		{[]string{"a 755 root"}, "gone/../a", missing},
	} {
		dir := tree(t, c.tree...)
		err := keyfile.CheckPath(dir + "/" + c.path)
		switch {
		case c.want == missing:
			if !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%q: %s: %v", c.tree, c.path, err)
			}
		case c.want == "":
			if err != nil {
				t.Errorf("%q: %s: %v", c.tree, c.path, err)
			}
		case err == nil || !strings.HasPrefix(err.Error(), filepath.Join(dir, c.want)+" belongs to uid "):
			t.Errorf("%q: %s: %v, want the name of %s", c.tree, c.path, err, c.want)
		}
	}
	dir := tree(t, "a 755 stranger", "a/b 755 root", "l -> a/b")
	t.Chdir(dir)
	if err := keyfile.CheckPath("l/../f"); err == nil || !strings.HasPrefix(err.Error(), dir+"/a belongs to uid ") {
		t.Error(err)
	}
	dir = tree(t, "l -> l")
	if err := keyfile.CheckPath(dir + "/l"); err == nil {
		t.Error("a link to itself is taken")
	}
}

// Ensure that the last folder may be another user's only where that cannot exchange it.
func TestCheckPathTo(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give files away")
	}
	for _, c := range []struct {
		tree []string
		path string
		uid  int
		mode fs.FileMode
		ok   bool
	}{
		{[]string{"a 777 root"}, "a", -1, 0o777, true},
		{[]string{"a 755 stranger"}, "a", -1, 0o777, true},
		{[]string{"a 755 stranger", "a/b 755 root"}, "a/b", -1, 0o777, false},
		{[]string{"a 1777 root", "a/b 755 stranger"}, "a/b", -1, 0o777, false}, // which its owner may rename
		{[]string{"a 1777 root", "a/b 777 root"}, "a/b", -1, 0o777, true},
		{[]string{"a 755 stranger"}, "a", stranger, 0o700, true},
		{[]string{"a 755 stranger"}, "a", 1, 0o700, false},
		{[]string{"a 775 root"}, "a", 0, 0o770, true},
		{[]string{"a 775 root"}, "a", 0, 0o750, false},
		{[]string{"a 755 root", "l -> a stranger"}, "l", stranger, 0o777, false},
	} {
		dir := tree(t, c.tree...)
		if err := keyfile.CheckPathTo(filepath.Join(dir, c.path), c.uid, c.mode); (err == nil) != c.ok {
			t.Errorf("%q: %s for %d, %04o: %v", c.tree, c.path, c.uid, c.mode, err)
		}
	}
}

// Ensure that root makes no folder and no file, and replaces none, where others could lead it
// elsewhere, and says so before it does anything.
func TestRootMakesNothingWhereOthersLead(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give files away")
	}
	dir := tree(t, "app 755 stranger", "target 755 root", "app/l -> OUT/target stranger", "tmp 1777 root", "tmp/l -> OUT/target stranger",
		"app/sub 755 root", "up -> OUT/app/sub")
	for _, folder := range []string{"app", "app/new", "app/l", "app/l/new", "tmp/l", "tmp/l/new", "up/..", "up/../new"} {
		path := dir + "/" + folder
		for what, err := range map[string]error{
			"MakeFolder":  keyfile.MakeFolder(path, 0o700, true),
			"CheckFolder": keyfile.CheckFolder(path),
			"Create":      keyfile.Token.Create(path+"/token", []byte("t")),
			"Check":       keyfile.Token.Check(path + "/token"),
		} {
			if err == nil || !strings.Contains(err.Error(), "belongs to uid 65533") {
				t.Errorf("%s in %s: %v", what, folder, err)
			}
		}
	}
	if got := names(t, dir+"/target") + names(t, dir+"/app"); got != "l sub" {
		t.Errorf("made %s", got)
	}
	must(t, keyfile.Token.Create(dir+"/tmp/mine/token", []byte("t")))
	must(t, os.Symlink("tmp/mine", dir+"/down"))
	must(t, keyfile.Token.Create(dir+"/down/../other/token", []byte("t"))) // in tmp, as it is read
	_, err := keyfile.Token.Read(dir + "/tmp/other/token")
	must(t, err)
}

// Ensure that what a file asks for is asked for by its owner.
func TestReadOwned(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give files away")
	}
	dir := tree(t, "root 755 root", "app 755 stranger", "shared 777 root", "app/link -> OUT/root/f stranger", "shared/link -> OUT/root/f stranger")
	for path, uid := range map[string]int{"root/f": 0, "app/f": stranger, "shared/f": stranger, "app/root": -1, "app/link": -1, "shared/link": -1, "shared/root": -1, "root/open": -1} {
		path = filepath.Join(dir, path)
		if !strings.HasSuffix(path, "/link") {
			must(t, os.WriteFile(path, []byte("1"), 0o600))
		}
		if uid > 0 {
			must(t, os.Chown(path, uid, uid))
		}
		if strings.HasSuffix(path, "/open") {
			must(t, os.Chmod(path, 0o666))
		}
		content, got, err := keyfile.ReadOwned(path, 10)
		if uid >= 0 && (err != nil || got != uid || string(content) != "1") || uid < 0 && err == nil {
			t.Errorf("%s: %q of %d, %v, want %d", path, content, got, err, uid)
		}
	}
}

// loadAs loads the token file at path in a process of that user and group.
func loadAs(t *testing.T, uid int, path string, env ...string) string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(append(os.Environ(), childToken+"="+path), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid), Groups: []uint32{65520}}}
	out, err := cmd.CombinedOutput()
	must(t, err)
	return strings.TrimPrefix(string(out), "<nil>")
}

// openTree is tree for processes of any user.
func openTree(t *testing.T, lines ...string) string {
	dir := tree(t, lines...)
	must(t, os.Chmod(filepath.Dir(dir), 0o755))
	return dir
}

// Ensure that a token file counts only when nobody but root, the user of the process and those of
// its caller can change it, exchange it for another, or lead to another, whoever the process is of.
func TestTokenOfOthers(t *testing.T) {
	if os.Getuid() != 0 || runtime.GOOS != "linux" {
		t.Skip("only root can give files away; needs /proc")
	}
	const agent, app, another = 65532, 65531, stranger
	dir := openTree(t, "root 755 root", "open 777 root", "app 755 root", "another 755 root",
		"app/of-another -> OUT/app/f stranger", "app/to-agent -> OUT/root/agent stranger", "app/mine -> OUT/another/f stranger", "app/of-root -> OUT/app/f", "app/folder -> OUT/root stranger")
	for path, uid := range map[string]int{"root/root": 0, "root/agent": agent, "open/agent": agent, "open/another": another, "app/f": app, "another/f": another, "app/root": 0, "another/root": 0} {
		path = filepath.Join(dir, path)
		must(t, os.WriteFile(path, []byte(marker), 0o644))
		must(t, os.Chmod(path, 0o644))
		must(t, os.Chown(path, uid, uid))
	}
	must(t, errors.Join(os.Chown(dir+"/app", app, app), os.Chown(dir+"/another", another, another)))
	for _, c := range []struct{ path, root, agent string }{ // what is refused to a process of root, and of the agent
		{"root/root", "", ""},
		{"root/agent", "belongs to uid 65532", ""},
		{"open/agent", "belongs to uid 65532", ""},
		{"open/another", "belongs to uid 65533", "belongs to uid 65533"},
		{"app/f", "", ""},
		{"app/root", dir + "/app belongs to uid 65531", ""},
		{"another/f", "belongs to uid 65533", "belongs to uid 65533"},
		{"another/root", dir + "/another belongs to uid 65533", ""},
		{"app/of-another", "the link " + dir + "/app/of-another of uid 65533", "the link " + dir + "/app/of-another of uid 65533"},
		{"app/to-agent", "belongs to uid 65532", "the link " + dir + "/app/to-agent of uid 65533"},
		{"app/mine", "belongs to uid 65533", "belongs to uid 65533"},
		{"app/of-root", "", ""},
		{"app/folder/root", dir + "/app belongs to uid 65531", "the link " + dir + "/app/folder of uid 65533"},
	} {
		for uid, want := range map[int]string{0: c.root, agent: c.agent} {
			got := loadAs(t, uid, dir+"/"+c.path)
			if want == "" && got != "" || !strings.Contains(got, want) {
				t.Errorf("%s for uid %d: %q, want %q", c.path, uid, got, want)
			}
		}
	}
}

// Ensure that root opens no file that another than its owner can have put there, and every one that
// is root's, or its owner's in a folder of its own, as Kubernetes and service managers lay them out.
func TestRootReadsNothingThatOthersPutThere(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give files away")
	}
	for _, c := range []struct {
		tree  []string
		path  string
		uid   int
		fault string // the component that is refused; empty: none
	}{
		{[]string{"a 755 root"}, "a/f", 0, ""},
		{[]string{"a 1777 root", "a/..1 755 root", "a/..data -> ..1"}, "a/..data/f", 0, ""}, // a Secret of Kubernetes
		{[]string{"a 755 root", "a/b 700 stranger"}, "a/b/f", stranger, ""},                 // a root command beside a stopped service
		{[]string{"a 755 root", "a/b 700 stranger", "l -> a/b"}, "l/f", stranger, ""},
		{[]string{"a 755 root"}, "a/f", stranger, ""},
		{[]string{"a 755 stranger"}, "a/f", 0, "a"},
		{[]string{"a 755 stranger", "a/b 755 root"}, "a/b/f", 0, "a"},
		{[]string{"a 755 stranger"}, "a/f", 65531, "a"},
		{[]string{"a 777 root"}, "a/f", 0, "a"},
		{[]string{"a 775 root"}, "a/f", 0, "a"},
		{[]string{"a 1777 root"}, "a/f", stranger, "a/f"}, // which was there first
		{[]string{"a 1777 root", "a/b 700 stranger"}, "a/b/f", stranger, "a/b"},
		{[]string{"a 755 root", "b 755 stranger", "b/l -> OUT/a stranger"}, "b/l/f", 0, "b"},
	} {
		dir := tree(t, c.tree...)
		path := dir + "/" + c.path
		must(t, errors.Join(os.WriteFile(path, []byte(marker), 0o600), os.Chown(path, c.uid, c.uid)))
		for name, kind := range map[string]keyfile.Kind{"key": keyfile.AccessKeySecret, "keyring": keyfile.KeyringFile, "certificate": keyfile.PEM} {
			_, err := kind.Read(path)
			if c.fault == "" && err != nil || c.fault != "" && (err == nil || !strings.Contains(err.Error(), filepath.Join(dir, c.fault)+" belongs to uid")) {
				t.Errorf("%q: %s in %s of %d: %v, want the name of %q", c.tree, name, c.path, c.uid, err, c.fault)
			}
		}
	}
	dir := tree(t, "a 755 root")
	must(t, errors.Join(plain(dir+"/a/f"), plain(dir+"/a/g")))
	info, err := os.Stat(dir + "/a/f")
	must(t, err)
	if err := keyfile.CheckOpen(dir+"/a/g", info); err == nil || !strings.Contains(err.Error(), "was exchanged") {
		t.Errorf("another file than the one that is open: %v", err)
	}
	// Writers replace files with a rename. To whoever reads or checks meanwhile, that is no fault.
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 2000 {
			next := fmt.Sprintf("%s/a/next%d", dir, i)
			if err := errors.Join(plain(next), os.Rename(next, dir+"/a/g")); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	for replacing := true; replacing; {
		_, err := keyfile.PEM.Read(dir + "/a/g")
		must(t, errors.Join(err, keyfile.CheckThere(dir+"/a/g")))
		select {
		case <-done:
			replacing = false
		default:
		}
	}
	must(t, keyfile.CheckThere(dir+"/a/none"))
}

// Ensure that a token file is made for its readers, and one of this user that is there is made so.
func TestSharedToken(t *testing.T) {
	if os.Getuid() != 0 || runtime.GOOS != "linux" {
		t.Skip("only root can be another user; needs /proc")
	}
	const agent = 65532
	dir := openTree(t, "open 777 root")
	want := func(path string, mode fs.FileMode, gid uint32) {
		t.Helper()
		info, err := os.Stat(path)
		must(t, err)
		if got := info.Sys().(*syscall.Stat_t).Gid; info.Mode().Perm() != mode || got != gid {
			t.Errorf("%s: mode %04o, gid %d, want %04o, %d", path, info.Mode().Perm(), got, mode, gid)
		}
	}
	if got := loadAs(t, agent, dir+"/open/new/token", "GROUP=65520"); got != "" {
		t.Error(got)
	}
	want(dir+"/open/new/token", 0o640, 65520)
	want(dir+"/open/new", 0o711, agent)
	if got := loadAs(t, agent, dir+"/open/token"); got != "" {
		t.Error(got)
	}
	want(dir+"/open/token", 0o600, agent)
	if got := loadAs(t, agent, dir+"/open/token", "GROUP=-1"); got != "" {
		t.Error(got)
	}
	want(dir+"/open/token", 0o640, agent)
	if got := loadAs(t, agent, dir+"/open/token", "GROUP=65520"); got != "" {
		t.Error(got)
	}
	want(dir+"/open/token", 0o640, 65520)

	// A group that the user is not in, and a file of another user.
	if got := loadAs(t, agent, dir+"/open/other", "GROUP=65521"); !strings.Contains(got, "Check: "+dir+"/open/other: cannot be made: this process is not in the group 65521") || !strings.Contains(got, "Load: cannot get the group 65521") {
		t.Error(got)
	}
	must(t, os.Chown(dir+"/open/token", owners[0], -1))
	must(t, os.Chmod(dir+"/open/token", 0o644))
	if got := loadAs(t, agent, dir+"/open/token", "GROUP=-1"); got != "" {
		t.Error(got)
	}
	want(dir+"/open/token", 0o644, 65520)
	if err := keyfile.Token.Shared(0o640, -1).Unlike(dir + "/open/token"); err == nil || !strings.Contains(err.Error(), "has mode 0644, not 0640") {
		t.Error(err)
	}
	for mode, right := range map[fs.FileMode]bool{0o600: true, 0o640: true, 0o644: true, 0o604: true, 0o440: false, 0o660: false, 0o602: false, 0o700: false, 0o750: false, 0: false} {
		if err := keyfile.CheckShared(mode); (err == nil) != right {
			t.Errorf("%04o: %v", mode, err)
		}
	}
}

// Ensure that root appends to a file in a folder of root that a group may write to, as /var/log is
// on many hosts, and to nothing that the group could have put there or others lead to; and that
// what is missing is refused likewise, whether it is to be made or not.
func TestOpenLog(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give files away")
	}
	for _, c := range []struct {
		tree []string
		path string
		make func(path string) error // makes what is at path; nil: nothing
		ok   bool
	}{
		{[]string{"a 755 root"}, "a/log", nil, true},
		{[]string{"a 755 root"}, "a/b/log", nil, true},
		{[]string{"a 775 root"}, "a/log", nil, true},
		{[]string{"a 775 root"}, "a/b/log", nil, true},
		{[]string{"a 775 root", "a/b 755 root"}, "a/b/log", plain, true},
		{[]string{"a 775 root"}, "a/log", plain, true},
		{[]string{"a 775 root"}, "a/log", func(path string) error { return errors.Join(plain(path), os.Chown(path, stranger, -1)) }, false},
		{[]string{"a 775 root"}, "a/log", func(path string) error { return errors.Join(plain(path+"2"), os.Link(path+"2", path)) }, false},
		{[]string{"a 775 root"}, "a/log", func(path string) error { return errors.Join(plain(path+"2"), os.Symlink("log2", path)) }, false},
		{[]string{"a 775 root"}, "a/log", func(path string) error { return os.Symlink("missing", path) }, false},
		{[]string{"a 775 root"}, "a/log", func(path string) error { return os.Mkdir(path, 0o700) }, false},
		{[]string{"a 755 root"}, "a/log", func(path string) error { return errors.Join(plain(path+"2"), os.Symlink("log2", path)) }, true}, // root's own
		{[]string{"a 775 root", "b 755 root", "a/l -> ../b"}, "a/l/log", plain, false},
		{[]string{"a 777 root"}, "a/log", plain, false},
		{[]string{"a 777 root", "a/b 755 root"}, "a/b/log", plain, false},
		{[]string{"a 755 stranger"}, "a/log", plain, false},
		{[]string{"a 775 root", "a/b 755 stranger"}, "a/b/log", nil, false},
	} {
		path := filepath.Join(tree(t, c.tree...), c.path)
		if c.make != nil {
			must(t, c.make(path))
		}
		for _, create := range []bool{false, true} {
			f, err := keyfile.OpenLog(path, create)
			right := err == nil
			switch {
			case !c.ok:
				right = err != nil && !errors.Is(err, fs.ErrNotExist)
			case c.make == nil && !create:
				right = errors.Is(err, fs.ErrNotExist)
			}
			if !right {
				t.Errorf("%q: %s, create %t: %v", c.tree, c.path, create, err)
			}
			if err != nil {
				continue
			}
			_, err = f.WriteString("x")
			must(t, errors.Join(err, f.Close()))
			if text, err := os.ReadFile(path); err != nil || !strings.HasSuffix(string(text), "x") {
				t.Errorf("%q: %s: %q, %v", c.tree, c.path, text, err)
			}
		}
	}
}

// plain makes a file.
func plain(path string) error { return os.WriteFile(path, []byte("1"), 0o600) }
