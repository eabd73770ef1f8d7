package kms_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/kms"
)

// scripted is an HTTP server that answers as told and keeps what it was asked.
type scripted struct {
	*httptest.Server
	mu       sync.Mutex
	requests []string // line, headers and body
}

func script(t testing.TB, answer http.HandlerFunc) *scripted {
	t.Helper()
	s := &scripted{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		s.mu.Lock()
		s.requests = append(s.requests, fmt.Sprintf("%s %s %v\n%s", r.Method, r.RequestURI, r.Header, body))
		s.mu.Unlock()
		if form, err := url.ParseQuery(string(body)); err == nil {
			r.Form = form
		}
		answer(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *scripted) seen() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.requests...)
}

func (s *scripted) endpoint() kms.Endpoint { return plain(s.Listener.Addr()) }

func says(status int, body string, headers ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func valueJSON(name, id, data string) string {
	return string(upstream.GetSecretValueJSON(&upstream.SecretValue{
		SecretName: upstream.SecretName(name), VersionID: upstream.VersionID(id), SecretData: secret(data),
		SecretDataType: "text", SecretType: "Generic", VersionStages: []upstream.VersionStage{upstream.ACSCurrent},
		CreateTime: time.Unix(1e9, 0), RequestID: "r-1",
	}))
}

// impatient options try once.
func impatient(endpoints ...kms.Endpoint) kms.Options {
	return kms.Options{Endpoints: endpoints, Retry: kms.Retry{MaxAttempts: 1}, Timeout: 15 * time.Second}
}

func TestNothingStandsInTheURL(t *testing.T) {
	s := script(t, says(200, `{"SecretName":"app/db","VersionId":"v1","VersionStages":{"VersionStage":["ACSCurrent"]},"RequestId":"r"}`))
	opts := impatient(s.endpoint())
	opts.Credentials = kms.StaticCredential(keyID, keySecret, "MARKER-token+/=")
	client := connect(t, opts)
	_, err := client.PutSecretValue(t.Context(), upstream.PutSecretValueInput{SecretName: "app/db", VersionID: "v1", SecretData: secret("MARKER a+b&c=d%é")})
	if err != nil {
		t.Fatal(err)
	}
	request := s.seen()[0]
	line, rest, _ := strings.Cut(request, "\n")
	if !strings.HasPrefix(line, "POST / map[") || strings.Contains(line, "MARKER") {
		t.Errorf("the request line and headers are %s", line)
	}
	form := must(url.ParseQuery(rest))
	for name, want := range map[string]string{
		"SecretData": "MARKER a+b&c=d%é", "SecurityToken": "MARKER-token+/=", "AccessKeyId": keyID, "Action": "PutSecretValue",
		"SecretName": "app/db", "VersionId": "v1", "RegionId": "cn-test", "Version": "2016-01-20",
	} {
		if len(form[name]) != 1 || form.Get(name) != want {
			t.Errorf("%s is %q in the form, want %q once", name, form[name], want)
		}
	}
	if len(form["Signature"]) != 1 {
		t.Errorf("Signature occurs %d times", len(form["Signature"]))
	}
}

func TestErrorsCarryWhatHelpsAndNothingElse(t *testing.T) {
	const marker = "MARKER-value"
	body := func(code, message string) string {
		b, _ := json.Marshal(map[string]any{"Code": code, "Message": message, "RequestId": "req-1", "HostId": "h", "Recommend": "https://x/?MARKER-value"})
		return string(b)
	}
	for _, c := range []struct {
		name    string
		answer  http.HandlerFunc
		want    error
		code    string
		message string
		retry   time.Duration
	}{
		{"not found", says(404, body("Forbidden.ResourceNotFound", "Resource not found")), upstream.ErrNotFound, "Forbidden.ResourceNotFound", "Resource not found", 0},
		{"denied", says(403, body("Forbidden.NoPermission", "no")), upstream.ErrAccessDenied, "Forbidden.NoPermission", "no", 0},
		{"throttled by the gateway", says(400, body("Throttling.User", "slow"), "x-acs-retry-after", "1500"), upstream.ErrThrottled, "Throttling.User", "slow", 1500 * time.Millisecond},
		{"throttled", says(429, body("Rejected.Throttling", "slow"), "Retry-After", "7"), upstream.ErrThrottled, "Rejected.Throttling", "slow", 7 * time.Second},
		{"throttled without a body", says(429, "", "x-ratelimit-user-api", "Limit:1, Remain:0,TimeLeft:2500"), upstream.ErrThrottled, "HTTP429", "", 2500 * time.Millisecond},
		{"a wait without end", says(429, "", "Retry-After", "99999999"), upstream.ErrThrottled, "HTTP429", "", time.Minute},
		{"unknown key", says(404, body("InvalidAccessKeyId.NotFound", "no such key")), upstream.ErrUnauthenticated, "InvalidAccessKeyId.NotFound", "no such key", 0},
		{"wrong signature", says(400, body("SignatureDoesNotMatch", "not matched. server string to sign is:POST&"+marker)), upstream.ErrUnauthenticated, "SignatureDoesNotMatch", "access key secret is wrong", 0},
		{"a message that quotes the value", says(400, body("InvalidParameter", "bad value "+marker)), upstream.ErrInvalidParameter, "InvalidParameter", "", 0},
		{"a message that quotes the value, encoded", says(400, body("InvalidParameter", "bad form SecretData="+url.QueryEscape(marker+" é"))), upstream.ErrInvalidParameter, "InvalidParameter", "", 0},
		{"a message that quotes the credential", says(400, body("InvalidParameter", "bad key "+keySecret)), upstream.ErrInvalidParameter, "InvalidParameter", "", 0},
		{"a message of several lines", says(400, body("InvalidParameter", "one\ntwo\x1b[31m")), upstream.ErrInvalidParameter, "InvalidParameter", "one two [31m", 0},
		{"the state of the account", says(400, body("InvalidAccountStatus", "overdue")), upstream.ErrRefused, "InvalidAccountStatus", "overdue", 0},
		{"a status that is not of KMS", says(410, body("Gone.Somehow", "gone")), upstream.ErrRefused, "Gone.Somehow", "gone", 0},
		{"internal", says(500, body("InternalFailure", "Internal Failure")), upstream.ErrInternal, "InternalFailure", "Internal Failure", 0},
		{"HTML with 500", says(500, "<html>"+marker), upstream.ErrInternal, "HTTP500", "not one of the KMS API", 0},
		{"HTML with 502", says(502, "<html>"+marker), upstream.ErrUnavailable, "HTTP502", "not one of the KMS API", 0},
		{"HTML with 200", says(200, "<html>"+marker), upstream.ErrUnavailable, "InvalidAnswer", "not one of the KMS API", 0},
		{"HTML with 404", says(404, "<html>"+marker), upstream.ErrUnavailable, "HTTP404", "not one of the KMS API", 0},
		{"half a JSON", says(200, `{"SecretName":"app/db","SecretData":"`+marker), upstream.ErrUnavailable, "InvalidAnswer", "not one of the KMS API", 0},
		{"an empty 200", says(200, ""), upstream.ErrUnavailable, "InvalidAnswer", "not one of the KMS API", 0},
		{"an empty object", says(200, "{}"), upstream.ErrUnavailable, "InvalidAnswer", "not one of the KMS API", 0},
		{"a list where an object belongs", says(200, "["+marker+"]"), upstream.ErrUnavailable, "InvalidAnswer", "not one of the KMS API", 0},
		{"a code that is a number", says(400, `{"Code":17,"Message":"`+marker+`","RequestId":"r"}`), upstream.ErrUnavailable, "HTTP400", "", 0},
		{"a code that is no code", says(400, `{"Code":"`+marker+` é","Message":"`+marker+`","RequestId":"r"}`), upstream.ErrUnavailable, "HTTP400", "", 0},
		{"a redirect", says(307, "", "Location", "http://127.0.0.1:1/?"+marker), upstream.ErrUnavailable, "", "redirect", 0},
		{"a hung-up connection", func(w http.ResponseWriter, _ *http.Request) {
			c, _, _ := w.(http.Hijacker).Hijack()
			_ = c.Close()
		}, upstream.ErrUnavailable, "", "connection was closed", 0},
		{"bytes that are no HTTP", func(w http.ResponseWriter, _ *http.Request) {
			c, _, _ := w.(http.Hijacker).Hijack()
			_, _ = io.WriteString(c, marker+"\r\n\r\n")
			_ = c.Close()
		}, upstream.ErrUnavailable, "", "connection failed", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := script(t, c.answer)
			client := connect(t, impatient(s.endpoint()))
			_, err := client.PutSecretValue(t.Context(), upstream.PutSecretValueInput{
				SecretName: "app/db", VersionID: "v7", SecretData: secret(marker + " é"),
			})
			if c.name == "a message that quotes the value" || c.name == "wrong signature" {
				_, err = client.PutSecretValue(t.Context(), upstream.PutSecretValueInput{SecretName: "app/db", VersionID: "v7", SecretData: secret(marker)})
			}
			var e *upstream.Error
			if !errors.As(err, &e) || !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if e.Code != c.code || e.RetryAfter != c.retry || !strings.Contains(e.Message, c.message) {
				t.Errorf("code %q, retry after %v, message %q", e.Code, e.RetryAfter, e.Message)
			}
			if e.Op != "PutSecretValue" || e.Ref.SecretName != "app/db" || e.Ref.VersionID != "v7" || e.Endpoint != s.Listener.Addr().String() {
				t.Errorf("op %q, ref %v, endpoint %q", e.Op, e.Ref, e.Endpoint)
			}
			for _, text := range []string{err.Error(), fmt.Sprintf("%+v %#v", e, e)} {
				if strings.Contains(text, "MARKER") || strings.Contains(text, "http:") || strings.Contains(text, keySecret) {
					t.Errorf("the error shows too much: %s", text)
				}
			}
		})
	}
}

