package kmsserver_test

import (
	"bufio"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"secretagent/upstream"
	"secretagent/upstream/kmsserver"
	"secretagent/upstream/upstreamtest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// fasthttp keeps a clock for the life of the process, and its pool's janitor sleeps
		// for up to ten seconds after the server has stopped.
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"))
}

const (
	keyID     = "LTAI5tExampleKeyId000001"
	keySecret = "ExampleSecretKey0000000000001a"
)

func secretData(s string) upstream.SecretData { return upstream.NewSecretData([]byte(s)) }

func fullKey() kmsserver.AccessKey {
	return kmsserver.AccessKey{ID: keyID, Secret: secretData(keySecret), Actions: []string{"*"}, Secrets: []string{"*"}}
}

// fixture is a running server with a fake behind it, a signed loopback listener and a
// trusted unix socket.
type fixture struct {
	fake    *upstreamtest.Fake
	server  *kmsserver.Server
	address string // of the signed listener
	socket  string // path of the trusted one
	log     *upstreamtest.Buffer
	web     *http.Client // dials the signed listener
	local   *http.Client // dials the socket
}

func start(t *testing.T, change ...func(*kmsserver.Tuned)) *fixture {
	t.Helper()
	f := &fixture{fake: upstreamtest.NewFake(), log: &upstreamtest.Buffer{}, socket: filepath.Join(t.TempDir(), "kms.sock")}
	opts := kmsserver.Tuned{Limits: kmsserver.StandardLimits, Clock: time.Now, Options: kmsserver.Options{
		AccessKeys: []kmsserver.AccessKey{fullKey()}, Logger: f.log.Logger(),
	}}
	for _, c := range change {
		c(&opts)
	}
	var err error
	f.server, err = kmsserver.NewTuned(upstream.OfAccount(f.fake, "acs:kms:fake:0"), opts)
	must(t, err)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	unix, err := net.Listen("unix", f.socket)
	must(t, err)
	f.address = tcp.Addr().String()
	f.web = &http.Client{Transport: &http.Transport{}, Timeout: time.Minute}
	f.local = &http.Client{Timeout: time.Minute, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", f.socket)
	}}}
	var serving sync.WaitGroup
	serving.Go(func() { f.serve(t, tcp, kmsserver.Signed) })
	serving.Go(func() { f.serve(t, unix, kmsserver.Trusted) })
	t.Cleanup(func() {
		f.web.CloseIdleConnections()
		f.local.CloseIdleConnections()
		f.shutdown(t)
		serving.Wait()
	})
	return f
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// serve answers on ln until the shutdown, which may come before it has begun.
func (f *fixture) serve(t *testing.T, ln net.Listener, access kmsserver.Access) {
	if err := f.server.Serve(ln, access); err != nil && !errors.Is(err, kmsserver.ErrServerClosed) {
		t.Errorf("serve: %v", err)
	}
}

func (f *fixture) shutdown(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // idle connections may stay for longer
	defer cancel()
	if err := f.server.Shutdown(ctx); err != nil {
		t.Errorf("shutdown: %v", err)
	}
}

// answer is a response that was read to its end.
type answer struct {
	status int
	header http.Header
	body   map[string]any
	raw    string

	// Of an answer in XML. The body has the elements within the root that hold text alone.
	root     string
	document xmlNode
}

func (a answer) text(name string) string {
	s, _ := a.body[name].(string)
	return s
}

// read checks what every answer promises and returns it.
func read(t *testing.T, res *http.Response, err error) answer {
	t.Helper()
	must(t, err)
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	must(t, err)
	a := answer{status: res.StatusCode, header: res.Header, raw: string(raw)}
	contentType := "application/json;charset=utf-8"
	if strings.HasPrefix(a.raw, "<") {
		contentType = "text/xml;charset=utf-8"
		err = xml.Unmarshal(raw, &a.document)
		a.root, a.body = a.document.XMLName.Local, map[string]any{}
		for _, element := range a.document.Children {
			a.body[element.XMLName.Local] = element.Text
		}
	} else {
		err = json.Unmarshal(raw, &a.body)
	}
	if err != nil {
		t.Fatalf("status %d, body %q: %v", a.status, raw, err)
	}
	if got := a.header.Get("Content-Type"); got != contentType {
		t.Errorf("content type %q of %s", got, raw)
	}
	id := a.text("RequestId")
	if len(id) != 36 || id != strings.ToLower(id) || a.header.Get("x-acs-request-id") != id {
		t.Errorf("request id %q, header %q", id, a.header.Get("x-acs-request-id"))
	}
	if a.status != http.StatusOK {
		for _, name := range []string{"Code", "Message", "RequestId", "HostId", "Recommend"} {
			if _, ok := a.body[name].(string); !ok {
				t.Errorf("%s is no text in %s", name, raw)
			}
		}
		if fmt.Sprint(a.body["HttpStatus"]) != strconv.Itoa(a.status) {
			t.Errorf("HttpStatus is %v, the status %d", a.body["HttpStatus"], a.status)
		}
	}
	return a
}

// params are the parameters of a call, given as name, value, name, value, …
func params(action string, pairs ...string) url.Values {
	values := url.Values{"Action": {action}}
	for i := 0; i < len(pairs); i += 2 {
		values.Set(pairs[i], pairs[i+1])
	}
	return values
}

// call makes a call over the socket.
func (f *fixture) call(t *testing.T, action string, pairs ...string) answer {
	t.Helper()
	res, err := f.local.PostForm("http://kms.local/", params(action, append(pairs, "Version", "2016-01-20")...))
	return read(t, res, err)
}

