package kms_test

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/kms"
	"secretagent/upstream/kmsserver"
	"secretagent/upstream/upstreamtest"
)

// faults are all that the proxy can do, with what one attempt makes of it.
var faults = []struct {
	fault upstreamtest.Fault
	want  error // nil: the attempt succeeds
	over  bool  // the next endpoint is tried
}{
	{upstreamtest.Fault{}, nil, false},
	{upstreamtest.Delay(20 * time.Millisecond), nil, false},
	{upstreamtest.Reset, upstream.ErrUnavailable, true},
	{upstreamtest.LostAnswer, upstream.ErrUnavailable, true},
	{upstreamtest.Truncate(0), upstream.ErrUnavailable, true},
	{upstreamtest.Truncate(150), upstream.ErrUnavailable, true},
	{upstreamtest.TooManyRequests, upstream.ErrThrottled, false},
	{upstreamtest.InternalFailure, upstream.ErrInternal, true},
	{upstreamtest.Unavailable, upstream.ErrUnavailable, true},
	{upstreamtest.AnswerWith("502 from a proxy", http.StatusBadGateway, "<html>bad gateway"), upstream.ErrUnavailable, true},
	{upstreamtest.Garbage, upstream.ErrUnavailable, true},
	{upstreamtest.HTML, upstream.ErrUnavailable, true},
	{upstreamtest.HalfJSON, upstream.ErrUnavailable, true},
}

// TestFaultMatrix states for each fault what the caller gets and after how many attempts: once
// (the next request is answered), for ever, and with a second endpoint.
func TestFaultMatrix(t *testing.T) {
	t.Parallel()
	store, _ := backend(t)
	create(t, store, "app/db", "value")
	ln := listen(t, nil)
	serve(t, store, ln, kmsserver.Signed, kmsserver.Options{})
	const maxAttempts = 3
	ask := func(timeout time.Duration, endpoints ...kms.Endpoint) (attempts int, err error) {
		client := connect(t, kms.Options{
			Endpoints: endpoints, Timeout: timeout, Deadline: 10 * time.Minute,
			Retry:   kms.Retry{MaxAttempts: maxAttempts, Base: time.Millisecond, Cap: 4 * time.Millisecond},
			Observe: func(kms.Observation) { attempts++ },
		})
		v, err := client.GetSecretValue(t.Context(), ref("app/db"))
		if err == nil && string(v.SecretData.Reveal()) != "value" {
			t.Error("a wrong value")
		}
		return attempts, err
	}
	for _, f := range faults {
		for _, scenario := range []string{"once", "for ever", "with a second endpoint"} {
			bad := upstreamtest.NewFaulty(t, ln.Addr().String())
			endpoints := []kms.Endpoint{over(bad)}
			if bad.Set(f.fault); scenario == "once" {
				bad.Set(upstreamtest.Fault{})
				bad.Next(f.fault)
			}
			wantErr, wantAttempts := f.want, maxAttempts
			if scenario == "with a second endpoint" {
				endpoints = append(endpoints, plain(ln.Addr()))
			}
			switch {
			case f.want == nil:
				wantAttempts = 1
			case scenario == "once", scenario == "with a second endpoint" && f.over:
				wantErr, wantAttempts = nil, 2
			}
			// A time that no machine is too busy for.
			if attempts, err := ask(time.Minute, endpoints...); !errors.Is(err, wantErr) || attempts != wantAttempts {
				t.Errorf("%s, %s: got %v after %d attempts, want %v after %d", f.fault, scenario, err, attempts, wantErr, wantAttempts)
			}
		}
	}
	// Silence ends with the attempt; that the next endpoint answers then is tested without a network.
	for _, f := range []upstreamtest.Fault{upstreamtest.BlackHole, upstreamtest.Delay(time.Hour), upstreamtest.Slow(time.Minute)} {
		proxy := upstreamtest.NewFaulty(t, ln.Addr().String())
		proxy.Set(f)
		if attempts, err := ask(20*time.Millisecond, over(proxy)); !errors.Is(err, upstream.ErrUnavailable) || attempts != maxAttempts {
			t.Errorf("%s: got %v after %d attempts", f, err, attempts)
		}
	}
}