// A secret of another account is asked for as it was named, and never answered with our own.
func TestAnARNIsSentAsItIs(t *testing.T) {
	const arn = "acs:kms:cn-hangzhou:123:secret/app/db"
	s := script(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.Form.Get("SecretName") {
		case "app/db":
			says(200, valueJSON("app/db", "v1", "our own"))(w, r)
		case arn:
			says(200, valueJSON("app/db", "v1", "theirs"))(w, r) // the service leaves the account out
		default:
			says(200, valueJSON("app/other", "v1", "another"))(w, r)
		}
	})
	client := connect(t, impatient(s.endpoint()))
	for name, want := range map[upstream.SecretName]string{"app/db": "our own", arn: "theirs"} {
		v, err := client.GetSecretValue(t.Context(), upstream.SecretRef{SecretName: name})
		if err != nil || string(v.SecretData.Reveal()) != want || v.SecretName != name {
			t.Errorf("%s: got %q of %s, %v", name, v.SecretData.Reveal(), v.SecretName, err)
		}
	}
	if _, err := client.GetSecretValue(t.Context(), upstream.SecretRef{SecretName: "acs:kms:cn-hangzhou:9:secret/app/db"}); !errors.Is(err, upstream.ErrUnavailable) {
		t.Errorf("another secret than the ARN names: %v", err)
	}
	_, _ = client.PutSecretValue(t.Context(), upstream.PutSecretValueInput{SecretName: arn, VersionID: "v2", SecretData: secret("x")})
	if requests := s.seen(); !strings.Contains(requests[len(requests)-1], "SecretName="+url.QueryEscape(arn)) {
		t.Error("a write does not name the account")
	}
}