// hanging starts n calls over the socket whose backend waits for release. Each then tells its
// status, 0 when there was no answer.
func (f *fixture) hanging(t *testing.T, n int) (statuses chan int, release func()) {
	t.Helper()
	release = f.fake.Block("ListSecrets")
	t.Cleanup(release)
	statuses = make(chan int, n)
	for range n {
		go func() { statuses <- f.status() }()
	}
	f.fake.AwaitCalls(t, "ListSecrets", n)
	return statuses, release
}

// status makes a call over the socket and returns how it ends.
func (f *fixture) status() int {
	res, err := f.local.Get("http://kms.local/?Action=ListSecrets&Version=2016-01-20")
	if err != nil {
		return 0
	}
	_ = res.Body.Close()
	return res.StatusCode
}

// send dials, writes what need not be a request, and returns the connection. The server may
// answer and hang up without reading on, so writing may fail.
func send(t *testing.T, network, address, text string) net.Conn {
	t.Helper()
	conn, err := net.Dial(network, address)
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	_, _ = io.WriteString(conn, text)
	return conn
}

// wants checks status and code; an empty code means success.
func (a answer) wants(t *testing.T, what string, status int, code string) {
	t.Helper()
	if a.status != status || a.text("Code") != code {
		t.Errorf("%s: %d %s, want %d %s (%s)", what, a.status, a.text("Code"), status, code, a.text("Message"))
	}
}

func TestEveryActionOverTheTrustedSocket(t *testing.T) {
	f, twin := start(t), start(t) // the twin is asked for XML
	for _, f := range []*fixture{f, twin} {
		f.fake.Now = func() time.Time { return vectorTime }
		f.fake.MustCreate(t, "app/db", "v1", "first")
	}
	arn := "acs:kms:fake:0:secret/app/db"
	for _, c := range []struct {
		action string
		pairs  []string
		want   string // of the body, without the request id
	}{
		{"CreateSecret", []string{"SecretName", "app/new", "VersionId", "v1", "SecretData", "x", "SecretType", "Generic", "ExtendedConfig", "ignored", "Description", "d"},
			`{"Arn":"acs:kms:fake:0:secret/app/new","SecretName":"app/new","VersionId":"v1","SecretType":"Generic"}`},
		{"PutSecretValue", []string{"SecretName", arn, "VersionId", "v2", "SecretData", "second", "VersionStages", `["ACSCurrent","blue"]`},
			`{"SecretName":"app/db","VersionId":"v2","VersionStages":{"VersionStage":["ACSCurrent","blue"]}}`},
		{"PutSecretValue", []string{"SecretName", "app/db", "VersionId", "v3", "SecretData", "third", "VersionStages", `{"VersionStage":["blue"]}`},
			`{"SecretName":"app/db","VersionId":"v3","VersionStages":{"VersionStage":["blue"]}}`},
		{"GetSecretValue", []string{"SecretName", arn, "FetchExtendedConfig", "true"},
			`{"SecretName":"app/db","VersionId":"v2","SecretData":"second","SecretDataType":"text","SecretType":"Generic","VersionStages":{"VersionStage":["ACSCurrent"]},"CreateTime":"2026-11-23T12:28:35Z"}`},
		{"GetSecretValue", []string{"SecretName", "app/db", "VersionStage", "ACSPrevious", "VersionId", "v1"},
			`{"SecretName":"app/db","VersionId":"v1","SecretData":"first","SecretDataType":"text","SecretType":"Generic","VersionStages":{"VersionStage":["ACSPrevious"]},"CreateTime":"2026-11-23T12:28:35Z"}`},
		{"ListSecretVersionIds", []string{"SecretName", "app/db", "PageSize", "2", "IncludeDeprecated", "true"},
			`{"SecretName":"app/db","VersionIds":{"VersionId":[{"VersionId":"v3","CreateTime":"2026-11-23T12:28:35Z","VersionStages":{"VersionStage":["blue"]}},` +
				`{"VersionId":"v2","CreateTime":"2026-11-23T12:28:35Z","VersionStages":{"VersionStage":["ACSCurrent"]}}]},"PageNumber":1,"PageSize":2,"TotalCount":3}`},
		{"UpdateSecretVersionStage", []string{"SecretName", arn, "VersionStage", "blue", "RemoveFromVersion", "v3"}, `{"SecretName":"app/db"}`},
		{"UpdateSecret", []string{"SecretName", arn, "Description", "数据库"}, `{"SecretName":"app/db"}`},
		{"TagResource", []string{"SecretName", arn, "Tags", `[{"TagKey":"env","TagValue":"dev"},{"TagKey":"tier","TagValue":"web"}]`}, `{}`},
		{"UntagResource", []string{"SecretName", "app/db", "TagKeys", "env,tier"}, `{}`},
		{"TagResources", []string{"RegionId", "r", "ResourceType", "secret", "ResourceId.1", "app/db", "ResourceId.2", arn, "Tag.1.Key", "env", "Tag.1.Value", "dev", "Tag.2.Key", "empty"}, `{}`},
		{"DescribeSecret", []string{"SecretName", "app/db", "FetchTags", "true"},
			`{"Arn":"acs:kms:fake:0:secret/app/db","SecretName":"app/db","SecretType":"Generic","Description":"数据库",` +
				`"CreateTime":"2026-11-23T12:28:35Z","UpdateTime":"2026-11-23T12:28:35Z","Tags":{"Tag":[{"TagKey":"empty","TagValue":""},{"TagKey":"env","TagValue":"dev"}]}}`},
		{"ListTagResources", []string{"ResourceType", "secret", "ResourceId", `["app/db"]`, "Tag", `[{"Key":"env"}]`},
			`{"NextToken":"","TagResources":{"TagResource":[{"ResourceType":"secret","ResourceId":"app/db","TagKey":"env","TagValue":"dev"}]}}`},
		{"UntagResources", []string{"ResourceType", "secret", "ResourceId.1", "app/db", "TagKey.1", "env", "TagKey.2", "nothing"}, `{}`},
		{"UntagResources", []string{"ResourceType", "secret", "ResourceId", "app/db", "All", "true"}, `{}`},
		{"ListSecrets", []string{"FetchTags", "true", "Filters", `[{"Key":"SecretName","Values":["app/db","x"]}]`},
			`{"SecretList":{"Secret":[{"SecretName":"app/db","SecretType":"Generic","CreateTime":"2026-11-23T12:28:35Z","UpdateTime":"2026-11-23T12:28:35Z","Tags":{"Tag":[]}}]},"PageNumber":1,"PageSize":10,"TotalCount":1}`},
		{"ListSecrets", []string{"PageNumber", "9"}, `{"SecretList":{"Secret":[]},"PageNumber":9,"PageSize":10,"TotalCount":2}`},
		{"DeleteSecret", []string{"SecretName", arn, "RecoveryWindowInDays", "7"}, `{"SecretName":"app/db","PlannedDeleteTime":"2026-11-30T12:28:35Z"}`},
		{"RestoreSecret", []string{"SecretName", arn}, `{"SecretName":"app/db"}`},
		{"DeleteSecret", []string{"SecretName", "app/db", "RecoveryWindowInDays", "30", "ForceDeleteWithoutRecovery", "true"}, `{"SecretName":"app/db"}`},
		{"BatchGetSecretValue", []string{"SecretsList", `[{"SecretName":"app/new"},{"SecretName":"app/db","VersionStage":"ACSPrevious"}]`},
			`{"SecretValues":[{"SecretName":"app/new","VersionId":"v1","SecretData":"x","SecretDataType":"text","SecretType":"Generic","VersionStages":{"VersionStage":["ACSCurrent"]},"CreateTime":"2026-11-23T12:28:35Z","RequestId":"ID"}],` +
				`"Errors":[{"Code":"Forbidden.ResourceNotFound","HttpStatus":404,"Message":"no such secret","SecretName":"app/db"}]}`},
	} {
		a := f.call(t, c.action, c.pairs...)
		if a.status != http.StatusOK {
			t.Errorf("%s %v: %d %s", c.action, c.pairs, a.status, a.raw)
			continue
		}
		got, ok := strings.CutSuffix(strings.ReplaceAll(a.raw, a.text("RequestId"), "ID"), `"RequestId":"ID"}`+"\n")
		if got = strings.TrimSuffix(got, ",") + "}"; !ok || got != c.want {
			t.Errorf("%s %v:\ngot  %s\nwant %s", c.action, c.pairs, got, c.want)
		}
		inXML := twin.call(t, c.action, append(c.pairs, "Format", "XML")...)
		sameAnswer(t, c.action, a, inXML)
		if inXML.root != c.action+"Response" {
			t.Errorf("%s: the root is %s", c.action, inXML.root)
		}
	}
	p := f.call(t, "GetRandomPassword", "PasswordLength", "20", "ExcludePunctuation", "true", "RequireEachIncludedType", "true")
	if p.status != http.StatusOK || len(p.text("RandomPassword")) != 20 {
		t.Errorf("password: %d, %d characters", p.status, len(p.text("RandomPassword")))
	}
}

