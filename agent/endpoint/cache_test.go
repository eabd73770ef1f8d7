package endpoint_test

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"secretagent/agent/endpoint"
	"secretagent/cache"
	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

var _ endpoint.Secrets = (*cache.Cache)(nil)

// rotating is a backend with one generation of values: ACSCurrent is generation n, ACSPrevious
// n-1.
type rotating struct {
	mu         sync.Mutex
	generation int
	down       bool
	only       string // the one secret there is; empty: every name is one
	delay      time.Duration
	calls      atomic.Int64
}

func (b *rotating) GetSecretValue(ctx context.Context, ref upstream.SecretRef) (upstream.SecretValue, error) {
	b.calls.Add(1)
	b.mu.Lock()
	n, down, delay, only := b.generation, b.down, b.delay, b.only
	b.mu.Unlock()
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return upstream.SecretValue{}, ctx.Err()
		}
	}
	if down {
		return upstream.SecretValue{}, &upstream.Error{Err: upstream.ErrUnavailable}
	}
	if only != "" && string(ref.SecretName) != only {
		return upstream.SecretValue{}, &upstream.Error{Err: upstream.ErrNotFound}
	}
	if ref.VersionStage == upstream.ACSPrevious {
		n--
	}
	return *value(string(ref.SecretName), fmt.Sprint("v", n), fmt.Sprint("generation ", n), ref.VersionStage), nil
}

func (b *rotating) set(change func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change()
}

// startCached serves the real cache over b.
func startCached(t *testing.T, b *rotating, limits cache.Limits) (*rig, *cache.Cache) {
	t.Helper()
	return startCachedWith(t, b, limits, endpoint.Options{MaxConnections: 2000})
}

func startCachedWith(t *testing.T, b cache.Upstream, limits cache.Limits, opts endpoint.Options) (*rig, *cache.Cache) {
	t.Helper()
	c, err := cache.New(b, cache.Options{Limits: limits})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan struct{})
	go func() { defer close(ran); _ = c.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ran })
	r := &rig{log: &upstreamtest.Buffer{}}
	r.serveCache(t, c, opts)
	return r, c
}

func TestManyMissesAreOneCall(t *testing.T) {
	b := &rotating{generation: 1, delay: 300 * time.Millisecond}
	r, _ := startCached(t, b, cache.Limits{})
	const n = 300
	var wg sync.WaitGroup
	for range n {
		c := r.dial(t)
		wg.Go(func() {
			if got := c.ask("/v1/a"); got.status != 200 || got.json(t)["VersionId"] != "v1" {
				t.Errorf("%d %s", got.status, got.body)
			}
		})
	}
	wg.Wait()
	if calls := b.calls.Load(); calls != 1 {
		t.Errorf("%d calls for %d misses", calls, n)
	}
}

func TestChangeReachesWhoWaits(t *testing.T) {
	b := &rotating{generation: 1}
	r, c := startCached(t, b, cache.Limits{TTL: time.Hour})
	tag := r.get(t, "/v1/a").header.Get("Etag")
	client := r.dial(t)
	client.send(request("GET", "/v1/a?wait=30s", hostLine, tokenLine, "If-None-Match: "+tag))
	eventually(t, "the client waits", func() bool { return r.srv.Stats().Waiting == 1 })
	b.set(func() { b.generation = 2 })
	c.Invalidate("a")
	if got := client.receive("GET"); got.status != 200 || got.json(t)["VersionId"] != "v2" {
		t.Errorf("%d %s", got.status, got.body)
	}
	if got := r.get(t, "/v1/a"); got.json(t)["VersionId"] != "v2" {
		t.Errorf("the next lookup: %s", got.body)
	}
}

// TestBatchNeverMixesRotations reads both labels in one batch while they move.
func TestBatchNeverMixesRotations(t *testing.T) {
	b := &rotating{generation: 1}
	r, c := startCached(t, b, cache.Limits{TTL: time.Hour})
	ended := make(chan struct{})
	var readers, rotation sync.WaitGroup
	rotation.Go(func() {
		for {
			select {
			case <-ended:
				return
			case <-time.After(2 * time.Millisecond):
				b.set(func() { b.generation++ })
				c.Invalidate("a")
			}
		}
	})
	for range 4 {
		client := r.dial(t)
		readers.Go(func() {
			for range 100 {
				var got struct {
					SecretValues []struct{ VersionId string }
					Errors       []any
				}
				body := client.ask("/secretsmanager/batch?secretId=a&secretId=a:ACSPrevious").body
				if err := json.Unmarshal([]byte(body), &got); err != nil {
					t.Errorf("%s: %v", body, err)
				}
				var current, previous int
				if len(got.Errors) > 0 {
					continue
				}
				if _, err := fmt.Sscanf(got.SecretValues[0].VersionId+got.SecretValues[1].VersionId, "v%dv%d", &current, &previous); err != nil || current != previous+1 {
					t.Errorf("%s: %v", body, err)
				}
			}
		})
	}
	readers.Wait()
	close(ended)
	rotation.Wait()
}

// TestVersionByNumberOutlivesAnOutage holds that an application of Vault which asks for a version
// by its number gets it while the backend is down, as one that asks by the id does. One that is
// known by its id alone stays unknown: another may have that number.
func TestVersionByNumberOutlivesAnOutage(t *testing.T) {
	startClock()
	synctest.Test(t, func(t *testing.T) {
		b := &lettered{}
		c, err := cache.New(b, cache.Options{Limits: cache.Limits{TTL: time.Minute}})
		must(t, err)
		r := &rig{log: &upstreamtest.Buffer{}, pipes: newPipes()}
		r.serveCache(t, c, endpoint.Options{VaultMounts: []endpoint.VaultMount{{Path: "secret"}}})
		const asked, other = "/v1/secret/data/app/db?version=1", "/v1/secret/data/app/db?version=2"
		if got := r.get(t, asked); got.status != 200 {
			t.Fatalf("before: %d %s", got.status, got.body)
		}
		if got := r.get(t, "/v1/app/db?versionId=v2"); got.status != 200 {
			t.Fatalf("by its id: %d %s", got.status, got.body)
		}
		b.down.Store(true)
		time.Sleep(10 * time.Minute) // nothing is fresh any more, what is not there included
		if got := r.get(t, "/v1/app/db?versionId=v1"); got.status != 200 || got.header.Get("X-Cache") != "stale" {
			t.Errorf("by its id, in an outage: %d %s", got.status, got.body)
		}
		if got := r.get(t, asked); got.status != 200 || got.header.Get("X-Cache") != "stale" {
			t.Errorf("in an outage: %d %s", got.status, got.body)
		}
		if got := r.get(t, other); got.status != 503 {
			t.Errorf("whose number may be another's, in an outage: %d %s", got.status, got.body)
		}
		b.down.Store(false)
	})
}

// lettered is a backend whose versions have ids such as v1.
type lettered struct{ down atomic.Bool }

func (b *lettered) GetSecretValue(_ context.Context, ref upstream.SecretRef) (upstream.SecretValue, error) {
	switch {
	case b.down.Load():
		return upstream.SecretValue{}, &upstream.Error{Err: upstream.ErrUnavailable}
	case ref.VersionID != "v1" && ref.VersionID != "v2":
		return upstream.SecretValue{}, &upstream.Error{Err: upstream.ErrNotFound}
	}
	return *value(string(ref.SecretName), string(ref.VersionID), "data of "+string(ref.VersionID)), nil
}
