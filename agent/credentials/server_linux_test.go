package credentials_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"secretagent/agent/credentials"
	"secretagent/cache"
	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

// asClient makes the test binary a client: it prints what it got.
const asClient = "SECRETAGENT_CREDENTIALS_TEST_SOCKET"

func TestMain(m *testing.M) {
	if socket := os.Getenv(asClient); socket != "" {
		data, err := load(socket, "app.service", "db")
		fmt.Printf("%q %v", data, err)
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// dial connects as systemd does: from an address that names unit and credential.
func dial(socket, address string) (*net.UnixConn, error) {
	var local *net.UnixAddr
	if address != "" {
		local = &net.UnixAddr{Name: address, Net: "unix"}
	}
	nc, err := net.DialUnix("unix", local, &net.UnixAddr{Name: socket, Net: "unix"})
	if err == nil {
		err = nc.CloseWrite()
	}
	return nc, err
}

func bound(unit, credential string) string {
	return fmt.Sprintf("@%x/unit/%s/%s", rand.Uint64(), unit, credential)
}

// read reads a credential as systemd does, which fails when it is larger than 1 MiB.
func read(nc net.Conn) (string, error) {
	defer nc.Close()
	const largest = 1 << 20
	data, err := io.ReadAll(io.LimitReader(nc, largest+1))
	if err == nil && len(data) > largest {
		return "", syscall.E2BIG
	}
	return string(data), err
}

// load is what LoadCredential=credential:socket does in a unit.
func load(socket, unit, credential string) (string, error) {
	nc, err := dial(socket, bound(unit, credential))
	if err != nil {
		return "", err
	}
	return read(nc)
}

// world is a server over a cache over a fake upstream.
type world struct {
	*testing.T
	socket string
	fake   *upstreamtest.Fake
	srv    *credentials.Server
	log    upstreamtest.Buffer
	audit  upstreamtest.Buffer
}

var rules = []credentials.Unit{{Name: "app.service", Secrets: []credentials.Secret{{Name: "app/*"}}}}

func start(t *testing.T, opts credentials.Options) *world {
	t.Helper()
	return startOver(t, opts, cache.Options{})
}

func startOver(t *testing.T, opts credentials.Options, of cache.Options) *world {
	t.Helper()
	w := &world{T: t, socket: filepath.Join(t.TempDir(), "s"), fake: upstreamtest.NewFake()}
	w.fake.MustCreate(t, "app/db", "v1", "of the app")
	c, err := cache.New(w.fake, of)
	must(t, err)
	opts.Logger, opts.Audit = w.log.Logger(), &w.audit
	if opts.Units == nil {
		opts.Units = rules
	}
	w.srv, err = credentials.New(c, opts)
	must(t, err)
	w.srv.TakeForRoot()
	ln, err := net.Listen("unix", w.socket)
	must(t, err)
	served := make(chan error, 1)
	go func() { served <- w.srv.Serve(ln) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		must(t, w.srv.Shutdown(ctx))
		must(t, <-served)
		must(t, c.Close())
	})
	return w
}

// wantRefused checks that a unit that asks so fails.
func (w *world) wantRefused(got string, err error) {
	w.Helper()
	if !errors.Is(err, syscall.E2BIG) {
		w.Errorf("got %d bytes, %.40q, %v: the unit starts", len(got), got, err)
	}
}

func TestASecretIsGivenAsItIs(t *testing.T) {
	w := start(t, credentials.Options{})
	binary := "\x00\n" + strings.Repeat("x", upstream.MaxSecretDataLen-3) + "\n"
	w.fake.MustCreate(t, "app/key", "v1", binary)
	for credential, want := range map[string]string{"db": "of the app", "key": binary} {
		if got, err := load(w.socket, "app.service", credential); err != nil || got != want {
			t.Errorf("%s: %d bytes, %v", credential, len(got), err)
		}
	}
	if got, err := load(w.socket, "app.service", "db"); err != nil || got != "of the app" {
		t.Errorf("%q, %v", got, err)
	}
	must(t, w.srv.Shutdown(t.Context())) // all is counted
	if st := w.srv.Stats(); !reflect.DeepEqual(st, credentials.Stats{Given: map[string]uint64{"miss": 2, "hit": 1}, Refused: map[string]uint64{}, Failed: map[string]uint64{}}) {
		t.Errorf("%+v", st)
	}
	line, _, _ := strings.Cut(w.audit.String(), "\n")
	var audited map[string]string
	must(t, json.Unmarshal([]byte(line), &audited))
	if audited["Caller"] != "unit app.service" || audited["Operation"] != "LoadCredential" || audited["VersionId"] != "v1" || audited["Outcome"] != "miss" || !strings.HasPrefix(audited["From"], "uid=") {
		t.Errorf("audit: %s", line)
	}
	if strings.Contains(w.log.String()+w.audit.String(), "of the app") {
		t.Errorf("the value is in\n%s\n%s", w.log.String(), w.audit.String())
	}
}

// TestWhatIsRefusedFails: an empty answer would be an empty credential, and the unit would start.
func TestWhatIsRefusedFails(t *testing.T) {
	w := start(t, credentials.Options{})
	w.wantRefused(load(w.socket, "other.service", "db"))   // no such unit
	w.wantRefused(load(w.socket, "app.service", "none"))   // no such secret
	w.wantRefused(load(w.socket, "app.service", "db:old")) // no name of a credential
	w.wantRefused(load(w.socket, "*", "db"))
	w.fake.MustDelete(t, "app/db")
	w.wantRefused(load(w.socket, "app.service", "db"))
	for _, address := range []string{"", "@5a/unit/app.service", "@5a/unit/app.service/db/x", "@xyz/unit/app.service/db", "@/unit/app.service/db", "@5a/user/app.service/db"} {
		nc, err := dial(w.socket, address)
		must(t, err)
		w.wantRefused(read(nc))
	}
	must(t, w.srv.Shutdown(t.Context()))
	st := w.srv.Stats()
	if len(st.Given) != 0 || st.Refused["unit"] != 1 || st.Refused["address"] != 8 || st.Failed["Forbidden.ResourceNotFound"] != 2 {
		t.Errorf("%+v", st)
	}
	if log := w.log.String(); !strings.Contains(log, "caller=other.service") || !strings.Contains(log, "secret=app/none") {
		t.Errorf("the log does not tell: %s", log)
	}
}

// TestOnlyRootIsAnswered: any process can bind the address.
func TestOnlyRootIsAnswered(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can start a process of another user")
	}
	w := start(t, credentials.Options{})
	for dir := filepath.Dir(w.socket); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		must(t, os.Chmod(dir, 0o755))
	}
	must(t, os.Chmod(w.socket, 0o666))
	self, err := os.Executable()
	must(t, err)
	shared := filepath.Join(filepath.Dir(w.socket), "client")
	binary, err := os.ReadFile(self)
	must(t, err)
	must(t, os.WriteFile(shared, binary, 0o755))
	for uid, want := range map[uint32]string{65534: `"" argument list too long`, 0: `"of the app" <nil>`} {
		client := exec.Command(shared)
		client.Dir, client.Env = "/", []string{asClient + "=" + w.socket}
		client.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		if out, err := client.CombinedOutput(); err != nil || string(out) != want {
			t.Errorf("user %d: %s, %v; want %s", uid, out, err, want)
		}
	}
	must(t, w.srv.Shutdown(t.Context()))
	if st := w.srv.Stats(); st.Refused["peer"] != 1 || st.Given["miss"] != 1 || !strings.Contains(w.log.String(), "uid=65534") {
		t.Errorf("%+v\n%s", st, w.log.String())
	}
}