func TestBadParametersAreRefusedByName(t *testing.T) {
	f := start(t)
	f.fake.MustCreate(t, "app/db", "v1", "first")
	for _, c := range []struct {
		action string
		pairs  []string
		code   string
		names  string // in the message
	}{
		{"GetSecretValue", nil, "MissingParameter", "SecretName"},
		{"GetSecretValue", []string{"SecretName", "a b"}, "InvalidParameter", "SecretName"},
		{"GetSecretValue", []string{"SecretName", "app/db:ACSCurrent"}, "InvalidParameter", "SecretName"},
		{"GetSecretValue", []string{"SecretName", "acs:kms:r:1:key/x"}, "InvalidParameter", "SecretName"},
		{"GetSecretValue", []string{"SecretName", "app/db", "FetchExtendedConfig", "perhaps"}, "InvalidParameter", "FetchExtendedConfig"},
		{"GetSecretValue", []string{"SecretName", "app/db", "VersionId", "\xff"}, "InvalidParameter", "VersionId"},
		{"CreateSecret", []string{"SecretName", "new", "SecretData", "x"}, "MissingParameter", "VersionId"},
		{"CreateSecret", []string{"SecretName", "new", "VersionId", "v1"}, "MissingParameter", "SecretData"},
		{"CreateSecret", []string{"SecretName", "new", "VersionId", "v1", "SecretData", "a\xffb"}, "InvalidParameter", "SecretData"},
		{"CreateSecret", []string{"SecretName", "new", "VersionId", "v1", "SecretData", "x", "Tags", "[1]"}, "InvalidParameter", "Tags"},
		{"CreateSecret", []string{"SecretName", "new", "VersionId", "v1", "SecretData", "x", "Tags", `[{"Key":"k"}]`}, "InvalidParameter", "TagKey"},
		{"CreateSecret", []string{"SecretName", "new", "VersionId", "v1", "SecretData", "x", "EnableAutomaticRotation", "1"}, "InvalidParameter", "EnableAutomaticRotation"},
		{"CreateSecret", []string{"SecretName", "new", "VersionId", "v1", "SecretData", "x", "SecretType", "Postgres"}, "InvalidParameter", "Generic"},
		{"CreateSecret", []string{"SecretName", "new", "VersionId", "v1", "SecretData", "x", "DKMSInstanceId", "kst-x"}, "InvalidParameter", "DKMSInstanceId"},
		{"CreateSecret", []string{"SecretName", "new", "VersionId", "v1", "SecretData", "x", "EnableAutomaticRotation", "true"}, "InvalidParameter", "EnableAutomaticRotation"},
		{"CreateSecret", []string{"SecretName", "new", "VersionId", "v1", "SecretData", "x", "RotationInterval", "7d"}, "InvalidParameter", "RotationInterval"},
		{"CreateSecret", []string{"SecretName", "new", "VersionId", "v1", "SecretData", "x", "Policy", "{}"}, "InvalidParameter", "Policy"},
		{"CreateSecret", []string{"SecretName", "new", "VersionId", "v1", "SecretData", "x", "SecretType", "Rds"}, "UnsupportedOperation", "Rds"},
		{"CreateSecret", []string{"SecretName", "new", "VersionId", "v1", "SecretData", "x", "SecretType", "Redis"}, "UnsupportedOperation", "Redis"},
		{"CreateSecret", []string{"SecretName", "new", "VersionId", "v1", "SecretData", "x", "SecretType", "RAMCredentials"}, "UnsupportedOperation", "RAMCredentials"},
		{"CreateSecret", []string{"SecretName", "new", "VersionId", "v1", "SecretData", "x", "SecretType", "ECS"}, "UnsupportedOperation", "ECS"},
		{"CreateSecret", []string{"SecretName", "new", "VersionId", "v1", "SecretData", "x", "SecretType", "PolarDB"}, "UnsupportedOperation", "PolarDB"},
		{"PutSecretValue", []string{"SecretName", "app/db", "VersionId", "v2", "SecretData", "x", "VersionStages", "ACSCurrent"}, "InvalidParameter", "VersionStages"},
		{"PutSecretValue", []string{"SecretName", "app/db", "VersionId", "v2", "SecretData", "x", "VersionStages", "[]"}, "InvalidParameter", "VersionStages"},
		{"PutSecretValue", []string{"SecretName", "app/db", "VersionId", "v2", "SecretData", "x", "VersionStages", "null"}, "InvalidParameter", "VersionStages"},
		{"PutSecretValue", []string{"SecretName", "app/db", "VersionId", "v2", "SecretData", "x", "VersionStages", "{}"}, "InvalidParameter", "VersionStages"},
		{"ListSecrets", []string{"PageNumber", "0"}, "InvalidParameter", "PageNumber"},
		{"ListSecrets", []string{"PageNumber", "99999999999999999999"}, "InvalidParameter", "PageNumber"},
		{"ListSecrets", []string{"PageSize", "101"}, "InvalidParameter", "PageSize"},
		{"ListSecrets", []string{"PageSize", "ten"}, "InvalidParameter", "PageSize"},
		{"ListSecrets", []string{"Filters", "{"}, "InvalidParameter", "Filters"},
		{"ListSecrets", []string{"FetchTags", "yes"}, "InvalidParameter", "FetchTags"},
		{"DeleteSecret", []string{"SecretName", "app/db", "RecoveryWindowInDays", "0"}, "InvalidParameter", "RecoveryWindowInDays"},
		{"DeleteSecret", []string{"SecretName", "app/db", "ForceDeleteWithoutRecovery", "so"}, "InvalidParameter", "ForceDeleteWithoutRecovery"},
		{"GetRandomPassword", []string{"PasswordLength", "0"}, "InvalidParameter", "PasswordLength"},
		{"UpdateSecretRotationPolicy", nil, "MissingParameter", "SecretName"},
		{"UpdateSecretRotationPolicy", []string{"SecretName", "app/db"}, "MissingParameter", "EnableAutomaticRotation"},
		{"RotateSecret", []string{"SecretName", "app/db"}, "MissingParameter", "VersionId"},
		{"CreateSecret", []string{"SecretName", "$Auto", "VersionId", "v1", "SecretData", "x", "SecretType", "RAMCredentials"}, "UnsupportedOperation", "RAMCredentials"},
		{"UpdateSecret", []string{"SecretName", "app/db", "ExtendedConfig.CustomData", "[]"}, "InvalidParameter", "ExtendedConfig.CustomData"},
		{"UpdateSecret", []string{"SecretName", "app/db", "ExtendedConfig.CustomData.a", "b"}, "InvalidParameter", "ExtendedConfig.CustomData"},
		{"TagResource", []string{"Tags", `[{"TagKey":"k"}]`}, "MissingParameter", "SecretName"},
		{"TagResource", []string{"SecretName", "app/db", "KeyId", "k", "Tags", `[{"TagKey":"k"}]`}, "InvalidParameter", "exactly one"},
		{"TagResource", []string{"SecretName", "app/db"}, "MissingParameter", "Tags"},
		{"TagResource", []string{"KeyId", "k", "Tags", `[{"TagKey":"k"}]`}, "UnsupportedOperation", "only secrets"},
		{"TagResource", []string{"CertificateId", "c", "Tags", `[{"TagKey":"k"}]`}, "UnsupportedOperation", "only secrets"},
		{"UntagResource", []string{"SecretName", "app/db"}, "MissingParameter", "TagKeys"},
		{"UntagResource", []string{"SecretName", "app/db", "TagKeys", "a,,b"}, "InvalidParameter", "TagKeys"},
		{"UntagResource", []string{"SecretName", "app/db", "TagKeys", "[]"}, "MissingParameter", "TagKeys"},
		{"TagResources", []string{"ResourceId.1", "app/db", "Tag.1.Key", "k"}, "MissingParameter", "ResourceType"},
		{"TagResources", []string{"ResourceType", "key", "ResourceId.1", "app/db", "Tag.1.Key", "k"}, "UnsupportedOperation", "only secrets"},
		{"TagResources", []string{"ResourceType", "disk", "ResourceId.1", "app/db", "Tag.1.Key", "k"}, "InvalidParameter", "ResourceType"},
		{"TagResources", []string{"ResourceType", "secret", "Tag.1.Key", "k"}, "MissingParameter", "ResourceId"},
		{"TagResources", []string{"ResourceType", "secret", "ResourceId.1", "app/db", "ResourceId", `["app/db"]`, "Tag.1.Key", "k"}, "InvalidParameter", "ResourceId"},
		{"TagResources", []string{"ResourceType", "secret", "ResourceId.0", "app/db", "Tag.1.Key", "k"}, "InvalidParameter", "ResourceId"},
		{"TagResources", []string{"ResourceType", "secret", "ResourceId.01", "app/db", "Tag.1.Key", "k"}, "InvalidParameter", "ResourceId"},
		{"TagResources", []string{"ResourceType", "secret", "ResourceId.1", "app/db"}, "MissingParameter", "Tag"},
		{"TagResources", []string{"ResourceType", "secret", "ResourceId.1", "app/db", "Tag.1.Value", "v"}, "MissingParameter", "Tag.Key"},
		{"TagResources", []string{"ResourceType", "secret", "ResourceId.1", "app/db", "Tag.1.Colour", "v"}, "InvalidParameter", "Tag"},
		{"ListTagResources", []string{"ResourceType", "secret"}, "MissingParameter", "ResourceId"},
		{"BatchGetSecretValue", nil, "MissingParameter", "SecretsList"},
		{"BatchGetSecretValue", []string{"SecretsList", "[" + strings.Repeat(`{"SecretName":"a"},`, 20) + `{"SecretName":"a"}]`}, "InvalidParameter", "SecretsList"},
		{"GetSecretPolicy", []string{"SecretName", "app/db"}, "UnsupportedOperation", "policies"},
		{"SetSecretPolicy", []string{"SecretName", "app/db"}, "UnsupportedOperation", "policies"},
		{"SetSecretPolicy", []string{"SecretName", "app/db", "PolicyName", "mine"}, "InvalidParameter", "PolicyName"},
		{"ListResourceTags", []string{"KeyId", "k"}, "UnsupportedOperation", "keys"},
		{"RotateSecret", []string{"SecretName", "app/db", "VersionId", "v2"}, "UnsupportedOperation", "Generic"},
		{"UpdateSecretRotationPolicy", []string{"SecretName", "app/db", "EnableAutomaticRotation", "false"}, "UnsupportedOperation", "Generic"},
	} {
		a := f.call(t, c.action, c.pairs...)
		if a.status != http.StatusBadRequest || a.text("Code") != c.code || !strings.Contains(a.text("Message"), c.names) {
			t.Errorf("%s %q: %d %s %s; want %s about %s", c.action, c.pairs, a.status, a.text("Code"), a.text("Message"), c.code, c.names)
		}
	}
	if n := f.fake.Calls("CreateSecret"); n > 5 {
		t.Errorf("%d malformed calls reached the backend", n)
	}
}