// An answer of KMS that is not the value that was asked for is an error that another endpoint may
// do better than. It says nothing against the endpoint, which other secrets are asked from.
func TestAnAnswerThatIsNotTheValueIsRefused(t *testing.T) {
	asked := upstream.SecretRef{SecretName: "app/db", VersionID: "v1", VersionStage: upstream.ACSCurrent}
	good := valueJSON("app/db", "v1", "x")
	for name, body := range map[string]string{
		"another secret":   valueJSON("app/other", "v1", "x"),
		"another version":  valueJSON("app/db", "v2", "x"),
		"another label":    strings.Replace(good, "ACSCurrent", "ACSPrevious", 1),
		"no data":          valueJSON("app/db", "v1", ""),
		"no field":         strings.Replace(good, "SecretData\"", "Other\"", 1),
		"half a character": strings.Replace(good, `"SecretData":"x"`, `"SecretData":"\ud800"`, 1),
		"null":             strings.Replace(good, `"SecretData":"x"`, `"SecretData":null`, 1),
	} {
		bad, well := script(t, says(200, body)), script(t, says(200, good))
		opts := impatient(bad.endpoint())
		opts.Breaker.Failures = 1
		client := connect(t, opts)
		for range 2 {
			v, err := client.GetSecretValue(t.Context(), asked)
			if !errors.Is(err, upstream.ErrUnavailable) || upstream.Reason(err) != "InvalidAnswer" || v.SecretData.Len() != 0 {
				t.Errorf("%s: got %v, %v", name, v, err)
			}
		}
		if s := client.Status(); s.Endpoints[0].State != "ready" || s.Breaker.State != "closed" || len(bad.seen()) != 2 {
			t.Errorf("%s: after %d answers %+v", name, len(bad.seen()), s)
		}
		client = connect(t, kms.Options{Endpoints: []kms.Endpoint{bad.endpoint(), well.endpoint()}})
		if v, err := client.GetSecretValue(t.Context(), asked); err != nil || string(v.SecretData.Reveal()) != "x" {
			t.Errorf("%s, with another endpoint: %v", name, err)
		}
	}
}

