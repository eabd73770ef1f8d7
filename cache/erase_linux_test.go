package cache_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"runtime"
	"testing"
	"time"

	"secretagent/cache"
	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

// TestDroppedValuesAreOverwritten counts a text in the memory of the process while secrets
// that contain it come and go: evicted, replaced, dropped, sealed and read again from the
// sealed file.
func TestDroppedValuesAreOverwritten(t *testing.T) {
	if testing.Short() {
		t.Skip("reads all memory again and again")
	}
	planted := upstreamtest.Plant(t)
	// A multiple of three bytes: base64, if anything used it, could be recognised.
	encoded := func() upstreamtest.Planted {
		b, text := planted.Bytes(), make([]byte, base64.StdEncoding.EncodedLen(30))
		defer clear(b)
		base64.StdEncoding.Encode(text, b[:30])
		return upstreamtest.PlantedAs(text)
	}()
	answer := func(_ context.Context, ref upstream.SecretRef) (upstream.SecretValue, error) {
		return upstream.SecretValue{SecretName: ref.SecretName, VersionID: "v1", VersionStages: []upstream.VersionStage{ref.VersionStage},
			SecretData: upstream.NewSecretData(planted.Bytes())}, nil
	}
	remain := func(what string, want int) {
		t.Helper()
		got := -1
		for deadline := time.Now().Add(time.Minute); got != want && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			runtime.GC()
			got = planted.Count(t)
		}
		failIf(t, got != want, "%s: %d copies in memory, want %d", what, got, want)
		n := encoded.Count(t)
		failIf(t, n != 0, "%s: %d encoded copies in memory", what, n)
	}

	opts := sealedIn(t)
	opts.MaxEntries = 10
	run := func(up fetchFunc, use func(c *cache.Cache)) { // so that nothing refers to c afterwards
		c, err := cache.New(up, opts)
		must(t, err)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		use(c)
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	run(answer, func(c *cache.Cache) {
		for i := range 200 {
			look(t, c, fmt.Sprint("s", i))
		}
		remain("after evictions", 10)
		for deadline := time.Now().Add(time.Minute); c.Stats().Sealed.Records != 10 || c.Stats().Sealed.Pending > 0; time.Sleep(time.Millisecond) {
			stopIf(t, time.Now().After(deadline), "not sealed: %+v", c.Stats().Sealed)
		}
		remain("after sealing", 10)
	})
	remain("after the cache is gone", 0)
	run(func(_ context.Context, ref upstream.SecretRef) (upstream.SecretValue, error) {
		if ref.SecretName == "s199" {
			return upstream.SecretValue{}, upstream.ErrNotFound
		}
		return upstream.SecretValue{SecretName: ref.SecretName, VersionID: "v2", VersionStages: []upstream.VersionStage{ref.VersionStage},
			SecretData: upstream.NewSecretData([]byte("another value"))}, nil
	}, func(c *cache.Cache) {
		remain("after the sealed file was opened", 10)
		for i := 190; i < 200; i++ {
			_, _ = c.Lookup(t.Context(), ref(fmt.Sprint("s", i)))
		}
		remain("after every value was replaced or dropped", 0)
	})
}
