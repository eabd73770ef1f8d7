package upstreamtest_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFakeConforms(t *testing.T) {
	for _, emulate := range []upstreamtest.Emulation{{}, {InstanceID: "kst-1", Keys: []string{"key-1", "alias/app"}, PutMovesStages: true}} {
		upstreamtest.Run(t, func(*testing.T) upstreamtest.Harness {
			fake, now := upstreamtest.NewFake(), time.Now()
			fake.Now, fake.Emulate = func() time.Time { return now }, emulate
			return upstreamtest.Harness{Manager: fake, Advance: func(d time.Duration) { now = now.Add(d) }, Emulate: emulate}
		})
	}
}

func get(ctx context.Context, f *upstreamtest.Fake) error {
	_, err := f.GetSecretValue(ctx, upstream.SecretRef{SecretName: "app/db"})
	return err
}

func TestFakeFailsOnCommand(t *testing.T) {
	fake := upstreamtest.NewFake()
	fake.MustCreate(t, "app/db", "v1", "x")
	fake.Fail("GetSecretValue", upstream.ErrUnavailable)
	fake.FailNext("GetSecretValue", 2, upstream.ErrThrottled)
	for i, want := range []error{upstream.ErrThrottled, upstream.ErrThrottled, upstream.ErrUnavailable, upstream.ErrUnavailable} {
		err := get(t.Context(), fake)
		var e *upstream.Error
		if !errors.Is(err, want) || !errors.As(err, &e) || e.Op != "GetSecretValue" || e.Ref.SecretName != "app/db" {
			t.Errorf("call %d: got %v, want %v", i+1, err, want)
		}
	}
	fake.Fail("GetSecretValue", nil)
	fake.FailNext("GetSecretValue", 1, context.DeadlineExceeded)
	if err := get(t.Context(), fake); err != context.DeadlineExceeded {
		t.Errorf("a context error became %v", err)
	}
	if err := get(t.Context(), fake); err != nil {
		t.Errorf("after all errors are used up: %v", err)
	}
	if got := fake.Calls("GetSecretValue"); got != 6 {
		t.Errorf("%d calls were counted", got)
	}
}

func TestFakeInterceptsPerSecret(t *testing.T) {
	fake := upstreamtest.NewFake()
	fake.MustCreate(t, "app/db", "v1", "x")
	fake.MustCreate(t, "app/other", "v1", "x")
	fake.Intercept(func(_ context.Context, op string, ref upstream.SecretRef) error {
		if op == "GetSecretValue" && ref.SecretName == "app/db" {
			return upstream.ErrAccessDenied
		}
		return nil
	})
	if err := get(t.Context(), fake); !errors.Is(err, upstream.ErrAccessDenied) {
		t.Errorf("got %v", err)
	}
	if _, err := fake.GetSecretValue(t.Context(), upstream.SecretRef{SecretName: "app/other"}); err != nil {
		t.Errorf("another secret: %v", err)
	}
}

func TestFakeWaitsInVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := upstreamtest.NewFake()
		fake.MustCreate(t, "app/db", "v1", "x")
		fake.Delay("GetSecretValue", time.Hour)
		begin := time.Now()
		if err := get(t.Context(), fake); err != nil || time.Since(begin) != time.Hour {
			t.Errorf("a delayed call took %s: %v", time.Since(begin), err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := get(ctx, fake); err != context.DeadlineExceeded {
			t.Errorf("a call past its deadline: %v", err)
		}
		fake.Delay("GetSecretValue", 0)

		release := fake.Block("GetSecretValue")
		results := make(chan error, 3)
		for range 3 {
			go func() { results <- get(t.Context(), fake) }()
		}
		fake.AwaitCalls(t, "GetSecretValue", 5)
		synctest.Wait()
		if got := fake.Running("GetSecretValue"); got != 3 || len(results) != 0 {
			t.Errorf("%d calls are running, %d have returned", got, len(results))
		}
		release()
		release()
		for range 3 {
			if err := <-results; err != nil {
				t.Errorf("a released call: %v", err)
			}
		}
		synctest.Wait()
		if fake.Running("GetSecretValue") != 0 || fake.MaxRunning("GetSecretValue") != 3 {
			t.Errorf("running %d, at most %d", fake.Running("GetSecretValue"), fake.MaxRunning("GetSecretValue"))
		}
		if err := get(t.Context(), fake); err != nil {
			t.Errorf("after the release: %v", err)
		}
	})
}

func TestFakeAnnouncesChangesBeforeTheWriterIsAnswered(t *testing.T) {
	fake := upstreamtest.NewFake()
	var heard []upstream.SecretName
	cancel := fake.OnChange(func(name upstream.SecretName) { heard = append(heard, name) })
	fake.MustPut(t, "app/db", "v1", "x")
	fake.MustPut(t, "app/db", "v2", "y", "pending")
	fake.MustMove(t, "app/db", upstream.ACSCurrent, "v2")
	in := upstream.PutSecretValueInput{SecretName: "app/db", VersionID: "v3", SecretData: upstream.NewSecretData([]byte("z"))}
	if _, err := fake.PutSecretValue(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	fake.MustDelete(t, "app/db")
	if len(heard) != 5 || heard[0] != "app/db" {
		t.Errorf("heard %v", heard)
	}
	cancel()
	fake.MustPut(t, "app/db", "v1", "x")
	if len(heard) != 5 {
		t.Errorf("heard %v after cancelling", heard)
	}
}

func TestFakeClock(t *testing.T) {
	fake := upstreamtest.NewFake()
	made := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	fake.Now = func() time.Time { return made }
	fake.MustPut(t, "app/db", "v1", "x")
	v, err := fake.GetSecretValue(t.Context(), upstream.SecretRef{SecretName: "app/db"})
	if err != nil || !v.CreateTime.Equal(made) {
		t.Errorf("made %s: %v", v.CreateTime, err)
	}
}
