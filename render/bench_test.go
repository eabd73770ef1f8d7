package render

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

// The size of a large installation.
const (
	manyTargets = 1000
	manySecrets = 200
)

// onEachDisk runs a benchmark on disk, with and without sync, and on tmpfs where there is one.
func onEachDisk(b *testing.B, run func(b *testing.B, dir string, sync bool)) {
	disk := b.TempDir()
	for _, sync := range []bool{true, false} {
		b.Run(fmt.Sprintf("disk/sync=%v", sync), func(b *testing.B) { run(b, disk, sync) })
	}
	if shm, err := os.MkdirTemp("/dev/shm", "render-bench-"); err == nil {
		defer os.RemoveAll(shm)
		b.Run("tmpfs", func(b *testing.B) { run(b, shm, false) })
	}
}

// manyOptions are 1,000 templates of three secrets each, out of 200, in a folder of their own.
func manyOptions(b *testing.B, dir string, sync bool) Options {
	dir, err := os.MkdirTemp(dir, "many-")
	if err != nil {
		b.Fatal(err)
	}
	var o Options
	for i := range manyTargets {
		text := fmt.Sprintf("# file %d\nUSER={{ secretField %q \"user\" }}\nPASSWORD={{ secretField %q \"password\" }}\nTOKEN={{ secret %q }}\n",
			i, secretN(i), secretN(i), secretN(i+7))
		o.Targets = append(o.Targets, Target{Content: inline(text), Destination: fmt.Sprintf("%s/file%04d", dir, i), NoSync: !sync})
	}
	return o
}

func secretN(i int) string { return fmt.Sprintf("app/secret-%03d", i%manySecrets) }

func manySource() *fakeSource {
	src := newFakeSource()
	for i := range manySecrets {
		src.put(secretN(i), secretValue(i, 0))
	}
	return src
}

func secretValue(i, generation int) string {
	return fmt.Sprintf(`{"user":"user%d","password":"password-%d-%d"}`, i, i, generation)
}

// rounds are the times that we and the bare loop take in turn, so that both meet the same
// noise. They are compared by their medians: a neighbour that takes the processor for a while
// hits one round of one side.
type rounds struct{ ours, bare []time.Duration }

func (r *rounds) report(b *testing.B) {
	median := func(all []time.Duration) float64 {
		slices.Sort(all)
		return all[len(all)/2].Seconds() * 1e6
	}
	ours, bare := median(r.ours), median(r.bare)
	b.ReportMetric(ours, "us/ours")
	b.ReportMetric(bare, "us/bare")
	b.ReportMetric(ours/bare, "ratio")
}

// bareLoop executes, writes and renames the same files one after the other: what cannot be
// left out.
func bareLoop(b *testing.B, src Source, targets []*target, sync bool) time.Duration {
	started := time.Now()
	for _, t := range targets {
		result, err := t.compute(context.Background(), src, time.Second, nil)
		must(b, err)
		f, err := os.OpenFile(t.name+".tmp", os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		must(b, err)
		_, err = f.Write(result.outs[0].bytes)
		must(b, err)
		if sync {
			must(b, f.Sync())
		}
		must(b, f.Close())
		must(b, os.Rename(t.name+".tmp", t.name))
		if sync {
			d, err := os.Open(filepath.Dir(t.name))
			must(b, err)
			must(b, d.Sync())
			must(b, d.Close())
		}
	}
	return time.Since(started)
}

// BenchmarkFirstRender renders 1,000 templates of 200 secrets for the first time, once or as
// the start of a run, beside the bare loop over the same templates.
func BenchmarkFirstRender(b *testing.B) {
	onEachDisk(b, func(b *testing.B, dir string, sync bool) {
		for _, once := range []bool{false, true} {
			b.Run(fmt.Sprintf("once=%v", once), func(b *testing.B) {
				src := manySource()
				var took rounds
				for b.Loop() {
					opts := manyOptions(b, dir, sync)
					done := make(chan Event, manyTargets)
					opts.Observe = func(e Event) { done <- e }
					r := mustNew(b, src, opts)
					started := time.Now()
					stop := func() {}
					if once {
						mustRender(b, r)
					} else {
						stop = start(b, r)
					}
					for range manyTargets {
						if e := <-done; e.Err != nil {
							b.Fatal(e.Err)
						}
					}
					took.ours = append(took.ours, time.Since(started))
					stop()
					took.bare = append(took.bare, bareLoop(b, src, mustNew(b, src, manyOptions(b, dir, sync)).targets, sync))
				}
				took.report(b)
			})
		}
	})
}

// BenchmarkOneChange changes one of 200 secrets while 1,000 templates are followed, until
// the dependants are published, beside the bare loop over those.
func BenchmarkOneChange(b *testing.B) {
	const secret, dependants = 17, 2 * manyTargets / manySecrets
	onEachDisk(b, func(b *testing.B, dir string, sync bool) {
		src := manySource()
		var awaited atomic.Int64
		done := make(chan struct{}, 1)
		opts := manyOptions(b, dir, sync)
		opts.Observe = func(e Event) {
			if e.Err != nil || !e.Changed {
				b.Error(e)
			}
			if awaited.Add(-1) == 0 {
				done <- struct{}{}
			}
		}
		awaited.Store(manyTargets)
		stop := start(b, mustNew(b, src, opts))
		<-done
		var mine []*target
		for i, t := range mustNew(b, src, manyOptions(b, dir, sync)).targets {
			if i%manySecrets == secret || (i+7)%manySecrets == secret {
				mine = append(mine, t)
			}
		}
		bareLoop(b, src, mine, sync)
		var took rounds
		b.ReportAllocs()
		for n := 1; b.Loop(); n++ {
			started := time.Now()
			awaited.Store(dependants)
			src.put(secretN(secret), secretValue(secret, n))
			<-done
			took.ours = append(took.ours, time.Since(started))
			took.bare = append(took.bare, bareLoop(b, src, mine, sync))
		}
		stop()
		took.report(b)
	})
}
