package kms_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/kms"
	"secretagent/upstream/kmsserver"
	"secretagent/upstream/upstreamtest"
)

// startWatched serves a store that tells of its changes.
func startWatched(t *testing.T) (addr net.Addr, put func(name, version string)) {
	t.Helper()
	store, _ := backend(t)
	for _, name := range []upstream.SecretName{"app/a", "app/b"} {
		must(store.CreateSecret(t.Context(), upstream.CreateSecretInput{SecretName: name, VersionID: "v1", SecretData: upstream.NewSecretData([]byte("first"))}))
	}
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	server := serve(t, store, ln, kmsserver.Signed, kmsserver.Options{Watch: true})
	t.Cleanup(store.OnChange(server.Changed))
	return ln.Addr(), func(name, version string) {
		must(store.PutSecretValue(t.Context(), upstream.PutSecretValueInput{
			SecretName: upstream.SecretName(name), VersionID: upstream.VersionID(version), SecretData: upstream.NewSecretData([]byte(version)),
		}))
	}
}

// watch runs a watch until the test ends, and returns what it tells.
func watch(t *testing.T, client *kms.Client) (told chan upstream.SecretName) {
	t.Helper()
	told = make(chan upstream.SecretName, 100)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		client.Watch(ctx, func(name upstream.SecretName) {
			select {
			case told <- name:
			case <-ctx.Done():
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return told
}

func wantTold(t *testing.T, told <-chan upstream.SecretName, want upstream.SecretName) {
	t.Helper()
	select {
	case got := <-told:
		if got != want {
			t.Errorf("told of %q, want %q", got, want)
		}
	case <-time.After(time.Minute):
		t.Fatalf("told of nothing, want %q", want)
	}
}

func awaitWatch(t *testing.T, client *kms.Client, state string) kms.WatchStatus {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		switch s := client.Status().Watch; {
		case s.State == state:
			return s
		case time.Now().After(end):
			t.Fatalf("the watch is %+v, want %s", s, state)
		}
	}
}

func readSecret(t *testing.T, client *kms.Client) {
	t.Helper()
	must(client.GetSecretValue(t.Context(), upstream.SecretRef{SecretName: "app/a"}))
}

func TestAWatchTellsOfChanges(t *testing.T) {
	addr, put := startWatched(t)
	client := connect(t, kms.Options{Endpoints: []kms.Endpoint{plain(addr)}, MaxConcurrent: 1})
	told := watch(t, client)
	if s := client.Status().Watch; s.State != "off" {
		t.Errorf("before the first answer it is %+v", s)
	}
	readSecret(t, client)
	put("app/b", "v2") // between the read and the watch
	wantTold(t, told, "app/b")
	if s := awaitWatch(t, client, "on"); s.Endpoint != addr.String() || s.Since.IsZero() || s.Changes != 1 {
		t.Errorf("%+v", s)
	}
	put("app/a", "v2")
	wantTold(t, told, "app/a")
	readSecret(t, client) // the one connection for calls is free
}

func TestAWatchCatchesUp(t *testing.T) {
	addr, put := startWatched(t)
	proxy := upstreamtest.NewFaulty(t, addr.String())
	client := connect(t, kms.Options{Endpoints: []kms.Endpoint{over(proxy)}})
	told := watch(t, client)
	readSecret(t, client)
	awaitRequests(t, proxy, 3) // the read, a poll that only looks, and one that waits
	proxy.Set(upstreamtest.Reset)
	put("app/a", "v2") // the poll that waits is still answered
	wantTold(t, told, "app/a")
	if s := awaitWatch(t, client, "broken"); s.LastFailure != "ServiceUnavailableTemporary" {
		t.Errorf("%+v", s)
	}
	put("app/b", "v2")
	proxy.Set(upstreamtest.Fault{})
	wantTold(t, told, "app/b")
	awaitWatch(t, client, "on")
}

func awaitRequests(t *testing.T, proxy *upstreamtest.Faulty, n int) {
	t.Helper()
	for end := time.Now().Add(time.Minute); proxy.Requests() < n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d requests", proxy.Requests())
		}
	}
}

