package endpoint_test

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"secretagent/agent/endpoint"
	"secretagent/upstream"
)

func TestBothPathsAnswerTheSame(t *testing.T) {
	r := start(t, endpoint.Options{})
	v := value("app/db", "v1", `{"username":"app","password":"first"}`, upstream.ACSCurrent)
	r.put(v)
	want := string(upstream.GetSecretValueJSON(v))
	for _, target := range []string{
		"/v1/app/db", "/v1/app%2Fdb", "/v1/app%2fdb", "/v1/app/db:ACSCurrent", "/v1/%61pp/db",
		"/v1/acs:kms:::secret/app/db", "/secretsmanager/get?secretId=acs:kms:::secret/app/db:ACSCurrent",
		"/v1/app/db?versionId=v1", "/v1/app/db?versionStage=ACSCurrent", "/v1/app/db?format=kms",
		"/secretsmanager/get?secretId=app/db", "/secretsmanager/get?secretId=app%2Fdb", "/secretsmanager/get?secretId=app/db:ACSCurrent",
		"/secretsmanager/get?versionStage=ACSCurrent&secretId=app%2fdb&refreshNow=false",
		"/secretsmanager/get?%73ecretId=app/db",
	} {
		got := r.get(t, target)
		if got.status != 200 || got.body != want {
			t.Errorf("%s: %d %s", target, got.status, got.body)
		}
		for header, pattern := range map[string]string{
			"Content-Type": `^application/json$`, "Cache-Control": `^no-store$`,
			"X-Cache": `^hit$`, "Age": `^\d+$`, "Etag": `^"[A-Za-z0-9_-]{22}"$`,
			"X-Request-Id": `^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`,
			"Server":       `^$`, "Date": `^$`, "X-Cache-Reason": `^$`,
		} {
			if value := got.header.Get(header); !regexp.MustCompile(pattern).MatchString(value) {
				t.Errorf("%s: %s: %q", target, header, value)
			}
		}
	}
	if n := r.lookups.Load(); n != 0 {
		t.Errorf("%d lookups for held values", n)
	}
}

// TestAnARNIsTheSecretOfItsAccount holds secrets of one name that belong to two accounts.
func TestAnARNIsTheSecretOfItsAccount(t *testing.T) {
	const arn, other = "acs:kms:cn-hangzhou:1:secret/app/db", "acs:kms:cn-hangzhou:2:secret/app/db"
	names := strings.Repeat("n", 32)
	r := start(t, endpoint.Options{Callers: []endpoint.Caller{
		callerWith(t, "all", []string{"*"}, token),
		callerWith(t, "names", []string{"app/*", "*db", "acs*"}, names),
	}})
	r.put(value("app/db", "v1", "our own", upstream.ACSCurrent))
	r.put(value(arn, "v2", "of account 1", upstream.ACSCurrent))
	for target, want := range map[string]string{
		"/v1/app/db?format=raw":                                                        "our own",
		"/v1/" + arn + "?format=raw":                                                   "of account 1",
		"/secretsmanager/get?format=raw&secretId=" + arn:                               "of account 1",
		"/secretsmanager/get?format=raw&secretId=acs:kms:::secret/app/db":              "our own",
		"/v1/" + arn + "?format=kms":                                                   `{"SecretName":"app/db","VersionId":"v2",`,
		"/v1/" + arn + "?format=aws":                                                   `{"ARN":"` + arn + `","Name":"app/db","VersionId":"v2",`,
		"/v1/app/db?format=aws":                                                        `{"ARN":"arn:aws:secretsmanager:::secret:app/db-24c7bc","Name":"app/db","VersionId":"v1",`,
		"/secretsmanager/batch?secretId=app/db&secretId=" + arn + "&secretId=" + other: "our own",
	} {
		got := r.get(t, target)
		if got.status != 200 || !strings.Contains(got.body, want) {
			t.Errorf("%s: %d %s, want %s", target, got.status, got.body, want)
		}
	}
	if got := r.get(t, "/v1/"+other); got.status != 404 {
		t.Errorf("of an account that has none: %d %s", got.status, got.body)
	}
	for target, want := range map[string]int{"/v1/app/db": 200, "/v1/acs:kms:::secret/app/db": 200, "/v1/" + arn: 403, "/v1/" + other: 403} {
		c := r.dial(t)
		c.send(request("GET", target, hostLine, "X-KMS-Token: "+names))
		if got := c.receive("GET"); got.status != want {
			t.Errorf("a caller who may read names: %s: %d, want %d", target, got.status, want)
		}
	}
}

func TestTokenHeadersOfEveryAgent(t *testing.T) {
	r := start(t, endpoint.Options{})
	r.put(value("a", "v1", "x", upstream.ACSCurrent))
	for _, header := range []string{"X-KMS-Token", "X-Vault-Token", "X-Aws-Parameters-Secrets-Token", "x-kms-token", "X-VAULT-TOKEN"} {
		c := r.dial(t)
		c.send(request("GET", "/v1/a", hostLine, header+": "+token))
		if got := c.receive("GET"); got.status != 200 {
			t.Errorf("%s: %d %s", header, got.status, got.code)
		}
	}
	c := r.dial(t)
	if got := c.ask("/v1/a", "X-Vault-Token: "+token); got.status != 200 {
		t.Errorf("the same token twice: %d %s", got.status, got.code)
	}
}

