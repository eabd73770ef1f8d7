package rotation_test

import (
	"context"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/builtin"
	"secretagent/upstream/builtin/bolt"
	"secretagent/upstream/builtin/etcd"
	"secretagent/upstream/keyfile"
	"secretagent/upstream/upstreamtest"
)

// upstreams run a test in a bubble, with the upstreams of ten agents that share their secrets.
var upstreams = map[string]func(t *testing.T, test func(t *testing.T, agents []upstream.Manager)){
	"fake": func(t *testing.T, test func(*testing.T, []upstream.Manager)) {
		synctest.Test(t, func(t *testing.T) { test(t, ten(upstreamtest.NewFake())) })
	},
	"bolt": func(t *testing.T, test func(*testing.T, []upstream.Manager)) {
		synctest.Test(t, func(t *testing.T) { test(t, ten(openStore(t))) })
	},
	"etcd": func(t *testing.T, test func(*testing.T, []upstream.Manager)) {
		agents := onEtcd(t)
		synctest.Test(t, func(t *testing.T) { test(t, agents) })
	},
}

func ten(m upstream.Manager) []upstream.Manager { return slices.Repeat([]upstream.Manager{m}, 10) }

func openStore(t *testing.T) upstream.Manager {
	t.Helper()
	dir := t.TempDir()
	store, err := bolt.Open(bolt.Options{Database: filepath.Join(dir, "secrets.db"), Options: builtin.Options{Keyring: filepath.Join(dir, "keyring.json")}})
	must(t, err)
	t.Cleanup(func() { must(t, store.Close()) })
	return store
}

// onEtcd opens the stores of ten agents on one etcd.
func onEtcd(t *testing.T) []upstream.Manager {
	t.Helper()
	e, prefix := upstreamtest.SharedEtcd(t)
	var clock atomic.Int64
	opts := etcd.Options{Endpoints: []string{e.URL}, Prefix: prefix, Options: builtin.Options{
		Keyring: filepath.Join(t.TempDir(), "keyring.json"),
		Now:     func() time.Time { return time.Unix(0, clock.Load()) },
	}}
	_, err := keyfile.CreateKeyring(opts.Keyring)
	must(t, err)
	var agents []upstream.Manager
	for range 10 {
		store, err := etcd.Open(opts)
		must(t, err)
		o := &outside{Manager: store, clock: &clock, calls: make(chan func()), done: make(chan struct{})}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for call := range o.calls {
				call()
				o.done <- struct{}{}
			}
		}()
		t.Cleanup(func() {
			close(o.calls)
			<-ended
			must(t, store.Close())
		})
		agents = append(agents, o)
	}
	return agents
}

// outside makes the calls from within a bubble outside of it, one at a time, and shows them the
// bubble's time: in a bubble, time stands still as long as anything waits for a network.
type outside struct {
	upstream.Manager
	clock *atomic.Int64
	busy  sync.Mutex
	calls chan func()
	done  chan struct{}
}

func (o *outside) do(call func()) {
	o.busy.Lock()
	defer o.busy.Unlock()
	o.clock.Store(time.Now().UnixNano())
	o.calls <- call
	<-o.done
}

func (o *outside) CreateSecret(_ context.Context, in upstream.CreateSecretInput) (m upstream.SecretMetadata, err error) {
	o.do(func() { m, err = o.Manager.CreateSecret(context.Background(), in) })
	return m, err
}

func (o *outside) GetSecretValue(_ context.Context, ref upstream.SecretRef) (v upstream.SecretValue, err error) {
	o.do(func() { v, err = o.Manager.GetSecretValue(context.Background(), ref) })
	return v, err
}

func (o *outside) PutSecretValue(_ context.Context, in upstream.PutSecretValueInput) (v upstream.SecretVersion, err error) {
	o.do(func() { v, err = o.Manager.PutSecretValue(context.Background(), in) })
	return v, err
}

func (o *outside) UpdateSecretVersionStage(_ context.Context, in upstream.UpdateSecretVersionStageInput) (err error) {
	o.do(func() { err = o.Manager.UpdateSecretVersionStage(context.Background(), in) })
	return err
}

func (o *outside) ListSecretVersionIDs(_ context.Context, in upstream.ListSecretVersionIDsInput) (out upstream.ListSecretVersionIDsOutput, err error) {
	o.do(func() { out, err = o.Manager.ListSecretVersionIDs(context.Background(), in) })
	return out, err
}
