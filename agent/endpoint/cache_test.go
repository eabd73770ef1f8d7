package endpoint_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"secretagent/agent/endpoint"
	"secretagent/agent/listen"
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

func startCachedWith(t *testing.T, b *rotating, limits cache.Limits, opts endpoint.Options) (*rig, *cache.Cache) {
	t.Helper()
	c, err := cache.New(b, cache.Options{Limits: limits})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{log: &upstreamtest.Buffer{}}
	opts.Callers = []endpoint.Caller{endpoint.DefaultCaller(mustToken(t, token))}
	opts.Logger = slog.New(slog.NewTextHandler(r.log, nil))
	r.srv, err = endpoint.New(c, opts)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := listen.Open(listen.TCPOptions{Address: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	r.addr = ln.Addr().String()
	r.serve(t, ln)
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan struct{})
	go func() { defer close(ran); _ = c.Run(ctx) }()
	t.Cleanup(func() {
		down, done := context.WithTimeout(context.Background(), 10*time.Second)
		defer done()
		if err := r.srv.Shutdown(down); err != nil {
			t.Error(err)
		}
		<-r.serving[0]
		cancel()
		<-ran
	})
	return r, c
}

func TestThousandMissesAreOneCall(t *testing.T) {
	b := &rotating{generation: 1, delay: 300 * time.Millisecond}
	r, _ := startCached(t, b, cache.Limits{})
	n := 1000
	if testing.Short() {
		n = 100
	}
	var wg sync.WaitGroup
	for range n {
		c := dial(t, "tcp", r.addr)
		wg.Go(func() {
			c.send(request("GET", "/v1/a", hostLine, tokenLine))
			if got := c.receive("GET"); got.status != 200 || got.json(t)["VersionId"] != "v1" {
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
	client := dial(t, "tcp", r.addr)
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

func TestOutageServesTheLastGoodValue(t *testing.T) {
	b := &rotating{generation: 1}
	r, _ := startCached(t, b, cache.Limits{TTL: 50 * time.Millisecond, MaxStale: 700 * time.Millisecond})
	if got := r.get(t, "/v1/a"); got.status != 200 || got.header.Get("X-Cache") != "miss" {
		t.Fatalf("%d %v", got.status, got.header)
	}
	b.set(func() { b.down = true })
	eventually(t, "the answer is stale", func() bool {
		got := r.get(t, "/v1/a")
		return got.status == 200 && got.header.Get("X-Cache") == "stale" && got.header.Get("X-Cache-Reason") == "ServiceUnavailableTemporary"
	})
	eventually(t, "the value is too old", func() bool {
		got := r.get(t, "/v1/a")
		if got.status != 200 && (got.status != 503 || got.code != "ServiceUnavailableTemporary") {
			t.Fatalf("%d %s", got.status, got.body)
		}
		return got.status == 503
	})
	b.set(func() { b.down, b.generation = false, 2 })
	eventually(t, "it recovers", func() bool { got := r.get(t, "/v1/a"); return got.status == 200 && got.json(t)["VersionId"] == "v2" })
}

// TestBatchNeverMixesRotations reads both labels in one batch while they move.
func TestBatchNeverMixesRotations(t *testing.T) {
	b := &rotating{generation: 1}
	r, c := startCached(t, b, cache.Limits{TTL: time.Hour})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(2 * time.Millisecond):
				b.set(func() { b.generation++ })
				c.Invalidate("a")
			}
		}
	})
	for i := range 4 {
		client := dial(t, "tcp", r.addr)
		wg.Go(func() {
			for range 100 {
				client.send(request("GET", "/secretsmanager/batch?secretId=a&secretId=a:ACSPrevious", hostLine, tokenLine))
				got := client.receive("GET")
				var current, previous int
				for _, v := range got.json(t)["SecretValues"].([]any) {
					v := v.(map[string]any)
					n := 0
					if _, err := fmt.Sscanf(v["VersionId"].(string), "v%d", &n); err != nil {
						t.Error(err)
					}
					if strings.Contains(fmt.Sprint(v["VersionStages"]), "ACSCurrent") {
						current = n
					} else {
						previous = n
					}
				}
				if len(got.json(t)["Errors"].([]any)) == 0 && current != previous+1 {
					t.Errorf("reader %d: current v%d with previous v%d", i, current, previous)
				}
			}
		})
	}
	time.Sleep(300 * time.Millisecond)
	close(stop)
	wg.Wait()
}
