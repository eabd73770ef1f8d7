package kms_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/kms"
	"secretagent/upstream/kmsserver"
	"secretagent/upstream/upstreamtest"
)

var (
	fakeIMDS atomic.Value // URL of the fake metadata service
	fakeCA   = newAuthority()
)

// issuer is a service that gives out temporary credentials, as a URI, as the metadata service
// and as STS, and the KMS that honours them.
type issuer struct {
	t      *testing.T
	server *kmsserver.Server
	uri    *httptest.Server // plain; also the proxy to the metadata service
	sts    *httptest.Server

	mu         sync.Mutex
	generation int
	odd        string // what it answers instead; "down": it fails
	refusal    string // code that STS refuses with; empty: it does not
}

// newIssuer starts an issuer and a KMS with the secret app/db.
func newIssuer(t *testing.T) (*issuer, kms.Endpoint) {
	store, _ := backend(t)
	create(t, store, "app/db", "value")
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	i := &issuer{t: t}
	i.server = serve(t, store, ln, kmsserver.Signed, kmsserver.Options{})
	i.uri = httptest.NewServer(http.HandlerFunc(i.answer))
	t.Cleanup(i.uri.Close)
	i.sts = httptest.NewUnstartedServer(http.HandlerFunc(i.answer))
	i.sts.TLS = fakeCA.server.Clone()
	i.sts.StartTLS()
	t.Cleanup(i.sts.Close)
	// The library makes a new transport for each request and leaves its connection open.
	i.uri.Config.SetKeepAlivesEnabled(false)
	i.sts.Config.SetKeepAlivesEnabled(false)
	i.rotate()
	return i, plain(ln.Addr())
}

// metadata makes i the metadata service of this process.
func (i *issuer) metadata() { fakeIMDS.Store(i.uri.URL) }

// rotate gives out another credential from now on, and KMS honours no other.
func (i *issuer) rotate() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.generation++
	g := i.generation
	set, err := i.server.PrepareAccessKeys([]kmsserver.AccessKey{testKey(keyID, keySecret, ""),
		testKey(fmt.Sprintf("STS.%d", g), fmt.Sprintf("MARKER-secret-%d", g), fmt.Sprintf("MARKER-token-%d", g))})
	if err != nil {
		i.t.Error(err)
		return
	}
	set()
}

// answers makes i answer with odd; empty: as it should.
func (i *issuer) answers(odd string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.odd = odd
}

// refuses makes STS refuse with a code; empty: it does not.
func (i *issuer) refuses(code string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.refusal = code
}

func (i *issuer) answer(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	g, odd, refusal := i.generation, i.odd, i.refusal
	i.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	switch {
	case refusal != "" && r.URL.Query().Get("Action") != "":
		w.WriteHeader(400)
		fmt.Fprintf(w, `{"Code":%q,"Message":"MARKER-message","RequestId":"4C1F-77","HostId":"x"}`, refusal)
		return
	case odd == "down":
		w.WriteHeader(500)
		fmt.Fprint(w, `{"AccessKeySecret":"MARKER-in-an-error"}`)
		return
	case odd != "":
		fmt.Fprint(w, odd)
		return
	case r.Method == http.MethodPut && r.URL.Path == "/latest/api/token":
		fmt.Fprint(w, "MARKER-metadata-token")
		return
	case strings.HasPrefix(r.URL.Path, "/latest/") && r.Header.Get("X-aliyun-ecs-metadata-token") != "MARKER-metadata-token":
		w.WriteHeader(403)
		return
	case r.URL.Path == "/latest/meta-data/ram/security-credentials/":
		fmt.Fprint(w, "the-role")
		return
	case r.URL.Query().Get("Action") == "AssumeRole" && r.URL.Query().Get("AccessKeyId") != keyID:
		w.WriteHeader(404)
		fmt.Fprint(w, `{"Code":"InvalidAccessKeyId.NotFound","Message":"MARKER-message"}`)
		return
	case r.URL.Query().Get("Action") == "AssumeRoleWithOIDC" && !bytes.Contains(body, []byte("OIDCToken=MARKER-oidc")):
		w.WriteHeader(400)
		fmt.Fprint(w, `{"Code":"AuthenticationFail.OIDCToken.Invalid","Message":"MARKER-message"}`)
		return
	}
	c := map[string]any{
		"Code": "Success", "AccessKeyId": fmt.Sprintf("STS.%d", g), "AccessKeySecret": fmt.Sprintf("MARKER-secret-%d", g),
		"SecurityToken": fmt.Sprintf("MARKER-token-%d", g), "Expiration": time.Now().Add(time.Hour).UTC().Format("2006-01-02T15:04:05Z"),
	}
	if r.URL.Query().Get("Action") != "" {
		c = map[string]any{"RequestId": "r", "Credentials": c}
	}
	_ = json.NewEncoder(w).Encode(c)
}