// pipes is a listener of connections in memory that say that they come from systemd.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	if nc, ok := <-p; ok {
		return nc, nil
	}
	return nil, net.ErrClosed
}

// TestAUnitWaitsForTheUpstream: through an outage, for a bounded time, and for no answer that is
// one.
func TestAUnitWaitsForTheUpstream(t *testing.T) {
	w := startOver(t, credentials.Options{MaxWait: time.Minute}, cache.Options{Limits: cache.Limits{TTL: time.Nanosecond}})
	w.fake.FailNext("GetSecretValue", 1, upstream.ErrUnavailable)
	if got, err := load(w.socket, "app.service", "db"); err != nil || got != "of the app" {
		t.Errorf("after an outage: %q, %v", got, err)
	}
	// A value that is held is given, stale.
	w.fake.Fail("GetSecretValue", upstream.ErrUnavailable)
	if got, err := load(w.socket, "app.service", "db"); err != nil || got != "of the app" {
		t.Errorf("in an outage: %q, %v", got, err)
	}
	must(t, w.srv.Shutdown(t.Context()))
	if st := w.srv.Stats(); st.Given["miss"] != 1 || st.Given["stale"] != 1 {
		t.Errorf("%+v", st)
	}
	w = start(t, credentials.Options{MaxWait: 10 * time.Millisecond})
	w.fake.Fail("GetSecretValue", upstream.ErrUnavailable)
	w.wantRefused(load(w.socket, "app.service", "db"))
	must(t, w.srv.Shutdown(t.Context()))
	if st := w.srv.Stats(); st.Failed["ServiceUnavailableTemporary"] != 1 {
		t.Errorf("%+v", st)
	}
}

