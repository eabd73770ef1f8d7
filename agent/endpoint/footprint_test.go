//go:build !race

package endpoint_test

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"secretagent/agent/endpoint"
	"secretagent/cache"
	"secretagent/upstream"
)

// sized is a backend whose values have that many bytes.
type sized int

func (n sized) GetSecretValue(_ context.Context, ref upstream.SecretRef) (upstream.SecretValue, error) {
	return *value(string(ref.SecretName), "v1", strings.Repeat("x", int(n)), upstream.ACSCurrent), nil
}

// TestMemoryPerSecret measures what secrets cost in the cache, before and after each was asked
// for. Beside the secret and the encoded answer, which contains it once more, that must stay
// below 1 KiB.
func TestMemoryPerSecret(t *testing.T) {
	if testing.Short() {
		t.Skip("measures memory")
	}
	const size, n = 1024, 10_000
	name := func(i int) string { return fmt.Sprintf("team-%02d/service-%05d/database", i%100, i) }
	before := heap()
	r, c := startCachedWith(t, sized(size), cache.Limits{MaxEntries: n, MaxBytes: 1 << 40}, endpoint.Options{})
	for i := range n {
		if _, err := c.Lookup(t.Context(), refOf(name(i), "ACSCurrent")); err != nil {
			t.Fatal(err)
		}
	}
	held := int(heap()-before) / n
	client := r.dial(t)
	answer := 0
	for i := range n {
		got := client.ask("/v1/" + name(i))
		if got.status != 200 {
			t.Fatalf("%d %s", got.status, got.body)
		}
		answer = len(got.body)
	}
	_ = client.nc.Close()
	served := int(heap()-before) / n
	counted := int(c.Stats().Bytes) / n
	t.Logf("%d secrets of %d bytes: held %d bytes each, %d over the secret; once served, with an answer of %d bytes, %d each, %d over secret and answer; %d are counted",
		n, size, held, held-size, answer, served, served-size-answer, counted)
	if held-size > 1024 || served-size-answer > 1024 {
		t.Error("more than 1 KiB of overhead")
	}
	if counted < served*8/10 || counted > served*13/10 {
		t.Errorf("%d bytes are counted, %d are used", counted, served)
	}
	runtime.KeepAlive(c)
}
