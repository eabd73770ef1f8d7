package kms_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
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
	{upstreamtest.Delay(time.Minute), upstream.ErrUnavailable, true},
	{upstreamtest.Reset, upstream.ErrUnavailable, true},
	{upstreamtest.LostAnswer, upstream.ErrUnavailable, true},
	{upstreamtest.Truncate(0), upstream.ErrUnavailable, true},
	{upstreamtest.Truncate(150), upstream.ErrUnavailable, true},
	{upstreamtest.BlackHole, upstream.ErrUnavailable, true},
	{upstreamtest.Slow(time.Second), upstream.ErrUnavailable, true},
	{upstreamtest.TooManyRequests, upstream.ErrThrottled, false},
	{upstreamtest.InternalFailure, upstream.ErrInternal, true},
	{upstreamtest.Unavailable, upstream.ErrUnavailable, true},
	{upstreamtest.AnswerWith("502 from a proxy", http.StatusBadGateway, "<html>bad gateway"), upstream.ErrUnavailable, true},
	{upstreamtest.Garbage, upstream.ErrUnavailable, true},
	{upstreamtest.HTML, upstream.ErrUnavailable, true},
	{upstreamtest.HalfJSON, upstream.ErrUnavailable, true},
}

// TestFaultMatrix states for each fault what the caller gets, in what time and after how many
// calls: once (the next request is answered), for ever, and with a second endpoint.
func TestFaultMatrix(t *testing.T) {
	t.Parallel()
	store, _ := backend(t)
	create(t, store, "app/db", "value")
	ln := listen(t, nil)
	serve(t, store, ln, kmsserver.Signed, kmsserver.Options{})

	// So long that a busy machine does not make a timeout of what is none.
	const timeout, attempts = 2 * time.Second, 3
	type row struct {
		got   string
		took  time.Duration
		calls int
	}
	rows := make([][3]row, len(faults))
	var running sync.WaitGroup
	for i, f := range faults {
		for j, scenario := range []string{"once", "for ever", "with a second endpoint"} {
			bad, good := upstreamtest.NewFaulty(t, ln.Addr().String()), upstreamtest.NewFaulty(t, ln.Addr().String())
			opts := kms.Options{
				Endpoints: []kms.Endpoint{{Region: "cn-one", Host: bad.Addr(), Scheme: "http"}},
				Timeout:   timeout, Deadline: time.Minute,
				Retry: kms.Retry{MaxAttempts: attempts, Base: 10 * time.Millisecond, Cap: 40 * time.Millisecond},
			}
			switch scenario {
			case "once":
				bad.Next(f.fault)
			case "for ever":
				bad.Set(f.fault)
			default:
				bad.Set(f.fault)
				opts.Endpoints = append(opts.Endpoints, kms.Endpoint{Region: "cn-two", Host: good.Addr(), Scheme: "http"})
			}
			client := connect(t, opts)
			running.Go(func() {
				begin := time.Now()
				v, err := client.GetSecretValue(t.Context(), ref("app/db"))
				r := row{got: "the value", took: time.Since(begin), calls: bad.Requests() + good.Requests()}
				if err != nil {
					r.got = upstream.Code(err)
				} else if string(v.SecretData.Reveal()) != "value" {
					t.Errorf("%s, %s: a wrong value", f.fault, scenario)
				}
				rows[i][j] = r

				wantErr, wantCalls := f.want, attempts
				switch {
				case f.want == nil:
					wantCalls = 1
				case scenario == "once", scenario == "with a second endpoint" && f.over:
					wantErr, wantCalls = nil, 2
				}
				if !errors.Is(err, wantErr) || r.calls != wantCalls {
					t.Errorf("%s, %s: got %v after %d calls, want %v after %d", f.fault, scenario, err, r.calls, wantErr, wantCalls)
				}
				if limit := time.Duration(wantCalls)*(timeout+40*time.Millisecond) + 5*time.Second; r.took > limit {
					t.Errorf("%s, %s: it took %v, more than %v", f.fault, scenario, r.took, limit)
				}
			})
		}
	}
	running.Wait()
	var table strings.Builder
	fmt.Fprintf(&table, "timeout %v, %d attempts, waits of at most 40ms\n%-24s | %-42s | %-42s | %s\n", timeout, attempts, "fault", "once", "for ever", "with a second endpoint")
	for i, f := range faults {
		fmt.Fprintf(&table, "%-24s", f.fault)
		for _, r := range rows[i] {
			fmt.Fprintf(&table, " | %-27s %4dms %d calls", r.got, r.took.Milliseconds(), r.calls)
		}
		table.WriteByte('\n')
	}
	t.Log(table.String())
}

