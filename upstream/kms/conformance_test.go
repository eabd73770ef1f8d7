package kms_test

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"secretagent/upstream/kms"
	"secretagent/upstream/kmsserver"
	"secretagent/upstream/upstreamtest"
)

// TestConformance runs the suite over two endpoints on one store. The preferred one, without
// TLS, fails every other request; the other one has a certificate of a private CA.
func TestConformance(t *testing.T) {
	t.Parallel()
	ca := newAuthority()
	upstreamtest.Run(t, func(t *testing.T) upstreamtest.Harness {
		store, advance := backend(t)
		first, second := listen(t, nil), listen(t, ca.server)
		serve(t, store, first, kmsserver.Signed, kmsserver.Options{})
		serve(t, store, second, kmsserver.Signed, kmsserver.Options{})
		bad := upstreamtest.NewFaulty(t, first.Addr().String())
		for range 500 {
			bad.Next(upstreamtest.Unavailable, upstreamtest.Fault{})
		}
		client := connect(t, kms.Options{Endpoints: []kms.Endpoint{over(bad), {Region: "cn-two", Host: second.Addr().String(), RootCAs: ca.pool}}})
		return upstreamtest.Harness{Manager: client, Advance: advance}
	})
}

func TestConformanceOverAUnixSocket(t *testing.T) {
	t.Parallel()
	upstreamtest.Run(t, func(t *testing.T) upstreamtest.Harness {
		store, advance := backend(t)
		dir, err := os.MkdirTemp("", "kms") // short: the path of a socket may have about 100 bytes
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		path := filepath.Join(dir, "kms.sock")
		ln, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		serve(t, store, ln, kmsserver.Trusted, kmsserver.Options{})
		client, err := kms.New(kms.Options{Endpoints: []kms.Endpoint{{Socket: path}}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = client.Close() })
		return upstreamtest.Harness{Manager: client, Advance: advance}
	})
}