func TestGatewayFaults(t *testing.T) {
	f := start(t)
	post := func(target, contentType, body string) answer {
		t.Helper()
		res, err := f.local.Post("http://kms.local"+target, contentType, strings.NewReader(body))
		return read(t, res, err)
	}
	const form = "application/x-www-form-urlencoded"
	post("/?Action=Encrypt&Version=2016-01-20", form, "").wants(t, "unknown action", 404, "InvalidApi.NotFound")
	post("/?Action=getsecretvalue&Version=2016-01-20", form, "").wants(t, "wrong case", 404, "InvalidApi.NotFound")
	post("/?Action=GetSecretValue&Version=2015-01-01", form, "").wants(t, "other version", 404, "InvalidApi.NotFound")
	post("/secret?Action=GetSecretValue&Version=2016-01-20", form, "").wants(t, "other path", 404, "InvalidApi.NotFound")
	post("/?Version=2016-01-20", form, "").wants(t, "no action", 400, "MissingAction")
	post("/?Action=GetSecretValue", form, "").wants(t, "no version", 400, "MissingVersion")
	post("/?Action=ListSecrets&Version=2016-01-20&Format=YAML", form, "").wants(t, "YAML", 400, "InvalidParameter.Format")
	post("/?Action=ListSecrets&Version=2016-01-20", form, "Action=ListSecrets").wants(t, "a name in query and body", 400, "ParseRequestParameterException")
	post("/?Action=ListSecrets&Version=2016-01-20&PageSize=1&PageSize=1", form, "").wants(t, "a name twice", 400, "ParseRequestParameterException")
	post("/?Action=ListSecrets&Version=2016-01-20&a=%zz", form, "").wants(t, "broken encoding", 400, "ParseRequestParameterException")
	post("/?Action=ListSecrets&Version=2016-01-20", "text/plain", "x").wants(t, "other content type", 400, "ParseRequestParameterException")
	post("/?Action=ListSecrets&Version=2016-01-20", "multipart/form-data; boundary=x", "--x--").wants(t, "multipart", 400, "ParseRequestParameterException")
	post("/?Action=ListSecrets&Version=2016-01-20&Unknown=x&RegionId=nowhere", form, "").wants(t, "unknown parameters", 200, "")
	post("/?Action=ListSecrets&Version=2016-01-20&Format=json", "application/json", `{"PageSize":5,"FetchTags":true}`).wants(t, "JSON over the socket", 200, "")
	for _, method := range []string{http.MethodPut, http.MethodDelete, http.MethodOptions} {
		req, _ := http.NewRequestWithContext(t.Context(), method, "http://kms.local/?Action=ListSecrets&Version=2016-01-20", nil)
		res, err := f.local.Do(req)
		read(t, res, err).wants(t, method, 400, "UnsupportedHTTPMethod")
	}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://kms.local/?Action=ListSecrets&Version=2016-01-20", strings.NewReader("x"))
	req.Header.Set("Content-Encoding", "gzip")
	res, err := f.local.Do(req)
	read(t, res, err).wants(t, "compressed", 400, "ParseRequestParameterException")
}

