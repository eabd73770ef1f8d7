package command

import (
	"context"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"secretagent/agent/config"
	"secretagent/upstream"
)

const testToken = "hunter2-hunter2-hunter2"

// endpointApp returns the command line with a configuration, in the folder dir, whose endpoint is
// at the address of a test server.
func endpointApp(t *testing.T, address, more string) (a *app, dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "token"), []byte(testToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(more, "callers:") {
		more = "tokenFile: token, " + more
	}
	path := filepath.Join(dir, "agent.yaml")
	if err := os.WriteFile(path, []byte("upstream: {local: }\nendpoint: {listen: \""+address+"\", "+more+"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return &app{configFlag: path}, dir
}

// client is [app.client] as the tests use it.
func client(a *app, caller string) (*endpointClient, error) {
	c, _, err := a.client(reachFlags{caller: caller})
	return c, err
}

func TestEndpointClient(t *testing.T) {
	for _, c := range []struct {
		name    string
		handler http.HandlerFunc
		want    string // body
		is      error
		text    string
	}{
		{"an answer", func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("X-KMS-Token") != testToken || r.URL.EscapedPath() != "/v1/app/db+1=@" || r.URL.RawQuery != "versionStage=A%2BB" {
				http.Error(w, r.URL.String(), http.StatusTeapot)
				return
			}
			_, _ = w.Write([]byte("value"))
		}, "value", nil, ""},
		{"no such secret", problem(404, "Forbidden.ResourceNotFound"), "", upstream.ErrNotFound, "why (Forbidden.ResourceNotFound, request id r-1)"},
		{"no such field", problem(404, "FieldNotFound"), "", upstream.ErrNotFound, "why"},
		{"a wrong token", problem(403, "TokenInvalid"), "", upstream.ErrAccessDenied, "why"},
		{"a bad parameter", problem(400, "InvalidParameter"), "", upstream.ErrInvalidParameter, "why"},
		{"an outage", problem(503, "ServiceUnavailableTemporary"), "", upstream.ErrUnavailable, "why"},
		{"a timeout", problem(504, "UpstreamTimeout"), "", upstream.ErrUnavailable, "why"},
		{"a request that was too slow", problem(408, "RequestTimeout"), "", upstream.ErrUnavailable, "why"},
		{"somebody else's server", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "hello", 404) }, "", upstream.ErrUnavailable, "is something else listening there?"},
		{"a redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://example.com/", http.StatusFound)
		}, "", upstream.ErrUnavailable, "status 302"},
		{"a broken answer", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = w.Write([]byte("hal"))
		}, "", upstream.ErrUnavailable, "broke off"},
		{"an endless answer", func(w http.ResponseWriter, r *http.Request) {
			chunk := make([]byte, 1<<16)
			for r.Context().Err() == nil {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		}, "", upstream.ErrUnavailable, "too large"},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := httptest.NewServer(c.handler)
			defer server.Close()
			a, _ := endpointApp(t, server.Listener.Addr().String(), "")
			client, err := client(a, "")
			if err != nil {
				t.Fatal(err)
			}
			body, err := client.call(t.Context(), http.MethodGet, "/v1/app/db+1=@", url.Values{"versionStage": {"A+B"}})
			if string(body) != c.want || !errors.Is(err, c.is) || err != nil && !strings.Contains(err.Error(), c.text) {
				t.Errorf("body %q, error %v", body, err)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the token is shown: %v", err)
			}
		})
	}
}

// problem answers as the endpoint does when it says no.
func problem(status int, code string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = w.Write([]byte(`{"Code":"` + code + `","Message":"why.","RequestId":"r-1"}`))
	}
}

func TestEndpointClientAcceptsTheConfiguredCertificateOnly(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("value")) }))
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // the refused handshake
	server.StartTLS()
	defer server.Close()
	right := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	a, dir := endpointApp(t, server.Listener.Addr().String(), "tls: {certFile: a.crt, keyFile: a.key}")
	certFile := filepath.Join(dir, "a.crt")
	write := func(b []byte) {
		t.Helper()
		if err := os.WriteFile(certFile, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := client(a, ""); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without the certificate: %v", err)
	}
	write([]byte("no certificate"))
	if _, err := client(a, ""); err == nil || !strings.Contains(err.Error(), "does not begin with a certificate") {
		t.Errorf("garbage: %v", err)
	}
	write(right)
	known, err := client(a, "")
	if err != nil {
		t.Fatal(err)
	}
	if body, err := known.call(t.Context(), http.MethodGet, "/v1/a", nil); err != nil || string(body) != "value" {
		t.Errorf("body %q, error %v", body, err)
	}
	wrong := append([]byte(nil), server.Certificate().Raw...)
	wrong[len(wrong)-1] ^= 1 // the signature
	write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: wrong}))
	stranger, err := client(a, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stranger.call(t.Context(), http.MethodGet, "/v1/a", nil); !errors.Is(err, upstream.ErrUnavailable) || !strings.Contains(err.Error(), "the certificate is not the one in") {
		t.Errorf("another certificate: %v", err)
	}
}

func TestEndpointClientGivesUp(t *testing.T) {
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer server.Close()
	defer close(release)
	a, _ := endpointApp(t, server.Listener.Addr().String(), "")
	client, err := client(a, "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = client.call(ctx, http.MethodGet, "/v1/a", nil)
	if !errors.Is(err, context.DeadlineExceeded) || upstream.ExitCode(err) != upstream.ExitUnavailable {
		t.Errorf("error %v", err)
	}
}

func TestEndpointClientAsksAsACaller(t *testing.T) {
	const callers = `socket: a.sock, callers: [{name: web, tokenFile: web.token, secrets: ["*"]}, {name: job, uids: [0], secrets: ["*"]}]`
	for _, c := range []struct{ name, more, caller, file, err string }{
		{"the token of all", "", "", "token", ""},
		{"a caller that nobody configured", "", "web", "", "no endpoint.callers are configured"},
		{"one of several", callers, "web", "web.token", ""},
		{"one without token", callers, "job", "", ""},
		{"none of several", callers, "", "", "say with --caller as which of endpoint.callers to ask: web, job"},
		{"an unknown one", callers, "wbe", "", "none of endpoint.callers has this name"},
		{"the only one", `callers: [{name: web, tokenFile: web.token, secrets: ["*"]}]`, "", "web.token", ""},
	} {
		a, dir := endpointApp(t, "127.0.0.1:0", c.more)
		r := config.Source{File: a.configFlag}.ReadReach()
		file, err := tokenFileOf(&r.Endpoint, c.caller)
		if c.file != "" {
			c.file = filepath.Join(dir, c.file)
		}
		if file != c.file || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %s, %v", c.name, file, err)
		}
	}
}