// A lost answer is resolved by reading, for the operations that cannot simply be repeated.
func TestLostAnswers(t *testing.T) {
	t.Parallel()
	store, _ := backend(t)
	ln := listen(t, nil)
	serve(t, store, ln, kmsserver.Signed, kmsserver.Options{})
	proxy := upstreamtest.NewFaulty(t, ln.Addr().String())
	var attempts []string
	var mu sync.Mutex
	client := connect(t, kms.Options{
		Endpoints: []kms.Endpoint{over(proxy)},
		Retry:     kms.Retry{Base: time.Millisecond, Cap: 5 * time.Millisecond},
		Observe: func(o kms.Observation) {
			mu.Lock()
			attempts = append(attempts, strings.TrimSpace(o.Op+" "+o.Code))
			mu.Unlock()
		},
	})
	did := func(want ...string) {
		t.Helper()
		mu.Lock()
		defer mu.Unlock()
		if !slices.Equal(attempts, want) {
			t.Errorf("attempts:\n\t%s\nwant\n\t%s", strings.Join(attempts, "\n\t"), strings.Join(want, "\n\t"))
		}
		attempts = nil
	}
	ctx := t.Context()
	const lost = " ServiceUnavailableTemporary"
	in := upstream.CreateSecretInput{SecretName: "app/db", VersionID: "v1", SecretData: secret("value")}

	proxy.Next(upstreamtest.LostAnswer)
	meta, err := client.CreateSecret(ctx, in)
	if err != nil || meta.SecretName != "app/db" || meta.ARN == "" {
		t.Errorf("create: %+v, %v", meta, err)
	}
	did("CreateSecret"+lost, "GetSecretValue", "DescribeSecret")

	proxy.Next(upstreamtest.Reset) // not carried out
	if _, err := client.CreateSecret(ctx, upstream.CreateSecretInput{SecretName: "app/two", VersionID: "v1", SecretData: secret("value")}); err != nil {
		t.Errorf("create, not carried out: %v", err)
	}
	did("CreateSecret"+lost, "GetSecretValue Forbidden.ResourceNotFound", "CreateSecret")

	in.SecretData = secret("other")
	proxy.Next(upstreamtest.LostAnswer)
	if _, err := client.CreateSecret(ctx, in); !errors.Is(err, upstream.ErrExists) {
		t.Errorf("create what somebody else made: %v", err)
	}
	did("CreateSecret"+lost, "GetSecretValue")

	// The answer of the second attempt, after the reading found nothing, is lost again.
	proxy.Next(upstreamtest.Reset, upstreamtest.Fault{}, upstreamtest.LostAnswer)
	if _, err := client.CreateSecret(ctx, upstream.CreateSecretInput{SecretName: "app/three", VersionID: "v1", SecretData: secret("value")}); err != nil {
		t.Errorf("create, lost twice: %v", err)
	}
	did("CreateSecret"+lost, "GetSecretValue Forbidden.ResourceNotFound", "CreateSecret"+lost, "GetSecretValue", "DescribeSecret")

	proxy.Next(upstreamtest.LostAnswer)
	if _, err := client.PutSecretValue(ctx, upstream.PutSecretValueInput{SecretName: "app/db", VersionID: "v2", SecretData: secret("2"), VersionStages: []upstream.VersionStage{"blue"}}); err != nil {
		t.Errorf("put: %v", err)
	}
	did("PutSecretValue"+lost, "PutSecretValue")

	proxy.Next(upstreamtest.LostAnswer)
	err = client.UpdateSecretVersionStage(ctx, upstream.UpdateSecretVersionStageInput{SecretName: "app/db", VersionStage: "blue", RemoveFromVersion: "v2"})
	if err != nil {
		t.Errorf("remove a label: %v", err)
	}
	did("UpdateSecretVersionStage"+lost, "UpdateSecretVersionStage InvalidParameter", "ListSecretVersionIds")
	err = client.UpdateSecretVersionStage(ctx, upstream.UpdateSecretVersionStageInput{SecretName: "app/db", VersionStage: "blue", RemoveFromVersion: "v2"})
	if !errors.Is(err, upstream.ErrInvalidParameter) {
		t.Errorf("remove it again, nothing lost: %v", err)
	}
	did("UpdateSecretVersionStage InvalidParameter")

	proxy.Next(upstreamtest.LostAnswer)
	planned, err := client.DeleteSecret(ctx, upstream.DeleteSecretInput{SecretName: "app/db", RecoveryWindowInDays: 7})
	if err != nil || planned.IsZero() {
		t.Errorf("delete: %v, %v", planned, err)
	}
	did("DeleteSecret"+lost, "DeleteSecret Rejected.ResourceInDeleteWindow", "DescribeSecret")

	proxy.Next(upstreamtest.LostAnswer)
	if err := client.RestoreSecret(ctx, "app/db"); err != nil {
		t.Errorf("restore: %v", err)
	}
	did("RestoreSecret"+lost, "RestoreSecret Rejected.ResourceInUse")

	proxy.Next(upstreamtest.LostAnswer)
	if _, err := client.DeleteSecret(ctx, upstream.DeleteSecretInput{SecretName: "app/db", ForceDeleteWithoutRecovery: true}); err != nil {
		t.Errorf("force: %v", err)
	}
	did("DeleteSecret"+lost, "DeleteSecret Forbidden.ResourceNotFound")
}

