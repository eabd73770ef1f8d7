//go:build unix

package agent_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"secretagent/upstream"
)

// TestNoSecretIsLeftAnywhere drives an agent on a cloud and the cloud itself, both at debug level,
// in both formats, through success and failure of every part, and looks for values, caller tokens,
// session tokens, access key secrets and signatures in what the two log and audit, and in every
// file that is not made to hold them.
func TestNoSecretIsLeftAnywhere(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		t.Run(format, func(t *testing.T) { testNoSecretIsLeftAnywhere(t, format) })
	}
}

func testNoSecretIsLeftAnywhere(t *testing.T, format string) {
	const (
		wrongToken   = "MARKER-wrong-token-of-a-caller-that-nobody-knows-0123456789abcdef"
		sessionToken = "MARKER-session-token"
		wrongSecret  = "MARKER-secret-of-an-access-key"
		signature    = "MARKERsignature"
		traced       = "0af7651916cd43dd8448eb211c80319c"
	)
	log := "\nlog: {level: debug, format: " + format + "}\n"
	cloud, host, secretFile := startKMS(t, `{"password":"`+marker+`"}`, "\n      - {name: app/text, data: '"+marker+" is no JSON'}", log)
	secret := cloud.read("agent.secret")
	refused := func(err error, want error) error {
		if !errors.Is(err, want) || strings.Contains(err.Error(), marker) {
			return fmt.Errorf("a refused call: %w", err)
		}
		return nil
	}
	cloud.put("app/text", "v2", marker)
	cloud.manage(func(ctx context.Context, m upstream.Manager) error {
		_, err := m.PutSecretValue(ctx, upstream.PutSecretValueInput{SecretName: "app/text", VersionID: "v2", SecretData: upstream.NewSecretData([]byte(marker + "-other"))})
		return refused(err, upstream.ErrExists)
	})

	dir := shortTempDir(t)
	write(t, dir, map[string]string{"id": "agent", "session": sessionToken, "wrong.secret": wrongSecret})
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
    destination: DIR/rendered/good
    hook: {command: [cat, DIR/rendered/good]}
  - contents: '{{ secretField "app/db" "password" }}{{ (secretJSON "app/text").password }}'
    destination: DIR/rendered/bad
  - contents: '{{ secret (secret "app/text") }}'
    destination: DIR/rendered/computed
  - contents: '{{ secret "app/db" }}'
    destination: DIR/rendered/hooked
    hook: {command: [sh, -c, 'cat "$0"; exit 1', DIR/rendered/hooked]}
process: {noDump: false}` + log
	text = edited(withObedient(strings.ReplaceAll(text, "DIR", dir), dir), "name: DB, secret: demo/db", "name: DB, secret: app/db, field: password")
	w := start(t, dir, text)
	tells := func(log string, of ...string) bool {
		return !slices.ContainsFunc(of, func(what string) bool { return !strings.Contains(log, what) })
	}
	w.eventually("file and program are there, and the hooks have run", func() bool {
		return tells(w.log.String(), "output of a command", "hook failed", "application started", "file not rendered")
	})
	w.obeys()
	token := w.token()
	ask := func(method, url string, form url.Values, header ...string) {
		t.Helper()
		_, err := w.try(method, url, form, header...)
		must(t, err)
	}
	trace := []string{"X-KMS-Token", token, "traceparent", "00-" + traced + "-b7ad6b7169203331-01"}
	for _, path := range []string{"/v1/app/db", "/v1/app/db?refreshNow=true", "/v1/app/none", "/v1/app/text?field=x&format=raw", "/v1/other/db",
		"/v1/app/db?versionId=nope", "/v1/app/db?field=password&format=raw", "/v1/app/db?format=aws", "/v1/app/db?format=vault", "/v1/app/db?foo=1",
		"/secretsmanager/batch?secretId=app/db&secretId=app/none", "/v1/app/db?token=" + wrongToken, "/" + wrongToken, "/metrics", "/status", "/ready"} {
		ask("GET", w.url+path, nil, trace...)
	}
	ask("POST", w.url+"/secretsmanager/report?secretId=app/db", nil, trace...)
	ask("GET", w.url+"/v1/app/db", nil, "X-KMS-Token", wrongToken)
	ask("GET", w.url+"/v1/app/db", nil, "X-KMS-Token", token, "X-Forwarded-For", wrongToken)
	ask("GET", w.url+"/v1/app/db", nil, "Authorization", "Bearer "+wrongToken)

	// The KMS API, with signatures that are wrong.
	ask("POST", "http://"+host, url.Values{"Action": {"GetSecretValue"}, "Version": {"2016-01-20"}, "SecretName": {"app/db"},
		"AccessKeyId": {"agent"}, "SignatureMethod": {"HMAC-SHA1"}, "SignatureVersion": {"1.0"}, "SignatureNonce": {"n"},
		"Timestamp": {"2024-01-01T00:00:00Z"}, "Signature": {signature}, "SecurityToken": {sessionToken}})
	ask("POST", "http://"+host, url.Values{"SecretName": {"app/db"}}, "x-acs-action", "GetSecretValue", "x-acs-version", "2016-01-20",
		"x-acs-security-token", sessionToken, "Authorization", "ACS3-HMAC-SHA256 Credential=agent,SignedHeaders=host,Signature="+signature)

	// The agent itself with credentials that are refused.
	for _, credentials := range []string{"type: access_key", "type: sts, securityTokenFile: ./session"} {
		must(t, w.reload(edited(text, "type: access_key", credentials, secretFile, "./wrong.secret")))
		ask("GET", w.url+"/v1/app/db?refreshNow=true", nil, trace...)
	}
	w.wantRefused("upstream: {alibaba: "+marker, "agent.yaml")
	found := map[string]string{"the configuration": fmt.Sprintf("%+v %+v", w.cfg, cloud.cfg)}
	for _, path := range []string{"/metrics", "/status", "/ready"} {
		_, found[path] = w.get(path)
	}
	must(t, errors.Join(w.stop(), cloud.stop()))
	found["the log of the agent"], found["the log of the cloud"] = w.log.String(), cloud.log.String()
	meant := []string{"agent.yaml", "agent.secret", "wrong.secret", "session", "token", "good", "hooked"} // to hold secrets
	for _, dir := range []string{w.dir, cloud.dir} {
		must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || slices.Contains(meant, d.Name()) {
				return err
			}
			text, err := os.ReadFile(path)
			found[path] = string(text)
			return err
		}))
	}
	for where, text := range found {
		for _, hidden := range []string{marker, token, wrongToken, sessionToken, wrongSecret, secret, signature, "Signature=", "Bearer"} {
			if i := strings.Index(text, hidden); i >= 0 {
				t.Errorf("%s shows %q: …%s…", where, hidden, text[max(0, i-200):min(len(text), i+80)])
			}
		}
	}
	// What was driven has left its lines, and the trace is in all of them.
	if !tells(w.log.String(), "attempt failed", "attempt answered", "endpoint rests", "the upstream was asked", "request refused", "TokenInvalid", "ForwardedRequest",
		"output of a failed command", "output of a command", "hook failed", "file not rendered", "application started", "SignatureDoesNotMatch", "configuration was not reloaded", "(a computed name)", traced) ||
		!tells(cloud.log.String(), "request answered", "request refused", traced) || !tells(found[w.path("audit.log")], `"TraceId":"`+traced+`"`) {
		t.Errorf("not all that was driven is told:\n%s\n%s\n%s", w.log, cloud.log, found[w.path("audit.log")])
	}
}