func TestBackendErrorsTravelAsCodes(t *testing.T) {
	f := start(t)
	for sentinel, want := range map[error]struct {
		status int
		code   string
	}{
		upstream.ErrInvalidParameter:   {400, "InvalidParameter"},
		upstream.ErrMissingParameter:   {400, "MissingParameter"},
		upstream.ErrUnsupported:        {400, "UnsupportedOperation"},
		upstream.ErrLimitExceeded:      {400, "Rejected.LimitExceeded"},
		upstream.ErrNotFound:           {404, "Forbidden.ResourceNotFound"},
		upstream.ErrKeyNotFound:        {404, "Forbidden.KeyNotFound"},
		upstream.ErrExists:             {409, "Rejected.ResourceExist"},
		upstream.ErrPendingDeletion:    {409, "Rejected.ResourceInDeleteWindow"},
		upstream.ErrNotPendingDeletion: {409, "Rejected.ResourceInUse"},
		upstream.ErrAccessDenied:       {403, "Forbidden.NoPermission"},
		upstream.ErrUnauthenticated:    {503, "ServiceUnavailableTemporary"},
		upstream.ErrNoCredentials:      {503, "ServiceUnavailableTemporary"},
		upstream.ErrClockSkew:          {503, "ServiceUnavailableTemporary"},
		upstream.ErrRefused:            {503, "Rejected.Unavailable"},
		upstream.ErrThrottled:          {429, "Rejected.Throttling"},
		upstream.ErrInternal:           {500, "InternalFailure"},
		upstream.ErrUnavailable:        {503, "ServiceUnavailableTemporary"},
		context.DeadlineExceeded:       {503, "ServiceUnavailableTemporary"},
		errors.New("disk on fire"):     {500, "InternalFailure"},
	} {
		f.fake.FailNext("GetSecretValue", 1, sentinel)
		a := f.call(t, "GetSecretValue", "SecretName", "app/db")
		a.wants(t, sentinel.Error(), want.status, want.code)
		if a.text("Message") == "" || strings.Contains(a.raw, "on fire") {
			t.Errorf("%v: message %q", sentinel, a.text("Message"))
		}
	}
	if !strings.Contains(f.log.String(), "disk on fire") {
		t.Error("the cause of an internal failure is not in the log")
	}
	f.fake.FailNext("GetSecretValue", 1, &upstream.Error{Err: upstream.ErrThrottled, RetryAfter: 1500 * time.Millisecond})
	a := f.call(t, "GetSecretValue", "SecretName", "app/db")
	if a.header.Get("Retry-After") != "2" || a.header.Get("x-acs-retry-after") != "1500" {
		t.Errorf("retry after %q, %q", a.header.Get("Retry-After"), a.header.Get("x-acs-retry-after"))
	}
}

