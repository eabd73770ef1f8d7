package agent_test

import (
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestTellsSystemd stands in for systemd: a datagram socket that notes what it is told.
func TestTellsSystemd(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no systemd")
	}
	dir := shortTempDir(t)
	socket := filepath.Join(dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	must(t, err)
	told := make(chan string, 1<<16)
	go func() {
		defer close(told)
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			told <- string(buf[:n])
		}
	}()
	t.Setenv("NOTIFY_SOCKET", socket)
	t.Setenv("WATCHDOG_USEC", "20000")
	w := start(t, dir, basic)
	// await waits for what begins with each of want, in this order. Nothing but signs of life may
	// come between.
	await := func(want ...string) {
		t.Helper()
		for len(want) > 0 {
			select {
			case got := <-told:
				if strings.HasPrefix(got, want[0]) {
					want = want[1:]
				} else if got != "WATCHDOG=1" {
					t.Fatalf("%q instead of %q", got, want[0])
				}
			case <-time.After(bound):
				t.Fatalf("%q was not told", want[0])
			}
		}
	}
	await("READY=1", "WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1")
	must(t, w.agent.Reload(t.Context()))
	await("RELOADING=1\nMONOTONIC_USEC=", "READY=1")
	must(t, w.stop())
	await("STOPPING=1")
	conn.Close()
	for got := range told {
		if got != "WATCHDOG=1" {
			t.Errorf("%q after the end", got)
		}
	}
}
