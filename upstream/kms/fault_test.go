package kms_test

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
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
	{upstreamtest.AnswerWith("a value without data", http.StatusOK, `{"SecretName":"app/db","VersionId":"v1","RequestId":"r"}`), upstream.ErrUnavailable, true},
}

// TestFaultMatrix states for each fault what the caller gets and after how many attempts: once
// (the next request is answered), for ever, and with a second endpoint.
func TestFaultMatrix(t *testing.T) {
	t.Parallel()
	store, _ := backend(t)
	create(t, store, "app/db", "value")
	addr := start(t, store, nil, kmsserver.Options{})
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
			bad := upstreamtest.NewFaulty(t, addr.String())
			endpoints := []kms.Endpoint{over(bad)}
			if bad.Set(f.fault); scenario == "once" {
				bad.Set(upstreamtest.Fault{})
				bad.Next(f.fault)
			}
			wantErr, wantAttempts := f.want, maxAttempts
			if scenario == "with a second endpoint" {
				endpoints = append(endpoints, plain(addr))
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
		proxy := upstreamtest.NewFaulty(t, addr.String())
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
	addr := start(t, store, nil, kmsserver.Options{})
	proxy := upstreamtest.NewFaulty(t, addr.String())
	var attempts []string
	client := connect(t, kms.Options{
		Endpoints: []kms.Endpoint{over(proxy)},
		Retry:     kms.Retry{Base: time.Millisecond, Cap: 5 * time.Millisecond},
		Observe:   func(o kms.Observation) { attempts = append(attempts, strings.TrimSpace(o.Op+" "+o.Code)) },
	})
	ctx := t.Context()
	const lost = " ServiceUnavailableTemporary"
	new := func(name, value string) error {
		meta, err := client.CreateSecret(ctx, upstream.CreateSecretInput{SecretName: upstream.SecretName(name), VersionID: "v1", SecretData: secret(value)})
		if err == nil && string(meta.SecretName) != name {
			t.Errorf("created %q, want %s", meta.SecretName, name)
		}
		return err
	}
	unstage := func() error {
		return client.UpdateSecretVersionStage(ctx, upstream.UpdateSecretVersionStageInput{SecretName: "app/db", VersionStage: "blue", RemoveFromVersion: "v2"})
	}
	for _, c := range []struct {
		name   string
		faults []upstreamtest.Fault
		call   func() error
		want   error
		did    []string
	}{
		{"create", []upstreamtest.Fault{upstreamtest.LostAnswer}, func() error { return new("app/db", "value") }, nil,
			[]string{"CreateSecret" + lost, "GetSecretValue", "DescribeSecret"}},
		{"create, not carried out", []upstreamtest.Fault{upstreamtest.Reset}, func() error { return new("app/two", "value") }, nil,
			[]string{"CreateSecret" + lost, "GetSecretValue Forbidden.ResourceNotFound", "CreateSecret"}},
		{"create what somebody else made", []upstreamtest.Fault{upstreamtest.LostAnswer}, func() error { return new("app/db", "other") }, upstream.ErrExists,
			[]string{"CreateSecret" + lost, "GetSecretValue"}},
		// The answer of the second attempt, after the reading found nothing, is lost again.
		{"create, lost twice", []upstreamtest.Fault{upstreamtest.Reset, {}, upstreamtest.LostAnswer}, func() error { return new("app/three", "value") }, nil,
			[]string{"CreateSecret" + lost, "GetSecretValue Forbidden.ResourceNotFound", "CreateSecret" + lost, "GetSecretValue", "DescribeSecret"}},
		{"put", []upstreamtest.Fault{upstreamtest.LostAnswer}, func() error {
			_, err := client.PutSecretValue(ctx, upstream.PutSecretValueInput{SecretName: "app/db", VersionID: "v2", SecretData: secret("2"), VersionStages: []upstream.VersionStage{"blue"}})
			return err
		}, nil, []string{"PutSecretValue" + lost, "PutSecretValue"}},
		{"remove a label", []upstreamtest.Fault{upstreamtest.LostAnswer}, unstage, nil,
			[]string{"UpdateSecretVersionStage" + lost, "UpdateSecretVersionStage InvalidParameter", "ListSecretVersionIds"}},
		{"remove it again, nothing lost", nil, unstage, upstream.ErrInvalidParameter, []string{"UpdateSecretVersionStage InvalidParameter"}},
		{"delete", []upstreamtest.Fault{upstreamtest.LostAnswer}, func() error {
			planned, err := client.DeleteSecret(ctx, upstream.DeleteSecretInput{SecretName: "app/db", RecoveryWindowInDays: 7})
			if planned.IsZero() {
				t.Error("delete: no time is planned")
			}
			return err
		}, nil, []string{"DeleteSecret" + lost, "DeleteSecret Rejected.ResourceInDeleteWindow", "DescribeSecret"}},
		{"restore", []upstreamtest.Fault{upstreamtest.LostAnswer}, func() error { return client.RestoreSecret(ctx, "app/db") }, nil,
			[]string{"RestoreSecret" + lost, "RestoreSecret Rejected.ResourceInUse"}},
		{"force", []upstreamtest.Fault{upstreamtest.LostAnswer}, func() error {
			_, err := client.DeleteSecret(ctx, upstream.DeleteSecretInput{SecretName: "app/db", ForceDeleteWithoutRecovery: true})
			return err
		}, nil, []string{"DeleteSecret" + lost, "DeleteSecret Forbidden.ResourceNotFound"}},
	} {
		attempts = nil
		proxy.Next(c.faults...)
		if err := c.call(); !errors.Is(err, c.want) || !slices.Equal(attempts, c.did) {
			t.Errorf("%s: %v, attempts:\n\t%s\nwant\n\t%s", c.name, err, strings.Join(attempts, "\n\t"), strings.Join(c.did, "\n\t"))
		}
	}
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
	addr := start(t, store, nil, kmsserver.Options{})
	proxy := upstreamtest.NewFaulty(t, addr.String())
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
	if n := proxy.AtOnce(); n > 8 {
		t.Errorf("%d requests at once, at most 8 are allowed", n)
	}
	// net/http gives up a connection whose answer came long before it knew that the request was written: on a
	// busy machine some are made anew.
	if n := proxy.Connections(); n > 32 {
		t.Errorf("%d connections for %d requests: they are not used again", n, proxy.Requests())
	}
}

func TestAPrivateCAIsTrustedForItsOwnHostOnly(t *testing.T) {
	ca, other := newAuthority(), newAuthority()
	store, _ := backend(t)
	create(t, store, "app/db", "value")
	addr, stranger := start(t, store, ca.server, kmsserver.Options{}), start(t, store, other.server, kmsserver.Options{})
	at := func(addr net.Addr, ca authority) kms.Endpoint {
		return kms.Endpoint{Region: "cn-a", Host: addr.String(), CAFile: ca.file(t)}
	}
	if _, err := connect(t, impatient(at(addr, ca))).GetSecretValue(t.Context(), ref("app/db")); err != nil {
		t.Errorf("the right CA: %v", err)
	}
	_, err := connect(t, impatient(at(addr, other))).GetSecretValue(t.Context(), ref("app/db"))
	if !errors.Is(err, upstream.ErrUnavailable) || !strings.Contains(err.Error(), "an authority that is not trusted") {
		t.Errorf("another CA: %v", err)
	}
	// The first endpoint's CA does not open the second.
	client := connect(t, kms.Options{Endpoints: []kms.Endpoint{at(addr, other), at(stranger, ca)}, Retry: kms.Retry{MaxAttempts: 2}})
	if _, err := client.GetSecretValue(t.Context(), ref("app/db")); !errors.Is(err, upstream.ErrUnavailable) {
		t.Errorf("exchanged CAs: %v", err)
	}
}

// What is wrong with a certificate is said with the dates and names that tell whom to ask.
func TestCertificatesTellWhatIsWrong(t *testing.T) {
	store, _ := backend(t)
	now := time.Now()
	for want, change := range map[string]func(*x509.Certificate){
		"CN=private test CA expired at " + now.Add(-time.Minute).UTC().Format(time.RFC3339): func(c *x509.Certificate) {
			c.NotAfter = now.Add(-time.Minute)
		},
		"CN=private test CA is not valid before " + now.Add(time.Hour).UTC().Format(time.RFC3339): func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = now.Add(time.Hour), now.Add(2*time.Hour)
		},
		"is not for 127.0.0.1 but for kms.example, 127.0.0.2": func(c *x509.Certificate) {
			c.DNSNames, c.IPAddresses = []string{"kms.example"}, []net.IP{net.IPv4(127, 0, 0, 2)}
		},
	} {
		ca := newAuthority(change)
		_, err := connect(t, impatient(kms.Endpoint{Host: start(t, store, ca.server, kmsserver.Options{}).String(), CAFile: ca.file(t)})).GetSecretValue(t.Context(), ref("app/db"))
		if !errors.Is(err, upstream.ErrUnavailable) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v\nwant %s", err, want)
		}
	}
}