func TestDryRunNeverSucceeds(t *testing.T) {
	f := start(t)
	f.fake.MustCreate(t, "app/db", "v1", "MARKER")
	f.call(t, "GetSecretValue", "SecretName", "app/db", "DryRun", "false").wants(t, "no dry run", 200, "")
	a := f.call(t, "GetSecretValue", "SecretName", "app/db", "DryRun", "true")
	a.wants(t, "dry run", 400, "DryRunOperationError")
	if strings.Contains(a.raw, "MARKER") {
		t.Error("a dry run shows the value")
	}
	f.call(t, "GetSecretValue", "SecretName", "a b", "DryRun", "true").wants(t, "malformed", 400, "ValidationError")
	f.call(t, "GetSecretValue", "SecretName", "app/none", "DryRun", "true").wants(t, "missing", 404, "Forbidden.ResourceNotFound")
	f.fake.FailNext("GetSecretValue", 1, upstream.ErrAccessDenied)
	f.call(t, "GetSecretValue", "SecretName", "app/db", "DryRun", "true").wants(t, "denied", 403, "AccessDeniedError")
}

// managed is a backend whose secrets the cloud rotates.
type managed struct{ upstream.Manager }

func (m managed) DescribeSecret(ctx context.Context, name upstream.SecretName, fetchTags bool) (upstream.SecretMetadata, error) {
	meta, err := m.Manager.DescribeSecret(ctx, name, fetchTags)
	meta.SecretType, meta.Managed = "Rds", &upstream.ManagedSecret{AutomaticRotation: "Enabled", RotationInterval: "604800s", ExtendedConfig: "{}"}
	return meta, err
}

