package listen_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"secretagent/agent/listen"
	"secretagent/upstream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, opts listen.Options) *listen.Listener {
	t.Helper()
	ln, err := listen.Open(opts)
	must(t, err)
	t.Cleanup(func() { _ = ln.Close() })
	return ln
}

// refused checks that opts cannot be opened, for a reason that contains want. When valid is
// set the options themselves are right, otherwise Validate gives the same error.
func refused(t *testing.T, opts listen.Options, valid bool, want string) {
	t.Helper()
	ln, err := listen.Open(opts)
	if err == nil {
		_ = ln.Close()
		t.Errorf("%+v was opened, want: %s", opts, want)
		return
	}
	if !strings.Contains(err.Error(), want) || !errors.As(err, new(upstream.OptionErrors)) {
		t.Errorf("%+v: %v, want: %s", opts, err, want)
	}
	switch checked := opts.Validate(); {
	case valid && checked != nil:
		t.Errorf("%+v: Validate: %v", opts, checked)
	case !valid && (checked == nil || checked.Error() != err.Error()):
		t.Errorf("%+v: Validate: %v, Open: %v", opts, checked, err)
	}
}

func TestPlainTCPStaysOnLoopback(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "127.0.0.7:0", "localhost:0"} {
		if runtime.GOOS == "darwin" && address == "127.0.0.7:0" {
			continue // has one loopback address only
		}
		ln := open(t, listen.TCPOptions{Address: address})
		if ln.TLS() != nil || ln.Secure() || ln.Addr().Network() != "tcp" {
			t.Errorf("%s: %v", address, ln.Addr())
		}
	}
	for _, address := range []string{"0.0.0.0:0", ":0", "[::]:0", "192.0.2.1:0"} {
		refused(t, listen.TCPOptions{Address: address}, false, "listen: "+address+": is no loopback address: listen on 127.0.0.1, or set allowNonLoopback and tls")
		refused(t, listen.TCPOptions{Address: address, AllowNonLoopback: true}, false, "listen: "+address+": is no loopback address: set tls, or listen on 127.0.0.1")
		refused(t, listen.TCPOptions{Address: address, TLS: newCA(t).files(t, "agent")}, false, "set allowNonLoopback")
	}
	for _, address := range []string{"", "nonsense", "127.0.0.1", "127.0.0.1:http", "127.0.0.1:http:x", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:+1", "127.0.0.1:"} {
		refused(t, listen.TCPOptions{Address: address}, false, "must be host:port, such as 127.0.0.1:2025, or off")
	}
}

func TestPortInUse(t *testing.T) {
	ln := open(t, listen.TCPOptions{Address: "127.0.0.1:0"})
	want := "another process"
	if runtime.GOOS == "linux" { // which tells who it is
		want = fmt.Sprintf("another process (pid %d, ", os.Getpid())
	}
	refused(t, listen.TCPOptions{Address: ln.Addr().String()}, true, ln.Addr().String()+": "+want)
}

// socketPath returns a path that fits into a socket address.
func socketPath(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ln")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "agent.sock")
}

func TestUnixSocketIsFinishedBeforeItAccepts(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no modes on sockets")
	}
	for _, test := range []struct {
		opts         listen.UnixOptions
		mode, folder fs.FileMode
	}{
		{listen.UnixOptions{}, 0o600, 0o700},
		{listen.UnixOptions{Mode: 0o640, FolderMode: 0o750, User: strconv.Itoa(os.Getuid()), Group: strconv.Itoa(os.Getgid())}, 0o640, 0o750},
	} {
		path := filepath.Join(filepath.Dir(socketPath(t)), "run", "agent.sock")
		test.opts.Path = path
		// What appears at the path must have its mode from the first moment.
		seen := make(chan fs.FileMode, 1)
		go func() {
			for {
				if info, err := os.Lstat(path); err == nil {
					seen <- info.Mode()
					return
				}
				runtime.Gosched()
			}
		}()
		ln := open(t, test.opts)
		if mode := <-seen; mode != test.mode|fs.ModeSocket {
			t.Errorf("the socket appeared as %v", mode)
		}
		if info, err := os.Stat(filepath.Dir(path)); err != nil || info.Mode().Perm() != test.folder {
			t.Errorf("its folder: %v %v", info.Mode(), err)
		}
		if ln.Addr().String() != path || ln.Addr().Network() != "unix" {
			t.Errorf("Addr: %v", ln.Addr())
		}
		onlySocket(t, path)
		if err := ln.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the socket outlives its listener: %v", err)
		}
	}
}

