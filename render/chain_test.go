package render_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"secretagent/cache"
	"secretagent/render"
	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

var _ render.Source = (*cache.Cache)(nil)

// chain joins an upstream, the cache over it and the renderer over that, as the agent does.
func chain(t testing.TB, opts render.Options) *upstreamtest.Fake {
	t.Helper()
	fake := upstreamtest.NewFake()
	held, err := cache.New(fake, cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := render.New(held, opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = held.Run(ctx) })
	running.Go(func() { _ = r.Run(ctx) })
	t.Cleanup(fake.OnChange(held.Invalidate))
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return fake
}

// Ensure that what happens to a secret upstream happens to the file: it appears, rotates with
// both labels from one moment, is deleted and restored.
func TestChainFromUpstreamToFile(t *testing.T) {
	dir := t.TempDir()
	holds := func(name, want string) {
		t.Helper()
		var got []byte
		for deadline := time.Now().Add(time.Minute); string(got) != want; time.Sleep(100 * time.Microsecond) {
			if got, _ = os.ReadFile(dir + "/" + name); time.Now().After(deadline) {
				t.Fatalf("%s holds %q, want %q", name, got, want)
			}
		}
	}
	fake := chain(t, render.Options{Targets: []render.Target{
		{Content: render.Content{Contents: `{{ secret "app/db" }} {{ secretOr "app/db:ACSPrevious" "-" }}`}, Destination: dir + "/file", OnRemoved: render.Delete, NoSync: true},
		{Content: render.Content{Contents: `{{ secretVersion "app/db" "v0" }}`}, Destination: dir + "/pinned", NoSync: true},
	}})
	fake.MustCreate(t, "app/db", "v0", "0")
	holds("file", "0 -")
	for n := 1; n < 8; n++ {
		fake.MustPut(t, "app/db", fmt.Sprint("v", n), fmt.Sprint(n))
		holds("file", fmt.Sprintf("%d %d", n, n-1))
	}
	holds("pinned", "0")
	_, err := fake.DeleteSecret(t.Context(), upstream.DeleteSecretInput{SecretName: "app/db"})
	holds("file", "") // it is gone
	if err := errors.Join(err, fake.RestoreSecret(t.Context(), "app/db")); err != nil {
		t.Fatal(err)
	}
	holds("file", "7 6")
}

// BenchmarkPutToFile measures from the write upstream to the published file.
func BenchmarkPutToFile(b *testing.B) {
	done := make(chan time.Time, 16)
	fake := chain(b, render.Options{
		Targets: []render.Target{{Content: render.Content{Contents: `{{ secret "app/db" }}`}, Destination: b.TempDir() + "/file"}},
		Observe: func(e render.Event) {
			if e.Changed {
				done <- time.Now()
			}
		},
	})
	fake.MustCreate(b, "app/db", "v0", "0")
	<-done
	var all []time.Duration
	for n := 1; b.Loop(); n++ {
		started := time.Now()
		fake.MustPut(b, "app/db", fmt.Sprint("v", n), fmt.Sprint(n))
		all = append(all, (<-done).Sub(started))
	}
	slices.Sort(all)
	b.ReportMetric(all[len(all)/2].Seconds()*1000, "ms-median")
	b.ReportMetric(all[len(all)*99/100].Seconds()*1000, "ms-p99")
}
