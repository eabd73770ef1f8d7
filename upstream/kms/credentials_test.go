package kms_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
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
	keep       int           // generations before the present one that are still honoured
	lifetime   time.Duration // what is claimed
	delay      time.Duration
	down       bool
	answers    int // credentials given out
	odd        string
}

// newIssuer starts an issuer and a KMS with the secret app/db.
func newIssuer(t *testing.T) (*issuer, kms.Endpoint) {
	store, _ := backend(t)
	create(t, store, "app/db", "value")
	ln := listen(t, nil)
	i := &issuer{t: t, lifetime: time.Hour, keep: 1}
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

// rotate gives out another credential from now on.
func (i *issuer) rotate() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.generation++
	keys := []kmsserver.AccessKey{testKey(keyID, keySecret, "")}
	for g := max(1, i.generation-i.keep); g <= i.generation; g++ {
		keys = append(keys, testKey(fmt.Sprintf("STS.%d", g), fmt.Sprintf("MARKER-secret-%d", g), fmt.Sprintf("MARKER-token-%d", g)))
	}
	if err := i.server.SetAccessKeys(keys); err != nil {
		i.t.Error(err)
	}
}

func (i *issuer) set(change func(*issuer)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change(i)
}

func (i *issuer) given() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.answers
}

func (i *issuer) answer(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	g, delay, down, odd := i.generation, i.delay, i.down, i.odd
	expires := time.Now().Add(i.lifetime).UTC().Format("2006-01-02T15:04:05Z")
	i.mu.Unlock()
	time.Sleep(delay)
	body, _ := io.ReadAll(r.Body)
	switch {
	case down:
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
		"SecurityToken": fmt.Sprintf("MARKER-token-%d", g), "Expiration": expires,
	}
	if r.URL.Query().Get("Action") != "" {
		c = map[string]any{"RequestId": "r", "Credentials": c}
	}
	i.set(func(i *issuer) { i.answers++ })
	_ = json.NewEncoder(w).Encode(c)
}

func source(t *testing.T, o kms.CredentialOptions) *kms.CredentialSource {
	t.Helper()
	s, err := kms.NewCredentials(o)
	if err != nil {
		t.Fatal(err)
	}
	kms.HurryUp(s)
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
		{kms.CredentialOptions{Type: "access_key", AccessKeyIDFile: id, AccessKeySecretFile: secretFile}, "access_key"},
		{kms.CredentialOptions{Type: "access_key", AccessKeyID: keyID, AccessKeySecretFile: secretFile}, "access_key"},
		{kms.CredentialOptions{Type: "sts", AccessKeyID: "STS.1", AccessKeySecretFile: write(t, dir, "s1", "MARKER-secret-1"), SecurityTokenFile: write(t, dir, "t1", "MARKER-token-1")}, "sts"},
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
			if v, err := client.GetSecretValue(t.Context(), ref("app/db")); err != nil || string(v.SecretData.Reveal()) != "value" {
				t.Fatalf("got %v", err)
			}
			st := client.Status().Credential
			if st.Source != c.source || st.RenewedAt.IsZero() || st.Err != "" {
				t.Errorf("status %+v, want source %s", st, c.source)
			}
			// Of sessions that we ask for we know how long they last.
			lasts := time.Duration(0)
			switch c.opts.Type {
			case "ram_role_arn":
				lasts = time.Hour
			case "oidc_role_arn":
				lasts = c.opts.SessionDuration
			}
			if lasts == 0 != st.Expires.IsZero() || lasts != 0 && (st.Expires.After(st.RenewedAt.Add(lasts)) || st.Expires.Before(st.RenewedAt.Add(lasts-time.Minute))) {
				t.Errorf("the credential that was renewed at %v ends at %v, want %v later", st.RenewedAt, st.Expires, lasts)
			}
		})
	}
}

