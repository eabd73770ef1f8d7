package keyfile_test

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"secretagent/upstream/keyfile"
)

// childPath makes the test binary a process that makes a secret file and never finishes.
const childPath = "SECRETAGENT_KEYFILE_TEST_PATH"

// childToken makes the test binary a process that loads a token file.
const childToken = "SECRETAGENT_KEYFILE_TEST_TOKEN"

// owners are the users of the caller that the token is for.
var owners = []int{65531, 65530}

const marker = "MARKER-OF-A-SECRET"

func TestMain(m *testing.M) {
	if path := os.Getenv(childToken); path != "" {
		kind := keyfile.Token.OwnedBy(owners...)
		if gid, err := strconv.Atoi(os.Getenv("GROUP")); err == nil {
			kind = kind.Shared(0o640, gid)
		}
		err := kind.Check(path)
		if _, _, loadErr := kind.Load(path, content(marker)); fmt.Sprint(err) != fmt.Sprint(loadErr) {
			err = fmt.Errorf("Check: %w, Load: %w", err, loadErr)
		}
		fmt.Print(err)
		os.Exit(0)
	}
	if path := os.Getenv(childPath); path != "" {
		err := keyfile.KeyringFile.Make(path, func(temp string) error {
			if err := os.WriteFile(temp, []byte(marker), 0o600); err != nil {
				return err
			}
			fmt.Println("written")
			select {}
		})
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return strings.Join(list, " ")
}

func content(text string) func() []byte { return func() []byte { return []byte(text) } }

func writeFile(t *testing.T, path, text string, mode fs.FileMode) {
	t.Helper()
	must(t, errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), mode), os.Chmod(path, mode)))
}

func TestOfManyThatStartAtOnceOneMakesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "keys", "demo.secret")
	var created atomic.Int32
	var group sync.WaitGroup
	got := make([]string, 8)
	for i := range got {
		group.Go(func() {
			text, made, err := keyfile.AccessKeySecret.Load(path, content(fmt.Sprint("secret ", i)))
			if err != nil {
				t.Error(err)
			}
			if made {
				created.Add(1)
			}
			got[i] = string(text)
		})
	}
	group.Wait()
	if len(slices.Compact(got)) != 1 || !strings.HasPrefix(got[0], "secret ") || created.Load() != 1 {
		t.Errorf("%d made it: %q", created.Load(), got)
	}
	if left := names(t, filepath.Dir(path)); left != "demo.secret" {
		t.Errorf("left: %s", left)
	}
	if runtime.GOOS != "windows" {
		for path, want := range map[string]fs.FileMode{path: 0o600, filepath.Dir(path): 0o700, filepath.Dir(filepath.Dir(path)): 0o700} {
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
				t.Errorf("%s: %v %v", path, info.Mode(), err)
			}
		}
	}
	if err := keyfile.AccessKeySecret.Create(path, []byte("another")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over a file: %v", err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != got[0] {
		t.Errorf("the file is replaced: %q %v", text, err)
	}
}

func TestAFailureLeavesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secrets.db")
	broken := errors.New("broken")
	if err := keyfile.Database.Make(path, func(string) error { return broken }); !errors.Is(err, broken) {
		t.Error(err)
	}
	if left := names(t, filepath.Dir(path)); left != "" {
		t.Errorf("left: %s", left)
	}
}

func TestWhatOthersCanTouchIsRefused(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no modes there")
	}
	path := filepath.Join(t.TempDir(), "file")
	writeFile(t, path, marker, 0o600)
	for _, test := range []struct {
		name      string
		kind      keyfile.Kind
		good, bad []fs.FileMode
	}{
		{"token", keyfile.Token, []fs.FileMode{0o400, 0o600, 0o640, 0o644}, []fs.FileMode{0o620, 0o602, 0o660, 0o666}},
		{"access key", keyfile.AccessKeySecret, []fs.FileMode{0o400, 0o600, 0o700}, []fs.FileMode{0o640, 0o604, 0o620, 0o601}},
		{"keyring", keyfile.KeyringFile, []fs.FileMode{0o400, 0o600}, []fs.FileMode{0o640, 0o604, 0o620, 0o666, 0o601}},
		{"credential", keyfile.KeyringCredential, []fs.FileMode{0o400, 0o440, 0o600, 0o640}, []fs.FileMode{0o460, 0o450, 0o444, 0o404}},
	} {
		for _, mode := range append(test.good, test.bad...) {
			must(t, os.Chmod(path, mode))
			text, err := test.kind.Read(path)
			if slices.Contains(test.good, mode) {
				if err != nil || string(text) != marker {
					t.Errorf("%s of mode %04o: %v", test.name, mode, err)
				}
				continue
			}
			mend := "chmod 600 "
			if test.name == "token" {
				mend = "chmod go-w "
			}
			if err == nil || !strings.Contains(err.Error(), mend+path) || strings.Contains(err.Error(), marker) {
				t.Errorf("%s of mode %04o: %v", test.name, mode, err)
			}
			if checked := test.kind.Check(path); checked == nil || checked.Error() != err.Error() {
				t.Errorf("%s of mode %04o: Check: %v", test.name, mode, checked)
			}
		}
	}
}

