package kms_test

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"secretagent/upstream/builtin/etcd"
	"secretagent/upstream/keyfile"
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
		bad := upstreamtest.NewFaulty(t, start(t, store, nil, kmsserver.Options{}).String())
		second := start(t, store, ca.server, kmsserver.Options{})
		for range 500 {
			bad.Next(upstreamtest.Unavailable, upstreamtest.Fault{})
		}
		client := connect(t, kms.Options{Endpoints: []kms.Endpoint{over(bad), {Region: "cn-two", Host: second.String(), CAFile: ca.file(t)}}})
		return upstreamtest.Harness{Manager: client, Advance: advance}
	})
}

func TestConformanceOnEtcd(t *testing.T) {
	t.Parallel()
	upstreamtest.Run(t, func(t *testing.T) upstreamtest.Harness {
		server, prefix := upstreamtest.SharedEtcd(t)
		opts, advance := options(t)
		must(keyfile.CreateKeyring(opts.Keyring))
		store := must(etcd.Open(etcd.Options{Endpoints: []string{server.URL}, Prefix: prefix, Options: opts}))
		t.Cleanup(func() { _ = store.Close() })
		client := connect(t, kms.Options{Endpoints: []kms.Endpoint{plain(start(t, store, nil, kmsserver.Options{}))}})
		return upstreamtest.Harness{Manager: client, Advance: advance}
	})
}

func TestConformanceOverAUnixSocket(t *testing.T) {
	t.Parallel()
	emulate := upstreamtest.Emulation{InstanceID: "kst-1", Keys: []string{"key-1", "alias/app"}, PutMovesStages: true}
	upstreamtest.Run(t, func(t *testing.T) upstreamtest.Harness {
		store, advance := backend(t, emulate)
		dir := must(os.MkdirTemp("", "kms")) // short: the path of a socket may have about 100 bytes
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		path := filepath.Join(dir, "kms.sock")
		serve(t, store, must(net.Listen("unix", path)), kmsserver.Trusted, kmsserver.Options{})
		client := must(kms.New(kms.Options{Endpoints: []kms.Endpoint{{Socket: path}}}))
		t.Cleanup(func() { _ = client.Close() })
		return upstreamtest.Harness{Manager: client, Advance: advance, Emulate: emulate}
	})
}