// A clock that is wrong is told from a key that is, and by how much it is wrong.
func TestAWrongClockIsMeasured(t *testing.T) {
	for _, c := range []struct {
		code  string
		ahead time.Duration // of ours
		date  bool
		want  error
		says  string
	}{
		{"InvalidTimeStamp.Expired", 2*time.Hour + 3*time.Minute, true, upstream.ErrClockSkew, "of this host is 2h3m"},
		{"InvalidTimeStamp.Expired", -40 * time.Minute, true, upstream.ErrClockSkew, "behind that of the service, which answers InvalidTimeStamp.Expired"},
		{"RequestTimeTooSkewed", 0, false, upstream.ErrClockSkew, "does not tell the time"},
		{"InvalidTimeStamp.Expired", 0, true, upstream.ErrUnauthenticated, "no (InvalidTimeStamp.Expired"},
		{"InvalidSecurityToken.Expired", -time.Hour, true, upstream.ErrClockSkew, "behind"},
		{"InvalidSecurityToken.Expired", 0, true, upstream.ErrUnauthenticated, "no (InvalidSecurityToken.Expired"},
		{"InvalidAccessKeyId.NotFound", -time.Hour, true, upstream.ErrUnauthenticated, "behind"},
		{"Forbidden.NoPermission", -time.Hour, true, upstream.ErrAccessDenied, "no (Forbidden.NoPermission"},
	} {
		s := script(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header()["Date"] = nil
			if c.date {
				w.Header().Set("Date", time.Now().Add(-c.ahead).UTC().Format(http.TimeFormat))
			}
			says(400, `{"Code":"`+c.code+`","Message":"no","RequestId":"r"}`)(w, r)
		})
		_, err := connect(t, impatient(s.endpoint())).GetSecretValue(t.Context(), ref("app/db"))
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) || errors.Is(err, upstream.ErrClockSkew) != (upstream.Reason(err) == "ClockSkew") {
			t.Errorf("%+v: %v, with the reason %s", c, err, upstream.Reason(err))
		}
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
