//go:build unix

package agent_test

import (
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
)

// TestNoLogShowsASecret drives an agent on a cloud and the cloud itself, both at debug level, in
// both formats, through success and failure of every part, and looks for values, caller tokens,
// session tokens, access key secrets and signatures in what the two log and audit.
func TestNoLogShowsASecret(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		t.Run(format, func(t *testing.T) { testNoLogShowsASecret(t, format) })
	}
}

func testNoLogShowsASecret(t *testing.T, format string) {
	const (
		wrongToken   = "MARKER-wrong-token-of-a-caller-that-nobody-knows-0123456789abcdef"
		sessionToken = "MARKER-session-token"
		wrongSecret  = "MARKER-secret-of-an-access-key"
		signature    = "MARKERsignature"
		traced       = "0af7651916cd43dd8448eb211c80319c"
	)
	log := "\nlog: {level: debug, format: " + format + "}\n"
	cloud := start(t, shortTempDir(t), `
upstream:
  local:
    seed:
      - {name: app/db, versionId: v1, data: '{"password":"`+marker+`"}'}
      - {name: app/text, versionId: v1, data: '`+marker+` is no JSON'}
    api:
      socket: off
      listen: 127.0.0.1:0
      accessKeys: [{id: agent, secretFile: ./agent.secret, actions: [GetSecretValue], secrets: ["app/*"]}]
endpoint: {listen: off, socket: ./run/agent.sock}
process: {noDump: false}`+log)
	host, secretFile := cloud.agent.APIAddrs()[0].String(), cloud.path("agent.secret")
	secret, err := os.ReadFile(secretFile)
	if err != nil {
		t.Fatal(err)
	}

	dir := shortTempDir(t)
	for name, text := range map[string]string{"id": "agent", "session": sessionToken, "wrong.secret": wrongSecret} {
		if err := os.WriteFile(dir+"/"+name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	text := `
upstream:
  alibaba:
    endpoints: [{region: cn-hangzhou, host: "127.0.0.1:1", scheme: http}, {region: cn-hangzhou, host: "` + host + `", scheme: http}]
    credentials: {type: access_key, accessKeyIdFile: ./id, accessKeySecretFile: ` + secretFile + `}
    timeout: 5s
    deadline: 10s
    retry: {maxAttempts: 2, base: 1ms, cap: 5ms}
endpoint: {listen: "127.0.0.1:0", tokenFile: ./run/token, audit: {file: ./audit.log}}
secrets: [{name: app/db}]
templates:
  - contents: '{{ secretField "app/db" "password" }}'
    destination: ./rendered/good
    hook: {command: [cat, ./rendered/good]}
  - contents: '{{ secretField "app/db" "password" }}{{ (secretJSON "app/text").password }}'
    destination: ./rendered/bad
  - contents: '{{ secret "app/db" }}'
    destination: ./rendered/hooked
    hook: {command: [sh, -c, 'cat "$0"; exit 1', ./rendered/hooked]}
exec:
  command: ` + obedient(dir) + `
  env: [{name: DB_PASSWORD, secret: app/db, field: password}]
process: {noDump: false}` + log
	text = strings.ReplaceAll(text, "./rendered", dir+"/rendered")
	w := start(t, dir, text)
	w.eventually("file and program are there, and the hooks have run", func() bool {
		l := w.log.String()
		return strings.Contains(l, "hook output") && strings.Contains(l, "hook failed") && strings.Contains(l, "application started") &&
			strings.Contains(l, "file not rendered")
	})
	w.obeys()
	token := w.token()
	ask := func(base, method, path string, body url.Values, header ...string) {
		t.Helper()
		req, err := http.NewRequest(method, base+path, strings.NewReader(body.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		if body == nil {
			req.Body = nil
		} else {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		res, err := w.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
	}
	trace := []string{"X-KMS-Token", token, "traceparent", "00-" + traced + "-b7ad6b7169203331-01"}
	for _, path := range []string{"/v1/app/db", "/v1/app/db?refreshNow=true", "/v1/app/none", "/v1/app/text?field=x&format=raw", "/v1/other/db",
		"/secretsmanager/batch?secretId=app/db&secretId=app/none", "/v1/app/db?token=" + wrongToken, "/" + wrongToken, "/metrics", "/status", "/ready"} {
		ask(w.url, "GET", path, nil, trace...)
	}
	ask(w.url, "POST", "/secretsmanager/report?secretId=app/db", nil, trace...)
	ask(w.url, "GET", "/v1/app/db", nil, "X-KMS-Token", wrongToken)
	ask(w.url, "GET", "/v1/app/db", nil, "X-KMS-Token", token, "X-Forwarded-For", wrongToken)
	ask(w.url, "GET", "/v1/app/db", nil, "Authorization", "Bearer "+wrongToken)

	// The KMS API, with signatures that are wrong.
	ask("http://"+host, "POST", "/", url.Values{"Action": {"GetSecretValue"}, "Version": {"2016-01-20"}, "SecretName": {"app/db"},
		"AccessKeyId": {"agent"}, "SignatureMethod": {"HMAC-SHA1"}, "SignatureVersion": {"1.0"}, "SignatureNonce": {"n"},
		"Timestamp": {"2024-01-01T00:00:00Z"}, "Signature": {signature}, "SecurityToken": {sessionToken}})
	ask("http://"+host, "POST", "/", url.Values{"SecretName": {"app/db"}}, "x-acs-action", "GetSecretValue", "x-acs-version", "2016-01-20",
		"x-acs-security-token", sessionToken, "Authorization", "ACS3-HMAC-SHA256 Credential=agent,SignedHeaders=host,Signature="+signature)

	// The agent itself with credentials that are refused.
	for _, credentials := range []string{
		"{type: access_key, accessKeyIdFile: ./id, accessKeySecretFile: ./wrong.secret}",
		"{type: sts, accessKeyIdFile: ./id, accessKeySecretFile: ./wrong.secret, securityTokenFile: ./session}",
	} {
		w.reconfigure(strings.Replace(text, "{type: access_key, accessKeyIdFile: ./id, accessKeySecretFile: "+secretFile+"}", credentials, 1))
		if err := w.reload(); err != nil {
			t.Fatal(err)
		}
		ask(w.url, "GET", "/v1/app/db?refreshNow=true", nil, trace...)
	}
	w.reconfigure("upstream: {alibaba: " + marker)
	if err := w.reload(); err == nil {
		t.Error("a broken configuration was taken")
	}
	_, metrics := w.get("/metrics")
	_, status := w.get("/status")
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	if err := cloud.stop(); err != nil {
		t.Fatal(err)
	}
	audit, err := os.ReadFile(w.path("audit.log"))
	if err != nil {
		t.Fatal(err)
	}

	for where, text := range map[string]string{"the log of the agent": w.log.String(), "the log of the cloud": cloud.log.String(),
		"the audit log": string(audit), "/metrics": metrics, "/status": status} {
		for _, hidden := range []string{marker, token, wrongToken, sessionToken, wrongSecret, strings.TrimSpace(string(secret)), signature, "Signature=", "Bearer"} {
			if i := strings.Index(text, hidden); i >= 0 {
				t.Errorf("%s shows %q: …%s…", where, hidden, text[max(0, i-200):min(len(text), i+80)])
			}
		}
	}
	// What was driven has left its lines, and the trace is in all of them.
	for _, want := range []string{"attempt failed", "attempt answered", "endpoint rests", "the upstream was asked", "request refused", "TokenInvalid", "ForwardedRequest",
		"output of a failed hook", "hook output", "hook failed", "file not rendered", "application started", "InvalidAccessKeyId", "configuration was not reloaded", traced} {
		if !strings.Contains(w.log.String(), want) {
			t.Errorf("the log of the agent does not tell of %q", want)
		}
	}
	for _, want := range []string{"request answered", "request refused", traced} {
		if !strings.Contains(cloud.log.String(), want) {
			t.Errorf("the log of the cloud does not tell of %q", want)
		}
	}
	if !strings.Contains(string(audit), `"TraceId":"`+traced+`"`) {
		t.Error("the audit log does not tell the trace")
	}
}
