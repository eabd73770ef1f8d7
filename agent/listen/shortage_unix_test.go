//go:build unix

package listen_test

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"secretagent/agent/listen"
)

// alone is the variable that says that the process is for one test.
const alone = "LISTEN_TEST_ALONE"

// allowFiles sets how many files the process may have open.
func allowFiles(t *testing.T, limit unix.Rlimit) {
	t.Helper()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
}

// TestAListenerOutlivesAShortageOfDescriptors takes away the descriptors of the process while
// clients are in line: none is lost, and closing ends the wait. It does so in a process of its
// own, where nothing else opens or closes any.
func TestAListenerOutlivesAShortageOfDescriptors(t *testing.T) {
	if os.Getenv(alone) == "" {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), alone+"=1")
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	for _, opts := range []listen.Options{listen.TCPOptions{Address: "127.0.0.1:0"}, listen.UnixOptions{Path: socketPath(t)}} {
		ln := open(t, opts)
		short, recovered := make(chan error), make(chan int, 1)
		ended := make(chan struct{})
		ln.OnShortage(func(err error, _ time.Duration) {
			select {
			case short <- err:
			case <-ended:
			}
		}, func(failures int) { recovered <- failures })
		var clients [2]net.Conn
		for i := range clients {
			var err error
			if clients[i], err = net.Dial(ln.Addr().Network(), ln.Addr().String()); err != nil {
				t.Fatal(err)
			}
			defer clients[i].Close()
		}
		type accepted struct {
			nc  net.Conn
			err error
		}
		answers := make(chan accepted)
		accept := func() {
			nc, err := ln.Accept()
			answers <- accepted{nc, err}
		}
		free, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		none := unix.Rlimit{Cur: uint64(free.Fd()), Max: before.Max}
		_ = free.Close()

		allowFiles(t, none)
		go accept()
		for range 3 {
			select {
			case err := <-short:
				if !errors.Is(err, unix.EMFILE) {
					t.Errorf("%v", err)
				}
			case got := <-answers:
				t.Fatalf("%s: accepted %v, %v without descriptors", ln.Addr(), got.nc, got.err)
			}
		}
		allowFiles(t, before)
		close(ended)
		if got := <-answers; got.err != nil {
			t.Errorf("%s: %v", ln.Addr(), got.err)
		} else {
			_ = got.nc.Close()
		}
		if n := <-recovered; n < 3 {
			t.Errorf("recovered from %d failures", n)
		}

		once := make(chan struct{}, 1)
		ln.OnShortage(func(error, time.Duration) {
			select {
			case once <- struct{}{}:
			default:
			}
		}, func(int) {})
		allowFiles(t, none)
		go accept()
		select {
		case <-once:
		case got := <-answers:
			t.Fatalf("%s: accepted %v, %v without descriptors", ln.Addr(), got.nc, got.err)
		}
		_ = ln.Close()
		if got := <-answers; !errors.Is(got.err, net.ErrClosed) {
			t.Errorf("%s: after the end: %v", ln.Addr(), got.err)
		}
		allowFiles(t, before)
	}
}
