package listen_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"secretagent/agent/listen"
)

// echo answers every connection of ln with what it sends, and leaves nothing open behind.
func echo(t *testing.T, ln net.Listener) {
	var running sync.WaitGroup
	running.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				_, _ = io.Copy(nc, nc)
				_ = nc.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		running.Wait()
	})
}

func TestRemovingAClientCAEndsWhatRestsOnIt(t *testing.T) {
	staying, removed := newCA(t), newCA(t)
	files := staying.files(t, "agent")
	authorities := func(list ...*ca) {
		var text []byte
		for _, a := range list {
			text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})...)
		}
		write(t, files.ClientCAFile, text)
	}
	authorities(staying, removed)
	ln := open(t, listen.TCPOptions{Address: "127.0.0.1:0", TLS: files})
	echo(t, ln)
	roots := x509.NewCertPool()
	roots.AddCert(staying.cert)
	client := func(a *ca, name string) *tls.Config { // resumes its own sessions
		return &tls.Config{RootCAs: roots, ServerName: "localhost", Certificates: []tls.Certificate{a.client(t, name)}, ClientSessionCache: tls.NewLRUClientSessionCache(4)}
	}
	connect := func(config *tls.Config) net.Conn {
		t.Helper()
		nc, err := tls.Dial("tcp", ln.Addr().String(), config)
		must(t, err)
		t.Cleanup(func() { _ = nc.Close() })
		return nc
	}
	alive := func(nc net.Conn) bool {
		_, err := nc.Write([]byte("x"))
		if err == nil {
			_, err = io.ReadFull(nc, make([]byte, 1))
		}
		return err == nil
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		authorities(staying, removed)
		must(t, ln.TLS().Reload())
		good, bad := client(staying, "good"), client(removed, "bad")
		good.MaxVersion, bad.MaxVersion = version, version
		ours, first := connect(good), connect(bad)
		if !alive(ours) || !alive(first) { // with the answer, the session of TLS 1.3 is there
			t.Fatal("a client of an authority that is trusted was refused")
		}
		resumed := connect(bad)
		if !alive(resumed) || !resumed.(*tls.Conn).ConnectionState().DidResume {
			t.Fatal("the session was not resumed")
		}

		// Another certificate of the listener changes nothing for clients.
		cert, key := staying.issue(t, "new")
		write(t, files.CertFile, cert)
		write(t, files.KeyFile, key)
		must(t, ln.TLS().Reload())
		if !alive(first) {
			t.Error("a new certificate has ended connections")
		}

		authorities(staying)
		must(t, ln.TLS().Reload())
		if alive(first) || alive(resumed) {
			t.Errorf("%x: a connection has outlived the authority that it rested on", version)
		}
		if !alive(ours) {
			t.Errorf("%x: the connection of another authority's client was ended", version)
		}
		if nc, err := tls.Dial("tcp", ln.Addr().String(), bad); err == nil {
			if alive(nc) {
				t.Errorf("%x: a session was resumed on an authority that is not trusted any more", version)
			}
			_ = nc.Close()
		}
	}

	// The listener ends: so does what was there, and what has not shown its certificate yet.
	ours := connect(client(staying, "good"))
	early, err := net.Dial("tcp", ln.Addr().String())
	must(t, err)
	defer func() { _ = early.Close() }()
	if !alive(ours) {
		t.Fatal("a client of an authority that is trusted was refused")
	}
	if ln.TLS().EndClients(); alive(ours) {
		t.Error("a connection has outlived the end of all")
	}
	if alive(tls.Client(early, client(staying, "good"))) {
		t.Error("a connection that had not finished its handshake has outlived the end of all")
	}
}

func TestPlainHTTPToTLSIsToldSo(t *testing.T) {
	ln := open(t, listen.TCPOptions{Address: "127.0.0.1:0", TLS: newCA(t).files(t, "agent")})
	var mu sync.Mutex
	var heard []string
	ln.OnPlainHTTP(func(from net.Addr) {
		mu.Lock()
		defer mu.Unlock()
		heard = append(heard, from.String())
	})
	echo(t, ln)
	for _, method := range []string{"GET", "POST", "HEAD"} {
		req, err := http.NewRequest(method, "http://"+ln.Addr().String()+"/v1/app/db", strings.NewReader(strings.Repeat("x", 10000)))
		must(t, err)
		req.Header.Set("X-KMS-Token", "MARKER")
		res, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
		must(t, err)
		body, err := io.ReadAll(res.Body)
		must(t, err)
		_ = res.Body.Close()
		for _, want := range []string{`"Code":"InvalidProtocol.NeedSsl"`, "https://", `"HttpStatus":400`, `"RequestId":"`} {
			if res.StatusCode != 400 || method != "HEAD" && !strings.Contains(string(body), want) || strings.Contains(string(body), "MARKER") {
				t.Errorf("%s: %d %s", method, res.StatusCode, body)
			}
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(heard) != 3 || slices.Contains(heard, "") {
		t.Errorf("heard of %q", heard)
	}
}
