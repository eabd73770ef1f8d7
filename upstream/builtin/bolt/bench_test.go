package bolt

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// BenchmarkPutSecretValue shows what sharing a sync brings: the time per write with more
// writers, and how many writes a commit carried.
func BenchmarkPutSecretValue(b *testing.B) {
	for _, writers := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			s := mustOpen(b, testOptions(b))
			for w := range writers {
				mustCreate(b, s, fmt.Sprint("bench/", w), "v0", "x")
			}
			data := strings.Repeat("v", 1024)
			before := s.Stats()
			var next atomic.Int64
			var wg sync.WaitGroup
			b.ReportAllocs()
			b.ResetTimer()
			for w := range writers {
				wg.Go(func() {
					for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
						if err := putter(s, fmt.Sprint("bench/", w), fmt.Sprint("v", n), data)(); err != nil {
							b.Error(err)
						}
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			after := s.Stats()
			b.ReportMetric(float64(after.Writes-before.Writes)/float64(after.Commits-before.Commits), "writes/commit")
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "writes/s")
		})
	}
}
