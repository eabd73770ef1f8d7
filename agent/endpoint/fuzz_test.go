package endpoint

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"math/rand/v2"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"secretagent/upstream"
)

// FuzzRequest holds what must be true of every request, however wrong.
//
// Its target never breaks the server, what is answered with a value is exactly the one reference
// that is held, and the reference is valid.
//
// Whatever family it is of, nobody gets a value without a token.
//
// It means the same wherever and however it comes: over TCP, a unix socket and TLS, in one piece
// or in many, and once more on the same connection. The answers are the same bytes, but for ids
// and ages; a request that follows is read from its own first byte.
func FuzzRequest(f *testing.F) {
	const (
		token  = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
		common = "Host: localhost\r\nX-KMS-Token: " + token + "\r\n"
	)
	get := func(target string) string { return "GET " + target + " HTTP/1.1\r\n" + common }
	post := "POST /secretsmanager/report?secretId=app/db HTTP/1.1\r\n" + common
	for i, raw := range []string{
		get("/v1/app/db") + "\r\n", get("/v1/app%2Fdb?versionId=v1") + "\r\n", get("/secretsmanager/get?secretId=a&field=%2B+x") + "\r\n",
		get("/v1/..%2f") + "\r\n", get("/v1/%") + "\r\n", get("/?") + "\r\n", get("/v1/a?wait=1s&&") + "\r\n",
		get("/v1/app/db?wait=5m") + "If-None-Match: *\r\n\r\n", get("/v1/app/db?refreshNow=1") + "\r\n", get("/secretsmanager/batch?secretId=app/db&secretId=b") + "\r\n",
		get("/live") + "\r\n", get("/v1/app/db") + "Connection: close\r\n\r\n", "GET /v1/app/db HTTP/1.0\r\n" + common + "\r\n",
		get("/v1/app/db") + "Expect: 100-continue\r\n\r\n", get("/v1/app/db") + "X-Folded: a\r\n b\r\n\r\n", get("/v1/app/db") + "\n",
		post + "Content-Length: 0\r\n\r\n", post + "Content-Length: 5\r\n\r\nhello", post + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		post + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", post + "Content-Length: 2000\r\n\r\n",
		post + "Transfer-Encoding: chunked\r\n\r\n5\r\nhel", "HEAD" + get("/v1/app/db")[3:] + "\r\n", "\r\n" + get("/v1/app/db") + "\r\n", "GET /v1/app/db\r\n\r\n",

		get("/v1/secret/data/app/db?version=1") + "X-Vault-Request: true\r\n\r\n", get("/v1/secret/data/app/db") + "X-Vault-Wrap-TTL: 1\r\n\r\n",
		get("/v1/kv/app/db?list=true") + "\r\n", "LIST" + get("/v1/secret/metadata/app/")[3:] + "Content-Length: 0\r\n\r\n", "LIST" + get("/v1/kv")[3:] + "\r\n",
		get("/v1/secret/metadata/app/db") + "\r\n", get("/v1/secret%2Fdata/app/db") + "\r\n", get("/v1/secret/data/app/db?version=2&version=") + "\r\n",
		get("/v1/auth/token/lookup-self") + "\r\n", "PUT" + get("/v1/auth/token/renew-self")[3:] + "Content-Length: 18\r\n\r\n{\"increment\":3600}",
		"HEAD" + get("/v1/sys/health?uninitcode=299")[3:] + "\r\n", get("/v1/sys/internal/ui/mounts/secret/app/db") + "\r\n", "LIST /v1/sys/init HTTP/1.1\r\n" + common + "Content-Length: 3\r\n\r\nabc",

		get("/v1/app/db?versionStage=AWSCURRENT&versionId=") + "X-Aws-Parameters-Secrets-Token: " + token + "\r\n\r\n",
		get("/secretsmanager/get?&secretId=a&secretId=app/db&refreshNow=TRUE&") + "X-Aws-Parameters-Secrets-Token: " + token + "\r\n\r\n",
		get("/secretsmanager/get?secretId=arn:aws:secretsmanager:us-east-1:1:secret:app/db-AbCdEf") + "X-Aws-Parameters-Secrets-Token: " + token + "\r\n\r\n",
		get("/systemsmanager/parameters/get?name=/app/db&withDecryption=true") + "X-Aws-Parameters-Secrets-Token: " + token + "\r\n\r\n",
		get("/v1/app/db") + "X-Aws-Parameters-Secrets-Token: other\r\n\r\n", get("/ping?x") + "X-Aws-Parameters-Secrets-Token:\r\nX-Forwarded-For: a\r\n\r\n",
	} {
		f.Add(raw, uint64(i))
	}
	s, c := newHeld(f)
	w := newWires(f, s)
	last := get("/v1/app/db?field=username") + "\r\n"
	lastAnswer := w.ask(f, w.tcp, last, 0)
	f.Fuzz(func(t *testing.T, raw string, seed uint64) {
		if fields := strings.Fields(raw); len(fields) > 1 {
			for _, h := range []headers{{}, {aws: true}} {
				checkTarget(t, s, c, &h, fields[1])
			}
		}
		if len(raw) > 4<<10 || strings.Contains(raw, "username") {
			return // no need for more; no answer but that of the last request is like it
		}
		if got := w.ask(t, w.tcp, strings.ReplaceAll(raw, token, "f"+token[1:]), 0); strings.Contains(got, "first") {
			t.Fatalf("%q with a wrong token gives\n%s", raw, got)
		}
		once, twice := w.ask(t, w.tcp, raw+last, 0), w.ask(t, w.tcp, raw+raw+last, 0)
		if first, complete := strings.CutSuffix(once, lastAnswer); complete && twice != first+first+lastAnswer {
			t.Fatalf("%q gives\n%s\nand twice on a connection\n%s", raw, once, twice)
		}
		for _, to := range []*wire{w.tcp, w.unix, w.tls} {
			if to == w.unix && strings.Contains(twice, "HostNotAllowed") || to == w.tls && strings.Contains(twice, "OriginNotAllowed") {
				continue // a socket takes more names, and TLS is another scheme
			}
			if got := w.ask(t, to, raw+raw+last, seed|1); got != twice {
				t.Fatalf("%q gives\n%s\nand over %s in pieces\n%s", raw, twice, to.name, got)
			}
		}
		if n := s.stats.panics.Load(); n > 0 {
			t.Fatalf("%q: %d panics", raw, n)
		}
	})
}

