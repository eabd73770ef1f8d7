package cache_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"secretagent/cache"
	"secretagent/upstream"
)

// large returns a cache that holds n secrets of size bytes, and their references.
func large(tb testing.TB, n, size int) (*cache.Cache, []upstream.SecretRef) {
	tb.Helper()
	c := open(tb, constant(size), cache.Options{Limits: cache.Limits{TTL: time.Hour, MaxEntries: n, MaxBytes: 1 << 40}})
	refs := make([]upstream.SecretRef, n)
	for i := range refs {
		refs[i] = ref(fmt.Sprintf("team-%02d/service-%05d/database", i%100, i))
		if _, err := c.Lookup(context.Background(), refs[i]); err != nil {
			tb.Fatal(err)
		}
	}
	return c, refs
}

// Answers that nobody asked for since the last refresh are dropped; what readers keep of the
// others is counted.
func TestAnswersKeptWithAValue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, constant(100), cache.Options{Limits: cache.Limits{TTL: time.Minute, Pins: []cache.Pin{{Ref: ref("declared")}}}})
		start(t, c)
		names := []string{"declared", "asked", "idle"}
		for _, name := range names {
			a := look(t, c, name)
			a.Derived.Store("answer")
			a.Derived.Grow(5000)
			a.Derived.Asked(&name, 1)
		}
		for range 10 { // less than a lifetime apart
			time.Sleep(30 * time.Second)
			look(t, c, "asked")
		}
		for _, e := range c.Entries() {
			name := string(e.Ref.SecretName)
			failIf(t, e.Size > 5000 != (name == "asked"), "%s: %d bytes are counted", name, e.Size)
			failIf(t, e.AskedBy != name, "%s: last asked for by %q", name, e.AskedBy)
		}
		failIf(t, look(t, c, "asked").Derived.Load() != "answer", "an answer that is in use was dropped")
		failIf(t, look(t, c, "declared").Derived.Load() != nil, "an answer that nobody wants was kept")
	})
}

func BenchmarkPeek(b *testing.B) {
	for _, n := range []int{1, 1000, 100_000} {
		c, refs := large(b, n, 300)
		peek := func(i int) {
			if _, ok := c.Peek(refs[i*7919%n]); !ok {
				b.Error("miss")
			}
		}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				peek(i)
			}
		})
		b.Run(fmt.Sprint(n, " in parallel"), func(b *testing.B) {
			var start atomic.Int64
			b.RunParallel(func(pb *testing.PB) {
				for i := int(start.Add(1)) * 104729; pb.Next(); i++ {
					peek(i)
				}
			})
		})
	}
}