// TestAttacks sends hostile requests and compares status and code. No answer may hold the
// value, and none may come with a header that tells more.
func TestAttacks(t *testing.T) {
	r := start(t, endpoint.Options{
		Callers: []endpoint.Caller{
			{Name: "web", Tokens: []endpoint.Token{mustToken(t, token)}, Secrets: []string{"web/*", "x"}},
		},
		MaxHeaderBytes: 4 << 10, MaxBatch: 3,
	})
	r.put(value("web/db", "v1", marker, upstream.ACSCurrent))
	r.put(value("other/db", "v1", marker, upstream.ACSCurrent))
	ok := []string{hostLine, tokenLine}
	for _, test := range []struct {
		name   string
		raw    string
		status int
		code   string
	}{
		{"the honest request", request("GET", "/v1/web/db", ok...), 200, ""},
		{"no token", request("GET", "/v1/web/db", hostLine), 403, "TokenMissing"},
		{"an empty token", request("GET", "/v1/web/db", hostLine, "X-KMS-Token:"), 403, "TokenInvalid"},
		{"a wrong token", request("GET", "/v1/web/db", hostLine, "X-KMS-Token: "+token[1:]+"0"), 403, "TokenInvalid"},
		{"a prefix of the token", request("GET", "/v1/web/db", hostLine, "X-KMS-Token: "+token[:32]), 403, "TokenInvalid"},
		{"the token and more", request("GET", "/v1/web/db", hostLine, tokenLine+"0"), 403, "TokenInvalid"},
		{"the token in upper case", request("GET", "/v1/web/db", hostLine, "X-KMS-Token: "+strings.ToUpper(token)), 403, "TokenInvalid"},
		{"two tokens that differ", request("GET", "/v1/web/db", hostLine, tokenLine, "X-Vault-Token: "+token[1:]+"0"), 403, "TokenInvalid"},
		{"two tokens that differ, the right one last", request("GET", "/v1/web/db", hostLine, "X-Vault-Token: "+token[1:]+"0", tokenLine), 403, "TokenInvalid"},
		{"the token as a query parameter", request("GET", "/v1/web/db?token="+token, hostLine), 403, "TokenMissing"},
		{"the token in a cookie", request("GET", "/v1/web/db", hostLine, "Cookie: X-KMS-Token="+token), 403, "TokenMissing"},
		{"the token as a bearer", request("GET", "/v1/web/db", hostLine, "Authorization: Bearer "+token), 403, "TokenMissing"},

		{"X-Forwarded-For", request("GET", "/v1/web/db", append(ok, "X-Forwarded-For: 10.0.0.1")...), 403, "ForwardedRequest"},
		{"x-forwarded-host in lower case", request("GET", "/v1/web/db", append(ok, "x-forwarded-host: a")...), 403, "ForwardedRequest"},
		{"X-Forwarded-Anything, empty", request("GET", "/v1/web/db", append(ok, "X-Forwarded-Anything:")...), 403, "ForwardedRequest"},
		{"X-Forwarded with a space in its name", request("GET", "/v1/web/db", append(ok, "x-forwarded for: a")...), 403, "ForwardedRequest"},
		{"Forwarded", request("GET", "/v1/web/db", append(ok, "Forwarded: for=10.0.0.1")...), 403, "ForwardedRequest"},
		{"Via", request("GET", "/v1/web/db", append(ok, "Via: 1.1 proxy")...), 403, "ForwardedRequest"},
		{"X-Real-IP", request("GET", "/v1/web/db", append(ok, "X-Real-IP: 10.0.0.1")...), 403, "ForwardedRequest"},
		{"a forwarded health check", request("GET", "/live", hostLine, "X-Forwarded-For: 10.0.0.1"), 403, "ForwardedRequest"},

		{"a foreign host", request("GET", "/v1/web/db", "Host: evil.example", tokenLine), 403, "HostNotAllowed"},
		{"a foreign host with our port", request("GET", "/v1/web/db", "Host: evil.example:2025", tokenLine), 403, "HostNotAllowed"},
		{"a host that starts like ours", request("GET", "/v1/web/db", "Host: 127.0.0.1.evil.example", tokenLine), 403, "HostNotAllowed"},
		{"a host that starts with localhost", request("GET", "/v1/web/db", "Host: localhost.evil.example", tokenLine), 403, "HostNotAllowed"},
		{"a host that ends with localhost", request("GET", "/v1/web/db", "Host: evil.localhost.example:80", tokenLine), 403, "HostNotAllowed"},
		{"the unspecified address", request("GET", "/v1/web/db", "Host: 0.0.0.0:2025", tokenLine), 403, "HostNotAllowed"},
		{"a private address", request("GET", "/v1/web/db", "Host: 10.0.0.1", tokenLine), 403, "HostNotAllowed"},
		{"loopback as one number", request("GET", "/v1/web/db", "Host: 2130706433", tokenLine), 403, "HostNotAllowed"},
		{"user info before the host", request("GET", "/v1/web/db", "Host: 127.0.0.1@evil.example", tokenLine), 403, "HostNotAllowed"},
		{"user info that is foreign", request("GET", "/v1/web/db", "Host: evil.example@127.0.0.1", tokenLine), 403, "HostNotAllowed"},
		{"a name without dots over TCP", request("GET", "/v1/web/db", "Host: agent", tokenLine), 403, "HostNotAllowed"},
		{"two hosts", request("GET", "/v1/web/db", hostLine, "Host: evil.example", tokenLine), 400, "MalformedRequest"},
		{"no host", request("GET", "/v1/web/db", tokenLine), 400, "MalformedRequest"},
		{"no host, HTTP/1.0", "GET /v1/web/db HTTP/1.0\r\n" + tokenLine + "\r\n\r\n", 403, "HostNotAllowed"},
		{"a health check for a foreign host", request("GET", "/ready", "Host: evil.example"), 403, "HostNotAllowed"},
		{"an absolute target", request("GET", "http://127.0.0.1:2025/v1/web/db", "Host: evil.example", tokenLine), 403, "HostNotAllowed"},
		{"an absolute target with our host", request("GET", "http://evil.example/v1/web/db", ok...), 404, "PathNotFound"},

		{"a page's Origin", request("GET", "/v1/web/db", append(ok, "Origin: http://evil.example")...), 403, "OriginNotAllowed"},
		{"a local page's Origin", request("GET", "/v1/web/db", append(ok, "Origin: http://localhost:3000")...), 403, "OriginNotAllowed"},
		{"Origin null", request("GET", "/v1/web/db", append(ok, "Origin: null")...), 403, "OriginNotAllowed"},
		{"Sec-Fetch-Site cross-site", request("GET", "/v1/web/db", append(ok, "Sec-Fetch-Site: cross-site")...), 403, "OriginNotAllowed"},
		{"Sec-Fetch-Site same-site", request("GET", "/v1/web/db", append(ok, "Sec-Fetch-Site: same-site")...), 403, "OriginNotAllowed"},
		{"Sec-Fetch-Site none", request("GET", "/v1/web/db", append(ok, "Sec-Fetch-Site: none")...), 200, ""},

		{"POST", request("POST", "/v1/web/db", append(ok, "Content-Length: 0")...), 405, "MethodNotAllowed"},
		{"PUT", request("PUT", "/v1/web/db", append(ok, "Content-Length: 0")...), 405, "MethodNotAllowed"},
		{"HEAD", request("HEAD", "/v1/web/db", ok...), 405, ""},
		{"OPTIONS", request("OPTIONS", "/v1/web/db", ok...), 405, "MethodNotAllowed"},
		{"OPTIONS *", request("OPTIONS", "*", ok...), 405, "MethodNotAllowed"},
		{"TRACE", request("TRACE", "/v1/web/db", ok...), 405, "MethodNotAllowed"},
		{"CONNECT", request("CONNECT", "127.0.0.1:2025", ok...), 405, "MethodNotAllowed"},
		{"an invented method", request("FETCH", "/v1/web/db", ok...), 405, "MethodNotAllowed"},
		{"a method in lower case", request("get", "/v1/web/db", ok...), 405, "MethodNotAllowed"},
		{"GET of a report", request("GET", "/secretsmanager/report?secretId=web/db", ok...), 405, "MethodNotAllowed"},
		{"POST of health", request("POST", "/live", hostLine, "Content-Length: 0"), 405, "MethodNotAllowed"},
		{"GET with a body", request("GET", "/v1/web/db", append(ok, "Content-Length: 5")...) + "hello", 400, "MalformedRequest"},
		{"GET with a chunked body", request("GET", "/v1/web/db", append(ok, "Transfer-Encoding: chunked")...) + "2\r\nhi\r\n0\r\n\r\n", 400, "MalformedRequest"},
		{"GET of a change", request("GET", "/secretsmanager/changed?secretId=web/db", ok...), 405, "MethodNotAllowed"},
		{"a change of what the caller may not read", request("POST", "/secretsmanager/changed?secretId=other", append(ok, "Content-Length: 0")...), 403, "Forbidden.NoPermission"},
		{"a change of a label", request("POST", "/secretsmanager/changed?secretId=web/db&versionStage=x", append(ok, "Content-Length: 0")...), 400, "InvalidParameter"},
		{"a report with a large body", request("POST", "/secretsmanager/report?secretId=web/db", append(ok, "Content-Length: 1000000")...), 413, "BodyTooLarge"},
		{"Content-Length and Transfer-Encoding", request("POST", "/secretsmanager/report?secretId=web/db", append(ok, "Content-Length: 3", "Transfer-Encoding: chunked")...) + "0\r\n\r\n", 400, "MalformedRequest"},
		{"an empty chunked body", request("POST", "/secretsmanager/report?secretId=web/db", append(ok, "Transfer-Encoding: chunked")...) + "0\r\n\r\n", 200, ""},
		{"two lengths", request("POST", "/secretsmanager/report?secretId=web/db", append(ok, "Content-Length: 0", "Content-Length: 5")...), 400, "MalformedRequest"},
		{"Expect", request("POST", "/secretsmanager/report?secretId=web/db", append(ok, "Expect: 100-continue", "Content-Length: 5")...), 417, ""},

		{"an unknown parameter", request("GET", "/v1/web/db?foo=1", ok...), 400, "InvalidParameter"},
		{"a parameter twice", request("GET", "/v1/web/db?versionId=v1&versionId=v1", ok...), 400, "InvalidParameter"},
		{"an empty parameter", request("GET", "/v1/web/db?versionId=", ok...), 400, "InvalidParameter"},
		{"a parameter without a value", request("GET", "/v1/web/db?versionId", ok...), 400, "InvalidParameter"},
		{"an empty pair", request("GET", "/v1/web/db?versionId=v1&", ok...), 200, ""},
		{"an empty pair in between", request("GET", "/v1/web/db?versionId=v1&&format=kms", ok...), 400, "InvalidParameter"},
		{"a parameter in another case", request("GET", "/v1/web/db?versionid=v1", ok...), 400, "InvalidParameter"},
		{"secretId beside a path name", request("GET", "/v1/web/db?secretId=web/db", ok...), 400, "InvalidParameter"},
		{"no secretId", request("GET", "/secretsmanager/get", ok...), 400, "MissingParameter"},
		{"no name in the path", request("GET", "/v1/", ok...), 400, "MissingParameter"},
		{"two labels that differ", request("GET", "/v1/web/db:ACSCurrent?versionStage=ACSPrevious", ok...), 400, "InvalidParameter"},
		{"bad percent-encoding", request("GET", "/v1/web%2", ok...), 400, "InvalidParameter"},
		{"bad percent-encoding in a parameter", request("GET", "/v1/web/db?versionId=%zz", ok...), 400, "InvalidParameter"},
		{"a NUL in the name", request("GET", "/v1/web%00", ok...), 400, "InvalidParameter"},
		{"a line break in the name", request("GET", "/v1/web%0d%0aX-Injected:%201", ok...), 400, "InvalidParameter"},
		{"a name that is decoded twice", request("GET", "/v1/web%252Fdb", ok...), 400, "InvalidParameter"},
		{"a name that is too long", request("GET", "/v1/"+strings.Repeat("a", 193), ok...), 400, "InvalidParameter"},
		{"a fragment", request("GET", "/v1/web/db#x", ok...), 400, "InvalidParameter"},
		{"a space as +", request("GET", "/v1/web/db?versionStage=a+b%20c", ok...), 400, "InvalidParameter"},
		{"an unknown format", request("GET", "/v1/web/db?format=xml", ok...), 400, "InvalidParameter"},
		{"a refreshNow of perhaps", request("GET", "/v1/web/db?refreshNow=perhaps", ok...), 400, "InvalidParameter"},
		{"a wait that is too long", request("GET", "/v1/web/db?wait=1h", ok...), 400, "InvalidParameter"},
		{"a negative wait", request("GET", "/v1/web/db?wait=-1s", ok...), 400, "InvalidParameter"},
		{"a wait without a unit", request("GET", "/v1/web/db?wait=30", ok...), 400, "InvalidParameter"},
		{"wait and refreshNow", request("GET", "/v1/web/db?wait=1s&refreshNow=1", ok...), 400, "InvalidParameter"},
		{"a batch of too many", request("GET", "/secretsmanager/batch?secretId=x&secretId=x&secretId=x&secretId=x", ok...), 400, "InvalidParameter"},
		{"an empty batch", request("GET", "/secretsmanager/batch", ok...), 400, "MissingParameter"},
		{"a report with a version", request("POST", "/secretsmanager/report?secretId=web/db&versionId=v1", append(ok, "Content-Length: 0")...), 400, "InvalidParameter"},
		{"a parameter for health", request("GET", "/live?verbose=1", hostLine), 400, "InvalidParameter"},

		{"out of the folder", request("GET", "/v1/..%2f..%2fetc", ok...), 403, "Forbidden.NoPermission"},
		{"out of the caller's names", request("GET", "/v1/web/../other/db", ok...), 404, "Forbidden.ResourceNotFound"},
		{"doubled slashes", request("GET", "/v1//web/db", ok...), 403, "Forbidden.NoPermission"},
		{"a route below another", request("GET", "/v1/../live", ok...), 403, "Forbidden.NoPermission"},
		{"a name of another caller", request("GET", "/v1/other/db", ok...), 403, "Forbidden.NoPermission"},
		{"a name of another caller that does not exist", request("GET", "/v1/other/none", ok...), 403, "Forbidden.NoPermission"},
		{"a name that does not exist", request("GET", "/v1/web/none", ok...), 404, "Forbidden.ResourceNotFound"},
		{"a refresh of another's name", request("GET", "/v1/other/db?refreshNow=1", ok...), 403, "Forbidden.NoPermission"},
		{"a report of another's name", request("POST", "/secretsmanager/report?secretId=other/db", append(ok, "Content-Length: 0")...), 403, "Forbidden.NoPermission"},
		{"an unknown path", request("GET", "/secretsmanager", ok...), 404, "PathNotFound"},
		{"an unknown path without a token", request("GET", "/secretsmanager", hostLine), 403, "TokenMissing"},
		{"metrics without a token", request("GET", "/metrics", hostLine), 403, "TokenMissing"},
		{"status without a token", request("GET", "/status", hostLine), 403, "TokenMissing"},
		{"metrics that are off", request("GET", "/metrics", ok...), 404, "PathNotFound"},

		{"a huge header", request("GET", "/v1/web/db", append(ok, "X-Junk: "+strings.Repeat("a", 8<<10))...), 431, "HeaderTooLarge"},
		{"a huge target", request("GET", "/v1/"+strings.Repeat("a", 8<<10), ok...), 431, "HeaderTooLarge"},
		{"not HTTP", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "MalformedRequest"},
		{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "MalformedRequest"},
		{"HTTP/0.9", "GET /v1/web/db\r\n\r\n", 400, "MalformedRequest"},
		{"a folded token", "GET /v1/web/db HTTP/1.1\r\n" + hostLine + "\r\nX-KMS-Token: " + token[:32] + "\r\n " + token[32:] + "\r\n\r\n", 403, "TokenInvalid"},
		{"a space before the colon", request("GET", "/v1/web/db", hostLine, "X-KMS-Token : "+token), 400, "MalformedRequest"},
		{"a bare carriage return in a header", request("GET", "/v1/web/db", append(ok, "X-Junk: a\rb")...), 400, "MalformedRequest"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := r.dial(t)
			c.send(test.raw)
			got := c.receive(strings.SplitN(test.raw, " ", 2)[0])
			if got.status != test.status || got.code != test.code {
				t.Errorf("%d %q, want %d %q\n%s", got.status, got.code, test.status, test.code, got.body)
			}
			if got.status != 200 && (strings.Contains(got.body, marker) || strings.Contains(got.body, token)) {
				t.Errorf("the answer leaks: %s", got.body)
			}
			if got.status == 405 && got.header.Get("Allow") == "" {
				t.Error("405 without Allow")
			}
			if got.status != 417 && got.header.Get("X-Request-Id") == "" {
				t.Error("no X-Request-Id")
			}
			if got.status >= 400 && got.code != "" {
				if e := got.json(t); e["Message"] == "" || e["RequestId"] != got.header.Get("X-Request-Id") {
					t.Errorf("body %s, X-Request-Id %s", got.body, got.header.Get("X-Request-Id"))
				}
			}
			for name := range got.header {
				if name == "Server" || name == "Date" || name == "X-Injected" {
					t.Errorf("header %s", name)
				}
			}
		})
	}
	if log := r.log.String(); strings.Contains(log, marker) || strings.Contains(log, token) || strings.Contains(log, "etc") {
		t.Errorf("the log leaks:\n%s", log)
	}
}

