package endpoint_test

import (
	"strings"
	"testing"

	"secretagent/agent/endpoint"
	"secretagent/upstream"
)

// TestConnectionRemembersNothingThatChanged asks on one connection for things that look alike.
func TestConnectionRemembersNothingThatChanged(t *testing.T) {
	r := start(t, endpoint.Options{Callers: []endpoint.Caller{callerWith(t, "web", []string{"*"}, token), callerWith(t, "batch", []string{"b"}, batchToken)}})
	r.put(value("a", "v1", `{"k":"first"}`, upstream.ACSCurrent))
	r.put(value("b", "v1", `{"k":"of b"}`, upstream.ACSCurrent))
	c := dial(t, "tcp", r.addr)
	ask := func(target, token string, header ...string) reply {
		t.Helper()
		c.send(request("GET", target, append([]string{hostLine, "X-KMS-Token: " + token}, header...)...))
		return c.receive("GET")
	}
	for step, test := range []struct {
		target, token string
		status        int
		contains      string
		contentType   string
	}{
		{"/v1/a", token, 200, "first", "application/json"},
		{"/v1/a", token, 200, "first", "application/json"},
		{"/v1/a", token, 200, "first", "application/json"},
		{"/v1/b", token, 200, "of b", "application/json"},
		{"/v1/a?field=k", token, 200, "first", "text/plain; charset=utf-8"},
		{"/v1/a?field=k", token, 200, "first", "text/plain; charset=utf-8"},
		{"/v1/a?field=k", token, 200, "first", "text/plain; charset=utf-8"},
		{"/v1/a?field=x", token, 404, "FieldNotFound", "application/json"},
		{"/v1/a?field=k", token, 200, "first", "text/plain; charset=utf-8"},
		{"/v1/a", token, 200, "SecretData", "application/json"},
		{"/v1/%61", token, 200, "SecretData", "application/json"},
		{"/v1/%62", token, 200, "of b", "application/json"},
		{"/v1/%61?foo=%62", token, 400, "foo", "application/json"},
		{"/v1/%61", token, 200, "first", "application/json"},
		{"/secretsmanager/batch?secretId=%62&secretId=%62", token, 200, "of b", "application/json"},
		{"/v1/%61", token, 200, "first", "application/json"},
		{"/v1/a", batchToken, 403, "NoPermission", "application/json"},
		{"/v1/b", batchToken, 200, "of b", "application/json"},
		{"/v1/b", token, 200, "of b", "application/json"},
		{"/v1/a", token, 200, "first", "application/json"},
		{"/v1/" + strings.Repeat("x", 150) + "?versionStage=" + strings.Repeat("y", 64) + "&format=aws", token, 404, "ResourceNotFound", "application/json"},
		{"/v1/a", token, 200, "first", "application/json"},
	} {
		got := ask(test.target, test.token)
		if got.status != test.status || !strings.Contains(got.body, test.contains) || got.header.Get("Content-Type") != test.contentType {
			t.Errorf("step %d: %s: %d %s %s", step, test.target, got.status, got.header.Get("Content-Type"), got.body)
		}
		if tag := got.header.Get("Etag"); (tag != "") != (test.status == 200 && !strings.Contains(test.target, "batch")) {
			t.Errorf("step %d: ETag %q on a %d", step, tag, got.status)
		}
	}
	first := ask("/v1/a", token)
	if got := ask("/v1/a", token, "If-None-Match: "+first.header.Get("Etag")); got.status != 304 {
		t.Errorf("conditional: %d", got.status)
	}
	r.put(value("a", "v2", `{"k":"second"}`, upstream.ACSCurrent))
	second := ask("/v1/a", token)
	if !strings.Contains(second.body, "second") || second.header.Get("Etag") == first.header.Get("Etag") || second.header.Get("X-Request-Id") == first.header.Get("X-Request-Id") {
		t.Errorf("after a change: %v %s", second.header, second.body)
	}
	if err := r.srv.SetCallers([]endpoint.Caller{callerWith(t, "web", []string{"b"}, token)}); err != nil {
		t.Fatal(err)
	}
	if got := ask("/v1/a", token); got.status != 403 || got.code != "Forbidden.NoPermission" {
		t.Errorf("after the rights shrank: %d %s", got.status, got.code)
	}
	if got := ask("/v1/b", batchToken); got.status != 403 || got.code != "TokenInvalid" {
		t.Errorf("after the caller went: %d %s", got.status, got.code)
	}
}