// checkTarget holds the properties of a request target.
func checkTarget(t *testing.T, s *Server, c *conn, h *headers, target string) {
	path, params, _ := bytes.Cut([]byte(target), []byte{'?'})
	f, r, name := s.familyOf(h, path)
	if r.op != routeName.op {
		return
	}
	c.begin()
	q := &c.query
	if err := s.parse(c, f, r, name, params); err != nil {
		if upstream.Status(err) != 400 || failureOf(err).message == "" {
			t.Fatalf("%q: %v", target, err)
		}
		return
	}
	if q.list {
		if len(q.id) > len(name) {
			t.Fatalf("%q lists %q", target, q.id)
		}
		return
	}
	if err := q.ref.Validate(); err != nil {
		t.Fatalf("%q gives the invalid reference %v", target, q.ref)
	}
	if q.format >= numFormats || q.wait < 0 || q.wait > s.opts.MaxWait || q.wait > 0 && q.refresh {
		t.Fatalf("%q gives %+v", target, q)
	}
	if r.named && !bytes.ContainsAny(name, "%:") && string(q.ref.SecretName) != string(name) {
		t.Fatalf("%q names %q", target, q.ref.SecretName)
	}
}

// wire is a way to the server.
type wire struct {
	name, network, address string
	secure                 *tls.Config
}

// wires are all ways to a server, which reads what comes in pieces.
type wires struct {
	tcp, unix, tls *wire
	seed           atomic.Uint64 // of the pieces; 0: there is one
}

// chopped is a listener whose connections are read in pieces of random sizes.
type chopped struct {
	net.Listener
	seed *atomic.Uint64
}

type choppedConn struct {
	net.Conn
	sizes *rand.Rand
}

func (l chopped) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if seed := l.seed.Load(); err == nil && seed != 0 {
		nc = &choppedConn{nc, rand.New(rand.NewPCG(seed, 1))}
	}
	return nc, err
}

func (c *choppedConn) Read(p []byte) (int, error) {
	return c.Conn.Read(p[:min(len(p), size(c.sizes))])
}

// size returns one that is mostly small.
func size(sizes *rand.Rand) int { return 1 + sizes.IntN(1+sizes.IntN(300)) }

// newWires serves s until the test ends.
func newWires(t testing.TB, s *Server) *wires {
	t.Helper()
	dir, err := os.MkdirTemp("", "ep") // a path that fits into a socket address
	if err != nil {
		t.Fatal(err)
	}
	certified := httptest.NewTLSServer(nil)
	server := &tls.Config{Certificates: certified.TLS.Certificates, NextProtos: []string{"http/1.1"}}
	certified.Close()
	w := &wires{}
	var done []chan error
	serve := func(name, network, address string, secure bool) *wire {
		ln, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		to := &wire{name: name, network: network, address: ln.Addr().String()}
		ln = chopped{ln, &w.seed}
		if secure {
			ln = tls.NewListener(ln, server)
			to.secure = &tls.Config{InsecureSkipVerify: true, ClientSessionCache: tls.NewLRUClientSessionCache(1)}
		}
		ended := make(chan error, 1)
		done = append(done, ended)
		go func() { ended <- s.Serve(ln) }()
		return to
	}
	w.tcp = serve("TCP", "tcp", "127.0.0.1:0", false)
	w.unix = serve("a unix socket", "unix", filepath.Join(dir, "s"), false)
	w.tls = serve("TLS", "tcp", "127.0.0.1:0", true)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		for _, ended := range done {
			<-ended
		}
		_ = os.RemoveAll(dir)
	})
	return w
}

// what differs between two answers that mean the same.
var (
	anyID  = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)
	anyAge = regexp.MustCompile(`(?m)^Age: \d+`)
)

// ask sends text on a new connection, ends it, and returns all that is answered. With a seed, the
// server gets it in pieces.
func (w *wires) ask(t testing.TB, to *wire, text string, seed uint64) string {
	t.Helper()
	w.seed.Store(seed)
	nc, err := net.Dial(to.network, to.address)
	if err != nil {
		t.Skip(err) // no ports are left for now
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(time.Minute))
	if to.secure != nil {
		nc = tls.Client(nc, to.secure)
	}
	pieces := rand.New(rand.NewPCG(seed, 2))
	for len(text) > 0 && err == nil { // it may not read on
		n := len(text)
		if seed != 0 { // each is a record of TLS
			n = min(n, size(pieces))
		}
		_, err = io.WriteString(nc, text[:n])
		text = text[n:]
	}
	_ = nc.(interface{ CloseWrite() error }).CloseWrite()
	got, err := io.ReadAll(nc)
	if os.IsTimeout(err) {
		t.Fatalf("no end after %q", got)
	}
	return anyAge.ReplaceAllString(anyID.ReplaceAllString(string(got), "ID"), "Age: N")
}
