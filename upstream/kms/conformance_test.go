package kms_test

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"secretagent/upstream"
	"secretagent/upstream/kms"
	"secretagent/upstream/kmsserver"
	"secretagent/upstream/upstreamtest"
)

// The conformance suite runs through client, quiet proxy, server and store. It calls far more
// often than a budget would allow, so the clients of connect have a large one.

func TestConformanceOverTCP(t *testing.T) {
	t.Parallel()
	upstreamtest.Run(t, func(t *testing.T) upstreamtest.Harness {
		store, advance := backend(t)
		ln := listen(t, nil)
		serve(t, store, ln, kmsserver.Signed, kmsserver.Options{})
		proxy := upstreamtest.NewFaulty(t, ln.Addr().String())
		client := connect(t, kms.Options{Endpoints: []kms.Endpoint{{Region: "cn-test", Host: proxy.Addr(), Scheme: "http"}}})
		return upstreamtest.Harness{Manager: client, Advance: advance}
	})
}

func TestConformanceOverTLSWithAPrivateCA(t *testing.T) {
	t.Parallel()
	ca := newAuthority()
	upstreamtest.Run(t, func(t *testing.T) upstreamtest.Harness {
		store, advance := backend(t)
		ln := listen(t, ca.server)
		serve(t, store, ln, kmsserver.Signed, kmsserver.Options{})
		proxy := upstreamtest.NewFaulty(t, ln.Addr().String())
		client := connect(t, kms.Options{Endpoints: []kms.Endpoint{{Region: "cn-test", Host: proxy.Addr(), RootCAs: ca.pool}}})
		return upstreamtest.Harness{Manager: client, Advance: advance}
	})
}

// Of two endpoints on one store the preferred one fails every other request.
func TestConformanceOverTwoEndpoints(t *testing.T) {
	t.Parallel()
	upstreamtest.Run(t, func(t *testing.T) upstreamtest.Harness {
		store, advance := backend(t)
		ln := listen(t, nil)
		serve(t, store, ln, kmsserver.Signed, kmsserver.Options{})
		bad, good := upstreamtest.NewFaulty(t, ln.Addr().String()), upstreamtest.NewFaulty(t, ln.Addr().String())
		for range 500 {
			bad.Next(upstreamtest.Unavailable, upstreamtest.Fault{})
		}
		client := connect(t, kms.Options{Endpoints: []kms.Endpoint{
			{Region: "cn-one", Host: bad.Addr(), Scheme: "http"}, {Region: "cn-two", Host: good.Addr(), Scheme: "http"},
		}})
		return upstreamtest.Harness{Manager: client, Advance: advance}
	})
}

func TestConformanceOverAUnixSocket(t *testing.T) {
	t.Parallel()
	upstreamtest.Run(t, func(t *testing.T) upstreamtest.Harness {
		store, advance := backend(t)
		client, err := kms.New(kms.Options{Endpoints: []kms.Endpoint{{Socket: socket(t, store)}}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = client.Close() })
		return upstreamtest.Harness{Manager: client, Advance: advance}
	})
}

// socket serves m on a unix socket, whose path is kept short: it may have about 100 bytes.
func socket(t *testing.T, m upstream.Manager) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kms")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "kms.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, m, ln, kmsserver.Trusted, kmsserver.Options{})
	return path
}