func TestCredentialOptionsNameTheProblem(t *testing.T) {
	clean(t)
	for want, o := range map[string]kms.CredentialOptions{
		"credentials.type":                {Type: "magic"},
		"credentials.accessKeyIdFile":     {Type: "access_key"},
		"credentials.accessKeySecretFile": {Type: "access_key", AccessKeyID: "x"},
		"credentials.securityTokenFile":   {Type: "sts", AccessKeyID: "x", AccessKeySecretFile: "y"},
		"use type sts":                    {Type: "access_key", AccessKeyID: "x", AccessKeySecretFile: "y", SecurityTokenFile: "z"},
		"given twice":                     {Type: "access_key", AccessKeyID: "x", AccessKeyIDFile: "x"},
		"credentials.roleArn":             {Type: "ram_role_arn"},
		"credentials.uri":                 {Type: "credentials_uri"},
		"must be an http":                 {Type: "credentials_uri", URI: "file:///MARKER"},
		"credentials.sessionDuration":     {Type: "ram_role_arn", RoleARN: "r", SessionDuration: time.Minute},
		"credentials.stsEndpoint":         {Type: "oidc_role_arn", STSEndpoint: "https://sts"},
	} {
		_, err := kms.NewCredentials(o)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "MARKER") {
			t.Errorf("%+v: got %v, want %s", o, err, want)
		}
	}
}

// A source that gives nothing is explained in words of our own, whatever it answered.
func TestSourcesThatGiveNothing(t *testing.T) {
	clean(t)
	i, endpoint := newIssuer(t)
	i.metadata()
	dir := t.TempDir()
	sts := strings.TrimPrefix(i.sts.URL, "https://")
	other := write(t, dir, "other", "MARKER-other")
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
		{"no file", "", kms.CredentialOptions{Type: "access_key", AccessKeyID: "x", AccessKeySecretFile: dir + "/none"}, "no such file"},
		{"an empty file", "", kms.CredentialOptions{Type: "access_key", AccessKeyID: "x", AccessKeySecretFile: write(t, dir, "empty", "\n")}, "is empty"},
		{"a file of several lines", "", kms.CredentialOptions{Type: "access_key", AccessKeyID: "x", AccessKeySecretFile: full}, "more than one line"},
		{"a broken profile file", "", kms.CredentialOptions{Type: "profile", ProfileFile: broken}, "not valid JSON"},
		{"no profile file", "", kms.CredentialOptions{Type: "profile", ProfileFile: dir + "/none"}, "cannot be read"},
		{"no such profile", "", kms.CredentialOptions{Type: "profile", ProfileFile: external, Profile: "c"}, "no such profile"},
		{"an external profile", "", kms.CredentialOptions{Type: "profile", ProfileFile: external}, "mode External"},
		{"profiles in a loop", "", kms.CredentialOptions{Type: "profile", ProfileFile: loop}, "loop"},
		{"STS does not know the key", "", kms.CredentialOptions{Type: "ram_role_arn", RoleARN: "r", AccessKeyID: "x", AccessKeySecretFile: other, STSEndpoint: sts}, "does not know the access key"},
		{"STS refuses the OIDC token", "", kms.CredentialOptions{Type: "oidc_role_arn", RoleARN: "r", OIDCProviderARN: "p", OIDCTokenFile: other, STSEndpoint: sts}, "refuses the OIDC token"},
		{"no OIDC token file", "", kms.CredentialOptions{Type: "oidc_role_arn", RoleARN: "r", OIDCProviderARN: "p", OIDCTokenFile: dir + "/none", STSEndpoint: sts}, "no such file"},
		{"STS cannot be reached", "", kms.CredentialOptions{Type: "ram_role_arn", RoleARN: "r", AccessKeyID: "x", AccessKeySecretFile: other, STSEndpoint: "127.0.0.1:1"}, "connection refused"},
		{"the metadata service leaves out the code", `{"AccessKeyId":"a","AccessKeySecret":"MARKER","SecurityToken":"MARKER"}`, ecs, "incomplete answer"},
		{"the metadata service answers text", "MARKER-text", ecs, "no usable answer"},
		{"the URI answers half", `{"AccessKeyId":"a","AccessKeySecret":"MARKER-half"}`, uri, "no usable answer"},
		{"the URI answers text", "MARKER-text", uri, "no usable answer"},
		{"the URI answers empty parts", `{"AccessKeyId":"","AccessKeySecret":"","SecurityToken":"","Expiration":"2040-01-01T00:00:00Z"}`, uri, "empty credential"},
		{"the URI answers a strange time", `{"AccessKeyId":"a","AccessKeySecret":"MARKER","SecurityToken":"MARKER","Expiration":"MARKER-time"}`, uri, "no usable answer"},
		{"the whole chain", "MARKER-text", kms.CredentialOptions{}, "gave any"},
	} {
		t.Run(c.name, func(t *testing.T) {
			i.set(func(i *issuer) { i.odd = c.odd })
			var log bytes.Buffer
			c.opts.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
			opts := impatient(endpoint)
			opts.Credentials = source(t, c.opts)
			client := connect(t, opts)
			_, err := client.GetSecretValue(t.Context(), ref("app/db"))
			if !errors.Is(err, upstream.ErrUnauthenticated) || !strings.Contains(err.Error(), c.want) {
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

// hammer reads with some workers until stop is closed and returns how many calls were made,
// how many failed and the longest.
func hammer(t *testing.T, client *kms.Client, names []string, stop <-chan struct{}) (calls, failed int, longest time.Duration) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, name := range names {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				begin := time.Now()
				_, err := client.GetSecretValue(t.Context(), ref(name))
				mu.Lock()
				calls++
				if err != nil {
					if failed++; failed <= 3 {
						t.Log(err)
					}
				}
				longest = max(longest, time.Since(begin))
				mu.Unlock()
				time.Sleep(time.Millisecond)
			}
		})
	}
	wg.Wait()
	return calls, failed, longest
}