func TestManagedSecretsAreToldAsSuch(t *testing.T) {
	f := start(t)
	f.fake.MustCreate(t, "app/db", "v1", "first")
	f.server.SetManager(managed{f.fake})
	for action, pairs := range map[string][]string{"RotateSecret": {"VersionId", "v2"}, "UpdateSecretRotationPolicy": {"EnableAutomaticRotation", "true"}} {
		a := f.call(t, action, append(pairs, "SecretName", "app/db")...)
		a.wants(t, action, 400, "UnsupportedOperation")
		if message := a.text("Message"); strings.Contains(message, "Generic") || !strings.Contains(message, "Rds") {
			t.Errorf("%s: %s", action, message)
		}
	}
	a := f.call(t, "DescribeSecret", "SecretName", "app/db")
	if a.text("SecretType") != "Rds" || a.text("AutomaticRotation") != "Enabled" || a.text("RotationInterval") != "604800s" || a.text("ExtendedConfig") != "{}" {
		t.Errorf("DescribeSecret: %s", a.raw)
	}
	f.server.SetManager(f.fake)
	if a := f.call(t, "DescribeSecret", "SecretName", "app/db"); a.status != 200 || strings.Contains(a.raw, "AutomaticRotation") {
		t.Errorf("DescribeSecret of a generic secret: %s", a.raw)
	}
}

func TestAPanicIsAnInternalFailure(t *testing.T) {
	f := start(t)
	f.fake.Intercept(func(context.Context, string, upstream.SecretRef) error { panic("MARKER-panic") })
	a := f.call(t, "ListSecrets")
	a.wants(t, "panic", 500, "InternalFailure")
	f.fake.Intercept(nil)
	f.call(t, "ListSecrets").wants(t, "afterwards", 200, "")
	if log := f.log.String(); strings.Contains(log+a.raw, "MARKER-panic") || !strings.Contains(log, "panic of type string") {
		t.Errorf("log: %s", log)
	}
}

func TestObserveSeesEveryRequest(t *testing.T) {
	var observed upstreamtest.Buffer
	f := start(t, func(o *kmsserver.Tuned) {
		o.Observe = func(action, code string, status int, _ time.Duration) {
			_, _ = fmt.Fprintln(&observed, action, code, status)
		}
	})
	f.call(t, "ListSecrets")
	f.call(t, "GetSecretValue", "SecretName", "app/none")
	f.call(t, "Colour")
	if got := observed.String(); got != "ListSecrets  200\nGetSecretValue Forbidden.ResourceNotFound 404\n InvalidApi.NotFound 404\n" {
		t.Errorf("got %s", got)
	}
}

// Everything that could carry a secret is planted with a marker, and the log is searched.
func TestNoLogShowsWhatWasSent(t *testing.T) {
	const marker = "MARKER-s3cr3t"
	f := start(t, func(o *kmsserver.Tuned) {
		o.AccessKeys[0].Secret = secretData(marker + "-key")
	})
	f.call(t, "CreateSecret", "SecretName", "app/db", "VersionId", "v1", "SecretData", marker, "Description", marker)
	f.call(t, "GetSecretValue", "SecretName", "app/db")
	f.call(t, "PutSecretValue", "SecretName", "app/db", "VersionId", "v1", "SecretData", marker+"2")
	f.call(t, "PutSecretValue", "SecretName", "app/none", "VersionId", "v1", "SecretData", marker)
	f.call(t, "PutSecretValue", "SecretName", "app/db", "VersionId", "v1", "SecretData", marker+strings.Repeat("x", 40000))
	f.fake.FailNext("PutSecretValue", 1, upstream.ErrInternal)
	f.call(t, "PutSecretValue", "SecretName", "app/db", "VersionId", "v2", "SecretData", marker)
	signed := newSigner(f)
	signed.secret = marker + "-wrong"
	a := signed.call(t, "PutSecretValue", "SecretName", "a", "SecretData", marker, "VersionId", "v1")
	a.wants(t, "wrong secret", 400, "SignatureDoesNotMatch")
	if strings.Contains(a.raw, "MARKER") {
		t.Errorf("the answer repeats the secret: %s", a.raw)
	}
	for _, raw := range []string{
		"GARBAGE " + marker + "\r\n\r\n",
		"POST /?SecretData=" + marker + " HTTP/9.9\r\nBroken " + marker + "\r\n\r\n",
		"POST /?SecretData=" + marker + " HTTP/1.1\r\nHost: x\r\nContent-Length: " + marker + "\r\n\r\n",
		"POST /?SecretData=" + marker + strings.Repeat("x", 200<<10) + " HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST /?SecretData=" + marker + "%zz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
	} {
		got, _ := io.ReadAll(send(t, "tcp", f.address, raw))
		if strings.Contains(string(got), "MARKER") {
			t.Errorf("%.40q is answered with %q", raw, got)
		}
	}
	if log := f.log.String(); strings.Contains(log, "MARKER") || !strings.Contains(log, "SignatureDoesNotMatch") {
		t.Errorf("the log shows a secret, or nothing:\n%s", log)
	}
}

