package cache_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"secretagent/cache"
	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

func TestMain(m *testing.M) {
	if runSealedWriter() {
		return
	}
	goleak.VerifyTestMain(m)
}

const get = "GetSecretValue"

// ref parses a reference as users write it.
func ref(s string) upstream.SecretRef {
	r, err := upstream.ParseSecretRef(s)
	if err != nil {
		panic(err)
	}
	return r.WithDefaults()
}

// with runs fn in a bubble of time, with a cache that nobody runs in front of an upstream that
// has version v1 of app/db with the data first.
func with(t *testing.T, opts cache.Options, fn func(t *testing.T, fake *upstreamtest.Fake, c *cache.Cache)) {
	synctest.Test(t, func(t *testing.T) {
		fake := upstreamtest.NewFake()
		fake.MustCreate(t, "app/db", "v1", "first")
		fn(t, fake, open(t, fake, opts))
	})
}

// fill makes n secrets called s0, s1, … with the data x, and returns their names.
func fill(t *testing.T, fake *upstreamtest.Fake, n int) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprint("s", i))
		fake.MustCreate(t, names[i], "v1", "x")
	}
	return names
}

// failOne has the calls for one secret fail.
func failOne(fake *upstreamtest.Fake, name upstream.SecretName, err error) {
	fake.Intercept(func(_ context.Context, _ string, r upstream.SecretRef) error {
		if r.SecretName == name {
			return err
		}
		return nil
	})
}

// open returns a cache that nobody runs.
func open(t testing.TB, up cache.Upstream, opts cache.Options) *cache.Cache {
	t.Helper()
	c, err := cache.New(up, opts)
	must(t, err)
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// setLimits changes the limits of c.
func setLimits(t interface{ Error(...any) }, c *cache.Cache, limits cache.Limits) {
	if set, err := c.PrepareLimits(limits); err != nil {
		t.Error(err)
	} else {
		set()
	}
}

// start runs c until the test ends or stop is called.
func start(t testing.TB, c *cache.Cache) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

// look is a lookup that must succeed.
func look(t testing.TB, c *cache.Cache, name string) upstream.Answer {
	t.Helper()
	answer, err := c.Lookup(t.Context(), ref(name))
	stopIf(t, err != nil, "Lookup(%s): %v", name, err)
	return answer
}

// fetchedAt returns when the upstream last confirmed an answer that was given just now.
func fetchedAt(a upstream.Answer) time.Time { return time.Now().Add(-a.Age) }

// wantAnswer checks value and freshness.
func wantAnswer(t testing.TB, got upstream.Answer, data string, freshness upstream.Freshness) {
	t.Helper()
	stopIf(t, got.Value == nil || string(got.Value.SecretData.Reveal()) != data || got.Freshness != freshness, "got %s %+v, want %s with data %q", got.Freshness, got.Value, freshness, data)
	stopIf(t, (got.Reason != "") != (freshness == upstream.Stale), "%s answer has reason %q", freshness, got.Reason)
	stopIf(t, got.Derived == nil || got.Age < 0, "answer lacks Derived or has not been fetched yet: %+v", got)
}

// gives checks the results of a method for one reference that must succeed.
func gives(t testing.TB, data string, freshness upstream.Freshness) func(upstream.Answer, error) {
	t.Helper()
	return func(answer upstream.Answer, err error) {
		t.Helper()
		must(t, err)
		wantAnswer(t, answer, data, freshness)
	}
}

// refuses checks the error of a method for one reference.
func refuses(t testing.TB, want error) func(upstream.Answer, error) {
	return func(_ upstream.Answer, err error) {
		t.Helper()
		wantError(t, err, want)
	}
}

// noValue is a lookup that must fail, and returns its error.
func noValue(t testing.TB, c *cache.Cache, name string, want error) error {
	t.Helper()
	_, err := c.Lookup(t.Context(), ref(name))
	wantError(t, err, want)
	return err
}

// failIf fails the test, which goes on, when wrong is true.
func failIf(t testing.TB, wrong bool, format string, args ...any) {
	t.Helper()
	if wrong {
		t.Errorf(format, args...)
	}
}

func must(t interface {
	Helper()
	Fatal(...any)
}, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantError(t testing.TB, err, want error) {
	t.Helper()
	stopIf(t, !errors.Is(err, want), "got error %v, want %v", err, want)
}

// wantCalls checks how often the upstream was asked: that often, or any number up to most.
func wantCalls(t testing.TB, fake *upstreamtest.Fake, want int, most ...int) {
	t.Helper()
	if got := fake.Calls(get); got < want || got > slices.Max(append(most, want)) {
		t.Fatalf("%d upstream calls, want %d %v", got, want, most)
	}
}

// stopIf ends the test when wrong is true.
func stopIf(t interface {
	Helper()
	Fatalf(string, ...any)
}, wrong bool, format string, args ...any) {
	t.Helper()
	if wrong {
		t.Fatalf(format, args...)
	}
}

// failFor fails the test, which goes on, when wrong says so of v.
func failFor[T any](t testing.TB, v T, wrong func(T) bool) {
	t.Helper()
	failIf(t, wrong(v), "%+v", v)
}

// rung reports whether the bell rings, and takes the ring.
func rung(bell <-chan struct{}) bool {
	select {
	case <-bell:
		return true
	default:
		return false
	}
}

// fetchFunc is an upstream made of one function.
type fetchFunc func(ctx context.Context, ref upstream.SecretRef) (upstream.SecretValue, error)

func (f fetchFunc) GetSecretValue(ctx context.Context, ref upstream.SecretRef) (upstream.SecretValue, error) {
	return f(ctx, ref)
}

// constant answers every name at once with a value of size bytes.
func constant(size int) fetchFunc {
	return func(_ context.Context, ref upstream.SecretRef) (upstream.SecretValue, error) {
		return upstream.SecretValue{
			SecretName: ref.SecretName, VersionID: "v1", VersionStages: []upstream.VersionStage{upstream.ACSCurrent},
			SecretData: upstream.NewSecretData(make([]byte, size)), SecretDataType: upstream.DataTypeText,
			SecretType: upstream.SecretTypeGeneric, CreateTime: time.Unix(1, 0), RequestID: "00000000-0000-4000-8000-000000000000",
		}, nil
	}
}
