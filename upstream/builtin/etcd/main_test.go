package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"secretagent/upstream"
	"secretagent/upstream/builtin"
	"secretagent/upstream/keyfile"
)

func TestMain(m *testing.M) {
	_ = flag.Set("test.parallel", "8") // they wait for etcd rather than compute
	code := m.Run()
	shared.stop()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// server is an etcd of one member.
type server struct {
	url  string
	tls  *tls.Config // of client
	args []string
	cmd  *exec.Cmd
}

// newServer starts an etcd, with its data below dir.
func newServer(tb testing.TB, dir string, flags ...string) *server {
	tb.Helper()
	program, err := exec.LookPath("etcd")
	if err != nil {
		tb.Skip("skipped: there is no etcd here (Debian has it in etcd-server)")
	}
	return newServerAt(tb, &server{url: "http://" + freeAddress(tb)}, program, dir, flags...)
}

func newServerAt(tb testing.TB, s *server, program, dir string, flags ...string) *server {
	tb.Helper()
	peer := "http://" + freeAddress(tb)
	s.args = append([]string{
		program, "--data-dir", filepath.Join(dir, "data"), "--listen-client-urls", s.url, "--advertise-client-urls", s.url,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default=" + peer, "--logger", "zap", "--log-level", "error",
		"--heartbeat-interval", "20", "--election-timeout", "200", // a lone member waits that long before it leads
	}, flags...)
	s.start(tb)
	return s
}

func (s *server) start(tb testing.TB) {
	tb.Helper()
	s.cmd = exec.Command(s.args[0], s.args[1:]...)
	if err := s.cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	client := s.client(tb)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_, err := client.Get(ctx, "up")
		cancel()
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			tb.Fatal("etcd does not start: ", err)
		}
	}
	_ = client.Close()
}

// stop kills the server, as a crash would.
func (s *server) stop() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		s.cmd = nil
	}
}

// client is one that is not ours. The caller closes it.
func (s *server) client(tb testing.TB) *clientv3.Client {
	tb.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{s.url}, TLS: s.tls, Logger: zap.NewNop()})
	must(tb, err)
	return client
}

func freeAddress(tb testing.TB) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(tb, err)
	defer l.Close()
	return l.Addr().String()
}

// memoryFolder makes a folder where syncs cost little, if there is such a place: what survives a power cut is no matter
// here.
func memoryFolder(tb testing.TB) string {
	tb.Helper()
	memory := "/dev/shm"
	if _, err := os.Stat(memory); err != nil {
		memory = ""
	}
	dir, err := os.MkdirTemp(memory, "etcd-test-")
	must(tb, err)
	return dir
}

// inMemory is a memoryFolder that goes with the test.
func inMemory(tb testing.TB) string {
	tb.Helper()
	dir := memoryFolder(tb)
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// shared is the server of all tests that do not harm it.
var shared sharedServer

type sharedServer struct {
	mu  sync.Mutex
	dir string
	*server
	prefixes int
}

func (s *sharedServer) stop() {
	if s.server != nil {
		s.server.stop()
		_ = os.RemoveAll(s.dir)
	}
}

// prefix returns the server and a prefix at it that is the test's own.
func (s *sharedServer) prefix(tb testing.TB) (*server, string) {
	tb.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server == nil {
		dir := memoryFolder(tb)
		s.dir = dir
		defer func() {
			if s.server == nil {
				_ = os.RemoveAll(dir)
			}
		}()
		s.server = newServer(tb, dir)
	}
	s.prefixes++
	return s.server, fmt.Sprintf("/test/%d/", s.prefixes)
}

// testOptions are those of a prefix of the test's own.
func testOptions(tb testing.TB) Options {
	tb.Helper()
	s, prefix := shared.prefix(tb)
	return s.options(tb, prefix)
}

func (s *server) options(tb testing.TB, prefix string) Options {
	tb.Helper()
	keyring := filepath.Join(tb.TempDir(), "keyring.json")
	_, err := keyfile.CreateKeyring(keyring)
	must(tb, err)
	return Options{Options: builtin.Options{Keyring: keyring}, Endpoints: []string{s.url}, Prefix: prefix}
}

func mustOpen(tb testing.TB, opts Options) *Store {
	tb.Helper()
	s, err := Open(opts)
	must(tb, err)
	tb.Cleanup(func() { wantErr(tb, s.Close(), nil) })
	return s
}

// clock is a clock that tests move.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// fatal is what both package testing and package rapid have.
type fatal interface {
	Helper()
	Fatal(args ...any)
}

func must(tb fatal, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// only returns the error of a call that has an answer too.
func only[T any](_ T, err error) error { return err }

func wantErr(tb testing.TB, err, want error) {
	tb.Helper()
	if !errors.Is(err, want) {
		tb.Errorf("got error %v, want one that is %v", err, want)
	}
}

func create(s upstream.Manager, name, id, data string) error {
	return only(s.CreateSecret(context.Background(), upstream.CreateSecretInput{
		SecretName: upstream.SecretName(name), VersionID: upstream.VersionID(id), SecretData: upstream.NewSecretData([]byte(data)),
	}))
}

func put(s upstream.Manager, name, id, data string) error {
	return only(s.PutSecretValue(context.Background(), upstream.PutSecretValueInput{
		SecretName: upstream.SecretName(name), VersionID: upstream.VersionID(id), SecretData: upstream.NewSecretData([]byte(data)),
	}))
}

func wantValue(tb testing.TB, s upstream.Manager, name, want string) {
	tb.Helper()
	v, err := s.GetSecretValue(context.Background(), upstream.SecretRef{SecretName: upstream.SecretName(name)})
	if got := string(v.SecretData.Reveal()); err != nil || got != want {
		tb.Errorf("%s: got %q, %v; want %q", name, got, err, want)
	}
}

func contains(err error, text string) bool { return err != nil && strings.Contains(err.Error(), text) }
