//go:build !race

// The race detector allocates memory of its own.

package cache_test

import (
	"context"
	"runtime"
	"testing"

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
// when readers keep their answers.
func TestOverheadPerSecret(t *testing.T) {
	if testing.Short() {
		t.Skip("measures memory")
	}
	const n, size, answer = 20_000, 256, 640
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	c, refs := large(t, n, size)
	overhead := int(heap()-before)/n - size
	for _, r := range refs {
		a, ok := c.Peek(r)
		stopIf(t, !ok, "miss")
		a.Derived.Store(make([]byte, answer))
		a.Derived.Grow(answer + 24)
	}
	used := int(heap()-before) / n
	counted := int(c.Stats().Bytes) / n
	t.Logf("%d secrets of %d bytes: %d bytes of overhead each; %d bytes in all with answers of %d bytes, %d are counted", n, size, overhead, used, answer, counted)
	failIf(t, overhead > 1024, "%d bytes of overhead per secret", overhead)
	failIf(t, counted < used*8/10 || counted > used*13/10, "%d bytes are counted, %d are used", counted, used)
	runtime.KeepAlive(refs)
}