func TestManagedAndSparseAnswers(t *testing.T) {
	s := script(t, says(200, `{"SecretName":"rds","VersionId":"v1","SecretData":"x","SecretType":"Rds","VersionStages":null,"CreateTime":"2020-01-02T03:04:05.678+08:00",
		"AutomaticRotation":"Enabled","RotationInterval":"604800s","NextRotationDate":null,"ExtendedConfig":null,"RequestId":"r","Unknown":{"a":[1]}}`))
	v, err := connect(t, impatient(s.endpoint())).GetSecretValue(t.Context(), ref("rds"))
	if err != nil || v.Managed == nil || v.Managed.RotationInterval != "604800s" || v.Managed.NextRotationDate != "" {
		t.Errorf("got %+v, %v", v, err)
	}
	if want := time.Date(2020, 1, 1, 19, 4, 5, 678e6, time.UTC); !v.CreateTime.Equal(want) {
		t.Errorf("created %v, want %v", v.CreateTime, want)
	}
}

func TestUnreachable(t *testing.T) {
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	_ = ln.Close()
	_, err := connect(t, impatient(plain(ln.Addr()))).GetSecretValue(t.Context(), ref("app/db"))
	if !errors.Is(err, upstream.ErrUnavailable) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("TCP: %v", err)
	}
	attempts := 0
	_, err = connect(t, kms.Options{
		Endpoints: []kms.Endpoint{{Socket: t.TempDir() + "/none.sock"}}, Observe: func(kms.Observation) { attempts++ },
	}).GetSecretValue(t.Context(), ref("app/db"))
	if attempts != 1 || !errors.Is(err, upstream.ErrUnavailable) || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("a socket that nobody serves was tried %d times: %v", attempts, err)
	}
}

