package render_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"secretagent/cache"
	"secretagent/render"
	"secretagent/upstream"
	"secretagent/upstream/builtin"
)

var _ render.Source = (*cache.Cache)(nil)

// chain is the built-in backend, the cache over it and the renderer over that, as the agent
// joins them. put writes version n of the one secret, app/db.
func chain(t testing.TB, dir string, opts render.Options) (store *builtin.Store, put func(n int)) {
	t.Helper()
	store, err := builtin.Open(builtin.Options{Database: dir + "/db", Keyring: t.TempDir() + "/keyring.json"})
	if err != nil {
		t.Fatal(err)
	}
	held, err := cache.New(store, cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := render.New(held, opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	unhook := store.OnChange(held.Invalidate)
	var running sync.WaitGroup
	running.Go(func() { _ = held.Run(ctx) })
	running.Go(func() { _ = r.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
		unhook()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return store, func(n int) {
		version, value := upstream.VersionID(fmt.Sprintf("v%d", n)), upstream.NewSecretData(fmt.Append(nil, n))
		var err error
		if n == 0 {
			_, err = store.CreateSecret(ctx, upstream.CreateSecretInput{SecretName: "app/db", VersionID: version, SecretData: value})
		} else {
			_, err = store.PutSecretValue(ctx, upstream.PutSecretValueInput{SecretName: "app/db", VersionID: version, SecretData: value})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Ensure that what happens to a secret in the built-in backend happens to the file: it
// appears, rotates with both labels from one moment, is deleted and restored.
func TestChainFromBackendToFile(t *testing.T) {
	dir := t.TempDir()
	holds := func(name, want string) {
		t.Helper()
		var got []byte
		for deadline := time.Now().Add(time.Minute); string(got) != want; time.Sleep(100 * time.Microsecond) {
			if got, _ = os.ReadFile(dir + "/out/" + name); time.Now().After(deadline) {
				t.Fatalf("%s holds %q, want %q", name, got, want)
			}
		}
	}
	store, put := chain(t, dir, render.Options{Targets: []render.Target{
		{Content: render.Content{Contents: `{{ secret "app/db" }} {{ secretOr "app/db:ACSPrevious" "-" }}`}, Destination: dir + "/out/file", OnRemoved: render.Delete, NoSync: true},
		{Content: render.Content{Contents: `{{ secretVersion "app/db" "v0" }}`}, Destination: dir + "/out/pinned", NoSync: true},
	}})
	put(0)
	holds("file", "0 -")
	for n := 1; n < 8; n++ {
		put(n)
		holds("file", fmt.Sprintf("%d %d", n, n-1))
	}
	holds("pinned", "0")
	if _, err := store.DeleteSecret(t.Context(), upstream.DeleteSecretInput{SecretName: "app/db"}); err != nil {
		t.Fatal(err)
	}
	holds("file", "") // it is gone
	if err := store.RestoreSecret(t.Context(), "app/db"); err != nil {
		t.Fatal(err)
	}
	holds("file", "7 6")
}

// BenchmarkPutToFile measures from the acknowledgement of a write in the built-in backend to
// the published file.
func BenchmarkPutToFile(b *testing.B) {
	dir := b.TempDir()
	done := make(chan time.Time, 16)
	_, put := chain(b, dir, render.Options{
		Targets: []render.Target{{Content: render.Content{Contents: `{{ secret "app/db" }}`}, Destination: dir + "/file"}},
		Observe: func(e render.Event) {
			if e.Changed {
				done <- time.Now()
			}
		},
	})
	put(0)
	<-done
	var all []time.Duration
	for n := 1; b.Loop(); n++ {
		put(n)
		acknowledged := time.Now()
		all = append(all, (<-done).Sub(acknowledged))
	}
	slices.Sort(all)
	b.ReportMetric(all[len(all)/2].Seconds()*1000, "ms-median")
	b.ReportMetric(all[len(all)*99/100].Seconds()*1000, "ms-p99")
}
