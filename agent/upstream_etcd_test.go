package agent_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"secretagent/agent"
	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

// cable carries connections to an address until it is cut: then they and new ones hang.
type cable struct {
	net.Listener
	mu   sync.Mutex
	cond *sync.Cond
	cut  bool
	live []net.Conn
	done sync.WaitGroup
}

func newCable(t *testing.T, to string) *cable {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	c := &cable{Listener: l}
	c.cond = sync.NewCond(&c.mu)
	c.done.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				_ = in.Close()
				continue
			}
			c.mu.Lock()
			c.live = append(c.live, in, out)
			c.mu.Unlock()
			c.done.Go(func() { c.carry(in, out) })
			c.done.Go(func() { c.carry(out, in) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		c.set(false)
		c.mu.Lock()
		for _, conn := range c.live {
			_ = conn.Close()
		}
		c.mu.Unlock()
		c.done.Wait()
	})
	return c
}

func (c *cable) carry(from, to net.Conn) {
	defer to.Close()
	defer from.Close()
	buffer := make([]byte, 1<<14)
	for {
		n, err := from.Read(buffer)
		c.mu.Lock()
		for c.cut {
			c.cond.Wait()
		}
		c.mu.Unlock()
		if err != nil {
			return
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
	}
}

func (c *cable) set(cut bool) {
	c.mu.Lock()
	c.cut = cut
	c.mu.Unlock()
	c.cond.Broadcast()
}

// onEtcd is an agent with a file, that reads again by itself only after an hour.
func onEtcd(t *testing.T, keyring, addr, timeout string) *world {
	t.Helper()
	return start(t, shortTempDir(t), fmt.Sprintf(`
upstream:
  etcd: {endpoints: ["http://%s"], prefix: /test/, keyring: %s, timeout: %s, api: {socket: ./run/kms.sock}}
endpoint: {listen: 127.0.0.1:0, tokenFile: ./run/token}
cache: {ttl: 1h, maxStale: 1h}
secrets: [{name: app/db}]
templates: [{contents: '{{ secret "app/db" }}', destination: ./rendered/file}]
render: {stateDir: ./state}
process: {noDump: false}
log: {level: debug}
`, addr, keyring, timeout))
}

func (w *world) watchIsUp() bool {
	s, _ := w.statusOf(w.token())
	return s.Upstream.Etcd.WatchUp
}

// TestAgentsShareEtcd: what is put at one agent is in the cache and file of the other. While etcd is away,
// or for one of them alone, the last good value is served, writes fail, and the status says that the watch
// is broken; then they catch up.
func TestAgentsShareEtcd(t *testing.T) {
	if testing.Short() {
		t.Skip("it waits for a watch to be given up")
	}
	t.Parallel()
	etcd := upstreamtest.NewEtcd(t, nil)
	addr := strings.TrimPrefix(etcd.URL, "http://")
	keyring := t.TempDir() + "/keyring.json"
	_, err := agent.CreateKeyring(keyring)
	must(t, err)
	one, wire := onEtcd(t, keyring, addr, "5s"), newCable(t, addr)
	two := onEtcd(t, keyring, wire.Addr().String(), "500ms")
	put := func(w *world, version, value string) (err error) {
		w.manage(func(ctx context.Context, m upstream.Manager) error {
			data := upstream.NewSecretData([]byte(value))
			_, err = m.PutSecretValue(ctx, upstream.PutSecretValueInput{SecretName: "app/db", VersionID: upstream.VersionID(version), SecretData: data})
			if errors.Is(err, upstream.ErrNotFound) {
				_, err = m.CreateSecret(ctx, upstream.CreateSecretInput{SecretName: "app/db", VersionID: upstream.VersionID(version), SecretData: data})
			}
			return nil
		})
		return err
	}
	one.eventually("the first version", func() bool { return put(one, "v1", "one") == nil })
	two.ready()
	two.wantFile("one")
	two.eventually("the watch", two.watchIsUp)
	must(t, put(one, "v2", "two"))
	two.wantFile("two")
	serves := func(w *world, want string) {
		t.Helper()
		if _, got := w.lookup("/v1/app/db"); got != want {
			t.Errorf("served is %q, not %q", got, want)
		}
	}
	two.eventually("the cache", func() bool { _, got := two.lookup("/v1/app/db"); return got == "two" })

	etcd.Kill()
	patient := make(chan error)
	go func() { patient <- put(one, "v3", "lost") }()
	if err := put(two, "v3", "lost"); !errors.Is(err, upstream.ErrUnavailable) {
		t.Errorf("a write while etcd is away: %v", err)
	}
	two.eventually("a watch that is told to be broken", func() bool { return !two.watchIsUp() })
	serves(two, "two")
	if s := two.series(); s["secretagent_etcd_watch_up"] != 0 || s["secretagent_etcd_watch_breaks_total"] < 1 {
		t.Errorf("metrics: %v", s)
	}
	// A command waits for what the agent says, which takes that long.
	if err := <-patient; !errors.Is(err, upstream.ErrUnavailable) || strings.Contains(err.Error(), "did not come in time") {
		t.Errorf("a write while etcd is away: %v", err)
	}
	etcd.Start(t)
	one.eventually("a write", func() bool { return put(one, "v4", "four") == nil })
	two.wantFile("four")
	two.eventually("the watch", two.watchIsUp)
	serves(two, "four")

	wire.set(true) // for one of them; connections hang
	must(t, put(one, "v5", "five"))
	if err := put(two, "v6", "lost"); err == nil {
		t.Error("a write through a cut cable succeeds")
	}
	serves(two, "four")
	two.eventually("a watch that is told to be broken", func() bool { return !two.watchIsUp() })
	if silence := two.series()["secretagent_etcd_watch_silence_seconds"]; silence < 1 {
		t.Errorf("the watch is broken after %v s of silence", silence)
	}
	if status, body := two.get("/v1/app/db"); status != http.StatusOK {
		t.Errorf("%d %s", status, body)
	}
	wire.set(false)
	two.eventually("what it has missed", func() bool { _, got := two.lookup("/v1/app/db"); return got == "five" || got == "lost" })
	two.eventually("the watch", two.watchIsUp)
}