func TestParameterErrorsNameParameterAndFix(t *testing.T) {
	r := start(t, endpoint.Options{})
	for target, want := range map[string]string{
		"/v1/a?foo=1":                   `"foo"`,
		"/v1/a?bar=1":                   "allowed: versionId, versionStage, refreshNow, format, field, wait",
		"/v1/a?versionId=1&versionId=2": `"versionId" is not valid: it is given more than once`,
		"/v1/a?format=xml":              "one of kms, aws, vault, raw",
		"/v1/a?wait=1h":                 "at most 5m0s",
		"/v1/a?versionStage=":           `"versionStage" is not valid: it is empty`,
		"/secretsmanager/get":           `"secretId"`,
	} {
		got := r.get(t, target)
		if message, _ := got.json(t)["Message"].(string); got.status != 400 || !strings.Contains(message, want) {
			t.Errorf("%s: %d %s, want %s", target, got.status, got.body, want)
		}
	}
}

func TestErrorsOfTheBackend(t *testing.T) {
	r := start(t, endpoint.Options{LookupTimeout: 50 * time.Millisecond})
	for name, test := range map[string]struct {
		err    error
		status int
		code   string
		retry  string
	}{
		"gone":      {&upstream.Error{Err: upstream.ErrNotFound}, 404, "Forbidden.ResourceNotFound", ""},
		"deleted":   {&upstream.Error{Err: upstream.ErrPendingDeletion}, 409, "Rejected.ResourceInDeleteWindow", ""},
		"denied":    {&upstream.Error{Err: upstream.ErrAccessDenied}, 403, "Forbidden.NoPermission", ""},
		"throttled": {&upstream.Error{Err: upstream.ErrThrottled, RetryAfter: 1500 * time.Millisecond}, 429, "Rejected.Throttling", "2"},
		"down":      {&upstream.Error{Err: upstream.ErrUnavailable}, 503, "ServiceUnavailableTemporary", ""},
		"expired":   {&upstream.Error{Err: upstream.ErrUnauthenticated, Code: "InvalidSecurityToken.Expired"}, 503, "ServiceUnavailableTemporary", ""},
		"refused":   {&upstream.Error{Err: upstream.ErrRefused, Code: "InvalidAccountStatus"}, 503, "Rejected.Unavailable", ""},
		"nobody":    {&upstream.Error{Err: upstream.ErrNoCredentials, Message: "disk of the agent"}, 503, "NoCredentials", ""},
		"skewed":    {&upstream.Error{Err: upstream.ErrClockSkew, Message: "an hour behind"}, 503, "ClockSkew", ""},
		"keyless":   {&upstream.Error{Err: upstream.ErrKeyNotFound}, 503, "ServiceUnavailableTemporary", ""},
		"internal":  {fmt.Errorf("disk on fire at %s", "/secret/path"), 500, "InternalFailure", ""},
		"late":      {context.DeadlineExceeded, 504, "UpstreamTimeout", ""},
	} {
		r.fail(name, test.err)
		got := r.get(t, "/v1/"+name)
		if got.status != test.status || got.code != test.code || got.header.Get("Retry-After") != test.retry {
			t.Errorf("%s: %d %s %q", name, got.status, got.code, got.header.Get("Retry-After"))
		}
		if strings.Contains(got.body, "disk") {
			t.Errorf("%s: internals reach the client: %s", name, got.body)
		}
		if message := got.json(t)["Message"]; message == "" {
			t.Errorf("%s: no message", name)
		}
	}
	if log := r.log.String(); !strings.Contains(log, "disk on fire") {
		t.Error("the log does not have what the client must not see")
	}
	// A backend that never answers.
	r.hook(func(ctx context.Context, _ upstream.SecretRef) { <-ctx.Done() })
	if got := r.get(t, "/v1/slow"); got.status != 504 || got.code != "UpstreamTimeout" {
		t.Errorf("slow: %d %s", got.status, got.code)
	}
}