func source(t *testing.T, o kms.CredentialOptions) *kms.CredentialSource {
	t.Helper()
	s := must(kms.NewCredentials(o))
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// clean removes everything from the environment that could give credentials.
func clean(t *testing.T) {
	for _, e := range os.Environ() {
		if name, _, _ := strings.Cut(e, "="); strings.HasPrefix(name, "ALIBABA_CLOUD_") {
			t.Setenv(name, "")
		}
	}
	t.Setenv("HOME", t.TempDir())
}

func TestEveryTypeOfCredential(t *testing.T) {
	clean(t)
	i, endpoint := newIssuer(t)
	i.metadata()
	dir := t.TempDir()
	id, secretFile := write(t, dir, "id", keyID+"\n"), write(t, dir, "secret", keySecret+"\n")
	oidc := write(t, dir, "oidc", "MARKER-oidc")
	sts := strings.TrimPrefix(i.sts.URL, "https://")
	cli := write(t, dir, "config.json", `{"current":"one","profiles":[{"name":"one","mode":"AK","access_key_id":"`+keyID+`","access_key_secret":"`+keySecret+`"}]}`)
	for _, c := range []struct {
		opts   kms.CredentialOptions
		source string
	}{
		{kms.CredentialOptions{Type: "sts", AccessKeyIDFile: write(t, dir, "i1", "STS.1"), AccessKeySecretFile: write(t, dir, "s1", "MARKER-secret-1"), SecurityTokenFile: write(t, dir, "t1", "MARKER-token-1")}, "sts"},
		{kms.CredentialOptions{Type: "access_key", AccessKeyIDFile: id, AccessKeySecretFile: secretFile}, "access_key"},
		{kms.CredentialOptions{Type: "ram_role_arn", RoleARN: "acs:ram::1:role/r", AccessKeyIDFile: id, AccessKeySecretFile: secretFile, STSEndpoint: sts}, "ram_role_arn/access_key"},
		{kms.CredentialOptions{Type: "oidc_role_arn", RoleARN: "acs:ram::1:role/r", OIDCProviderARN: "acs:ram::1:oidc-provider/p", OIDCTokenFile: oidc, STSEndpoint: sts, SessionDuration: 20 * time.Minute}, "oidc_role_arn"},
		{kms.CredentialOptions{Type: "ecs_ram_role", DisableIMDSv1: true}, "ecs_ram_role"},
		{kms.CredentialOptions{Type: "ecs_ram_role", RoleName: "the-role"}, "ecs_ram_role"},
		{kms.CredentialOptions{Type: "credentials_uri", URI: i.uri.URL + "/?token=MARKER-uri"}, "credential_uri"},
		{kms.CredentialOptions{Type: "profile", ProfileFile: cli}, "cli_profile/static_ak"},
		{kms.CredentialOptions{Type: "profile", ProfileFile: cli, Profile: "one"}, "cli_profile/static_ak"},
		{kms.CredentialOptions{}, "default/ecs_ram_role"},
	} {
		t.Run(c.opts.Type+" from "+c.source, func(t *testing.T) {
			s := source(t, c.opts)
			opts := impatient(endpoint)
			opts.Credentials = s
			client := connect(t, opts)
			for _, when := range []string{"at first", "revoked and renewed"} {
				if v, err := client.GetSecretValue(t.Context(), ref("app/db")); err != nil || string(v.SecretData.Reveal()) != "value" {
					t.Fatalf("%s: %v", when, err)
				}
				if c.opts.Type != "sts" { // which would have to be written into its files
					i.rotate()
				}
			}
			st := client.Status().Credential
			if st.Source != c.source || st.RenewedAt.IsZero() || st.Error != "" {
				t.Errorf("status %+v, want source %s", st, c.source)
			}
			// Of sessions that we ask for we know how long they last.
			lasts := map[string]time.Duration{"ram_role_arn": time.Hour, "oidc_role_arn": 20 * time.Minute}[c.opts.Type]
			if early := st.RenewedAt.Add(lasts).Sub(st.Expires); lasts == 0 != st.Expires.IsZero() || lasts != 0 && (early < 0 || early > 10*time.Minute) {
				t.Errorf("the credential that was renewed at %v ends at %v, want %v later", st.RenewedAt, st.Expires, lasts)
			}
		})
	}
}

// A source that gives nothing is explained in words of our own, whatever it answered.
func TestSourcesThatGiveNothing(t *testing.T) {
	clean(t)
	i, endpoint := newIssuer(t)
	i.metadata()
	dir := t.TempDir()
	sts := strings.TrimPrefix(i.sts.URL, "https://")
	other, short := write(t, dir, "other", "MARKER-other"), write(t, dir, "id", "x")
	full := write(t, dir, "full", "MARKER-line\nMARKER-line")
	broken := write(t, dir, "broken.json", `{"current":"one","profiles":[{"access_key_secret":"MARKER-broken"`)
	external := write(t, dir, "external.json", `{"current":"a","profiles":[{"name":"a","mode":"ChainableRamRoleArn","source_profile":"b"},{"name":"b","mode":"External","process_command":"echo MARKER-external"}]}`)
	loop := write(t, dir, "loop.json", `{"current":"a","profiles":[{"name":"a","mode":"ChainableRamRoleArn","source_profile":"b"},{"name":"b","mode":"ChainableRamRoleArn","source_profile":"a"}]}`)
	uri := kms.CredentialOptions{Type: "credentials_uri", URI: i.uri.URL + "/?MARKER-uri"}
	ecs := kms.CredentialOptions{Type: "ecs_ram_role"}
	for _, c := range []struct {
		name, odd string
		opts      kms.CredentialOptions
		want      string
	}{
		{"no file", "", kms.CredentialOptions{Type: "access_key", AccessKeyIDFile: short, AccessKeySecretFile: dir + "/none"}, "no such file"},
		{"an empty file", "", kms.CredentialOptions{Type: "access_key", AccessKeyIDFile: short, AccessKeySecretFile: write(t, dir, "empty", "\n")}, "is empty"},
		{"a file of several lines", "", kms.CredentialOptions{Type: "access_key", AccessKeyIDFile: short, AccessKeySecretFile: full}, "more than one line"},
		{"a device", "", kms.CredentialOptions{Type: "access_key", AccessKeyIDFile: short, AccessKeySecretFile: os.DevNull}, "is not a regular file"},
		{"a device with profiles", "", kms.CredentialOptions{Type: "profile", ProfileFile: os.DevNull}, "is not a regular file"},
		{"a broken profile file", "", kms.CredentialOptions{Type: "profile", ProfileFile: broken}, "not valid JSON"},
		{"no profile file", "", kms.CredentialOptions{Type: "profile", ProfileFile: dir + "/none"}, "cannot be read"},
		{"no such profile", "", kms.CredentialOptions{Type: "profile", ProfileFile: external, Profile: "c"}, "no such profile"},
		{"an external profile", "", kms.CredentialOptions{Type: "profile", ProfileFile: external}, "mode External"},
		{"profiles in a loop", "", kms.CredentialOptions{Type: "profile", ProfileFile: loop}, "loop"},
		{"STS does not know the key", "", kms.CredentialOptions{Type: "ram_role_arn", RoleARN: "acs:ram::1:role/r", AccessKeyIDFile: short, AccessKeySecretFile: other, STSEndpoint: sts}, "does not know the access key"},
		{"STS refuses the OIDC token", "", kms.CredentialOptions{Type: "oidc_role_arn", RoleARN: "acs:ram::1:role/r", OIDCProviderARN: "acs:ram::1:oidc-provider/p", OIDCTokenFile: other, STSEndpoint: sts}, "refuses the OIDC token"},
		{"no OIDC token file", "", kms.CredentialOptions{Type: "oidc_role_arn", RoleARN: "acs:ram::1:role/r", OIDCProviderARN: "acs:ram::1:oidc-provider/p", OIDCTokenFile: dir + "/none", STSEndpoint: sts}, "no such file"},
		{"STS cannot be reached", "", kms.CredentialOptions{Type: "ram_role_arn", RoleARN: "acs:ram::1:role/r", AccessKeyIDFile: short, AccessKeySecretFile: other, STSEndpoint: "127.0.0.1:1"}, "from ram_role_arn: STS at 127.0.0.1:1: connection refused"},
		{"the metadata service leaves out the code", `{"AccessKeyId":"a","AccessKeySecret":"MARKER","SecurityToken":"MARKER"}`, ecs, "incomplete answer"},
		{"the metadata service answers text", "MARKER-text", ecs, "no usable answer"},
		{"the URI answers half", `{"AccessKeyId":"a","AccessKeySecret":"MARKER-half"}`, uri, "no usable answer"},
		{"the URI answers text", "MARKER-text", uri, "no usable answer"},
		{"the URI answers empty parts", `{"AccessKeyId":"","AccessKeySecret":"","SecurityToken":"","Expiration":"2040-01-01T00:00:00Z"}`, uri, "empty credential"},
		{"the URI answers a strange time", `{"AccessKeyId":"a","AccessKeySecret":"MARKER","SecurityToken":"MARKER","Expiration":"MARKER-time"}`, uri, "no usable answer"},
		{"the whole chain", "MARKER-text", kms.CredentialOptions{}, "set ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET"},
	} {
		t.Run(c.name, func(t *testing.T) {
			i.answers(c.odd)
			var log upstreamtest.Buffer
			c.opts.Logger = log.Logger()
			opts := impatient(endpoint)
			opts.Credentials = source(t, c.opts)
			client := connect(t, opts)
			_, err := client.GetSecretValue(t.Context(), ref("app/db"))
			if !errors.Is(err, upstream.ErrNoCredentials) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
			for _, text := range []string{fmt.Sprintf("%v %+v", err, err), log.String(), fmt.Sprintf("%+v", client.Status()), fmt.Sprintf("%+v", opts.Credentials)} {
				if strings.Contains(text, "MARKER") {
					t.Errorf("shown: %s", text)
				}
			}
		})
	}
}

// The default chain reads the profile of the CLI as well, also where a role starts from it and
// where half a key is in the environment.
func TestTheDefaultChainRefusesProfiles(t *testing.T) {
	clean(t)
	external := write(t, t.TempDir(), "external.json", `{"current":"a","profiles":[{"name":"a","mode":"External","process_command":"echo MARKER"}]}`)
	t.Setenv("ALIBABA_CLOUD_CONFIG_FILE", external)
	for _, id := range []string{"", "half"} {
		t.Setenv("ALIBABA_CLOUD_ACCESS_KEY_ID", id)
		for _, opts := range []kms.CredentialOptions{{}, {Type: "ram_role_arn", RoleARN: "acs:ram::1:role/r", STSEndpoint: "127.0.0.1:1"}} {
			_, err := source(t, opts).Credential(t.Context())
			if err == nil || !strings.Contains(err.Error(), "mode External") {
				t.Errorf("type %q, key id %q: %v", opts.Type, id, err)
			}
		}
	}
}

// The library's own default chain is of no use once it has failed; a new one is made.
func TestTheDefaultChainComesBack(t *testing.T) {
	clean(t)
	i, _ := newIssuer(t)
	t.Setenv("ALIBABA_CLOUD_ECS_METADATA_DISABLED", "true")
	t.Setenv("ALIBABA_CLOUD_CREDENTIALS_URI", i.uri.URL)
	i.answers("down")
	synctest.Test(t, func(t *testing.T) {
		s := source(t, kms.CredentialOptions{})
		for range 2 {
			if c, err := s.Credential(t.Context()); !errors.Is(err, upstream.ErrNoCredentials) {
				t.Errorf("got %v, %v", c, err)
			}
			time.Sleep(10 * time.Second)
		}
		i.answers("")
		if c, err := s.Credential(t.Context()); err != nil || c.AccessKeyID != "STS.1" {
			t.Errorf("it is back: %v, %v", c, err)
		}
	})
}

// A credential that is refused is renewed once and the call repeated once; a provider that
// has no other is not asked twice for the same call.
func TestARefusedCredentialIsRenewedOnce(t *testing.T) {
	for _, c := range []struct {
		code   string
		behind time.Duration // our clock
		fresh  bool
		calls  int
		renews int32
		want   error
	}{
		{"InvalidSecurityToken.Expired", 0, true, 2, 1, upstream.ErrUnauthenticated},
		{"InvalidSecurityToken.Expired", 0, false, 1, 1, upstream.ErrUnauthenticated},
		{"InvalidSecurityToken.Expired", time.Hour, true, 2, 1, upstream.ErrClockSkew},
		{"InvalidSecurityToken.Expired", time.Hour, false, 1, 1, upstream.ErrClockSkew},
		{"InvalidTimeStamp.Expired", 0, true, 1, 0, upstream.ErrUnauthenticated}, // a clock that is wrong is nothing that a new credential cures
		{"InvalidTimeStamp.Expired", time.Hour, true, 1, 0, upstream.ErrClockSkew},
	} {
		s := script(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Date", time.Now().Add(c.behind).UTC().Format(http.TimeFormat))
			says(400, `{"Code":"`+c.code+`","Message":"no","RequestId":"r"}`)(w, r)
		})
		p := &countingProvider{fresh: c.fresh}
		_, err := connect(t, kms.Options{Endpoints: []kms.Endpoint{s.endpoint()}, Credentials: p}).GetSecretValue(t.Context(), ref("app/db"))
		if n := len(s.seen()); !errors.Is(err, c.want) || n != c.calls || p.renews.Load() != c.renews {
			t.Errorf("%+v: %v, %d calls and %d renewals", c, err, n, p.renews.Load())
		}
	}
}