// TestAnotherServerMayHaveMissedSomething: a server that was started anew knows nothing of what
// happened before, and one that offers nothing is asked no more.
func TestAnotherServerMayHaveMissedSomething(t *testing.T) {
	first, put := startWatched(t)
	second, putSecond := startWatched(t)
	var target atomic.Pointer[string]
	aim := func(addr net.Addr) { s := addr.String(); target.Store(&s) }
	aim(first)
	client := connect(t, kms.Options{Endpoints: []kms.Endpoint{plain(forward(t, &target))}})
	told := watch(t, client)
	readSecret(t, client)
	put("app/a", "v2")
	wantTold(t, told, "app/a")
	aim(second)
	put("app/a", "v3") // ends the poll at the first, where there is one
	for name := range told {
		if name == upstream.AnySecret {
			break
		}
	}

	third, asked := startUnwatched(t)
	aim(third)
	putSecond("app/a", "v2")
	awaitWatch(t, client, "off")
	readSecret(t, client)
	readSecret(t, client)
	wantAsked(t, asked, " InvalidApi.NotFound", "GetSecretValue ", "GetSecretValue ")
}

// startUnwatched serves a store that tells of nothing, as the cloud does, and returns what it is
// asked and how that ends.
func startUnwatched(t *testing.T) (addr net.Addr, asked chan string) {
	t.Helper()
	store, _ := backend(t)
	must(store.CreateSecret(t.Context(), upstream.CreateSecretInput{SecretName: "app/a", VersionID: "v1", SecretData: upstream.NewSecretData([]byte("x"))}))
	asked = make(chan string, 100)
	return start(t, store, nil, kmsserver.Options{Observe: func(action, code string, _ int, _ time.Duration) { asked <- action + " " + code }}), asked
}

func wantAsked(t *testing.T, asked <-chan string, want ...string) {
	t.Helper()
	for _, w := range want {
		if got := <-asked; got != w {
			t.Errorf("asked %q, want %q", got, w)
		}
	}
	select {
	case got := <-asked:
		t.Errorf("asked %q, too", got)
	default:
	}
}

func TestAServerThatOffersNoWatchIsNotAsked(t *testing.T) {
	addr, asked := startUnwatched(t)
	client := connect(t, kms.Options{Endpoints: []kms.Endpoint{plain(addr)}})
	watch(t, client)
	for range 3 {
		readSecret(t, client)
	}
	wantAsked(t, asked, "GetSecretValue ", "GetSecretValue ", "GetSecretValue ")
	if s := client.Status().Watch; s.State != "off" {
		t.Errorf("%+v", s)
	}
}

// TestTheCloudIsNeverWatched: whatever stands between may add what it likes to an answer.
func TestTheCloudIsNeverWatched(t *testing.T) {
	for host, want := range map[string]bool{
		"":                                     false,
		"kms-vpc.cn-hangzhou.aliyuncs.com":     false,
		"KMS.cn-hangzhou.ALIYUNCS.com:443":     false,
		"kst-x.cryptoservice.kms.aliyuncs.com": false,
		"relay.internal:2026":                  true,
	} {
		client := connect(t, kms.Options{Endpoints: []kms.Endpoint{{Region: "cn-hangzhou", Host: host}}})
		if got := kms.Offers(client, http.Header{http.CanonicalHeaderKey(upstream.WatchHeader): {"cursor"}}); got != want {
			t.Errorf("%q: watched %v", host, got)
		}
	}
}

// forward passes each request on to the server that target names.
func forward(t *testing.T, target *atomic.Pointer[string]) net.Addr {
	t.Helper()
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	transport := &http.Transport{DisableKeepAlives: true}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := r.Clone(r.Context())
		out.RequestURI, out.URL.Scheme, out.URL.Host = "", "http", *target.Load()
		answer, err := transport.RoundTrip(out)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		defer answer.Body.Close()
		for name := range answer.Header {
			w.Header().Set(name, answer.Header.Get(name))
		}
		w.WriteHeader(answer.StatusCode)
		_, _ = io.Copy(w, answer.Body)
	})}
	go func() { _ = server.Serve(ln) }()
	t.Cleanup(func() { _ = server.Close() })
	return ln.Addr()
}