func TestCancellationReturnsAtOnce(t *testing.T) {
	asked := make(chan struct{}, 1)
	s := script(t, func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
	})
	client := connect(t, kms.Options{Endpoints: []kms.Endpoint{s.endpoint()}, Timeout: time.Hour, Deadline: time.Hour})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-asked; cancel() }()
	if _, err := client.GetSecretValue(ctx, ref("app/db")); err != context.Canceled {
		t.Errorf("got %v, want context.Canceled as it is", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := client.RestoreSecret(ctx, "app/db"); err != context.DeadlineExceeded {
		t.Errorf("got %v, want context.DeadlineExceeded as it is", err)
	}
}

// debugChild names the test that runs in a child process with the debugging of the libraries on.
const debugChild = "SECRETAGENT_KMS_DEBUG_CHILD"

func TestDebugVariablesPrintNoSecret(t *testing.T) {
	if os.Getenv(debugChild) != "" {
		runDebugChild(t)
		return
	}
	child := exec.Command(os.Args[0], "-test.run=^TestDebugVariablesPrintNoSecret$", "-test.v")
	child.Env = append(os.Environ(), debugChild+"=1", "DEBUG=sdk,credential,tea,dara", "HTTP_PROXY=http://user:MARKER-proxy@127.0.0.1:1", "NO_PROXY=**.corp,127.0.0.1")
	out, err := child.CombinedOutput()
	if err != nil {
		t.Fatalf("the child failed: %v\n%s", err, out)
	}
	for line := range strings.SplitSeq(string(out), "\n") {
		if strings.Contains(line, "MARKER") || strings.Contains(line, "> POST") {
			t.Errorf("printed: %.300s", line)
		}
	}
}

func runDebugChild(t *testing.T) {
	s := script(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Form.Get("Action") == "GetSecretValue" {
			says(200, valueJSON("app/db", "v1", "MARKER-value"))(w, r)
			return
		}
		b, _ := json.Marshal(map[string]string{"Code": "SignatureDoesNotMatch", "RequestId": "r",
			"Message": "Specified signature is not matched with our calculation. server string to sign is:" + r.Form.Encode()})
		says(400, string(b))(w, r)
	})
	opts := impatient(s.endpoint())
	opts.Credentials = kms.StaticCredential("LTAIdebug", keySecret, "MARKER-token")
	client := connect(t, opts)
	if v, err := client.GetSecretValue(t.Context(), ref("app/db")); err != nil || string(v.SecretData.Reveal()) != "MARKER-value" {
		t.Errorf("read: %v", err)
	}
	_, err := client.PutSecretValue(t.Context(), upstream.PutSecretValueInput{SecretName: "app/db", VersionID: "v2", SecretData: secret("MARKER-put")})
	t.Logf("put: %v", err)
	if _, err := source(t, kms.CredentialOptions{Type: "ecs_ram_role"}).Credential(t.Context()); err == nil || !strings.Contains(err.Error(), "DEBUG=credential") {
		t.Errorf("a library that prints tokens is used: %v", err)
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	old := httptest.NewUnstartedServer(says(200, valueJSON("app/db", "v1", "x")))
	old.TLS = fakeCA.server.Clone()
	old.TLS.MinVersion, old.TLS.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	old.Config.ErrorLog = log.New(io.Discard, "", 0)
	old.StartTLS()
	t.Cleanup(old.Close)
	_, err := connect(t, impatient(kms.Endpoint{Host: old.Listener.Addr().String(), CAFile: fakeCA.file(t)})).GetSecretValue(t.Context(), ref("app/db"))
	if !errors.Is(err, upstream.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}

func TestADedicatedGatewayServesValuesAlone(t *testing.T) {
	gateway := kms.Endpoint{Region: "cn-hangzhou", Host: "kst-x.cryptoservice.kms.aliyuncs.com"}
	_, err := connect(t, impatient(gateway)).DescribeSecret(t.Context(), "app/db", false)
	if !errors.Is(err, upstream.ErrUnsupported) || !strings.Contains(err.Error(), "kms.cn-hangzhou.aliyuncs.com") {
		t.Errorf("alone: %v", err)
	}
	s := script(t, says(200, `{"SecretName":"app/db","RequestId":"r"}`))
	if _, err := connect(t, impatient(gateway, s.endpoint())).DescribeSecret(t.Context(), "app/db", false); err != nil {
		t.Errorf("beside a shared gateway: %v", err)
	}
}
