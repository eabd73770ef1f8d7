//go:build !race

// The race detector allocates memory of its own.

package cache_test

import (
	"context"
	"math"
	"runtime"
	"testing"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

func TestHitAllocatesNothing(t *testing.T) {
	c, refs := large(t, 100, 300)
	bare := upstream.SecretRef{SecretName: refs[0].SecretName}
	fake := upstreamtest.NewFake()
	fake.MustCreate(t, "a", "v1", "x")
	for name, fn := range map[string]func(){
		"Peek":                 func() { c.Peek(refs[7]) },
		"Peek without a stage": func() { c.Peek(bare) },
		"Peek of nothing":      func() { c.Peek(upstream.SecretRef{SecretName: "none"}) },
		"Lookup":               func() { _, _ = c.Lookup(context.Background(), refs[8]) },
	} {
		n := testing.AllocsPerRun(1000, fn)
		failIf(t, n != 0, "%s: %v allocations", name, n)
	}
}

// What a cached secret costs beside its own bytes must stay below 1 KiB, with everything that
// the upstream hands over counted as overhead; and what is counted must be what is used, also
// when readers keep their answers, and for sizes of which the allocator has no blocks.
func TestOverheadPerSecret(t *testing.T) {
	if testing.Short() {
		t.Skip("measures memory")
	}
	// What other tests have left goes in several rounds: values are overwritten by finalizers first.
	heap := func() uint64 {
		for last := uint64(math.MaxUint64); ; {
			runtime.GC()
			time.Sleep(50 * time.Millisecond)
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			if m.HeapAlloc+64<<10 >= last {
				return m.HeapAlloc
			}
			last = m.HeapAlloc
		}
	}
	for _, c := range []struct{ n, size, answer int }{{20_000, 256, 640}, {300, 30_000, 30_500}} {
		before := heap()
		cached, refs := large(t, c.n, c.size)
		overhead := int(heap()-before)/c.n - c.size
		for _, r := range refs {
			a, ok := cached.Peek(r)
			stopIf(t, !ok, "miss")
			answer := upstream.Erasable(make([]byte, c.answer))
			a.Derived.Store(answer)
			a.Derived.Grow(cap(answer) + 24)
		}
		used := int(heap()-before) / c.n
		counted := int(cached.Stats().Bytes) / c.n
		t.Logf("%d secrets of %d bytes: %d bytes of overhead each; %d bytes in all with answers of %d bytes, %d are counted", c.n, c.size, overhead, used, c.answer, counted)
		failIf(t, c.size < 1024 && overhead > 1024, "%d bytes of overhead per secret", overhead)
		failIf(t, counted < used*8/10 || counted > used*13/10, "%d bytes are counted, %d are used", counted, used)
		failIf(t, c.size > 1024 && counted < used*97/100, "%d bytes are counted, %d are used", counted, used)
		runtime.KeepAlive(refs)
	}
}