// Credentials rotate while eight workers read. First they are renewed before they end, from
// a source that takes its time; then they are revoked without notice.
func TestRotationUnderLoad(t *testing.T) {
	const slow = 2 * time.Second // a whole renewal, longer than a busy machine keeps a call waiting
	for _, c := range []struct {
		name  string
		trips int // requests of one renewal
		opts  func(i *issuer) kms.CredentialOptions
	}{
		{"credentials URI", 1, func(i *issuer) kms.CredentialOptions {
			return kms.CredentialOptions{Type: "credentials_uri", URI: i.uri.URL}
		}},
		{"STS", 1, func(i *issuer) kms.CredentialOptions {
			dir := t.TempDir()
			return kms.CredentialOptions{Type: "ram_role_arn", RoleARN: "r", AccessKeyID: keyID, AccessKeySecretFile: write(t, dir, "s", keySecret),
				STSEndpoint: strings.TrimPrefix(i.sts.URL, "https://")}
		}},
		{"metadata service", 4, func(i *issuer) kms.CredentialOptions {
			i.metadata()
			return kms.CredentialOptions{Type: "ecs_ram_role"}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			i, endpoint := newIssuer(t)
			// The library renews what has three minutes left or less; so it does at every check.
			i.set(func(i *issuer) { i.lifetime, i.delay = 2*time.Minute, slow/time.Duration(c.trips) })
			s := source(t, c.opts(i))
			client := connect(t, kms.Options{Endpoints: []kms.Endpoint{endpoint}, Credentials: s})
			for n := range 8 {
				_, err := client.CreateSecret(t.Context(), upstream.CreateSecretInput{SecretName: upstream.SecretName(fmt.Sprintf("app/%d", n)), VersionID: "v1", SecretData: secret("x")})
				if err != nil {
					t.Fatal(err)
				}
			}
			names := []string{"app/0", "app/1", "app/2", "app/3", "app/4", "app/5", "app/6", "app/7"}
			run := func(rotations int, every time.Duration) (int, int, time.Duration) {
				stop := make(chan struct{})
				go func() {
					defer close(stop)
					for range rotations {
						time.Sleep(every)
						i.rotate()
					}
					time.Sleep(every)
				}()
				return hammer(t, client, names, stop)
			}
			before := i.given()
			calls, failed, longest := run(1, 3*slow/4)
			t.Logf("renewed in time: %d calls, %d failed, the longest took %v; %d credentials given out", calls, failed, longest.Round(time.Millisecond), i.given()-before)
			if failed > 0 || calls < 100 || longest > slow*3/4 {
				t.Error("renewals fail or delay calls")
			}

			i.set(func(i *issuer) { i.keep, i.delay, i.lifetime = 0, 0, time.Hour })
			time.Sleep(slow) // a renewal under way brings what was valid when it began
			calls, failed, longest = run(2, 1500*time.Millisecond)
			t.Logf("revoked without notice: %d calls, %d failed, the longest took %v", calls, failed, longest.Round(time.Millisecond))
			if failed > 0 || calls < 100 {
				t.Error("a revoked credential is not renewed")
			}
			if st := s.Status(); st.Err != "" || st.RenewedAt.IsZero() {
				t.Errorf("status %+v", st)
			}
		})
	}
}

