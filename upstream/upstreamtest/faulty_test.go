package upstreamtest_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"secretagent/upstream/upstreamtest"
)

// soon waits until something has happened.
func soon(t *testing.T, what string, happened func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !happened(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("waited a minute: %s", what)
			return
		}
	}
}

func TestFaulty(t *testing.T) {
	var served atomic.Int32
	target := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		served.Add(1)
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s", r.URL.Path, body)
	}))
	t.Cleanup(target.Close)
	proxy := upstreamtest.NewFaulty(t, strings.TrimPrefix(target.URL, "http://"))
	client := &http.Client{Transport: &http.Transport{}, Timeout: time.Minute}
	t.Cleanup(client.CloseIdleConnections)
	ask := func(ctx context.Context) (string, error) {
		request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+proxy.Addr()+"/p", strings.NewReader("body"))
		if err != nil {
			return "", err
		}
		r, err := client.Do(request)
		if err != nil {
			return "", err
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		return fmt.Sprint(r.StatusCode, " ", string(body)), err
	}
	const good = "200 /p body"
	for range 3 {
		if got, err := ask(t.Context()); got != good || err != nil {
			t.Fatalf("quiet: %q, %v", got, err)
		}
	}
	if c, r := proxy.Connections(), proxy.Requests(); c != 1 || r != 3 {
		t.Errorf("%d connections and %d requests, want 1 and 3", c, r)
	}
	for _, c := range []struct {
		fault  upstreamtest.Fault
		leaves bool   // the client does, once the request is where it can go
		answer string // empty: an error
		served int32  // requests that reach the target
	}{
		{upstreamtest.TooManyRequests, false, "429 ", 0},
		{upstreamtest.InternalFailure, false, "500 ", 0},
		{upstreamtest.Unavailable, false, "503 ", 0},
		{upstreamtest.HTML, false, "200 <html>", 0},
		{upstreamtest.HalfJSON, false, "200 {", 0},
		{upstreamtest.Garbage, false, "", 0},
		{upstreamtest.Reset, false, "", 0},
		{upstreamtest.BlackHole, true, "", 0},
		{upstreamtest.LostAnswer, false, "", 1},
		{upstreamtest.Truncate(20), false, "", 1},
		{upstreamtest.Slow(time.Minute), true, "", 1},
		{upstreamtest.Delay(50 * time.Millisecond), false, good, 1},
		{upstreamtest.Delay(time.Hour), true, "", 0},
	} {
		arrived, before := proxy.Requests(), served.Load()
		ctx, leave := context.WithCancel(t.Context())
		if c.leaves {
			go func() {
				soon(t, c.fault.String(), func() bool { return proxy.Requests() > arrived && served.Load()-before == c.served })
				leave()
			}()
		}
		proxy.Next(c.fault)
		if got, err := ask(ctx); (err != nil) != (c.answer == "") || !strings.HasPrefix(got, c.answer) {
			t.Errorf("%s: got %q, %v", c.fault, got, err)
		}
		leave()
		if got, err := ask(t.Context()); got != good || err != nil {
			t.Errorf("%s: the request after it: %q, %v", c.fault, got, err)
		}
		if n := served.Load() - before - 1; n != c.served {
			t.Errorf("%s: %d requests reached the target, want %d", c.fault, n, c.served)
		}
	}

	// A fault that is set ends when it is unset.
	proxy.Set(upstreamtest.BlackHole)
	before, lost := proxy.Requests(), make(chan error)
	go func() { _, err := ask(t.Context()); lost <- err }()
	soon(t, "a request falls into the hole", func() bool { return proxy.Requests() > before })
	proxy.Set(upstreamtest.Fault{})
	if err := <-lost; err == nil {
		t.Error("a request in the hole was answered")
	}
	if got, err := ask(t.Context()); got != good || err != nil {
		t.Errorf("after it: %q, %v", got, err)
	}
}
