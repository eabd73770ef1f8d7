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
// joins them.
func chain(t testing.TB, dir, values string, opts render.Options) *builtin.Store {
	t.Helper()
	store, err := builtin.Open(builtin.Options{Database: dir + "/db", Keyring: values + "/keyring.json"})
	if err != nil {
		t.Fatal(err)
	}
	held, err := cache.New(store, cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	unhook := store.OnChange(held.Invalidate)
	r, err := render.New(held, opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
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
	return store
}

func create(t testing.TB, store *builtin.Store, name upstream.SecretName, value string) {
	t.Helper()
	_, err := store.CreateSecret(context.Background(), upstream.CreateSecretInput{SecretName: name, VersionID: "v0", SecretData: upstream.NewSecretData([]byte(value))})
	if err != nil {
		t.Fatal(err)
	}
}

func put(t testing.TB, store *builtin.Store, name upstream.SecretName, version int, value string) {
	t.Helper()
	_, err := store.PutSecretValue(context.Background(), upstream.PutSecretValueInput{
		SecretName: name, VersionID: upstream.VersionID(fmt.Sprintf("v%d", version)), SecretData: upstream.NewSecretData([]byte(value)),
	})
	if err != nil {
		t.Fatal(err)
	}
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

func holds(path, want string) func() bool {
	return func() bool {
		b, err := os.ReadFile(path)
		return err == nil && string(b) == want
	}
}

// Ensure that what happens to a secret in the built-in backend happens to the file: it
// appears, rotates with both labels from one moment, is deleted and restored.
func TestChainFromBackendToFile(t *testing.T) {
	dir := t.TempDir()
	store := chain(t, dir, t.TempDir(), render.Options{Targets: []render.Target{
		{Content: render.Content{Contents: `{{ secret "app/db" }} {{ secretOr "app/db:ACSPrevious" "-" }}`}, Destination: dir + "/out/file", OnRemoved: render.Delete, NoSync: true},
		{Content: render.Content{Contents: `{{ secretVersion "app/db" "v0" }}`}, Destination: dir + "/out/pinned", NoSync: true},
	}})
	create(t, store, "app/db", "0")
	waitFor(t, "it appears", holds(dir+"/out/file", "0 -"))
	for i := 1; i < 8; i++ {
		put(t, store, "app/db", i, fmt.Sprint(i))
		waitFor(t, "it rotates", holds(dir+"/out/file", fmt.Sprintf("%d %d", i, i-1)))
	}
	if !holds(dir+"/out/pinned", "0")() {
		t.Error("the pinned version changed")
	}
	if _, err := store.DeleteSecret(t.Context(), upstream.DeleteSecretInput{SecretName: "app/db"}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "it goes", func() bool { _, err := os.Stat(dir + "/out/file"); return os.IsNotExist(err) })
	if err := store.RestoreSecret(t.Context(), "app/db"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "it is back", holds(dir+"/out/file", "7 6"))
}

// BenchmarkPutToFile measures from the acknowledgement of a write in the built-in backend to
// the published file.
func BenchmarkPutToFile(b *testing.B) {
	places := map[string]string{"disk": b.TempDir()}
	if shm, err := os.MkdirTemp("/dev/shm", "render-bench-"); err == nil {
		b.Cleanup(func() { os.RemoveAll(shm) })
		places["tmpfs"] = shm
	}
	for where, dir := range places {
		b.Run(where, func(b *testing.B) {
			done := make(chan time.Time, 16)
			base := fmt.Sprintf("%s/%d", dir, b.N)
			store := chain(b, base, b.TempDir(), render.Options{
				Targets: []render.Target{{Content: render.Content{Contents: `{{ secret "app/db" }}`}, Destination: base + "/file", NoSync: where == "tmpfs"}},
				Observe: func(e render.Event) {
					if e.Changed {
						done <- time.Now()
					}
				},
			})
			create(b, store, "app/db", "0")
			<-done
			var all []time.Duration
			for i := 1; b.Loop(); i++ {
				put(b, store, "app/db", i, fmt.Sprint("value ", i))
				acknowledged := time.Now()
				all = append(all, (<-done).Sub(acknowledged))
			}
			slices.Sort(all)
			b.ReportMetric(all[len(all)/2].Seconds()*1000, "ms-median")
			b.ReportMetric(all[len(all)*99/100].Seconds()*1000, "ms-p99")
			b.ReportMetric(all[len(all)-1].Seconds()*1000, "ms-worst")
		})
	}
}
