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

// benchDirs are a folder on disk and, where there is one, on tmpfs.
func benchDirs(b *testing.B) map[string]string {
	dirs := map[string]string{"disk": b.TempDir()}
	if shm, err := os.MkdirTemp("/dev/shm", "render-bench-"); err == nil {
		b.Cleanup(func() { os.RemoveAll(shm) })
		dirs["tmpfs"] = shm
	}
	return dirs
}

// manyOptions are 1,000 templates of three secrets each, out of 200.
func manyOptions(dir string, sync bool) Options {
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

// median is what both sides are compared by: a neighbour that takes the processor for a while
// hits one round of one side.
func median(all []time.Duration) time.Duration {
	slices.Sort(all)
	return all[len(all)/2]
}

// bareLoop executes, writes and renames the same files one after the other: what cannot be
// left out.
func bareLoop(b *testing.B, r *Renderer, src Source, targets []*target, sync bool) {
	for _, u := range targets {
		result, err := u.compute(context.Background(), src, time.Second, nil)
		if err != nil {
			b.Fatal(err)
		}
		temp := u.name + ".tmp"
		f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := f.Write(result.outs[0].bytes); err != nil {
			b.Fatal(err)
		}
		if sync {
			if err := f.Sync(); err != nil {
				b.Fatal(err)
			}
		}
		if err := f.Close(); err != nil {
			b.Fatal(err)
		}
		if err := os.Rename(temp, u.name); err != nil {
			b.Fatal(err)
		}
		if sync {
			d, err := os.Open(filepath.Dir(u.name))
			if err != nil {
				b.Fatal(err)
			}
			if err := d.Sync(); err != nil {
				b.Fatal(err)
			}
			d.Close()
		}
	}
}

// BenchmarkFirstRender renders 1,000 templates of 200 secrets for the first time, beside the
// bare loop over the same templates.
func BenchmarkFirstRender(b *testing.B) {
	for where, dir := range benchDirs(b) {
		for _, mode := range []struct{ sync, once bool }{{true, false}, {false, false}, {true, true}, {false, true}} {
			sync, once := mode.sync, mode.once
			if sync && where == "tmpfs" {
				continue
			}
			b.Run(fmt.Sprintf("%s/sync=%v/once=%v", where, sync, once), func(b *testing.B) {
				src := manySource()
				var ours, floor []time.Duration
				var ended []func()
				n := 0
				for b.Loop() {
					n++
					// In turn, so that both meet the same noise.
					sub := fmt.Sprintf("%s/%d-%v-%v", dir, n, sync, once)
					bareSub := sub + "-bare"
					for _, d := range []string{sub, bareSub} {
						if err := os.Mkdir(d, 0o700); err != nil {
							b.Fatal(err)
						}
					}
					opts := manyOptions(sub, sync)
					done := make(chan Event, manyTargets)
					opts.Observe = func(e Event) { done <- e }
					r := mustNew(b, src, opts)
					started := time.Now()
					if once {
						mustRender(b, r)
					} else {
						stop := start(b, r)
						for range manyTargets {
							if e := <-done; e.Err != nil {
								b.Fatal(e.Err)
							}
						}
						ended = append(ended, stop)
					}
					ours = append(ours, time.Since(started))

					bare := mustNew(b, src, manyOptions(bareSub, sync))
					started = time.Now()
					bareLoop(b, bare, src, bare.targets, sync)
					floor = append(floor, time.Since(started))
					for _, stop := range ended {
						stop()
					}
					ended = nil
					os.RemoveAll(sub)
					os.RemoveAll(bareSub)
				}
				b.ReportMetric(median(ours).Seconds()*1000, "ms/render")
				b.ReportMetric(median(floor).Seconds()*1000, "ms/bare")
				b.ReportMetric(median(ours).Seconds()/median(floor).Seconds(), "ratio")
			})
		}
	}
}

// BenchmarkOneChange changes one of 200 secrets while 1,000 templates are followed, until
// the dependants are published, beside the bare loop over those.
func BenchmarkOneChange(b *testing.B) {
	for where, dir := range benchDirs(b) {
		for _, sync := range []bool{true, false} {
			if sync && where == "tmpfs" {
				continue
			}
			b.Run(fmt.Sprintf("%s/sync=%v", where, sync), func(b *testing.B) {
				sub, bareSub := fmt.Sprintf("%s/change-%v-%d", dir, sync, b.N), fmt.Sprintf("%s/bare-%v-%d", dir, sync, b.N)
				for _, d := range []string{sub, bareSub} {
					if err := os.MkdirAll(d, 0o700); err != nil {
						b.Fatal(err)
					}
				}
				src := manySource()
				const secret, dependants = 17, 2 * manyTargets / manySecrets
				var rendered, awaited atomic.Int64
				done := make(chan struct{}, 1)
				opts := manyOptions(sub, sync)
				opts.Observe = func(e Event) {
					if e.Err != nil || !e.Changed {
						b.Error(e)
					}
					rendered.Add(1)
					if awaited.Add(-1) == 0 {
						done <- struct{}{}
					}
				}
				awaited.Store(manyTargets)
				stop := start(b, mustNew(b, src, opts))
				<-done
				rendered.Store(0)
				bare := mustNew(b, src, manyOptions(bareSub, sync))
				bareLoop(b, bare, src, bare.targets, sync)

				var mine []*target
				for i, u := range bare.targets {
					if i%manySecrets == secret || (i+7)%manySecrets == secret {
						mine = append(mine, u)
					}
				}
				var ours, floor []time.Duration
				n := 0
				b.ReportAllocs()
				for b.Loop() {
					n++
					started := time.Now()
					awaited.Store(dependants)
					src.put(secretN(secret), secretValue(secret, n))
					<-done
					ours = append(ours, time.Since(started))
					started = time.Now()
					bareLoop(b, bare, src, mine, sync)
					floor = append(floor, time.Since(started))
				}
				stop()
				b.ReportMetric(float64(rendered.Load())/float64(n), "renders/change")
				b.ReportMetric(median(ours).Seconds()*1e6, "us/change")
				b.ReportMetric(median(floor).Seconds()*1e6, "us/bare")
				b.ReportMetric(median(ours).Seconds()/median(floor).Seconds(), "ratio")
			})
		}
	}
}

// BenchmarkChangeToFile measures from the announcement of a change to the published file.
func BenchmarkChangeToFile(b *testing.B) {
	for where, dir := range benchDirs(b) {
		b.Run(where, func(b *testing.B) {
			src := newFakeSource()
			src.put("a", "0")
			done := make(chan time.Time, 1)
			r := mustNew(b, src, Options{
				Targets: []Target{{Content: inline("PASSWORD={{ secret \"a\" }}\n"), Destination: filepath.Join(dir, "latency"), NoSync: where == "tmpfs"}},
				Observe: func(Event) { done <- time.Now() },
			})
			stop := start(b, r)
			<-done
			var all []time.Duration
			for i := 0; b.Loop(); i++ {
				time.Sleep(2 * time.Millisecond) // the agent is at rest when a change comes
				started := time.Now()
				src.put("a", fmt.Sprint(i+1))
				all = append(all, (<-done).Sub(started))
			}
			stop()
			slices.Sort(all)
			b.ReportMetric(all[len(all)/2].Seconds()*1000, "ms-median")
			b.ReportMetric(all[len(all)*99/100].Seconds()*1000, "ms-p99")
		})
	}
}

// BenchmarkExecute is one execution whose dependencies are known.
func BenchmarkExecute(b *testing.B) {
	src := manySource()
	r := mustNew(b, src, manyOptions(b.TempDir(), false))
	u := r.targets[0]
	b.ReportAllocs()
	for b.Loop() {
		if _, err := u.compute(context.Background(), src, time.Second, nil); err != nil {
			b.Fatal(err)
		}
	}
}