func TestRequestLinesAbove100KBAreServed(t *testing.T) {
	f := start(t)
	value := strings.Repeat("\"", 30720) // 92160 bytes when encoded
	query := url.Values{"Action": {"CreateSecret"}, "Version": {"2016-01-20"}, "SecretName": {"app/db"}, "VersionId": {"v1"}, "SecretData": {value},
		"Description": {strings.Repeat("d", 256)}, "Padding": {strings.Repeat("p", 16000)}}
	target := "http://kms.local/?" + query.Encode()
	if len(target) < 100_000 {
		t.Fatalf("only %d bytes", len(target))
	}
	res, err := f.local.Post(target, "application/x-www-form-urlencoded", nil)
	read(t, res, err).wants(t, "create", 200, "")
	if got := f.call(t, "GetSecretValue", "SecretName", "app/db").text("SecretData"); got != value {
		t.Errorf("%d bytes came back", len(got))
	}
	for what, c := range map[string]struct {
		request string
		status  int
	}{
		"a line that is too long": {"POST /?Padding=" + strings.Repeat("p", 200<<10) + " HTTP/1.1\r\nHost: x\r\n\r\n", 431},
		"a body that is too long": {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 307200\r\n\r\nPadding=", 413},
	} {
		res, err := http.ReadResponse(bufio.NewReader(send(t, "unix", f.socket, c.request)), nil)
		read(t, res, err).wants(t, what, c.status, "InvalidParameter")
	}
}

func TestASlowClientIsCutOffAndOthersDoNotNotice(t *testing.T) {
	t.Parallel() // it waits
	f := start(t, func(o *kmsserver.Tuned) { o.Limits.ClientTimeout = 3 * time.Second })
	slow := send(t, "unix", f.socket, "POST /?Action=ListSecrets HTTP/1.1\r\nHost: x\r\nX-Slow: ")
	f.call(t, "ListSecrets").wants(t, "another client", 200, "")
	res, err := http.ReadResponse(bufio.NewReader(slow), nil)
	if err == nil {
		read(t, res, nil).wants(t, "slow", 408, "RequestTimeout")
	}
	if _, err := io.Copy(io.Discard, slow); err != nil {
		t.Errorf("the connection stays open: %v", err)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	f := start(t, func(o *kmsserver.Tuned) { o.Limits.Connections = 2 })
	statuses, release := f.hanging(t, 2)
	if n := f.server.Stats(kmsserver.Trusted).Open; n != 2 {
		t.Errorf("%d connections are open", n)
	}
	if status := f.status(); status != http.StatusServiceUnavailable {
		t.Errorf("a third connection: status %d", status)
	}
	release()
	if first, second := <-statuses, <-statuses; first != 200 || second != 200 {
		t.Errorf("the first two: %d, %d", first, second)
	}
}

func TestACallIsBoundedInTime(t *testing.T) {
	f := start(t, func(o *kmsserver.Tuned) { o.Limits.RequestTimeout = 50 * time.Millisecond })
	defer f.fake.Block("ListSecrets")()
	f.call(t, "ListSecrets").wants(t, "a backend that hangs", 503, "ServiceUnavailableTemporary")
}

func TestShutdownFinishesRunningRequests(t *testing.T) {
	f := start(t)
	statuses, release := f.hanging(t, 1)
	f.call(t, "GetRandomPassword") // leaves an idle connection behind
	send(t, "unix", f.socket, "")  // never sends anything
	shut := make(chan struct{})
	go func() { defer close(shut); f.shutdown(t) }()
	for {
		conn, err := net.Dial("unix", f.socket)
		if err != nil {
			break // no longer accepting
		}
		_ = conn.Close()
		time.Sleep(time.Millisecond)
	}
	select {
	case <-shut:
		t.Fatal("shut down before the request was answered")
	case <-time.After(20 * time.Millisecond):
	}
	release()
	if status := <-statuses; status != 200 {
		t.Errorf("the running request: %d", status)
	}
	<-shut
	if n := f.server.Stats(kmsserver.Trusted).Open; n != 0 {
		t.Errorf("%d connections are open", n)
	}
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "again.sock"))
	must(t, err)
	if err := f.server.Serve(ln, kmsserver.Trusted); !errors.Is(err, kmsserver.ErrServerClosed) {
		t.Errorf("serving again: %v", err)
	}
}

func TestShutdownEndsWithItsContext(t *testing.T) {
	f := start(t)
	statuses, _ := f.hanging(t, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := f.server.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("shutdown: %v", err)
	}
	<-statuses
	for f.fake.Running("ListSecrets") > 0 { // the call was cancelled, not abandoned
		time.Sleep(time.Millisecond)
	}
}

func TestNewRefusesWhatCannotWork(t *testing.T) {
	if _, err := kmsserver.New(nil, kmsserver.Options{}); err == nil {
		t.Error("no manager")
	}
}

func TestTCPIsNeverTrusted(t *testing.T) {
	f := start(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	if err := f.server.Serve(ln, kmsserver.Trusted); err == nil || !strings.Contains(err.Error(), "trusted") {
		t.Errorf("got %v", err)
	}
	if _, err := net.Dial("tcp", ln.Addr().String()); err == nil {
		t.Error("the listener stays open")
	}
}
