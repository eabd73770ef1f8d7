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

// soon waits until something has happened.
func soon(t *testing.T, what string, happened func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !happened(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited a minute: %s", what)
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
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	ask := func(patience time.Duration) (string, error) {
		client := &http.Client{Transport: transport, Timeout: patience}
		r, err := client.Post("http://"+proxy.Addr()+"/p", "text/plain", strings.NewReader("body"))
		if err != nil {
			return "", err
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		return fmt.Sprint(r.StatusCode, " ", string(body)), err
	}
	const (
		good             = "200 /p body"
		patient, hurried = time.Minute, 100 * time.Millisecond
	)
	for range 3 {
		if got, err := ask(patient); got != good || err != nil {
			t.Fatalf("quiet: %q, %v", got, err)
		}
	}
	if c, r := proxy.Connections(), proxy.Requests(); c != 1 || r != 3 {
		t.Errorf("%d connections and %d requests, want 1 and 3", c, r)
	}
	for _, c := range []struct {
		fault    upstreamtest.Fault
		patience time.Duration
		answer   string // empty: an error
		served   int32  // requests that reach the target
	}{
		{upstreamtest.TooManyRequests, patient, "429 ", 0},
		{upstreamtest.InternalFailure, patient, "500 ", 0},
		{upstreamtest.Unavailable, patient, "503 ", 0},
		{upstreamtest.HTML, patient, "200 <html>", 0},
		{upstreamtest.HalfJSON, patient, "200 {", 0},
		{upstreamtest.Garbage, patient, "", 0},
		{upstreamtest.Reset, patient, "", 0},
		{upstreamtest.BlackHole, hurried, "", 0},
		{upstreamtest.LostAnswer, patient, "", 1},
		{upstreamtest.Truncate(20), patient, "", 1},
		{upstreamtest.Slow(time.Minute), hurried, "", 1},
		{upstreamtest.Delay(50 * time.Millisecond), patient, good, 1},
		{upstreamtest.Delay(time.Hour), hurried, "", 0},
	} {
		before := served.Load()
		proxy.Next(c.fault)
		got, err := ask(c.patience)
		if (err != nil) != (c.answer == "") || !strings.HasPrefix(got, c.answer) {
			t.Errorf("%s: got %q, %v", c.fault, got, err)
		}
		soon(t, c.fault.String()+": the request reaches the target", func() bool { return served.Load()-before >= c.served })
		if got, err := ask(patient); got != good || err != nil {
			t.Errorf("%s: the request after it: %q, %v", c.fault, got, err)
		}
		if n := served.Load() - before - 1; n != c.served {
			t.Errorf("%s: %d requests reached the target, want %d", c.fault, n, c.served)
		}
	}

	// A fault that is set ends when it is unset.
	proxy.Set(upstreamtest.BlackHole)
	before, lost := proxy.Requests(), make(chan error)
	go func() { _, err := ask(patient); lost <- err }()
	soon(t, "a request falls into the hole", func() bool { return proxy.Requests() > before })
	proxy.Set(upstreamtest.Fault{})
	if err := <-lost; err == nil {
		t.Error("a request in the hole was answered")
	}
	if got, err := ask(patient); got != good || err != nil {
		t.Errorf("after it: %q, %v", got, err)
	}
}

func TestFaultyPassesTLS(t *testing.T) {
	target := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") }))
	t.Cleanup(target.Close)
	proxy := upstreamtest.NewFaulty(t, strings.TrimPrefix(target.URL, "https://"))
	client := target.Client()
	ask := func(patience time.Duration) error {
		client.CloseIdleConnections()
		client.Timeout = patience
		r, err := client.Get("https://" + proxy.Addr())
		if err != nil {
			return err
		}
		defer r.Body.Close()
		_, err = io.Copy(io.Discard, r.Body)
		return err
	}
	if err := ask(time.Minute); err != nil {
		t.Fatal(err)
	}
	for fault, patience := range map[*upstreamtest.Fault]time.Duration{
		&upstreamtest.Reset: time.Minute, &upstreamtest.Unavailable: time.Minute, &upstreamtest.LostAnswer: time.Minute, &upstreamtest.BlackHole: 100 * time.Millisecond,
	} {
		proxy.Next(*fault)
		if err := ask(patience); err == nil {
			t.Errorf("%s: answered", fault)
		}
		if err := ask(time.Minute); err != nil {
			t.Errorf("after %s: %v", fault, err)
		}
	}
}