type countingProvider struct {
	fresh  bool
	renews atomic.Int32
}

func (p *countingProvider) Credential(context.Context) (kms.Credential, error) {
	return kms.Credential{AccessKeyID: "a", AccessKeySecret: secret("MARKER-a"), Source: "test"}, nil
}

func (p *countingProvider) Renew(_ context.Context, c kms.Credential) (kms.Credential, error) {
	if n := p.renews.Add(1); p.fresh {
		c.AccessKeyID = fmt.Sprintf("a%d", n)
	}
	return c, nil
}

// A provider from elsewhere may put anything into its errors.
type leakyProvider struct{}

func (leakyProvider) Credential(context.Context) (kms.Credential, error) {
	return kms.Credential{}, errors.New("cannot parse MARKER-leak")
}

func (leakyProvider) Renew(context.Context, kms.Credential) (kms.Credential, error) {
	return kms.Credential{}, errors.New("MARKER-leak")
}

// A marker in the value and in every credential is found in no log, error, observation or
// status, whatever goes wrong.
func TestMarkersAreFoundNowhere(t *testing.T) {
	t.Parallel()
	store, _ := backend(t)
	create(t, store, "app/db", "MARKER-value")
	var log upstreamtest.Buffer
	logger := slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	addr := start(t, store, nil, kmsserver.Options{Logger: logger, AccessKeys: []kmsserver.AccessKey{testKey(keyID, keySecret, "MARKER-token")}})
	var texts []string
	var mu sync.Mutex
	note := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		texts = append(texts, fmt.Sprintf(format, args...))
	}
	for _, provider := range []kms.CredentialProvider{
		kms.StaticCredential(keyID, keySecret, "MARKER-token"),
		kms.StaticCredential(keyID, keySecret, "MARKER-wrong-token"),
		kms.StaticCredential(keyID, "MARKER-wrong-secret", "MARKER-token"),
		leakyProvider{},
	} {
		for _, fault := range []upstreamtest.Fault{{}, upstreamtest.Unavailable, upstreamtest.LostAnswer, upstreamtest.Truncate(150), upstreamtest.HalfJSON} {
			proxy := upstreamtest.NewFaulty(t, addr.String())
			proxy.Set(fault)
			client := connect(t, kms.Options{
				Endpoints: []kms.Endpoint{over(proxy)}, Credentials: provider, Logger: logger,
				Retry: kms.Retry{MaxAttempts: 2, Base: time.Millisecond, Cap: time.Millisecond}, Observe: func(o kms.Observation) { note("%+v %#v", o, o) },
			})
			v, err := client.GetSecretValue(t.Context(), ref("app/db"))
			note("%v %+v %v %+v %#v", err, err, v, v, v)
			_, err = client.PutSecretValue(t.Context(), upstream.PutSecretValueInput{SecretName: "app/db", VersionID: "v1", SecretData: secret("MARKER-put")})
			note("%v %+v", err, err)
			_, err = client.CreateSecret(t.Context(), upstream.CreateSecretInput{SecretName: "app/db", VersionID: "v1", SecretData: secret("MARKER-create")})
			note("%v %+v", err, err)
			note("%+v %+v", client.Status(), provider)
			c, _ := provider.Credential(t.Context())
			note("%v %+v %#v", c, c, c)
			logger.Info("everything", "credential", c, "value", v, "status", client.Status())
		}
	}
	texts = append(texts, log.String())
	for _, text := range texts {
		if i := strings.Index(text, "MARKER"); i >= 0 {
			t.Fatalf("found: …%s…", text[max(0, i-200):min(len(text), i+60)])
		}
	}
	if !slices.ContainsFunc(texts, func(s string) bool { return strings.Contains(s, "attempt failed") }) {
		t.Error("nothing was logged, so this test proves little")
	}
}