// A preferred endpoint that falls silent in the middle of a thousand lookups costs none of
// them more than its share of the time.
func TestABlackHoleAmongLookups(t *testing.T) {
	t.Parallel()
	store, _ := backend(t)
	const names, workers, lookups = 50, 8, 1000
	for i := range names {
		create(t, store, fmt.Sprintf("app/%d", i), "value")
	}
	ln := listen(t, nil)
	serve(t, store, ln, kmsserver.Signed, kmsserver.Options{})
	first, second := upstreamtest.NewFaulty(t, ln.Addr().String()), upstreamtest.NewFaulty(t, ln.Addr().String())
	client := connect(t, kms.Options{
		Endpoints: []kms.Endpoint{{Region: "a", Host: first.Addr(), Scheme: "http"}, {Region: "b", Host: second.Addr(), Scheme: "http"}},
		Timeout:   time.Second,
	})
	var next, failed atomic.Int64
	took := make([]time.Duration, lookups)
	var working sync.WaitGroup
	begin := time.Now()
	for range workers {
		working.Go(func() {
			for {
				n := next.Add(1) - 1
				if n >= lookups {
					return
				}
				if n == lookups/2 {
					first.Set(upstreamtest.BlackHole)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				start := time.Now()
				if _, err := client.GetSecretValue(ctx, ref(fmt.Sprintf("app/%d", n%names))); err != nil {
					failed.Add(1)
					t.Errorf("lookup %d: %v", n, err)
				}
				took[n] = time.Since(start)
				cancel()
			}
		})
	}
	working.Wait()
	slices.Sort(took)
	t.Logf("%d lookups in %v, %d failed, median %v, p99 %v, worst %v; requests: first %d, second %d",
		lookups, time.Since(begin).Round(time.Millisecond), failed.Load(), took[lookups/2].Round(time.Microsecond),
		took[lookups*99/100].Round(time.Microsecond), took[lookups-1].Round(time.Millisecond), first.Requests(), second.Requests())
	if st := client.Status(); st.Endpoints[0].State == "ready" || st.Endpoints[1].State != "ready" || st.Endpoint != second.Addr() {
		t.Errorf("status: %+v", st)
	}

	first.Set(upstreamtest.Fault{})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := client.GetSecretValue(t.Context(), ref("app/1")); err != nil {
			t.Fatal(err)
		}
		if st := client.Status(); st.Endpoint == first.Addr() && st.Endpoints[0].State == "ready" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the preferred endpoint is not used again: %+v", client.Status())
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
		Endpoints: []kms.Endpoint{{Region: "a", Host: proxy.Addr(), Scheme: "http"}},
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

func TestAWaitThatIsAskedForIsKept(t *testing.T) {
	var calls atomic.Int32
	wait := "300"
	s := script(t, func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1) == 1 {
			says(429, `{"Code":"Rejected.Throttling","Message":"slow","RequestId":"r"}`, "x-acs-retry-after", wait)(w, r)
			return
		}
		says(200, valueJSON("app/db", "v1", "x"))(w, r)
	})
	client := connect(t, kms.Options{Endpoints: []kms.Endpoint{s.endpoint()}, Retry: kms.Retry{Base: time.Millisecond, Cap: time.Millisecond}})
	begin := time.Now()
	if _, err := client.GetSecretValue(t.Context(), ref("app/db")); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < 290*time.Millisecond || took > 10*time.Second {
		t.Errorf("it took %v, the service asked for 300ms", took)
	}

	calls.Store(0)
	wait = "60000"
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	begin = time.Now()
	_, err := client.GetSecretValue(ctx, ref("app/db"))
	var e *upstream.Error
	if !errors.As(err, &e) || !errors.Is(err, upstream.ErrThrottled) || e.RetryAfter < 30*time.Second {
		t.Errorf("a wait beyond the deadline: %v", err)
	}
	if took := time.Since(begin); took > 15*time.Second {
		t.Errorf("it took %v to say that there is no time", took)
	}
}

func TestSixtyFourCallers(t *testing.T) {
	store, _ := backend(t)
	create(t, store, "app/db", "value")
	ln := listen(t, nil)
	serve(t, store, ln, kmsserver.Signed, kmsserver.Options{})
	proxy := upstreamtest.NewFaulty(t, ln.Addr().String())
	client := connect(t, kms.Options{Endpoints: []kms.Endpoint{{Region: "a", Host: proxy.Addr(), Scheme: "http"}}, MaxConcurrent: 8, Timeout: 30 * time.Second, Deadline: time.Minute})
	var calling sync.WaitGroup
	for i := range 64 {
		calling.Go(func() {
			for n := range 5 {
				name := upstream.SecretName(fmt.Sprintf("app/%d", i))
				id := upstream.VersionID(fmt.Sprintf("v%d", n))
				var err error
				if n == 0 {
					_, err = client.CreateSecret(t.Context(), upstream.CreateSecretInput{SecretName: name, VersionID: id, SecretData: secret(string(id))})
				} else {
					_, err = client.PutSecretValue(t.Context(), upstream.PutSecretValueInput{SecretName: name, VersionID: id, SecretData: secret(string(id))})
				}
				if err != nil {
					t.Error(err)
					continue
				}
				v, err := client.GetSecretValue(t.Context(), upstream.SecretRef{SecretName: name})
				if err != nil || v.VersionID != id || string(v.SecretData.Reveal()) != string(id) {
					t.Errorf("%s: got %s, %v", name, v.VersionID, err)
				}
				_ = client.Status()
			}
		})
	}
	calling.Wait()
	if n := proxy.Connections(); n > 8 {
		t.Errorf("%d connections, at most 8 are allowed", n)
	}
	t.Logf("%d requests over %d connections", proxy.Requests(), proxy.Connections())
}

func TestAPrivateCAIsTrustedForItsOwnHostOnly(t *testing.T) {
	ca, other := newAuthority(), newAuthority()
	store, _ := backend(t)
	create(t, store, "app/db", "value")
	ln, stranger := listen(t, ca.server), listen(t, other.server)
	serve(t, store, ln, kmsserver.Signed, kmsserver.Options{})
	serve(t, store, stranger, kmsserver.Signed, kmsserver.Options{})
	at := func(addr fmt.Stringer, ca authority) kms.Endpoint {
		return kms.Endpoint{Region: "a", Host: addr.String(), RootCAs: ca.pool}
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
