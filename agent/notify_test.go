package agent_test

import (
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
)

// TestTellsSystemd stands in for systemd: a datagram socket that notes what it is told.
func TestTellsSystemd(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no systemd")
	}
	dir := shortTempDir(t)
	socket := filepath.Join(dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var told []string
	var reader sync.WaitGroup
	reader.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			mu.Lock()
			told = append(told, string(buf[:n]))
			mu.Unlock()
		}
	})
	count := func(prefix string) (n int) {
		mu.Lock()
		defer mu.Unlock()
		for _, s := range told {
			if strings.HasPrefix(s, prefix) {
				n++
			}
		}
		return n
	}
	t.Setenv("NOTIFY_SOCKET", socket)
	t.Setenv("WATCHDOG_USEC", "20000")
	w := start(t, dir, basic)
	w.eventually("READY", func() bool { return count("READY=1") == 1 })
	w.eventually("a living watchdog", func() bool { return count("WATCHDOG=1") >= 3 })
	if err := w.reload(); err != nil {
		t.Fatal(err)
	}
	w.eventually("READY after RELOADING", func() bool { return count("RELOADING=1\nMONOTONIC_USEC=") == 1 && count("READY=1") == 2 })
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	w.eventually("STOPPING", func() bool { return count("STOPPING=1") == 1 })
	conn.Close()
	reader.Wait()
	if i := slices.Index(told, "STOPPING=1"); i < 0 || slices.Contains(told[i:], "READY=1") {
		t.Errorf("the order is wrong: %q", told)
	}
}
