package etcd

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"secretagent/upstream"
)

// BenchmarkAgainstBare takes turns between calls of a store and bare transactions of the same size at the same
// etcd: one that compares a revision, writes two keys and deletes one, as a PutSecretValue beyond the limit of
// versions does, and one that reads two. of_bare is how many calls are made in the time of one such transaction, the
// median of the turns. Allocations are those of the calls.
func BenchmarkAgainstBare(b *testing.B) {
	opts := testOptions(b)
	s := mustOpen(b, opts)
	until(b, "it follows", func() bool { return s.Stats().WatchUp })
	raw := sharedClient(b)
	b.Cleanup(func() { _ = raw.Close() })
	ctx, data := context.Background(), strings.Repeat("x", 1024)
	var unique atomic.Int64
	name := func(w int) string { return fmt.Sprint("b/", w) }
	key := func(w int) string { return opts.Prefix + "bare/" + name(w) }
	const callers = 16
	for w := range callers {
		must(b, create(s, name(w), "v0", "zero"))
		must(b, only(raw.Put(ctx, key(w), data[:400])))
		must(b, only(raw.Put(ctx, key(w)+"/v0", data)))
	}
	for _, call := range []struct {
		name       string
		ours, bare func(w int) error
	}{
		{
			"PutSecretValue",
			func(w int) error { return put(s, name(w), fmt.Sprint("v", unique.Add(1)), data) },
			func(w int) error {
				n := unique.Add(1)
				return only(raw.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key(w)), ">", 0)).Then(
					clientv3.OpPut(key(w), data[:400]), clientv3.OpPut(fmt.Sprint(key(w), "/v", n), data), clientv3.OpDelete(fmt.Sprint(key(w), "/v", n-100)),
				).Commit())
			},
		}, {
			"GetSecretValue",
			func(w int) error {
				return only(s.GetSecretValue(ctx, upstream.SecretRef{SecretName: upstream.SecretName(name(w))}))
			},
			func(w int) error {
				return only(raw.Txn(ctx).Then(clientv3.OpGet(key(w)), clientv3.OpGet(key(w)+"/v0")).Commit())
			},
		},
	} {
		for _, callers := range []int{1, callers} {
			b.Run(fmt.Sprintf("%s/callers=%d", call.name, callers), func(b *testing.B) {
				b.ReportAllocs()
				var ours, bare time.Duration
				var ratios []float64
				for done, n := 0, 0; done < b.N; done += n {
					n = min(50*callers, b.N-done)
					b.StopTimer()
					other := turn(b, callers, n, call.bare)
					b.StartTimer()
					own := turn(b, callers, n, call.ours)
					ours, bare = ours+own, bare+other
					ratios = append(ratios, other.Seconds()/own.Seconds())
				}
				slices.Sort(ratios)
				b.ReportMetric(ratios[len(ratios)/2], "of_bare")
				b.ReportMetric(float64(b.N)/ours.Seconds(), "op/s")
				b.ReportMetric(float64(b.N)/bare.Seconds(), "bare/s")
			})
		}
	}
}

// turn has callers make n calls altogether, and returns how long that took.
func turn(b *testing.B, callers, n int, call func(w int) error) time.Duration {
	begin := time.Now()
	var next atomic.Int64
	var wg sync.WaitGroup
	for w := range callers {
		wg.Go(func() {
			for next.Add(1) <= int64(n) {
				if err := call(w); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
	return time.Since(begin)
}
