package kms

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"secretagent/cache"
	"secretagent/upstream"
)

var (
	nobodyListens = outcome{fault: true, err: &upstream.Error{Err: upstream.ErrUnavailable, Unreached: true}}
	hungUp        = outcome{fault: true, lost: true, err: &upstream.Error{Err: upstream.ErrUnavailable, Unreached: true}} // by a relay
	badGateway    = outcome{fault: true, lost: true, err: &upstream.Error{Err: upstream.ErrUnavailable, Code: "HTTP502"}}
)

// TestFreshSoonAfterAReturn takes the cache and the policy of this package through outages. What
// no request got through to is tried often and its values are fresh within two seconds of its
// return; what answers with errors is left alone for longer. Stale answers say what the upstream
// said, also when it is our own breaker or budget that keeps us from asking.
func TestFreshSoonAfterAReturn(t *testing.T) {
	const code = "ServiceUnavailableTemporary"
	relay := Endpoint{Host: "127.0.0.1:80", Scheme: "http"}
	for _, c := range []struct {
		name    string
		at      Endpoint
		secrets int
		fails   outcome
		away    time.Duration
		soon    time.Duration
		reason  string
	}{
		{"one secret", relay, 1, nobodyListens, 150 * time.Second, 2 * time.Second, code},
		{"for a moment", relay, 50, nobodyListens, 3 * time.Second, 2 * time.Second, code},
		{"for a while", relay, 50, nobodyListens, 25 * time.Second, 2 * time.Second, code},
		{"for long", relay, 50, nobodyListens, 150 * time.Second, 2 * time.Second, code},
		{"behind a relay", relay, 50, hungUp, 150 * time.Second, 4 * time.Second, code},
		{"elsewhere", Endpoint{Region: "cn-r"}, 50, nobodyListens, 150 * time.Second, 4 * time.Second, code},
		{"with server errors", Endpoint{Region: "cn-r"}, 20, badGateway, 150 * time.Second, 3 * time.Minute, "HTTP502"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var down atomic.Bool
				var calls atomic.Int64
				p := testPolicy(t, func(o *Options) { o.Endpoints = []Endpoint{c.at} })
				limits := cache.Limits{TTL: 2 * time.Second}
				for i := range c.secrets {
					limits.Pins = append(limits.Pins, cache.Pin{Ref: upstream.SecretRef{SecretName: upstream.SecretName(fmt.Sprint("s", i))}.WithDefaults()})
				}
				held, err := cache.New(answering(func(ctx context.Context, ref upstream.SecretRef) error {
					return p.do(ctx, &call{request: request{op: "GetSecretValue", ref: ref, valueOnly: true}, send: func(ctx context.Context, _ *endpoint) outcome {
						calls.Add(1)
						if down.Load() {
							return c.fails
						}
						_ = sleep(ctx, time.Millisecond)
						return grantedOut
					}})
				}), cache.Options{Limits: limits, FetchTimeout: 21 * time.Second})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- held.Run(ctx) }()
				reasons := map[string]bool{}
				fresh := func(since time.Time) bool {
					n := 0
					for _, pin := range limits.Pins[:min(5, c.secrets)] { // the others are not asked for
						if answer, err := held.Lookup(ctx, pin.Ref); err == nil && answer.Freshness == upstream.Stale {
							reasons[answer.Reason] = true
						}
					}
					for _, e := range held.Entries() {
						if e.FetchedAt.Before(since) {
							n++
						}
					}
					return n == 0
				}
				for begun := time.Now(); time.Since(begun) < 10*time.Second; time.Sleep(500 * time.Millisecond) {
					fresh(begun)
				}
				down.Store(true)
				time.Sleep(2 * time.Second)
				calls.Store(0)
				for begun := time.Now(); time.Since(begun) < c.away-2*time.Second; time.Sleep(500 * time.Millisecond) {
					fresh(begun)
				}
				tried, least, most := calls.Load(), int64(c.away/(2*time.Second)-2), int64(6*c.away/time.Second)
				if c.soon >= time.Minute {
					least, most = 0, 20
				}
				if tried < least || tried > most {
					t.Errorf("%d attempts while it was away, want %d to %d", tried, least, most)
				}
				down.Store(false)
				back := time.Now()
				for time.Since(back) < time.Hour && !fresh(back) {
					time.Sleep(10 * time.Millisecond)
				}
				t.Logf("all values are fresh %v after the return, %d attempts before", time.Since(back), tried)
				if time.Since(back) > c.soon {
					t.Errorf("want %v at most", c.soon)
				}
				if got := slices.Collect(maps.Keys(reasons)); !slices.Equal(got, []string{c.reason}) {
					t.Errorf("the reasons are %q, want %s", got, c.reason)
				}
				cancel()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// answering is an upstream whose values are all the same, and whose errors are those of a function.
type answering func(context.Context, upstream.SecretRef) error

func (a answering) GetSecretValue(ctx context.Context, ref upstream.SecretRef) (upstream.SecretValue, error) {
	return upstream.SecretValue{SecretName: ref.SecretName, VersionID: "v1", SecretData: upstream.NewSecretData([]byte("x"))}, a(ctx, ref)
}

// sleep waits for d or until ctx is done.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