// The source fails as a whole: calls go on with what is held, fail once that is revoked, and
// heal when the source is back. The default chain, of which a failure makes the library's
// own version useless, heals as well.
func TestSourceOutageAndRecovery(t *testing.T) {
	for _, kind := range []string{"credentials_uri", "default", "ecs_ram_role"} {
		t.Run(kind, func(t *testing.T) {
			clean(t)
			i, endpoint := newIssuer(t)
			i.metadata()
			o := kms.CredentialOptions{Type: kind}
			switch kind {
			case "credentials_uri":
				o.URI = i.uri.URL
			case "default":
				t.Setenv("ALIBABA_CLOUD_ECS_METADATA_DISABLED", "true")
				t.Setenv("ALIBABA_CLOUD_CREDENTIALS_URI", i.uri.URL)
			}
			var log upstreamtest.Buffer
			o.Logger = slog.New(slog.NewTextHandler(&log, nil))
			i.set(func(i *issuer) { i.down, i.lifetime = true, 2*time.Minute })
			opts := impatient(endpoint)
			opts.Credentials = source(t, o)
			client := connect(t, opts)
			read := func() error { _, err := client.GetSecretValue(t.Context(), ref("app/db")); return err }
			heal := func(what string) {
				t.Helper()
				begin := time.Now()
				for read() != nil {
					if time.Since(begin) > 15*time.Second {
						t.Fatalf("%s: not healed: %v", what, read())
					}
					time.Sleep(5 * time.Millisecond)
				}
				t.Logf("%s: healed after %v", what, time.Since(begin).Round(time.Millisecond))
			}
			for range 3 {
				if err := read(); !errors.Is(err, upstream.ErrUnauthenticated) {
					t.Fatalf("before there are credentials: %v", err)
				}
				time.Sleep(30 * time.Millisecond)
			}
			i.set(func(i *issuer) { i.down = false })
			heal("credentials appear")

			i.set(func(i *issuer) { i.down = true })
			for range 20 {
				if err := read(); err != nil {
					t.Fatalf("while the source is down: %v", err)
				}
				time.Sleep(5 * time.Millisecond)
			}
			i.set(func(i *issuer) { i.keep = 0 })
			i.rotate()
			if err := read(); !errors.Is(err, upstream.ErrUnauthenticated) {
				t.Fatalf("revoked while the source is down: %v", err)
			}
			if st := client.Status().Credential; st.Err == "" {
				t.Errorf("status %+v", st)
			}
			i.set(func(i *issuer) { i.down = false })
			heal("the source is back")
			if text := log.String(); strings.Contains(text, "MARKER") || !strings.Contains(text, "no credentials") {
				t.Errorf("log:\n%s", text)
			}
		})
	}
}

