package etcd

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

// TestAUserWhoWasQuiet: etcd forgets who a connection is from when nothing was asked for a while.
func TestAUserWhoWasQuiet(t *testing.T) {
	t.Parallel()
	server := upstreamtest.NewEtcd(t, nil, "--auth-token-ttl", "1")
	raw := client(t, server)
	defer raw.Close()
	ctx := t.Context()
	must(t, only(raw.RoleAdd(ctx, "agent")))
	must(t, only(raw.RoleGrantPermission(ctx, "agent", "/p/", clientv3.GetPrefixRangeEnd("/p/"), clientv3.PermissionType(clientv3.PermReadWrite))))
	for user, role := range map[string]string{"root": "root", "agent": "agent"} {
		must(t, only(raw.UserAdd(ctx, user, "secret")))
		must(t, only(raw.UserGrantRole(ctx, user, role)))
	}
	must(t, only(raw.AuthEnable(ctx)))
	opts := optionsAt(t, server.URL, "/p/")
	opts.User, opts.PasswordFile = "agent", opts.Keyring+".password"
	must(t, os.WriteFile(opts.PasswordFile, []byte("secret\n"), 0o600))
	s := mustOpen(t, opts)
	must(t, create(s, "a", "v1", "one"))
	until(t, "it follows", func() bool { return s.Stats().WatchUp })
	time.Sleep(2500 * time.Millisecond) // it looks each second
	must(t, put(s, "a", "v2", "two"))
	wantValue(t, s, "a", "two")
	if n := s.Stats().WatchBreaks; n != 0 {
		t.Errorf("the watch broke %d times", n)
	}
}

// TestAMemberThatHangs: what is read is asked of another member, in time.
func TestAMemberThatHangs(t *testing.T) {
	t.Parallel()
	opts := testOptions(t)
	p := newProxy(t, opts.Endpoints[0])
	opts.Endpoints = append(opts.Endpoints, p.url)
	s := mustOpen(t, opts)
	must(t, create(s, "a", "v1", "one"))
	until(t, "both are asked", func() bool {
		wantValue(t, s, "a", "one")
		return p.connections() > 0
	})
	for range 4 { // they take turns
		wantValue(t, s, "a", "one")
	}
	p.set(hung)
	for range 4 {
		wantValue(t, s, "a", "one")
	}
}

// TestUnknown: the outcome of a write is unknown only when it was sent.
func TestUnknown(t *testing.T) {
	t.Parallel()
	opts := testOptions(t)
	p := newProxy(t, opts.Endpoints[0])
	opts.Endpoints, opts.Timeout = []string{p.url}, time.Second
	s := mustOpen(t, opts)
	must(t, create(s, "a", "v1", "one"))
	write := func() error {
		key := opts.Prefix + "x"
		return only(s.db.txn(t.Context(), []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(key), "=", 0)}, []clientv3.Op{clientv3.OpPut(key, "x")}))
	}
	p.set(hung)
	err := write()
	wantErr(t, err, upstream.ErrUnavailable)
	if !contains(err, "outcome of the change is unknown") {
		t.Errorf("sent: %v", err)
	}
	p.set(closed)
	until(t, "nothing is sent any more", func() bool { err = write(); return !contains(err, "unknown") })
	wantErr(t, err, upstream.ErrUnavailable)
}

// proxy is before a member.
type proxy struct {
	url, to string
	mu      sync.Mutex
	state   proxyState
	conns   []net.Conn
}

type proxyState int

const (
	passing proxyState = iota
	hung               // what comes goes nowhere
	closed             // there are no connections
)

func newProxy(t *testing.T, to string) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	p := &proxy{url: fmt.Sprint("http://", l.Addr()), to: strings.TrimPrefix(to, "http://")}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("tcp", p.to)
			if err != nil {
				from.Close()
				continue
			}
			if !p.add(from, to) {
				continue
			}
			wg.Go(func() { p.copy(to, from) })
			wg.Go(func() { p.copy(from, to) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.set(closed)
		wg.Wait()
	})
	return p
}

func (p *proxy) add(conns ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == closed {
		for _, c := range conns {
			c.Close()
		}
		return false
	}
	p.conns = append(p.conns, conns...)
	return true
}

func (p *proxy) connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns)
}

func (p *proxy) set(state proxyState) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state = state; state == closed {
		for _, c := range p.conns {
			c.Close()
		}
		p.conns = nil
	}
}

func (p *proxy) copy(to io.WriteCloser, from io.Reader) {
	defer to.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		p.mu.Lock()
		hangs := p.state == hung
		p.mu.Unlock()
		if hangs {
			continue
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}