func TestRefreshNow(t *testing.T) {
	r := start(t, endpoint.Options{})
	r.put(value("c", "v1", "x", upstream.ACSCurrent))
	for i, flag := range []string{"true", "1", "True"} {
		if got := r.get(t, "/v1/c?refreshNow="+flag); got.status != 200 || r.refreshes.Load() != int64(i+1) {
			t.Errorf("refreshNow=%s: %d, %d refreshes", flag, got.status, r.refreshes.Load())
		}
	}
	if got := r.get(t, "/v1/c?refreshNow=0"); got.header.Get("X-Cache") != "hit" || r.refreshes.Load() != 3 {
		t.Errorf("refreshNow=0 refreshed")
	}
	// A refresh that fails is an error although a value is held.
	r.fail("c", &upstream.Error{Err: upstream.ErrThrottled})
	if got := r.get(t, "/v1/c?refreshNow=1"); got.status != 429 {
		t.Errorf("refresh that fails: %d", got.status)
	}
	if got := r.get(t, "/v1/c"); got.status != 200 {
		t.Errorf("after a refresh that failed: %d", got.status)
	}
}

func TestVersionsAndStages(t *testing.T) {
	r := start(t, endpoint.Options{})
	r.put(value("a", "v1", "first", upstream.ACSPrevious))
	r.put(value("a", "v2", "second", upstream.ACSCurrent))
	for target, want := range map[string]string{
		"/v1/a": "v2", "/v1/a:ACSPrevious": "v1", "/v1/a?versionStage=ACSPrevious": "v1", "/v1/a:ACSPrevious?versionStage=ACSPrevious": "v1",
		"/v1/a?versionId=v1": "v1", "/secretsmanager/get?secretId=a%3AACSPrevious": "v1",
		"/v1/a?format=aws&versionStage=AWSPREVIOUS": "v1", "/v1/a?versionStage=AWSCURRENT&format=aws": "v2",
	} {
		if got := r.get(t, target); got.status != 200 || got.json(t)["VersionId"] != want {
			t.Errorf("%s: %d %s", target, got.status, got.body)
		}
	}
	if got := r.get(t, "/v1/a?versionStage=AWSCURRENT"); got.status != 404 {
		t.Errorf("an AWS label in the KMS format: %d", got.status)
	}
}

