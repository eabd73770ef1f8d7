package etcd

import (
	"bytes"
	"context"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"secretagent/upstream/builtin"
)

// presence is what tells the others that this agent runs: a key under a lease.
type presence struct {
	lease atomic.Int64 // 0: none, or it has ended

	mu    sync.Mutex
	value []byte // of the key
}

const (
	leasePulses = 6                      // for how many pulses an agent that is not heard of is taken to run
	leaveWithin = 500 * time.Millisecond // how long Close waits for the others to be told
)

// Pulse is how often Present is to be called.
func (d *db) Pulse() time.Duration { return d.opts.pulse }

// Present puts the key under a lease, which the client of etcd keeps alive. Most calls find nothing to do.
func (d *db) Present(ctx context.Context, key, value []byte) error {
	p := &d.presence
	p.mu.Lock()
	defer p.mu.Unlock()
	lease := p.lease.Load()
	if lease != 0 && bytes.Equal(p.value, value) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, d.opts.Timeout)
	defer cancel()
	client, err := d.client(ctx)
	if err != nil {
		return err
	}
	if lease == 0 {
		if lease, err = d.grant(ctx, client); err != nil {
			return d.failure(err, false)
		}
	}
	if _, err := client.Put(ctx, d.key(builtin.Agents, key), string(value), clientv3.WithLease(clientv3.LeaseID(lease))); err != nil {
		p.lease.CompareAndSwap(lease, 0) // it may be the lease that is gone
		return d.failure(err, true)
	}
	p.value = value
	return nil
}

// grant gets a lease and keeps it alive until the connection or the lease ends.
func (d *db) grant(ctx context.Context, client *clientv3.Client) (int64, error) {
	granted, err := client.Grant(ctx, int64((leasePulses*d.opts.pulse+time.Second-1)/time.Second))
	if err != nil {
		return 0, err
	}
	alive, err := client.KeepAlive(d.ctx, granted.ID)
	if err != nil {
		return 0, err
	}
	lease := int64(granted.ID)
	d.presence.lease.Store(lease)
	d.done.Go(func() {
		for range alive {
		}
		d.presence.lease.CompareAndSwap(lease, 0)
	})
	return lease, nil
}

// leave lets the others know at once that this agent has ended, where etcd answers.
func (d *db) leave() {
	lease, client := d.presence.lease.Load(), d.connected()
	if lease == 0 || client == nil || !d.watch.isUp() {
		return
	}
	ctx, cancel := context.WithTimeout(d.ctx, leaveWithin)
	defer cancel()
	_, _ = client.Revoke(ctx, clientv3.LeaseID(lease)) // else it ends by itself
}
