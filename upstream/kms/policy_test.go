package kms

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"secretagent/upstream"
)

var (
	discard    = slog.New(slog.DiscardHandler)
	grantedOut = outcome{answered: true}
	throttled  = outcome{answered: true, err: &upstream.Error{Err: upstream.ErrThrottled}}
	broken     = outcome{fault: true, err: &upstream.Error{Err: upstream.ErrUnavailable}}
)

func rateOf(b *budget) float64 { return b.status(time.Now()).CallsPerSecond }

func TestBudgetAdaptsToWhatIsGranted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(Budget{PerSecond: 50, Burst: 100})
		after := func(what string, want float64, n int, out outcome) {
			t.Helper()
			for range n {
				b.report(out, discard)
			}
			if r := rateOf(b); r != want {
				t.Errorf("%s: %v, want %v", what, r, want)
			}
		}
		after("at the start", startRate, 0, grantedOut)
		after("granted calls", 50, 20, grantedOut)
		after("a burst of refusals: half", 25, 10, throttled)
		time.Sleep(cutAgain)
		after("refused again with nothing granted in between: a quarter", 25.0/4, 1, throttled)
		after("granted within a second of a cut", 25.0/4, 20, grantedOut)
		time.Sleep(cutAgain)
		after("a second later: one slow step", 25.0/4*slowStep, 20, grantedOut)
		for range 30 {
			time.Sleep(cutAgain)
			b.report(throttled, discard)
		}
		after("at the end", minPerSecond, 0, throttled)
		time.Sleep(slowFor)
		after("forgiven", 50, 30, grantedOut)
		b.restart(4*time.Second, broken.err)
		after("an outage of 4s: a fifth", 10, 0, grantedOut)
		b.restart(time.Hour, broken.err)
		after("an outage of an hour", restartRate, 0, grantedOut)
	})
}

func TestBudgetNeverExceedsItsRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(Budget{PerSecond: 4, Burst: 4})
		begun := time.Now()
		started := make(chan time.Duration)
		for range 40 {
			go func() {
				if err := b.wait(t.Context(), begun.Add(time.Minute)); err != nil {
					t.Error(err)
				}
				started <- time.Since(begun)
			}()
		}
		for i := range 40 {
			// Four at once, then one every quarter of a second.
			if at, want := <-started, max(0, time.Duration(i-3)*time.Second/4); at < want-time.Millisecond || at > want+100*time.Millisecond {
				t.Errorf("call %d started at %v, want %v", i, at, want)
			}
		}
	})
}