// Other refusals are final: one call, whatever the attempts allowed.
func TestRefusalsAreNotRepeated(t *testing.T) {
	for _, status := range []int{400, 401, 403, 404, 409} {
		s := script(t, says(status, `{"Code":"Some.Code","Message":"no","RequestId":"r"}`))
		client := connect(t, kms.Options{Endpoints: []kms.Endpoint{s.endpoint(), s.endpoint()}})
		if _, err := client.GetSecretValue(t.Context(), ref("app/db")); err == nil || upstream.Retryable(err) {
			t.Errorf("%d: %v", status, err)
		}
		if n := len(s.seen()); n != 1 {
			t.Errorf("%d: %d calls", status, n)
		}
	}
}

func TestSixtyFourCallersShareEightConnections(t *testing.T) {
	store, _ := backend(t)
	ln := listen(t, nil)
	serve(t, store, ln, kmsserver.Signed, kmsserver.Options{})
	proxy := upstreamtest.NewFaulty(t, ln.Addr().String())
	client := connect(t, kms.Options{Endpoints: []kms.Endpoint{over(proxy)}, MaxConcurrent: 8, Timeout: time.Minute, Deadline: time.Minute})
	var calling sync.WaitGroup
	for i := range 64 {
		calling.Go(func() {
			name := fmt.Sprintf("app/%d", i)
			create(t, client, name, name)
			if v, err := client.GetSecretValue(t.Context(), ref(name)); err != nil || string(v.SecretData.Reveal()) != name {
				t.Errorf("%s: got %s, %v", name, v.VersionID, err)
			}
			_ = client.Status()
		})
	}
	calling.Wait()
	if n := proxy.Connections(); n > 8 {
		t.Errorf("%d connections, at most 8 are allowed", n)
	}
}

func TestAPrivateCAIsTrustedForItsOwnHostOnly(t *testing.T) {
	ca, other := newAuthority(), newAuthority()
	store, _ := backend(t)
	create(t, store, "app/db", "value")
	ln, stranger := listen(t, ca.server), listen(t, other.server)
	serve(t, store, ln, kmsserver.Signed, kmsserver.Options{})
	serve(t, store, stranger, kmsserver.Signed, kmsserver.Options{})
	at := func(addr fmt.Stringer, ca authority) kms.Endpoint {
		return kms.Endpoint{Region: "cn-a", Host: addr.String(), RootCAs: ca.pool}
	}
	if _, err := connect(t, impatient(at(ln.Addr(), ca))).GetSecretValue(t.Context(), ref("app/db")); err != nil {
		t.Errorf("the right CA: %v", err)
	}
	_, err := connect(t, impatient(at(ln.Addr(), other))).GetSecretValue(t.Context(), ref("app/db"))
	if !errors.Is(err, upstream.ErrUnavailable) || !strings.Contains(err.Error(), "certificate is not trusted") {
		t.Errorf("another CA: %v", err)
	}
	// The first endpoint's CA does not open the second.
	client := connect(t, kms.Options{Endpoints: []kms.Endpoint{at(ln.Addr(), other), at(stranger.Addr(), ca)}, Retry: kms.Retry{MaxAttempts: 2}})
	if _, err := client.GetSecretValue(t.Context(), ref("app/db")); !errors.Is(err, upstream.ErrUnavailable) {
		t.Errorf("exchanged CAs: %v", err)
	}
}

func TestAClosedClientRefuses(t *testing.T) {
	client := connect(t, kms.Options{Endpoints: []kms.Endpoint{script(t, says(200, valueJSON("app/db", "v1", "x"))).endpoint()}})
	for range 2 {
		_ = client.Close()
	}
	if _, err := client.GetSecretValue(t.Context(), ref("app/db")); !errors.Is(err, upstream.ErrUnavailable) || !strings.Contains(err.Error(), "closed") {
		t.Errorf("a read: %v", err)
	}
	if err := client.RestoreSecret(t.Context(), "app/db"); !errors.Is(err, upstream.ErrUnavailable) {
		t.Errorf("a write: %v", err)
	}
}