func TestBatchAnswersTogether(t *testing.T) {
	r := start(t, endpoint.Options{Callers: []endpoint.Caller{
		{Name: "web", Tokens: []endpoint.Token{mustToken(t, token)}, Secrets: []string{"a", "b", "none"}},
	}})
	r.put(value("a", "v1", "first", upstream.ACSPrevious))
	r.put(value("a", "v2", "second\n\"quoted\"", upstream.ACSCurrent))
	r.store(value("b", "v7", "x", upstream.ACSCurrent))
	r.put(value("forbidden", "v1", marker, upstream.ACSCurrent))
	got := r.get(t, "/secretsmanager/batch?secretId=a&secretId=a:ACSPrevious&secretId=none&secretId=forbidden&secretId=b&secretId=forbidden2")
	var body struct {
		SecretValues []struct{ SecretName, VersionId, SecretData string }
		Errors       []struct {
			SecretName, VersionStage, Code, Message string
			HttpStatus                              int
		}
		RequestId string
	}
	if err := json.Unmarshal([]byte(got.body), &body); err != nil || got.status != 200 {
		t.Fatalf("%d %s: %v", got.status, got.body, err)
	}
	values := fmt.Sprint(body.SecretValues)
	if want := "[{a v2 second\n\"quoted\"} {a v1 first} {b v7 x}]"; values != want {
		t.Errorf("values %s, want %s", values, want)
	}
	var errs []string
	for _, e := range body.Errors {
		errs = append(errs, fmt.Sprint(e.SecretName, " ", e.VersionStage, " ", e.Code, " ", e.HttpStatus))
		if e.Message == "" {
			t.Errorf("%s: no message", e.SecretName)
		}
	}
	if want := "none ACSCurrent Forbidden.ResourceNotFound 404,forbidden ACSCurrent Forbidden.NoPermission 403,forbidden2 ACSCurrent Forbidden.NoPermission 403"; strings.Join(errs, ",") != want {
		t.Errorf("errors %v", errs)
	}
	if got.header.Get("X-Cache") != "miss" || body.RequestId != got.header.Get("X-Request-Id") {
		t.Errorf("X-Cache %q, RequestId %q", got.header.Get("X-Cache"), body.RequestId)
	}
}

