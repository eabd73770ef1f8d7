package kms_test

import (
	"path/filepath"
	"testing"

	"secretagent/upstream/kms"
	"secretagent/upstream/kmsserver"
	"secretagent/upstream/upstreamtest"
)

func TestConformanceOverTCP(t *testing.T) {
	upstreamtest.Run(t, func(t *testing.T) upstreamtest.Harness {
		store, advance := backend(t)
		ln := listen(t, nil)
		serve(t, store, ln, kmsserver.Signed, kmsserver.Options{})
		client := connect(t, kms.Options{Endpoints: []kms.Endpoint{plain(ln.Addr())}})
		return upstreamtest.Harness{Manager: client, Advance: advance}
	})
}

func TestConformanceOverAUnixSocket(t *testing.T) {
	upstreamtest.Run(t, func(t *testing.T) upstreamtest.Harness {
		store, advance := backend(t)
		path := filepath.Join(t.TempDir(), "kms.sock")
		ln, err := kmsserver.ListenUnix(path)
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