func TestAMountPointIsNamedAsTheReason(t *testing.T) {
	for cause, want := range map[error]bool{syscall.EBUSY: true, syscall.EXDEV: true, syscall.ENOENT: false, nil: false} {
		err := keyfile.RenameError("/keys/ring", cause)
		if !errors.Is(err, cause) || err != nil && strings.HasPrefix(err.Error(), "/keys/ring is a mount point, which no rename can replace: mount the folder") != want {
			t.Errorf("%v: %v", cause, err)
		}
	}
}

func TestWhatIsNoSuchFile(t *testing.T) {
	dir := t.TempDir()
	if _, _, err := keyfile.Token.Load(dir, content("x")); err == nil || !strings.Contains(err.Error(), "is not a regular file") {
		t.Errorf("a folder: %v", err)
	}
	long := filepath.Join(dir, "long")
	writeFile(t, long, strings.Repeat("x", 4097), 0o600)
	if _, err := keyfile.Token.Read(long); err == nil || !strings.Contains(err.Error(), "is larger than 4096 bytes") {
		t.Errorf("a long file: %v", err)
	}
	writeFile(t, long, strings.Repeat("x", 4096), 0o600)
	if _, err := keyfile.Token.Read(long); err != nil {
		t.Error(err)
	}
}

func TestCheckChangesNothing(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "a", "b", "token")
	if err := keyfile.Token.Check(missing); err != nil {
		t.Errorf("a file that could be made: %v", err)
	}
	if left := names(t, dir); left != "" {
		t.Errorf("made: %s", left)
	}
	writeFile(t, filepath.Join(dir, "file"), "x", 0o600)
	if err := keyfile.Token.Check(filepath.Join(dir, "file", "b", "token")); err == nil {
		t.Error("below a file")
	}
	if runtime.GOOS == "windows" || os.Getuid() == 0 {
		return // may write everywhere
	}
	must(t, os.Mkdir(filepath.Join(dir, "locked"), 0o500))
	if err := keyfile.Token.Check(filepath.Join(dir, "locked", "token")); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("in a folder without permission: %v", err)
	}
}

func TestWhatAKillLeavesBehindIsRemoved(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs SIGKILL")
	}
	path := filepath.Join(t.TempDir(), "keys", "keyring.json")
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childPath+"="+path)
	out, err := child.StdoutPipe()
	must(t, err)
	must(t, child.Start())
	killed := false
	kill := func() {
		if !killed {
			_ = child.Process.Kill()
			_ = child.Wait()
			killed = true
		}
	}
	defer kill()
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "written\n" {
		t.Fatal(line, err)
	}
	// The maker lives: its file stays.
	keyfile.KeyringFile.Clean(path)
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".keyring.json.new-*"))
	if err != nil || len(left) != 1 {
		t.Fatalf("the file of a living process: %v %v", left, err)
	}
	if text, err := os.ReadFile(left[0]); err != nil || string(text) != marker {
		t.Fatalf("%q %v", text, err)
	}
	kill()
	if _, created, err := keyfile.OpenKeyring(path, false); err != nil || !created {
		t.Fatal(created, err)
	}
	if left := names(t, filepath.Dir(path)); left != "keyring.json" {
		t.Errorf("left: %s", left)
	}
}

func TestLeftoversOfEarlierVersions(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("young files stay there")
	}
	for _, test := range []struct {
		kind           keyfile.Kind
		name           string
		removed, stays []string
	}{
		{keyfile.KeyringFile, "keyring.json",
			[]string{".keyring.json.new-7", ".keyring.json8674665223082153551", "keyring.json.new-123456789"},
			[]string{".keyring.json", ".keyring.json1", ".keyring.json.bak", ".keyring.jsonx123456", ".other.json123456789", ".token-123456789", "keyring.json.new-", "keyring.json1234567"}},
		{keyfile.Database, "secrets.db", []string{".secrets.db1234567"}, []string{"secrets.db.bak"}},
		{keyfile.Token, "token", []string{".token-123456789", ".token1234567"}, []string{".token-1", ".token-web", "token-123456789"}},
		{keyfile.AccessKeySecret, "demo.secret", []string{".new-secret-123456789"}, []string{".new-secret-2024"}},
	} {
		dir := t.TempDir()
		for _, name := range append(test.removed, test.stays...) {
			writeFile(t, filepath.Join(dir, name), "x", 0o600)
		}
		must(t, errors.Join(os.Mkdir(filepath.Join(dir, "."+test.name+"999999999"), 0o700), os.Symlink("token", filepath.Join(dir, "."+test.name+"999999998"))))
		want := append([]string{"." + test.name + "999999999", "." + test.name + "999999998"}, test.stays...)
		slices.Sort(want)
		test.kind.Clean(filepath.Join(dir, test.name))
		if got := names(t, dir); got != strings.Join(want, " ") {
			t.Errorf("%s:\n got %s\nwant %s", test.name, got, strings.Join(want, " "))
		}
	}
}

func TestALockThatSomebodyKeepsOnlyDelays(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for seconds")
	}
	t.Parallel()
	dir := t.TempDir()
	unlock, locked := keyfile.LockFolder(dir, 0)
	if !locked {
		t.Skip("folders cannot be locked")
	}
	defer unlock()
	writeFile(t, filepath.Join(dir, ".token.new-1"), "of somebody at work", 0o600)
	if _, created, err := keyfile.Token.Load(filepath.Join(dir, "token"), content("x")); err != nil || !created {
		t.Error(created, err)
	}
	if left := names(t, dir); left != ".token.new-1 token" {
		t.Errorf("left: %s", left)
	}
}