func TestAChangeThatAClientTells(t *testing.T) {
	r := start(t, endpoint.Options{})
	c := r.dial(t)
	for i, want := range []int{200, 200, 429} {
		c.send(request("POST", "/secretsmanager/changed?secretId=a", hostLine, tokenLine, "Content-Length: 0"))
		got := c.receive("POST")
		if got.status != want || want == 200 && got.json(t)["SecretName"] != "a" {
			t.Errorf("%d %s", got.status, got.body)
		}
		if len(r.changes) != i+1 || r.changes[i] != "a" {
			t.Errorf("%v reached the cache", r.changes)
		}
	}
}

func TestReportRefreshesAndNamesTheVersion(t *testing.T) {
	r := start(t, endpoint.Options{})
	r.put(value("a", "v2", marker, upstream.ACSCurrent))
	c := r.dial(t)
	for i := range 3 {
		c.send(request("POST", "/secretsmanager/report?secretId=a", hostLine, tokenLine, "Content-Length: 0"))
		got := c.receive("POST")
		if got.status != 200 || got.json(t)["VersionId"] != "v2" || got.json(t)["SecretName"] != "a" || strings.Contains(got.body, marker) {
			t.Errorf("%d %s", got.status, got.body)
		}
		if r.reports.Load() != int64(i+1) {
			t.Errorf("%d reports reached the cache", r.reports.Load())
		}
	}
	c.send(request("POST", "/secretsmanager/report?secretId=none", hostLine, tokenLine, "Content-Length: 0"))
	if got := c.receive("POST"); got.status != 404 {
		t.Errorf("unknown: %d", got.status)
	}
}

