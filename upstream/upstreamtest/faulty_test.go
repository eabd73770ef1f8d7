package upstreamtest_test

import (
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

func TestFaulty(t *testing.T) {
	var served atomic.Int32
	target := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		served.Add(1)
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s", r.URL.Path, body)
	}))
	t.Cleanup(target.Close)
	proxy := upstreamtest.NewFaulty(t, strings.TrimPrefix(target.URL, "http://"))
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	client := &http.Client{Transport: transport, Timeout: 200 * time.Millisecond}
	ask := func() (string, error) {
		r, err := client.Post("http://"+proxy.Addr()+"/p", "text/plain", strings.NewReader("body"))
		if err != nil {
			return "", err
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		return fmt.Sprint(r.StatusCode, " ", string(body)), err
	}
	const good = "200 /p body"

	for range 3 {
		if got, err := ask(); got != good || err != nil {
			t.Fatalf("quiet: %q, %v", got, err)
		}
	}
	if c, r := proxy.Connections(), proxy.Requests(); c != 1 || r != 3 {
		t.Errorf("%d connections and %d requests, want 1 and 3", c, r)
	}
	for _, c := range []struct {
		fault  upstreamtest.Fault
		answer string // empty: an error
		served int32  // requests that reach the target
	}{
		{upstreamtest.TooManyRequests, "429 ", 0},
		{upstreamtest.InternalFailure, "500 ", 0},
		{upstreamtest.Unavailable, "503 ", 0},
		{upstreamtest.HTML, "200 <html>", 0},
		{upstreamtest.HalfJSON, "200 {", 0},
		{upstreamtest.Garbage, "", 0},
		{upstreamtest.Reset, "", 0},
		{upstreamtest.BlackHole, "", 0},
		{upstreamtest.LostAnswer, "", 1},
		{upstreamtest.Truncate(20), "", 1},
		{upstreamtest.Slow(50 * time.Millisecond), "", 1},
		{upstreamtest.Delay(50 * time.Millisecond), good, 1},
		{upstreamtest.Delay(time.Second), "", 0},
	} {
		t.Run(c.fault.String(), func(t *testing.T) {
			before := served.Load()
			proxy.Next(c.fault)
			got, err := ask()
			if (err != nil) != (c.answer == "") || !strings.HasPrefix(got, c.answer) {
				t.Errorf("got %q, %v", got, err)
			}
			if n := served.Load() - before; n != c.served {
				t.Errorf("%d requests reached the target, want %d", n, c.served)
			}
			if got, err := ask(); got != good || err != nil {
				t.Errorf("the request after it: %q, %v", got, err)
			}
		})
	}

	t.Run("a fault that is set ends when it is unset", func(t *testing.T) {
		client.Timeout = 5 * time.Second
		proxy.Set(upstreamtest.BlackHole)
		time.AfterFunc(50*time.Millisecond, func() { proxy.Set(upstreamtest.Fault{}) })
		if got, err := ask(); err == nil {
			t.Errorf("a request in the hole was answered: %q", got)
		}
		if got, err := ask(); got != good || err != nil {
			t.Errorf("after it: %q, %v", got, err)
		}
	})
}

func TestFaultyPassesTLS(t *testing.T) {
	target := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") }))
	t.Cleanup(target.Close)
	proxy := upstreamtest.NewFaulty(t, strings.TrimPrefix(target.URL, "https://"))
	client := target.Client()
	client.Timeout = 200 * time.Millisecond
	ask := func() error {
		client.CloseIdleConnections()
		r, err := client.Get("https://" + proxy.Addr())
		if err != nil {
			return err
		}
		defer r.Body.Close()
		_, err = io.Copy(io.Discard, r.Body)
		return err
	}
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	for _, fault := range []upstreamtest.Fault{
		upstreamtest.Reset, upstreamtest.BlackHole, upstreamtest.Unavailable, upstreamtest.Truncate(20), upstreamtest.Slow(time.Second),
	} {
		proxy.Next(fault)
		if err := ask(); err == nil {
			t.Errorf("%s: answered", fault)
		}
		if err := ask(); err != nil {
			t.Errorf("after %s: %v", fault, err)
		}
	}
}
