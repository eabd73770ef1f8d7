//go:build unix

package etcd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

// TestChaos writes and reads through three stores while the members of a cluster are killed and stopped
// at random: no acknowledged write is lost, and nobody reads a version older than one that it has read.
func TestChaos(t *testing.T) {
	duration, err := time.ParseDuration(os.Getenv("SECRETAGENT_CHAOS"))
	if err != nil {
		t.Skip("skipped: set SECRETAGENT_CHAOS to how long it is to go on, such as 10m")
	}
	c := newCluster(t)
	opts := optionsAt(t, c.urls[0], "/chaos/")
	opts.Endpoints, opts.Timeout = c.urls, 2*time.Second
	stores := []*Store{mustOpen(t, opts), mustOpen(t, opts), mustOpen(t, opts)}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	writers := make([]chaosWriter, 6)
	for i := range writers {
		w := &writers[i]
		w.name = fmt.Sprint("s/", i)
		until(t, "created", func() bool {
			err := create(stores[i%3], w.name, "0", "0")
			return err == nil || errors.Is(err, upstream.ErrExists)
		})
		wg.Go(func() { w.write(ctx, t, stores[i%3]) })
		wg.Go(func() { w.read(ctx, stores[(i+1)%3]) })
	}
	for end := time.Now().Add(duration); time.Now().Before(end); {
		c.harm(t)
	}
	time.Sleep(4 * time.Second) // healed
	cancel()
	wg.Wait()
	until(t, "all watches are up", func() bool {
		return stores[0].Stats().WatchUp && stores[1].Stats().WatchUp && stores[2].Stats().WatchUp
	})
	for i := range writers {
		w := &writers[i]
		if n, err := numberOf(stores[i%3], w.name); err != nil || n < w.last {
			t.Errorf("%s is at %d, %v; acknowledged was %d", w.name, n, err, w.last)
		}
		if n := w.stale.Load(); n > 0 {
			t.Errorf("%s: %d reads gave an older version than one before", w.name, n)
		}
		t.Logf("%s: %d acknowledged, %d unknown, %d refused, %d read", w.name, w.last, w.unknown, w.refused, w.reads.Load())
	}
	for _, s := range stores {
		upstreamtest.CheckRules(t, s, 10)
	}
	t.Logf("%d members killed, %d stopped", c.kills, c.stops)
}

// chaosWriter puts versions 1, 2, 3… of a secret.
type chaosWriter struct {
	name                   string
	last, unknown, refused int
	reads, stale           atomic.Int64
}

func (w *chaosWriter) write(ctx context.Context, t *testing.T, s *Store) {
	for ctx.Err() == nil {
		next := fmt.Sprint(w.last + 1)
		switch err := put(s, w.name, next, next); {
		case err == nil:
			w.last++
		case contains(err, "unknown"): // repeated
			w.unknown++
		case errors.Is(err, upstream.ErrUnavailable):
			w.refused++
		default:
			t.Errorf("put %s: %v", w.name, err)
		}
	}
}

func (w *chaosWriter) read(ctx context.Context, s *Store) {
	for seen := 0; ctx.Err() == nil; {
		n, err := numberOf(s, w.name)
		if err != nil {
			continue
		}
		if w.reads.Add(1); n < seen {
			w.stale.Add(1)
		}
		seen = n
	}
}

// cluster is an etcd of three members.
type cluster struct {
	urls, peers, dirs []string
	members           []*exec.Cmd
	kills, stops      int
}

func newCluster(t *testing.T) *cluster {
	upstreamtest.EtcdProgram(t)
	c := &cluster{members: make([]*exec.Cmd, 3)}
	for range c.members {
		c.urls, c.peers = append(c.urls, "http://"+upstreamtest.FreeAddress(t)), append(c.peers, "http://"+upstreamtest.FreeAddress(t))
		c.dirs = append(c.dirs, filepath.Join(upstreamtest.InMemory(t), "data"))
	}
	for i := range c.members {
		c.start(t, i)
	}
	t.Cleanup(func() {
		for _, m := range c.members {
			_ = m.Process.Kill()
			_ = m.Wait()
		}
	})
	return c
}

func (c *cluster) start(t *testing.T, i int) {
	c.members[i] = exec.Command("etcd", "--name", fmt.Sprint("m", i), "--data-dir", c.dirs[i], "--listen-client-urls", c.urls[i], "--advertise-client-urls", c.urls[i],
		"--listen-peer-urls", c.peers[i], "--initial-advertise-peer-urls", c.peers[i],
		"--initial-cluster", fmt.Sprintf("m0=%s,m1=%s,m2=%s", c.peers[0], c.peers[1], c.peers[2]), "--logger", "zap", "--log-level", "error")
	must(t, c.members[i].Start())
}

// harm kills or stops one member for a while.
func (c *cluster) harm(t *testing.T) {
	pause := func() { time.Sleep(time.Duration(rand.IntN(2500)) * time.Millisecond) }
	i := rand.IntN(len(c.members))
	if m := c.members[i]; rand.IntN(2) == 0 {
		_ = m.Process.Kill()
		_ = m.Wait()
		pause()
		c.start(t, i)
		c.kills++
	} else {
		_ = m.Process.Signal(syscall.SIGSTOP)
		pause()
		_ = m.Process.Signal(syscall.SIGCONT)
		c.stops++
	}
	pause()
}