// TestTheEndFailsThoseWhoWait: they would start with an empty credential.
func TestTheEndFailsThoseWhoWait(t *testing.T) {
	w := start(t, credentials.Options{MaxWait: time.Hour})
	release := w.fake.Block("GetSecretValue")
	defer release()
	nc, err := dial(w.socket, bound("app.service", "db"))
	must(t, err)
	w.fake.AwaitCalls(t, "GetSecretValue", 1)
	stopped := make(chan error, 1)
	go func() { stopped <- w.srv.Shutdown(context.Background()) }()
	w.wantRefused(read(nc))
	must(t, <-stopped)
}

// TestConnectionsAreBounded: who finds no place waits, and nobody is cut off.
func TestConnectionsAreBounded(t *testing.T) {
	w := start(t, credentials.Options{MaxWait: time.Hour})
	release := w.fake.Block("GetSecretValue")
	var wg sync.WaitGroup
	for range credentials.MaxConnections + 20 {
		wg.Go(func() {
			if got, err := load(w.socket, "app.service", "db"); err != nil || got != "of the app" {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	w.fake.AwaitCalls(t, "GetSecretValue", 1)
	if n := w.srv.Stats().Open; n > credentials.MaxConnections {
		t.Errorf("%d connections", n)
	}
	release()
	wg.Wait()
}

func TestRulesAreReplaced(t *testing.T) {
	w := start(t, credentials.Options{})
	set, err := w.srv.Prepare(credentials.Options{Units: []credentials.Unit{{Name: "new.service", Secrets: []credentials.Secret{{Credential: "x", Name: "app/db"}}}}})
	must(t, err)
	if _, err := load(w.socket, "app.service", "db"); err != nil {
		t.Error(err)
	}
	set()
	w.wantRefused(load(w.socket, "app.service", "db"))
	if got, err := load(w.socket, "new.service", "x"); err != nil || got != "of the app" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := w.srv.Prepare(credentials.Options{Units: []credentials.Unit{{Name: "x"}}}); !errors.As(err, new(upstream.OptionErrors)) {
		t.Error(err)
	}
}

// TestASlowReaderIsGivenUp: who does not read keeps a place for a bounded time.
func TestASlowReaderIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, err := credentials.New(nil, credentials.Options{})
		must(t, err)
		client, server := net.Pipe()
		conns := make(pipes, 1)
		conns <- server
		served := make(chan error, 1)
		go func() { served <- srv.Serve(listener{conns}) }()
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := srv.Stats().Open; n != 0 {
			t.Errorf("%d are open", n)
		}
		if n, err := client.Read(make([]byte, 1)); n > 0 || err != io.EOF {
			t.Errorf("%d bytes, %v", n, err)
		}
		close(conns)
		if err := <-served; !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
}

type listener struct{ pipes }

func (listener) Addr() net.Addr { return &net.UnixAddr{} }
func (listener) Close() error   { return nil }