func TestBudgetRefusesAtOnceWhatComesTooLateAndCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(Budget{PerSecond: 1, Burst: 1})
		begun := time.Now()
		counts := func(waiting int, waits uint64, waited time.Duration, refused uint64) {
			t.Helper()
			if s := b.status(time.Now()); s.Waiting != waiting || s.Waits != waits || time.Duration(s.WaitSeconds*float64(time.Second)).Round(time.Millisecond) != waited || s.Refused != refused {
				t.Errorf("after %v: %+v", time.Since(begun), s)
			}
		}
		if err := b.wait(t.Context(), begun.Add(time.Second)); err != nil {
			t.Error(err)
		}
		counts(0, 0, 0, 0)
		var waiting sync.WaitGroup
		for range 3 { // they wait for 1s to 3s
			waiting.Go(func() {
				if err := b.wait(t.Context(), begun.Add(10*time.Second)); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		err := b.wait(t.Context(), begun.Add(3*time.Second))
		if !errors.Is(err, upstream.ErrThrottled) || hintOf(err) != 4*time.Second || time.Since(begun) > 0 {
			t.Errorf("the fourth of those who wait, with time for three: %v after %v", err, time.Since(begun))
		}
		counts(3, 0, 0, 1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
		defer cancel()
		if err := b.wait(ctx, begun.Add(time.Minute)); err != context.DeadlineExceeded || time.Since(begun) != time.Second/2 {
			t.Errorf("an impatient one: %v after %v", err, time.Since(begun))
		}
		waiting.Wait()
		counts(0, 4, 6500*time.Millisecond, 1)

		hint := outcome{answered: true, err: &upstream.Error{Err: upstream.ErrThrottled, RetryAfter: 30 * time.Second}}
		b.report(hint, discard)
		paused := time.Now()
		if err := b.wait(t.Context(), paused.Add(20*time.Second)); !errors.Is(err, upstream.ErrThrottled) || time.Since(paused) > 0 {
			t.Errorf("during a pause: %v after %v", err, time.Since(paused))
		}
		if err := b.wait(t.Context(), paused.Add(time.Minute)); err != nil || time.Since(paused) != 30*time.Second {
			t.Errorf("with time for the pause: %v after %v", err, time.Since(paused))
		}
	})
}

// TestHealthRestsLongerAndIsProbedOnce tests the type that serves the breaker and the endpoints.
func TestHealthRestsLongerAndIsProbedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &health{limit: 3, first: 2 * time.Second, longest: 10 * time.Second}
		is := func(want state) {
			t.Helper()
			if s, _ := h.at(time.Now()); s != want {
				t.Errorf("the state is %d, want %d", s, want)
			}
		}
		try := func(out outcome) change {
			t.Helper()
			p, ok := h.admit(time.Now())
			if !ok {
				t.Error("an attempt is refused")
			}
			return h.report(p, out)
		}
		rested := func(c change, most time.Duration) {
			t.Helper()
			_, until := h.at(time.Now())
			if c.rests < most/2 || c.rests > most || time.Until(until) != c.rests {
				t.Errorf("it rests for %v, want half to all of %v", c.rests, most)
			}
			is(resting)
			time.Sleep(c.rests)
			is(due)
		}
		early, _ := h.admit(time.Now())
		try(broken)
		try(broken)
		try(throttled) // an answer: the count begins anew
		try(broken)
		try(outcome{err: context.Canceled, quit: true}) // a caller who left says nothing
		try(broken)
		is(ready)
		begun := time.Now()
		c := try(broken)
		if _, ok := h.admit(time.Now()); ok {
			t.Error("an attempt begins during the rest")
		}
		if late := h.report(early, broken); late != (change{}) {
			t.Errorf("a failure that began before the rest: %+v", late)
		}
		rested(c, 2*time.Second)
		for _, most := range []time.Duration{4, 8, 10, 10} {
			rested(try(broken), most*time.Second)
		}
		probe, ok := h.admit(time.Now())
		if _, second := h.admit(time.Now()); !ok || second {
			t.Errorf("the probe is admitted: %t, another one beside it: %t", ok, second)
		}
		h.report(probe, outcome{}) // it was not sent: another one may probe
		if c := try(grantedOut); !c.recovered || c.failures != 7 || c.lasted != time.Since(begun) {
			t.Errorf("back after %v: %+v", time.Since(begun), c)
		}
		is(ready)
	})
}

// TestTheBreakerLeavesAServiceAlone counts the attempts of many calls while everything fails.
func TestTheBreakerLeavesAServiceAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := testPolicy(t, func(o *Options) { o.Breaker.Failures, o.Retry.MaxAttempts = 3, 1 }, "one", "two")
		answer, sent := broken, 0
		ask := func() error {
			return p.do(t.Context(), &call{request: request{op: "X"}, send: func(context.Context, *endpoint) outcome { sent++; return answer }})
		}
		for range 10 {
			if err := ask(); !errors.Is(err, upstream.ErrUnavailable) {
				t.Errorf("after %d attempts: %v", sent, err)
			}
		}
		err := ask()
		if s, until := p.breaker.at(time.Now()); sent != 3 || s != resting || hintOf(err) != time.Until(until) {
			t.Errorf("%d attempts, want 3; then %v", sent, err)
		}
		time.Sleep(2 * time.Second)
		answer = grantedOut
		if err := ask(); err != nil || sent != 4 {
			t.Errorf("the probe: %v, %d attempts", err, sent)
		}
		if r := rateOf(p.budget); r >= startRate {
			t.Errorf("after the outage the budget begins with %v", r)
		}
	})
}