func TestHealth(t *testing.T) {
	ready := endpoint.Readiness{Ready: false, Problems: []endpoint.Problem{
		{Subject: "secret web/db", Secrets: []upstream.SecretName{"web/db"}, Reason: "Rejected.Throttling"},
		{Subject: "secret other/db", Secrets: []upstream.SecretName{"other/db"}, Reason: "Forbidden.ResourceNotFound"},
		{Subject: "template app.env", Reason: "not rendered yet"},
		{Subject: "file other.env", Reason: "it needs other/db", NamesAny: true},
	}}
	r := start(t, endpoint.Options{
		Callers: []endpoint.Caller{{Name: "web", Tokens: []endpoint.Token{mustToken(t, token)}, Secrets: []string{"web/*"}}},
		Ready:   func() endpoint.Readiness { return ready },
		Status: func(v endpoint.Viewer) any {
			return map[string]bool{"web": v.May("web/db"), "other": v.May("other/db")}
		},
	})
	anonymous := func(target string) reply {
		c := r.dial(t)
		c.send(request("GET", target, "Host: localhost:2025"))
		return c.receive("GET")
	}
	if got := anonymous("/live"); got.status != 200 || got.body != "{\"Live\":true}\n" {
		t.Errorf("/live: %d %s", got.status, got.body)
	}
	if got := anonymous("/ping"); got.status != 200 || got.body != "healthy" || got.header.Get("Content-Type") != "text/plain; charset=utf-8" || got.header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("/ping: %d %s %v", got.status, got.body, got.header)
	}
	if got := anonymous("/ready"); got.status != 503 || got.body != "{\"Ready\":false}\n" {
		t.Errorf("/ready: %d %s", got.status, got.body)
	}
	got := r.get(t, "/ready")
	if want := `{"Ready":false,"Problems":[{"Subject":"secret web/db","Reason":"Rejected.Throttling"},{"Subject":"template app.env","Reason":"not rendered yet"},{"Subject":"file other.env","Reason":"the log says why"}]}`; strings.TrimSpace(got.body) != want {
		t.Errorf("/ready for a caller: %s", got.body)
	}
	if got := r.get(t, "/status"); strings.TrimSpace(got.body) != `{"other":false,"web":true}` {
		t.Errorf("/status: %s", got.body)
	}
	ready = endpoint.Readiness{Ready: true}
	if got := anonymous("/ready"); got.status != 200 || got.body != "{\"Ready\":true}\n" {
		t.Errorf("/ready: %d %s", got.status, got.body)
	}
}