// onlySocket checks that nothing but the socket is in its folder.
func onlySocket(t *testing.T, path string) {
	t.Helper()
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("beside the socket: %v %v", entries, err)
	}
}

// leaveDead leaves a socket behind that nobody listens on.
func leaveDead(t *testing.T, path string) {
	t.Helper()
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	must(t, err)
	dead.SetUnlinkOnClose(false)
	_ = dead.Close()
}

func TestUnixSocketReplacesOnlyDeadSockets(t *testing.T) {
	path := socketPath(t)
	opts := listen.UnixOptions{Path: path}
	must(t, os.WriteFile(path, []byte("precious"), 0o600))
	refused(t, opts, false, "socket: "+path+": something that is not a socket is there already")
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Errorf("the file is gone: %q %v", b, err)
	}
	_ = os.Remove(path)

	leaveDead(t, path)
	ln := open(t, opts)
	refused(t, opts, true, "another process listens on it")

	// A successor took the path: closing the old listener, twice even, must not take its socket away.
	_ = os.Remove(path)
	open(t, opts)
	_ = ln.Close()
	_ = ln.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the successor's socket is gone: %v", err)
	}
}

func TestOfManyThatStartAtOnceOneGetsTheSocket(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("folders cannot be locked")
	}
	path := socketPath(t)
	leaveDead(t, path)
	var opened atomic.Int32
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			ln, err := listen.Open(listen.UnixOptions{Path: path})
			if err == nil {
				opened.Add(1)
				t.Cleanup(func() { _ = ln.Close() })
			}
		})
	}
	group.Wait()
	if n := opened.Load(); n != 1 {
		t.Errorf("%d listeners believe that they have the socket", n)
	}
	onlySocket(t, path)
}

func TestLeftoversOfKilledProcessesAreRemoved(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("folders cannot be locked")
	}
	path := socketPath(t)
	dir := filepath.Dir(path)
	for _, name := range []string{".s1", ".s4294967295", ".s2", ".surprise", ".s"} {
		must(t, os.Mkdir(filepath.Join(dir, name), 0o700))
	}
	leaveDead(t, filepath.Join(dir, ".s1", "s"))
	for _, name := range []string{".s2/notes", ".s3"} { // somebody else's
		must(t, os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600))
	}
	open(t, listen.UnixOptions{Path: path})
	entries, err := os.ReadDir(dir)
	must(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if got := strings.Join(names, " "); got != ".s .s2 .s3 .surprise agent.sock" {
		t.Errorf("left: %s", got)
	}
}

func TestUnixOptionsSayWhatIsWrong(t *testing.T) {
	path := socketPath(t)
	refused(t, listen.UnixOptions{}, false, "socket: the path is empty")
	long := filepath.Join(filepath.Dir(path), strings.Repeat("d", 100), "kms.sock")
	refused(t, listen.UnixOptions{Path: long}, false, "characters too long for a socket")
	if _, err := os.Lstat(filepath.Dir(long)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder was made for it: %v", err)
	}
	refused(t, listen.UnixOptions{Path: path, Mode: 0o400}, false, `socketMode: 0400: must let the owner read and write, as "0600" does`)
	err := listen.UnixOptions{Path: path, Mode: 0o060, User: "no-such-user", Group: "no-such-group"}.Validate()
	for _, key := range []string{"socketMode: 0060: ", "socketUser: no-such-user: ", "socketGroup: no-such-group: "} {
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("without %s%v", key, err)
		}
	}
}

func TestEqualOptionsAreTheSameListener(t *testing.T) {
	opts := listen.TCPOptions{Address: "127.0.0.1:0"}
	ln := open(t, opts)
	if ln.Options() != listen.Options(opts) || ln.Options() == listen.Options(listen.TCPOptions{Address: "127.0.0.1:0", AllowNonLoopback: true}) {
		t.Errorf("%+v", ln.Options())
	}
}