// TestWhatIsHeldBackIsAnOutage has the breaker open on failures with all kinds of codes. Other
// calls are told of an outage, of nothing that was said about another secret or to another call.
func TestWhatIsHeldBackIsAnOutage(t *testing.T) {
	for _, c := range []struct{ last, want *upstream.Error }{
		{&upstream.Error{Err: upstream.ErrNotFound, Code: "Forbidden.ResourceNotFound"}, &upstream.Error{Err: upstream.ErrUnavailable}},
		{&upstream.Error{Err: upstream.ErrAccessDenied, Message: "no"}, &upstream.Error{Err: upstream.ErrUnavailable}},
		{&upstream.Error{Err: upstream.ErrRefused, Code: "Rejected.Disabled"}, &upstream.Error{Err: upstream.ErrUnavailable}},
		{&upstream.Error{Err: upstream.ErrUnavailable, Code: upstream.CodeInvalidAnswer}, &upstream.Error{Err: upstream.ErrUnavailable}},
		{&upstream.Error{Err: upstream.ErrPendingDeletion}, &upstream.Error{Err: upstream.ErrUnavailable}},
		{upstream.InvalidParameter("SecretName", "too long"), &upstream.Error{Err: upstream.ErrUnavailable}},
		{&upstream.Error{Err: upstream.ErrInternal, Code: "InternalFailure", Endpoint: "e", RequestID: "r", Date: time.Now(), Op: "Y",
			Ref: upstream.SecretRef{SecretName: "a"}, Parameter: "P", Reason: "bad", Message: "broken"},
			&upstream.Error{Err: upstream.ErrInternal, Code: "InternalFailure", Endpoint: "e", Message: "broken"}},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := testPolicy(t, func(o *Options) { o.Breaker.Failures, o.Retry.MaxAttempts = 3, 1 }, "one")
			other := upstream.SecretRef{SecretName: "b"}
			var err error
			for range 4 {
				err = p.do(t.Context(), &call{request: request{op: "X", ref: other}, send: func(context.Context, *endpoint) outcome { return outcome{fault: true, err: c.last} }})
			}
			p.budget.restart(time.Second, c.last)
			for of, err := range map[string]error{"breaker": err, "budget": upstream.Wrap(p.budget.refusal("it is spent"), "X", other)} {
				got, _ := errors.AsType[*upstream.Error](err)
				want := *c.want
				want.Op, want.Ref, want.Message, want.RetryAfter = "X", other, got.Message, got.RetryAfter
				if *got != want || !strings.HasSuffix(got.Message, c.want.Message) || strings.Contains(got.Message, "SecretName") {
					t.Errorf("%v\nof the %s: %+v\nwant %+v", c.last, of, *got, want)
				}
			}
		})
	}
}

// testPolicy is a policy over endpoints whose calls are answered by send.
func testPolicy(t *testing.T, change func(*Options), regions ...string) *policy {
	t.Helper()
	o := Options{Credentials: StaticCredential("a", "b", "")}
	for _, n := range regions {
		o.Endpoints = append(o.Endpoints, Endpoint{Region: n})
	}
	if change != nil {
		change(&o)
	}
	o, err := o.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	return newPolicy(o)
}

func TestAnEndpointRestsIsProbedByOneAndReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := true
		var mu sync.Mutex
		var order []string
		p := testPolicy(t, nil, "one", "two")
		ask := func() error {
			return p.do(t.Context(), &call{request: request{op: "X", valueOnly: true}, send: func(ctx context.Context, e *endpoint) outcome {
				deadline, _ := ctx.Deadline()
				mu.Lock()
				order = append(order, e.Region+" "+time.Until(deadline).String())
				mu.Unlock()
				if e.Region == "one" && down {
					<-ctx.Done() // silent
					return broken
				}
				return grantedOut
			}})
		}
		expect := func(what string, want ...string) {
			t.Helper()
			if err := ask(); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			mu.Lock()
			defer mu.Unlock()
			if strings.Join(order, ", ") != strings.Join(want, ", ") {
				t.Errorf("%s: asked %v, want %v", what, order, want)
			}
			order = nil
		}
		expect("healthy, then silent", "one 5s", "two 5s")
		expect("resting", "two 5s")
		time.Sleep(firstRest)
		expect("probe", "one 1.25s", "two 5s")
		expect("resting longer", "two 5s")
		down = false
		time.Sleep(2 * firstRest)
		expect("probe", "one 1.25s")
		expect("returned", "one 5s")

		down = true
		expect("silent again", "one 5s", "two 5s")
		time.Sleep(firstRest)
		var probing sync.WaitGroup
		probing.Go(func() { _ = ask() })
		synctest.Wait()
		expect("beside the probe", "one 1.25s", "two 5s")
		probing.Wait()
	})
}

func TestASilentEndpointLeavesTimeForTheOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := testPolicy(t, nil, "one", "two", "three")
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		begun := time.Now()
		err := p.do(ctx, &call{request: request{op: "X"}, send: func(ctx context.Context, e *endpoint) outcome {
			if e.Region != "three" {
				<-ctx.Done()
				return broken
			}
			return grantedOut
		}})
		if took := time.Since(begun); err != nil || took != 2*time.Second {
			t.Errorf("%v after %v, want the answer of the third after 2s of 3s", err, took)
		}
	})
}

func TestWaitsHaveFullJitterAndEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		seen := map[time.Duration]bool{}
		for range 20 {
			p := testPolicy(t, nil, "one")
			begun := time.Now()
			calls := 0
			err := p.do(t.Context(), &call{request: request{op: "X"}, send: func(context.Context, *endpoint) outcome { calls++; return broken }})
			took := time.Since(begun)
			if !errors.Is(err, upstream.ErrUnavailable) || calls != 4 || took > 1400*time.Millisecond {
				t.Errorf("%v after %d calls and %v; the waits are at most 200, 400 and 800ms", err, calls, took)
			}
			seen[took] = true
		}
		if len(seen) < 15 {
			t.Errorf("20 calls waited %d different times", len(seen))
		}
		p := testPolicy(t, nil, "one")
		begun := time.Now()
		err := p.do(t.Context(), &call{request: request{op: "X"}, send: func(ctx context.Context, _ *endpoint) outcome { <-ctx.Done(); return broken }})
		if took := time.Since(begun); !errors.Is(err, upstream.ErrUnavailable) || took > 20*time.Second {
			t.Errorf("silence: %v after %v", err, took)
		}
	})
}

func TestAWaitThatIsAskedForIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ask := func(ctx context.Context, hint time.Duration) error {
			calls := 0
			return testPolicy(t, nil, "one").do(ctx, &call{request: request{op: "X"}, send: func(context.Context, *endpoint) outcome {
				if calls++; calls > 1 {
					return grantedOut
				}
				return outcome{answered: true, err: &upstream.Error{Err: upstream.ErrThrottled, RetryAfter: hint}}
			}})
		}
		begun := time.Now()
		if err := ask(t.Context(), 3*time.Second); err != nil || time.Since(begun) != 3*time.Second {
			t.Errorf("%v after %v, the service asked for 3s", err, time.Since(begun))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		begun = time.Now()
		if err := ask(ctx, time.Minute); !errors.Is(err, upstream.ErrThrottled) || hintOf(err) != time.Minute || time.Since(begun) > 0 {
			t.Errorf("a wait beyond the deadline: %v after %v", err, time.Since(begun))
		}
	})
}

// The variables of the environment are read once in the life of a process, so this looks at who
// would read them.
func TestTheProxyOfTheEnvironmentIsUsed(t *testing.T) {
	of := func(e Endpoint) uintptr { return reflect.ValueOf(newTransport(e, 1).Proxy).Pointer() }
	if of(Endpoint{Region: "cn-r"}) != reflect.ValueOf(http.ProxyFromEnvironment).Pointer() || of(Endpoint{Socket: "/s"}) != 0 {
		t.Error("an endpoint ignores the proxy, or a socket has one")
	}
}

// A failure is told of the host where it happened, which a proxy, STS or the metadata service can
// be as well as the service.
func TestAFailureNamesItsHost(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close() // nobody listens there
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "MARKER", http.StatusProxyAuthRequired)
	}))
	defer refusing.Close()
	over := func(host string) error {
		e := newEndpoint(Endpoint{Region: "cn-r", Host: "kms.example", Scheme: "https"}, 1)
		e.transport.(*http.Transport).Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: host, User: url.UserPassword("me", "MARKER")})
		return judge(e.post(t.Context(), ""), nil, e).err
	}
	gone, there := ln.Addr().String(), refusing.Listener.Addr().String()
	refused := syscall.ECONNREFUSED
	sts := &url.Error{Op: "Post", URL: "https://sts.aliyuncs.com/?MARKER", Err: &net.OpError{Op: "dial", Err: refused}}
	for want, err := range map[string]error{
		"the proxy " + gone + ": connection refused":                                   over(gone),
		"over the proxy " + there + ": it refuses the connection with HTTP status 407": over(there),
		"sts.aliyuncs.com: connection refused":                                         explain("oidc_role_arn", sts),
		"100.100.100.200: it did not come in time":                                     explain("ecs_ram_role", errors.New(`get role name failed: Get "http://100.100.100.200/latest/MARKER": dial tcp 100.100.100.200:80: i/o timeout`)),
		"the metadata service 100.100.100.200 does not tell the role":                  explain("ecs_ram_role", errors.New("get role name failed: GET http://100.100.100.200/latest/MARKER 404")),
		"[::1]:80: the connection failed":                                              explain("credentials_uri", errors.New(`Get "http://me:MARKER@[::1]:80/MARKER": something`)),
		"the source gave no usable answer":                                             explain("ram_role_arn", errors.New(`refresh session token failed: {"Recommend":"https://elsewhere.example/MARKER"}`)),
	} {
		if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "MARKER") || strings.Contains(err.Error(), "elsewhere") {
			t.Errorf("got %v\nwant %s", err, want)
		}
	}
}