// TestValidate breaks one option at a time: New says the same, and accepts what is left.
func TestValidate(t *testing.T) {
	for _, test := range []struct {
		mutate func(*endpoint.Options)
		want   string
	}{
		{func(*endpoint.Options) {}, ""},
		{func(o *endpoint.Options) { o.AllowedHosts = []string{"agent.local", "::1", "10.0.0.1"} }, ""},
		{func(o *endpoint.Options) { o.Callers = nil }, "callers: must not be empty: nobody could ask"},
		{func(o *endpoint.Options) { o.MaxConnections = -1 }, "maxConnections: -1: must be 1 to 1048576"},
		{func(o *endpoint.Options) { o.MaxHeaderBytes = 10 }, "maxHeaderBytes: 10: must be 1024 to 1048576"},
		{func(o *endpoint.Options) { o.IdleTimeout = -1 }, "idleTimeout: -1ns: must be at least 1ms"},
		{func(o *endpoint.Options) { o.PathPrefix = "v1/" }, "pathPrefix: v1/: must start and end with a slash, such as /v1/"},
		{func(o *endpoint.Options) { o.PathPrefix = "/a?b/" }, "pathPrefix: /a?b/: must start and end with a slash, such as /v1/"},
		{func(o *endpoint.Options) { o.PathPrefix = "/" }, "pathPrefix: /: would hide the other paths of the endpoint"},
		{func(o *endpoint.Options) { o.PathPrefix = "/secretsmanager/" }, "pathPrefix: /secretsmanager/: would hide the other paths of the endpoint"},
		{func(o *endpoint.Options) { o.PathPrefix = "/status/" }, "pathPrefix: /status/: would hide the other paths of the endpoint"},
		{func(o *endpoint.Options) { o.TokenHeaders = []string{} }, "headers: must name at least one header: a token is always required"},
		{func(o *endpoint.Options) { o.TokenHeaders = []string{"X Token"} }, "headers[0]: X Token: must be the name of an HTTP header, such as X-KMS-Token"},
		{func(o *endpoint.Options) { o.TokenHeaders = []string{"X-A", "Host"} }, "headers[1]: Host: has another meaning: choose a header such as X-KMS-Token"},
		{func(o *endpoint.Options) { o.TokenHeaders = []string{"X-Real-IP"} }, "headers[0]: X-Real-IP: has another meaning: choose a header such as X-KMS-Token"},
		{func(o *endpoint.Options) { o.TokenHeaders = []string{"traceparent"} }, "headers[0]: traceparent: has another meaning: choose a header such as X-KMS-Token"},
		{func(o *endpoint.Options) { o.AllowedHosts = []string{"agent.local:2025"} }, "allowedHosts[0]: agent.local:2025: must be a host name or address, without port"},
		{func(o *endpoint.Options) { o.Format = 9 }, "format: 9: must be one of kms, aws, vault, raw"},
		{func(o *endpoint.Options) { o.Callers[0].Name = "" }, "callers[0].name: must be 1 to 64 letters, digits, dots, dashes and underscores"},
		{func(o *endpoint.Options) { o.Callers[0].Name = `a"b` }, `callers[0].name: a"b: must be 1 to 64 letters, digits, dots, dashes and underscores`},
		{func(o *endpoint.Options) { o.Callers[0].Tokens = nil }, "callers[0]: must have a tokenFile, uids or gids: nothing tells who it is"},
		{func(o *endpoint.Options) { o.Callers[0].Tokens = []endpoint.Token{{}} }, "callers[0].tokenFile: holds no token"},
		{func(o *endpoint.Options) { o.Callers[0].Secrets, o.Callers[0].Status = nil, false }, ""}, // it scrapes metrics
		{func(o *endpoint.Options) {
			o.Callers[0].Secrets, o.Callers[0].Status, o.Callers[0].Metrics = nil, false, false
		}, `callers[0].secrets: must not be empty unless status or metrics is true; ["*"] allows everything`},
		{func(o *endpoint.Options) { o.Callers[0].Secrets = []string{"a/*", "a b", ""} },
			"callers[0].secrets[1]: a b: must be a name or an ARN, with * for any text and ? for one character\n" +
				"callers[0].secrets[2]: must be a name or an ARN, with * for any text and ? for one character"},
		{func(o *endpoint.Options) { o.Callers = append(o.Callers, o.Callers[0]) }, "callers[1].name: token-holder: is given to two callers: choose another"},
		{func(o *endpoint.Options) { o.Callers = append(o.Callers, callerWith(t, "b", []string{"*"}, token)) },
			"callers[1].tokenFile: holds the token of the caller token-holder: give every caller a token of its own"},
	} {
		opts := endpoint.Options{Callers: []endpoint.Caller{endpoint.DefaultCaller(mustToken(t, token))}}
		test.mutate(&opts)
		got := ""
		if err := opts.Validate(); err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("got  %s\nwant %s", got, test.want)
		}
		if _, err := endpoint.New(newFake(), opts); (err != nil) != (got != "") || err != nil && err.Error() != got {
			t.Errorf("New says %v, Validate %s", err, got)
		}
	}
	for _, text := range []string{"", "short", "with a space inside it", "with\x00control-characters"} {
		if _, err := endpoint.NewToken([]byte(text)); err == nil {
			t.Errorf("token %q was taken", text)
		}
	}
}