// Key files change as Kubernetes changes them: a symlink of a whole folder is exchanged.
func TestChangedFilesArePickedUp(t *testing.T) {
	clean(t)
	i, endpoint := newIssuer(t)
	i.metadata()
	dir := t.TempDir()
	put := func(name, id, value string) {
		t.Helper()
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, name), "id", id)
		write(t, filepath.Join(dir, name), "secret", value)
		if err := os.Symlink(name, filepath.Join(dir, "..tmp")); err != nil {
			t.Skip("no symlinks here")
		}
		if err := os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	put("first", keyID, keySecret)
	s := source(t, kms.CredentialOptions{Type: "access_key", AccessKeyIDFile: dir + "/..data/id", AccessKeySecretFile: dir + "/..data/secret"})
	opts := impatient(endpoint)
	opts.Credentials = s
	client := connect(t, opts)
	if _, err := client.GetSecretValue(t.Context(), ref("app/db")); err != nil {
		t.Fatal(err)
	}
	put("second", "LTAIother", "MARKER-other-key")
	if err := i.server.SetAccessKeys([]kmsserver.AccessKey{testKey("LTAIother", "MARKER-other-key", ""), testKey(keyID, keySecret, "")}); err != nil {
		t.Fatal(err)
	}
	for begin := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		if _, err := client.GetSecretValue(t.Context(), ref("app/db")); err != nil {
			t.Fatalf("during the change: %v", err)
		}
		c, err := s.Credential(t.Context())
		if err == nil && c.AccessKeyID == "LTAIother" {
			break
		}
		if time.Since(begin) > 15*time.Second {
			t.Fatal("the new key is not picked up")
		}
	}
	if _, err := client.GetSecretValue(t.Context(), ref("app/db")); err != nil {
		t.Errorf("with the new key: %v", err)
	}
}

// A credential that is refused is renewed once and the call repeated once; a provider that
// has no other is not asked twice for the same call.
func TestARefusedCredentialIsRenewedOnce(t *testing.T) {
	s := script(t, says(400, `{"Code":"InvalidSecurityToken.Expired","Message":"expired","RequestId":"r"}`))
	for _, c := range []struct {
		fresh  bool
		calls  int
		renews int32
	}{{true, 2, 1}, {false, 1, 1}} {
		before := len(s.seen())
		p := &countingProvider{fresh: c.fresh}
		client := connect(t, kms.Options{Endpoints: []kms.Endpoint{s.endpoint()}, Credentials: p})
		_, err := client.GetSecretValue(t.Context(), ref("app/db"))
		if !errors.Is(err, upstream.ErrUnauthenticated) {
			t.Errorf("got %v", err)
		}
		if n := len(s.seen()) - before; n != c.calls || p.renews.Load() != c.renews {
			t.Errorf("fresh %t: %d calls and %d renewals, want %d and %d", c.fresh, n, p.renews.Load(), c.calls, c.renews)
		}
	}
	// A clock that is wrong is nothing that a new credential cures.
	s = script(t, says(400, `{"Code":"InvalidTimeStamp.Expired","Message":"clock","RequestId":"r"}`))
	p := &countingProvider{fresh: true}
	_, err := connect(t, kms.Options{Endpoints: []kms.Endpoint{s.endpoint()}, Credentials: p}).GetSecretValue(t.Context(), ref("app/db"))
	if !errors.Is(err, upstream.ErrUnauthenticated) || p.renews.Load() != 0 {
		t.Errorf("clock: %v, %d renewals", err, p.renews.Load())
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
	serverLn := listen(t, nil)
	serve(t, store, serverLn, kmsserver.Signed, kmsserver.Options{Logger: logger, AccessKeys: []kmsserver.AccessKey{testKey(keyID, keySecret, "MARKER-token")}})
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
		for _, f := range faults {
			proxy := upstreamtest.NewFaulty(t, serverLn.Addr().String())
			client := connect(t, kms.Options{
				Endpoints: []kms.Endpoint{{Region: "a", Host: proxy.Addr(), Scheme: "http"}}, Credentials: provider, Logger: logger,
				Timeout: 30 * time.Millisecond, Deadline: 80 * time.Millisecond, Retry: kms.Retry{MaxAttempts: 2, Base: time.Millisecond, Cap: time.Millisecond},
				Observe: func(o kms.Observation) { note("%+v %#v", o, o) },
			})
			proxy.Set(f.fault)
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