// What no request got through to may be tried often. A service elsewhere that takes a connection
// and closes it, or says nothing, is not of that kind.
func TestWhatIsUnreached(t *testing.T) {
	here, elsewhere := Endpoint{Host: "localhost:1", Scheme: "http"}, Endpoint{Host: "kms.example", Scheme: "https"}
	for _, c := range []struct {
		at        Endpoint
		connected bool
		err       error
		want      bool
	}{
		{here, false, syscall.ECONNREFUSED, true},
		{Endpoint{Socket: "/none.sock"}, false, syscall.ENOENT, true},
		{elsewhere, false, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, true},
		{elsewhere, false, syscall.ENETUNREACH, true},
		{here, true, io.EOF, true},
		{here, true, syscall.ECONNRESET, true},
		{elsewhere, true, io.EOF, false},
		{elsewhere, true, syscall.ECONNRESET, false},
		{here, true, context.DeadlineExceeded, false},
		{elsewhere, false, context.DeadlineExceeded, false},
		{elsewhere, false, &net.DNSError{IsNotFound: true}, false},
	} {
		if out := judge(answer{connected: c.connected, err: c.err}, nil, newEndpoint(c.at, 1)); upstream.Unreached(out.err) != c.want {
			t.Errorf("%v of %s%s, connected %t: unreached is %t", c.err, c.at.Host, c.at.Socket, c.connected, !c.want)
		}
	}
}

// roundTripper is an endpoint's transport in one function.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// cannedClient is a client whose endpoint answers with status and body.
func cannedClient(tb testing.TB, status int, body string) *Client {
	c, err := New(Options{
		Endpoints: []Endpoint{{Region: "cn-r"}}, Credentials: StaticCredential("id", "secret", ""),
		Retry: Retry{MaxAttempts: 1}, Budget: Budget{PerSecond: 1e6, Burst: 1e6}, MaxConcurrent: 1,
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	FullBudget(c)
	c.policy.endpoints[0].transport = roundTripper(func(r *http.Request) (*http.Response, error) {
		_, _ = io.Copy(io.Discard, r.Body)
		return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}, nil
	})
	return c
}

const cannedValue = `{"SecretName":"app/db","VersionId":"v1","SecretData":"x","SecretDataType":"text","SecretType":"Generic","VersionStages":{"VersionStage":["ACSCurrent"]},"CreateTime":"2024-02-21T15:39:26Z","RequestId":"r"}`

// Whatever is answered, the result is the secret that was asked for, or an error and nothing.
func FuzzAnswer(f *testing.F) {
	f.Add(200, cannedValue)
	f.Add(200, `{"SecretName":"app/db","VersionId":1,"SecretData":true,"VersionStages":null,"RequestId":2}`)
	f.Add(200, `{"SecretName":"app/db"`)
	f.Add(200, `[]`)
	f.Add(404, `{"Code":"Forbidden.ResourceNotFound","Message":"no","RequestId":"r"}`)
	f.Add(400, `{"Code":1,"Message":{},"RequestId":[],"AccessDeniedDetail":"x"}`)
	f.Add(503, "<html>")
	f.Fuzz(func(t *testing.T, status int, body string) {
		if status < 200 || status > 599 {
			return
		}
		v, err := cannedClient(t, status, body).GetSecretValue(context.Background(), upstream.SecretRef{SecretName: "app/db"})
		if err != nil {
			if !errors.As(err, new(*upstream.Error)) || v.VersionID != "" || v.SecretData.Len() != 0 {
				t.Fatalf("%d %q: %T %v with version %q", status, body, err, err, v.VersionID)
			}
			return
		}
		if status >= 300 || v.SecretName != "app/db" || v.VersionID == "" || v.RequestID == "" {
			t.Fatalf("%d %q became %+v", status, body, v)
		}
	})
}
