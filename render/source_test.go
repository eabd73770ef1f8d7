package render

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"secretagent/upstream"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(victimDir); dir != "" {
		runVictim(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

// fakeSource is a Source in memory. Every call of GetSecretValues sees one moment.
type fakeSource struct {
	mu     sync.Mutex
	values map[upstream.SecretRef]upstream.SecretValue
	errs   map[upstream.SecretName]error // answers instead of the value
	subs   map[upstream.SecretRef]map[chan struct{}]bool
	calls  int
	before func(refs []upstream.SecretRef) // called without the lock at the start of each read
	hangs  atomic.Bool                     // it never answers
	silent bool                            // it takes no subscriptions
}

func newFakeSource() *fakeSource {
	return &fakeSource{
		values: map[upstream.SecretRef]upstream.SecretValue{},
		errs:   map[upstream.SecretName]error{},
		subs:   map[upstream.SecretRef]map[chan struct{}]bool{},
	}
}

// sourceOf is a source of values, as put takes them.
func sourceOf(pairs ...string) *fakeSource {
	src := newFakeSource()
	src.put(pairs...)
	return src
}

// ref parses "name", "name:Label" or "name@version".
func ref(s string) upstream.SecretRef {
	name, version, _ := strings.Cut(s, "@")
	r, err := upstream.ParseSecretRef(name)
	if err != nil {
		panic(err)
	}
	r.VersionID = upstream.VersionID(version)
	return r.WithDefaults()
}

func (f *fakeSource) GetSecretValues(ctx context.Context, refs ...upstream.SecretRef) ([]upstream.SecretValue, error) {
	if f.before != nil {
		f.before(refs)
	}
	if f.hangs.Load() {
		<-ctx.Done()
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	out := make([]upstream.SecretValue, len(refs))
	for i, r := range refs {
		if err := f.errs[r.SecretName]; err != nil {
			return nil, upstream.Wrap(err, "GetSecretValue", r)
		}
		key := r.WithDefaults()
		key.Computed = false // is no part of what is meant
		v, ok := f.values[key]
		if !ok {
			return nil, upstream.Wrap(&upstream.Error{Err: upstream.ErrNotFound}, "GetSecretValue", r)
		}
		out[i] = v
	}
	return out, nil
}

func (f *fakeSource) Subscribe(refs ...upstream.SecretRef) (<-chan struct{}, func()) {
	if f.silent {
		return nil, func() {}
	}
	ch := make(chan struct{}, 1)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range refs {
		r = r.WithDefaults()
		if f.subs[r] == nil {
			f.subs[r] = map[chan struct{}]bool{}
		}
		f.subs[r][ch] = true
	}
	return ch, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, r := range refs {
			delete(f.subs[r.WithDefaults()], ch)
		}
	}
}

// put sets several values at one moment, "ref", "value", …, and rings.
func (f *fakeSource) put(pairs ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := 0; i < len(pairs); i += 2 {
		r := ref(pairs[i])
		f.set(r, pairs[i+1])
		f.ring(r.SecretName)
	}
}

// set gives r a value, in the version after its present one, and rings nothing. The caller holds
// the lock.
func (f *fakeSource) set(r upstream.SecretRef, value string) {
	version := r.VersionID
	if version == "" {
		var n int
		_, _ = fmt.Sscanf(string(f.values[r].VersionID), "v%d", &n)
		version = upstream.VersionID(fmt.Sprintf("v%d", n+1))
	}
	f.values[r] = upstream.SecretValue{SecretName: r.SecretName, VersionID: version, SecretData: upstream.NewSecretData([]byte(value))}
}

// drop takes a value away and rings nothing.
func (f *fakeSource) drop(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.values, ref(name))
}

// fail makes every read of name fail; nil heals it.
func (f *fakeSource) fail(name upstream.SecretName, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.errs[name] = err
	f.ring(name)
}

// ring says that name may have changed. The caller holds the lock.
func (f *fakeSource) ring(name upstream.SecretName) {
	for r, bells := range f.subs {
		for bell := range bells {
			if r.SecretName == name {
				select {
				case bell <- struct{}{}:
				default:
				}
			}
		}
	}
}

func (f *fakeSource) subscriptions() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, bells := range f.subs {
		n += len(bells)
	}
	return n
}

// unavailable is an outage as an upstream reports it.
func unavailable() error {
	return &upstream.Error{Err: upstream.ErrUnavailable, Code: "ServiceUnavailableTemporary"}
}

// inline is the content of a template without a file.
func inline(text string) Content { return Content{Contents: text} }

// fileAt is a target that needs no fsync, for tests that do not look at it.
func fileAt(dest, text string) Target {
	return Target{Content: inline(text), Destination: dest, NoSync: true}
}

func mustNew(t testing.TB, src Source, opts Options) *Renderer {
	t.Helper()
	r, err := New(src, opts)
	must(t, err)
	return r
}

func mustRender(t testing.TB, r *Renderer) {
	t.Helper()
	must(t, r.RenderOnce(t.Context()))
}

func mustRead(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return string(b)
}

func mustWrite(t testing.TB, path, content string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o700))
	must(t, os.WriteFile(path, []byte(content), 0o600))
}

func wantFile(t testing.TB, path, want string) {
	t.Helper()
	if got := mustRead(t, path); got != want {
		t.Errorf("%s holds %q, want %q", path, got, want)
	}
}

// names returns what is in a folder.
func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func wantNames(t testing.TB, dir string, want ...string) {
	t.Helper()
	slices.Sort(want)
	if got := names(t, dir); !slices.Equal(got, want) {
		t.Errorf("%s holds %q, want %q", dir, got, want)
	}
}

// start runs r until the test ends or stop is called.
func start(t testing.TB, r *Renderer) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// follow starts a renderer and waits until everything is rendered.
func follow(t testing.TB, src Source, opts Options) (r *Renderer, stop func()) {
	t.Helper()
	r = mustNew(t, src, opts)
	stop = start(t, r)
	eventually(t, "first render", isReady(r))
	return r, stop
}

func isReady(r *Renderer) func() bool {
	return func() bool { ok, _ := r.Ready(); return ok }
}

// holds reports whether the file at path holds want.
func holds(path, want string) func() bool {
	return func() bool {
		b, err := os.ReadFile(path)
		return err == nil && string(b) == want
	}
}

// eventually waits until ok, however busy the machine is; what says what for.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

// inBubble calls do while a renderer runs, after its first render, in a bubble where time passes
// only when everything waits. pass lets it pass.
func inBubble(t *testing.T, src *fakeSource, opts Options, do func(t *testing.T, r *Renderer, pass func(time.Duration))) {
	synctest.Test(t, func(t *testing.T) {
		r := mustNew(t, src, opts)
		start(t, r)
		synctest.Wait()
		do(t, r, func(d time.Duration) {
			time.Sleep(d)
			synctest.Wait()
		})
	})
}

// wantErr wants an error that says want.
func wantErr(t testing.TB, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error: %v, want %q", err, want)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// sh is a hook that runs a script.
func sh(script string) *Hook { return &Hook{Command: []string{"/bin/sh", "-c", script}} }

// hooked is a target with a hook.
func hooked(dest, text string, hook *Hook) Target {
	tg := fileAt(dest, text)
	tg.Hook = hook
	return tg
}

// signals are runs of a Child hook, which tests see without a process.
type signals struct {
	runs atomic.Int32
	do   func() error // what each run does; nil: it succeeds
}

func (s *signals) send(os.Signal) error {
	s.runs.Add(1)
	if s.do != nil {
		return s.do()
	}
	return nil
}
