package listen_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"secretagent/agent/listen"
)

// stays checks that the socket at path is still the one that info describes.
func stays(t *testing.T, path string, info os.FileInfo) {
	t.Helper()
	if now, err := os.Lstat(path); err != nil || !os.SameFile(now, info) {
		t.Errorf("the socket of the running agent is gone: %v", err)
	}
}

func TestAnotherUsersLiveSocketIsNotTakenOver(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to be two users")
	}
	const nobody = 65534
	path := socketPath(t)
	if err := os.Chmod(filepath.Dir(path), 0o777|os.ModeSticky); err != nil { // a volume that both may write to
		t.Fatal(err)
	}
	open(t, listen.UnixOptions{Path: path})
	info, err := os.Lstat(path)
	must(t, err)
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		if err := unix.Setfsuid(nobody); err != nil {
			done <- err
			return
		}
		ln, err := listen.Open(listen.UnixOptions{Path: path})
		if err == nil {
			_ = ln.Close()
		}
		done <- err
	}()
	err = <-done
	if err == nil || !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "a process of uid 0 may listen on it") || !strings.Contains(err.Error(), "choose another path") {
		t.Errorf("as another user: %v", err)
	}
	stays(t, path, info)
}

func TestALiveSocketWithAFullBacklogIsNotTakenOver(t *testing.T) {
	path := socketPath(t)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	must(t, errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 0)))
	for {
		nc, err := net.Dial("unix", path)
		if err != nil {
			if !errors.Is(err, unix.EAGAIN) {
				t.Fatal(err)
			}
			break
		}
		defer nc.Close()
	}
	info, err := os.Lstat(path)
	must(t, err)
	refused(t, listen.UnixOptions{Path: path}, true, "may listen on it and does not take connections")
	stays(t, path, info)
}
