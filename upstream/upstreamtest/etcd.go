package upstreamtest

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// Etcd is an etcd of one member, a process of its own.
type Etcd struct {
	URL string
	TLS *tls.Config // of its clients, where there is TLS

	dir  string
	args []string
	cmd  *exec.Cmd
}

// NewEtcd starts an etcd for one test, with further flags; with TLS where clients have a configuration
// for it, and the flags the files. Its data are in memory where that can be had: what survives a power cut
// is no matter to tests. A test is skipped where there is no etcd.
func NewEtcd(tb testing.TB, clients *tls.Config, flags ...string) *Etcd {
	tb.Helper()
	e := startEtcd(tb, clients, flags...)
	tb.Cleanup(e.remove)
	return e
}

func startEtcd(tb testing.TB, clients *tls.Config, flags ...string) *Etcd {
	tb.Helper()
	program := EtcdProgram(tb)
	dir := memoryFolder(tb)
	addresses := FreeAddresses(tb, 2)
	e := &Etcd{URL: "http://" + addresses[0], TLS: clients, dir: dir}
	if clients != nil {
		e.URL = "https://" + addresses[0]
	}
	peer := "http://" + addresses[1]
	e.args = append([]string{
		program, "--data-dir", filepath.Join(dir, "data"), "--listen-client-urls", e.URL, "--advertise-client-urls", e.URL,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default=" + peer, "--logger", "zap", "--log-level", "error",
		"--heartbeat-interval", "20", "--election-timeout", "200", // a lone member waits that long before it leads
	}, flags...)
	started := false
	defer func() {
		if !started {
			e.remove()
		}
	}()
	e.Start(tb)
	started = true
	return e
}

// Start starts the process, after [Etcd.Kill] with the same data at the same address, and waits until
// it answers.
func (e *Etcd) Start(tb testing.TB) {
	tb.Helper()
	e.cmd = exec.Command(e.args[0], e.args[1:]...)
	if err := e.cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{TLSClientConfig: e.TLS, DisableKeepAlives: true}}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		answer, err := client.Get(e.URL + "/health")
		if err == nil {
			_ = answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				return
			}
			err = fmt.Errorf("its health is %s", answer.Status)
		}
		if time.Now().After(deadline) {
			tb.Fatal("etcd does not start: ", err)
		}
	}
}

// Kill ends the process, as a crash would.
func (e *Etcd) Kill() {
	if e.cmd != nil {
		_ = e.cmd.Process.Kill()
		_ = e.cmd.Wait()
		e.cmd = nil
	}
}

// Wipe takes its data from an etcd that was killed.
func (e *Etcd) Wipe(tb testing.TB) {
	tb.Helper()
	if err := os.RemoveAll(filepath.Join(e.dir, "data")); err != nil {
		tb.Fatal(err)
	}
}

// Pid is the number of the process.
func (e *Etcd) Pid() int { return e.cmd.Process.Pid }

func (e *Etcd) remove() {
	e.Kill()
	_ = os.RemoveAll(e.dir)
}

var sharedEtcd struct {
	mu sync.Mutex
	*Etcd
	prefixes int
}

// SharedEtcd returns the etcd of all tests of a program that do not harm it, and a prefix for keys there
// that is the test's own. The program's TestMain calls [StopEtcd].
func SharedEtcd(tb testing.TB) (e *Etcd, prefix string) {
	tb.Helper()
	sharedEtcd.mu.Lock()
	defer sharedEtcd.mu.Unlock()
	if sharedEtcd.Etcd == nil {
		sharedEtcd.Etcd = startEtcd(tb, nil)
	}
	sharedEtcd.prefixes++
	return sharedEtcd.Etcd, fmt.Sprintf("/test/%d/", sharedEtcd.prefixes)
}

// StopEtcd ends what [SharedEtcd] has started, if anything.
func StopEtcd() {
	if sharedEtcd.Etcd != nil {
		sharedEtcd.remove()
	}
}

// EtcdProgram returns the path of etcd, or skips the test where there is none.
func EtcdProgram(tb testing.TB) string {
	tb.Helper()
	program, err := exec.LookPath("etcd")
	if err != nil {
		tb.Skip("skipped: there is no etcd here (Debian has it in etcd-server)")
	}
	return program
}

// InMemory returns a folder for the time of a test, where syncs cost little if there is such a place.
func InMemory(tb testing.TB) string {
	tb.Helper()
	dir := memoryFolder(tb)
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func memoryFolder(tb testing.TB) string {
	tb.Helper()
	memory := "/dev/shm"
	if _, err := os.Stat(memory); err != nil {
		memory = ""
	}
	dir, err := os.MkdirTemp(memory, "etcd-test-")
	if err != nil {
		tb.Fatal(err)
	}
	return dir
}

// FreeAddresses returns so many addresses of this host that nobody listens on.
func FreeAddresses(tb testing.TB, n int) (addresses []string) {
	tb.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			tb.Fatal(err)
		}
		defer l.Close() // at the end, so that all differ
		addresses = append(addresses, l.Addr().String())
	}
	return addresses
}
