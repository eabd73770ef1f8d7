package endpoint_test

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"secretagent/agent/endpoint"
	"secretagent/upstream"
)

const listerToken = "llllllllllllllllllllllllllllllllllll"

// startVault serves two mounts to callers of web/*, of whom lister may see lists.
func startVault(t *testing.T, opts endpoint.Options) *rig {
	t.Helper()
	lister := callerWith(t, "lister", []string{"web/*"}, listerToken)
	lister.List = true
	opts.Callers = []endpoint.Caller{callerWith(t, "web", []string{"web/*"}, token), lister}
	opts.VaultMounts = []endpoint.VaultMount{{Path: "secret"}, {Path: "team/kv", Version: 1}}
	opts.Declared = func() []upstream.SecretName {
		return []upstream.SecretName{"web/db", "web/a/x", "web/a/y", "web/a", "other/db", "acs:kms:cn-hangzhou:1:secret/web/z"}
	}
	r := start(t, opts)
	first := value("web/db", "v1", `{"password":"first"}`, upstream.ACSPrevious)
	r.put(first)
	r.put(value("web/db", "v2", `{"password":"second"}`, upstream.ACSCurrent))
	r.put(value("web/plain", "12", "no object", upstream.ACSCurrent))
	r.put(value("web/both", "3", "number alone", "Number"))
	r.put(value("web/both", "v3", "lettered", "Lettered"))
	r.put(value("other/db", "v1", marker, upstream.ACSCurrent))
	return r
}

// say sends a request with a body and returns the answer.
func (r *rig) say(t *testing.T, method, target, body string, header ...string) reply {
	t.Helper()
	c := r.dial(t)
	defer c.nc.Close()
	header = append([]string{hostLine}, header...)
	if method == "POST" || method == "PUT" {
		header = append(header, "Content-Length: "+strconv.Itoa(len(body)))
	}
	c.send(request(method, target, header...) + body)
	return c.receive(method)
}

// TestVaultsPaths holds what applications of Vault get, without one parameter of ours.
func TestVaultsPaths(t *testing.T) {
	created := time.Date(2024, 2, 21, 15, 39, 26, 0, time.UTC)
	r := startVault(t, endpoint.Options{Versions: func(_ context.Context, name upstream.SecretName) (endpoint.VersionList, error) {
		if name != "web/db" {
			return endpoint.VersionList{}, &upstream.Error{Err: upstream.ErrNotFound}
		}
		return endpoint.VersionList{SecretName: name, Versions: []upstream.SecretVersion{
			{VersionID: "blue", CreateTime: created}, {VersionID: "v1", CreateTime: created.Add(time.Hour), VersionStages: []upstream.VersionStage{upstream.ACSPrevious}},
			{VersionID: "v2", CreateTime: created.Add(2 * time.Hour), VersionStages: []upstream.VersionStage{upstream.ACSCurrent}},
		}}, nil
	}})
	const nothing = `{"errors":[]}` + "\n"
	lister := "X-Vault-Token: " + listerToken
	for _, test := range []struct {
		method, target, header string
		status                 int
		holds                  string // the body, or a part of it
	}{
		{"GET", "/v1/secret/data/web/db", vaultLine, 200, `"data":{"data":{"password":"second"},"metadata":{"created_time":"2024-02-21T15:39:26Z",`},
		{"GET", "/v1/secret/data/web/db", vaultLine, 200, `"version":2}},"wrap_info":null,"warnings":null,"auth":null,"mount_type":"kv"}`},
		{"GET", "/v1/secret/data/web/db", vaultLine + "\r\nX-Vault-Namespace: team\r\nX-Vault-Request: true\r\nContent-Length: 0", 200, "second"},
		{"GET", "/v1/secret/data/web/db", vaultLine + "\r\nX-Vault-Namespace:", 200, "second"},
		{"GET", "/v1/secret/data/web/plain", vaultLine, 200, `"data":{"data":{"value":"no object"}`},
		{"GET", "/v1/secret/data/web/plain", vaultLine, 200, `"version":12}`},

		// Versions are numbers: an id that is one, or v and one.
		{"GET", "/v1/secret/data/web/db?version=0", vaultLine, 200, "second"},
		{"GET", "/v1/secret/data/web/db?version=1", vaultLine, 200, "first"},
		{"GET", "/v1/secret/data/web/db?version=2", vaultLine, 200, "second"},
		{"GET", "/v1/secret/data/web/db?version=01", vaultLine, 200, "first"},
		{"GET", "/v1/secret/data/web/plain?version=12", vaultLine, 200, "no object"},
		{"GET", "/v1/secret/data/web/both?version=3", vaultLine, 200, "number alone"},
		{"GET", "/v1/secret/data/web/both?versionId=v3", vaultLine, 200, "lettered"},
		{"GET", "/v1/secret/data/web/both?version=3", vaultLine, 200, "number alone"},
		{"GET", "/v1/secret/data/web/db?version=99", vaultLine, 404, nothing},
		{"GET", "/v1/secret/data/web/db?version=x", vaultLine, 400, `whole number`},
		{"GET", "/v1/secret/data/web/db?version=-1", vaultLine, 400, `whole number`},
		{"GET", "/v1/secret/data/web/db?version=1&versionId=v2", vaultLine, 400, `combined`},
		{"GET", "/v1/secret/data/web/db?versionId=v2&version=1", vaultLine, 400, `combined`},
		{"GET", "/v1/secret/data/web/db?verison=1", vaultLine, 400, `\"verison\" is not valid: it is unknown here`},
		{"GET", "/v1/web/db?version=1", vaultLine, 400, `"Code":"InvalidParameter"`},

		{"GET", "/v1/team/kv/web/db", vaultLine, 200, `"data":{"password":"second"},"wrap_info"`},
		{"GET", "/v1/team/kv/web/none", vaultLine, 404, nothing},
		{"GET", "/v1/team/web/db", vaultLine, 403, `"Code":"Forbidden.NoPermission"`},

		{"GET", "/v1/secret/data/web/none", vaultLine, 404, nothing},
		{"GET", "/v1/secret/data/other/db", vaultLine, 403, `{"errors":["permission denied","The caller may not read this secret."]}`},
		{"GET", "/v1/secret/data/other/none", vaultLine, 403, `{"errors":["permission denied","The caller may not read this secret."]}`},
		{"GET", "/v1/team/kv/other/db", vaultLine, 403, `{"errors":["permission denied"`},
		{"GET", "/v1/secret/metadata/other/db", vaultLine, 403, `{"errors":["permission denied"`},
		{"GET", "/v1/secret/data/web/db", "X-Vault-Token: " + token[1:] + "0", 403, `{"errors":["permission denied"`},
		{"GET", "/v1/secret/data/web/db", "Accept: */*", 403, `{"errors":["permission denied"`},
		{"POST", "/v1/secret/data/web/db", vaultLine, 405, `{"errors":["unsupported operation"`},
		{"PUT", "/v1/secret/data/web/db", vaultLine, 405, `{"errors":["unsupported operation"`},
		{"DELETE", "/v1/secret/metadata/web/db", vaultLine, 405, `{"errors":["unsupported operation"`},
		{"GET", "/v1/secret/data/", vaultLine, 400, `{"errors":["`},
		{"GET", "/v1/secret/data/web/%zz", vaultLine, 400, `{"errors":["`},
		{"GET", "/v1/secret/data/web/db", vaultLine + "\r\nX-Vault-Wrap-TTL: 60", 400, `{"errors":["Answers are not wrapped`},

		{"GET", "/v1/secret/metadata/web/db", vaultLine, 200, `"current_version":2,"custom_metadata":null,"delete_version_after":"0s","max_versions":0,"oldest_version":1,"updated_time":"2024-02-21T17:39:26Z",` +
			`"versions":{"1":{"created_time":"2024-02-21T16:39:26Z","deletion_time":"","destroyed":false},"2":{`},
		{"GET", "/v1/secret/metadata/web/none", vaultLine, 404, nothing},

		// Lists are for who has the right, and then of what it may read.
		{"LIST", "/v1/secret/metadata/web", vaultLine, 404, nothing},
		{"GET", "/v1/secret/metadata/web?list=true", vaultLine, 404, nothing},
		{"LIST", "/v1/secret/metadata/web", lister + "\r\nContent-Length: 0", 200, `"data":{"keys":["a","a/","db"]}`},
		{"LIST", "/v1/secret/metadata/web/", lister, 200, `"data":{"keys":["a","a/","db"]}`},
		{"GET", "/v1/secret/metadata/web/?list=true", lister, 200, `"data":{"keys":["a","a/","db"]}`},
		{"GET", "/v1/secret/metadata/web%2Fa?list=1", lister, 200, `"data":{"keys":["x","y"]}`},
		{"GET", "/v1/secret/metadata?list=true", lister, 200, `"data":{"keys":["web/"]}`},
		{"LIST", "/v1/secret/metadata/", lister, 200, `"data":{"keys":["web/"]}`},
		{"LIST", "/v1/secret/metadata/other", lister, 404, nothing},
		{"LIST", "/v1/team/kv", lister, 200, `"data":{"keys":["web/"]}`},
		{"GET", "/v1/team/kv/web?list=true", lister, 200, `"data":{"keys":["a","a/","db"]}`},
		{"LIST", "/v1/team/kv/web/db?list=false", lister, 404, nothing}, // never a value
		{"LIST", "/v1/secret/web", vaultLine, 404, `"errors":[]}`},      // as with KV version 1
		{"GET", "/v1/secret/web?list=true", vaultLine, 404, `"errors":[]}`},
		{"LIST", "/v1/web", vaultLine, 405, `"MethodNotAllowed"`}, // not below a mount

		{"GET", "/v1/auth/token/lookup-self", vaultLine, 200, `"display_name":"web","entity_id":"","expire_time":null,"explicit_max_ttl":0,"id":"",`},
		{"GET", "/v1/auth/token/lookup-self", vaultLine, 200, `"policies":["default"],"renewable":false,"ttl":0,"type":"service"}`},
		{"GET", "/v1/auth/token/lookup-self", "X-Vault-Token: no", 403, `{"errors":["permission denied"`},
		{"POST", "/v1/auth/token/renew-self", vaultLine, 200, `"auth":{"client_token":"` + token + `","accessor":"","policies":["default"]`},
		{"PUT", "/v1/auth/token/renew-self", lister, 200, `"client_token":"` + listerToken + `"`},
		{"PUT", "/v1/auth/token/renew-self", "X-Vault-Token: no", 403, `{"errors":["permission denied"`},
		{"GET", "/v1/auth/token/renew-self", vaultLine, 405, `{"errors":["unsupported operation"`},
		{"POST", "/v1/auth/token/revoke-self", vaultLine, 403, `{"errors":["permission denied","The token ends when`},

		{"GET", "/v1/sys/internal/ui/mounts/secret", vaultLine, 200, `"options":{"version":"2"},"path":"secret/"`},
		{"GET", "/v1/sys/internal/ui/mounts/secret/web/db", vaultLine, 200, `"options":{"version":"2"},"path":"secret/","seal_wrap":false,"type":"kv"`},
		{"GET", "/v1/sys/internal/ui/mounts/team/kv/web/db", vaultLine, 200, `"options":{"version":"1"},"path":"team/kv/"`},
		{"GET", "/v1/sys/internal/ui/mounts/secrets/web/db", vaultLine, 403, `{"errors":["permission denied","There is no such mount`},
		{"GET", "/v1/sys/internal/ui/mounts/secret/web/db", "Accept: */*", 403, `{"errors":["permission denied"`},

		{"GET", "/v1/sys/health?drsecondarycode=299&uninitcode=299&list=x", "Accept: */*", 200, `{"initialized":true,"sealed":false,`},
		{"HEAD", "/v1/sys/health", "Accept: */*", 200, ""},
		{"GET", "/v1/sys/seal-status", "Accept: */*", 200, `"initialized":true,"sealed":false`},
		{"GET", "/v1/sys/init", "Accept: */*", 200, `{"initialized":true}`},
		{"HEAD", "/v1/secret/data/web/db", vaultLine, 405, ""},
	} {
		got := r.say(t, test.method, test.target, "", test.header)
		if got.status != test.status || !strings.Contains(got.body, test.holds) || test.holds == nothing && got.body != nothing {
			t.Errorf("%s %s with %s: %d %s, want %d %s", test.method, test.target, test.header, got.status, got.body, test.status, test.holds)
		}
		if got.header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %s: of type %q, which not all clients take for JSON", test.method, test.target, got.header.Get("Content-Type"))
		}
		if strings.Contains(got.body, marker) {
			t.Errorf("%s %s gives away %s", test.method, test.target, got.body)
		}
	}
}

// TestVaultsCallsAskNobody holds that what is no secret costs no lookup, and that a version by its
// number costs none once it is held.
func TestVaultsCallsAskNobody(t *testing.T) {
	r := startVault(t, endpoint.Options{})
	if got := r.get(t, "/v1/secret/data/web/db?version=2"); got.status != 200 {
		t.Fatal(got)
	}
	before := r.lookups.Load()
	for _, target := range []string{
		"/v1/auth/token/lookup-self", "/v1/sys/health", "/v1/sys/init", "/v1/sys/seal-status", "/v1/sys/internal/ui/mounts/secret/web/none",
		"/v1/secret/metadata/web/none?list=true", "/v1/secret/metadata/web/none", "/v1/secret/data/web/db?version=2", "/v1/secret/data/web/plain?version=12",
	} {
		r.get(t, target)
	}
	r.say(t, "PUT", "/v1/auth/token/renew-self", `{"increment":3600}`, vaultLine)
	if n := r.lookups.Load() - before; n != 0 {
		t.Errorf("%d lookups", n)
	}
	// The number alone may come to be: it is asked for first, until it is known not to be there.
	r.put(value("web/new", "v1", "lettered", upstream.ACSCurrent))
	r.put(value("web/new", "1", "number alone", upstream.ACSCurrent))
	if got := r.get(t, "/v1/secret/data/web/new?version=1"); !strings.Contains(got.body, "number alone") {
		t.Errorf("of both ids: %s", got.body)
	}
}

// TestVaultsErrors holds status and text of what a backend answers with.
func TestVaultsErrors(t *testing.T) {
	r := startVault(t, endpoint.Options{})
	for name, test := range map[string]struct {
		err    error
		status int
		text   string
	}{
		"web/deleted":   {&upstream.Error{Err: upstream.ErrPendingDeletion}, 404, "Scheduled for deletion."},
		"web/denied":    {&upstream.Error{Err: upstream.ErrAccessDenied, Message: "why"}, 403, `"permission denied","why"`},
		"web/throttled": {&upstream.Error{Err: upstream.ErrThrottled, Message: "slow down"}, 429, "slow down"},
		"web/down":      {&upstream.Error{Err: upstream.ErrUnavailable}, 503, "Unavailable."},
		"web/slow":      {context.DeadlineExceeded, 503, "did not answer in time"},
		"web/defect":    {errors.New(marker), 500, "the agent failed"},
	} {
		r.fail(name, test.err)
		got := r.get(t, "/v1/secret/data/"+name)
		if got.status != test.status || !strings.HasPrefix(got.body, `{"errors":["`) || !strings.Contains(strings.ToLower(got.body), strings.ToLower(test.text)) {
			t.Errorf("%s: %d %s, want %d with %s", name, got.status, got.body, test.status, test.text)
		}
	}
	if got := r.get(t, "/v1/secret/metadata/web/db"); got.status != 400 || !strings.Contains(got.body, "does not know the versions") {
		t.Errorf("metadata of a backend that tells none: %d %s", got.status, got.body)
	}
}

// TestVaultsPathsAreGuarded sends the attacks that other paths refuse. No shape loosens a check.
func TestVaultsPathsAreGuarded(t *testing.T) {
	r := startVault(t, endpoint.Options{})
	long := strings.Repeat("x", 2000)
	for name, raw := range map[string]string{
		"no token":                  request("GET", "/v1/secret/data/web/db", hostLine),
		"a wrong token":             request("GET", "/v1/secret/data/web/db", hostLine, "X-Vault-Token: "+token[1:]+"0"),
		"two tokens":                request("GET", "/v1/secret/data/web/db", hostLine, vaultLine, "X-KMS-Token: "+listerToken),
		"a bearer":                  request("GET", "/v1/secret/data/web/db", hostLine, "Authorization: Bearer "+token),
		"forwarded":                 request("GET", "/v1/secret/data/web/db", hostLine, vaultLine, "X-Forwarded-For: 10.0.0.1"),
		"via":                       request("LIST", "/v1/secret/metadata/web", hostLine, "X-Vault-Token: "+listerToken, "Via: 1.1 a"),
		"health, forwarded":         request("GET", "/v1/sys/health", hostLine, "Forwarded: for=a"),
		"health, HEAD, forwarded":   request("HEAD", "/v1/sys/health", hostLine, "X-Real-Ip: a"),
		"another host":              request("GET", "/v1/secret/data/web/db", "Host: evil.example", vaultLine),
		"health, another host":      request("GET", "/v1/sys/health", "Host: evil.example"),
		"a page":                    request("GET", "/v1/secret/data/web/db", hostLine, vaultLine, "Origin: http://127.0.0.1:2025"),
		"a page that renews":        request("POST", "/v1/auth/token/renew-self", hostLine, vaultLine, "Sec-Fetch-Site: cross-site", "Content-Length: 0"),
		"a GET with a body":         request("GET", "/v1/secret/data/web/db", hostLine, vaultLine, "Content-Length: 5") + "hello",
		"a LIST with a body":        request("LIST", "/v1/secret/metadata/web", hostLine, "X-Vault-Token: "+listerToken, "Content-Length: 5") + "hello",
		"a LIST in chunks":          request("LIST", "/v1/secret/metadata/web", hostLine, "X-Vault-Token: "+listerToken, "Transfer-Encoding: chunked") + "0\r\n\r\n",
		"both framings":             request("PUT", "/v1/auth/token/renew-self", hostLine, vaultLine, "Content-Length: 0", "Transfer-Encoding: chunked") + "0\r\n\r\n",
		"a long body":               request("PUT", "/v1/auth/token/renew-self", hostLine, vaultLine, "Content-Length: 2000") + long,
		"another's secret":          request("GET", "/v1/secret/data/other/db", hostLine, vaultLine),
		"another's secret, dots":    request("GET", "/v1/secret/data/web/../other/db", hostLine, vaultLine),
		"another's secret, encoded": request("GET", "/v1/secret/data/%6fther%2fdb", hostLine, vaultLine),
		"another's secret, kv 1":    request("GET", "/v1/team/kv/other/db", hostLine, vaultLine),
		"another's secret, as kms":  request("GET", "/v1/secret/data/other/db?format=kms", hostLine, vaultLine),
		"another's list":            request("LIST", "/v1/secret/metadata/other", hostLine, "X-Vault-Token: "+listerToken),
		"a write":                   request("POST", "/v1/secret/data/web/db", hostLine, vaultLine, "Content-Length: 2") + "{}",
		"a deletion":                request("DELETE", "/v1/secret/data/web/db", hostLine, vaultLine),
		"wrapping":                  request("GET", "/v1/secret/data/web/db", hostLine, vaultLine, "x-vault-wrap-ttl: 1"),
		"the session of a browser":  request("GET", "/v1/auth/token/lookup-self", hostLine, "Cookie: secretagent="+token),
	} {
		c := r.dial(t)
		c.send(raw)
		method, _, _ := strings.Cut(raw, " ")
		got := c.receive(method)
		if got.status < 400 || strings.Contains(got.body, marker) || strings.Contains(got.body, "second") || strings.Contains(got.body, `"keys"`) {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
	}
}

// TestVaultMountsAreReplaced holds that mounts come and go while the server runs.
func TestVaultMountsAreReplaced(t *testing.T) {
	r := start(t, endpoint.Options{})
	r.put(value("a", "v1", "x", upstream.ACSCurrent))
	for _, test := range []struct {
		mounts []endpoint.VaultMount
		found  map[string]int
	}{
		{nil, map[string]int{"/v1/secret/data/a": 404, "/v1/sys/health": 404}},
		{[]endpoint.VaultMount{{Path: "secret"}}, map[string]int{"/v1/secret/data/a": 200, "/v1/kv/a": 404, "/v1/sys/health": 200}},
		{[]endpoint.VaultMount{{Path: "kv", Version: 1}}, map[string]int{"/v1/secret/data/a": 404, "/v1/kv/a": 200, "/v1/kv/data/a": 404}},
	} {
		set, err := r.srv.PrepareVaultMounts(test.mounts)
		must(t, err)
		set()
		for target, want := range test.found {
			if got := r.get(t, target); got.status != want {
				t.Errorf("%v: %s: %d, want %d", test.mounts, target, got.status, want)
			}
		}
	}
	// With another prefix of names Vault's paths stay where its clients look.
	other := start(t, endpoint.Options{PathPrefix: "/secrets/", VaultMounts: []endpoint.VaultMount{{Path: "secret"}}})
	other.put(value("a", "v1", "x", upstream.ACSCurrent))
	for target, want := range map[string]int{"/v1/secret/data/a": 200, "/secrets/a": 200, "/v1/secret/a": 404, "/v1/a": 404} {
		if got := other.get(t, target); got.status != want {
			t.Errorf("%s: %d, want %d", target, got.status, want)
		}
	}
	if got := other.say(t, "LIST", "/v1/secret/a", "", vaultLine); got.status != 404 {
		t.Errorf("LIST below a mount: %d", got.status)
	}
}

func TestMountsThatVaultNeedsItself(t *testing.T) {
	for path, want := range map[string]string{
		"sys": "own paths", "auth": "own paths", "auth/approle": "own paths", "cubbyhole": "own paths", "identity": "own paths", "identity/oidc": "own paths",
		"": "without slashes", "/secret": "without slashes", "secret/": "without slashes", "a//b": "without slashes", "a b": "without slashes", "a%2Fb": "without slashes",
		"kv": "given twice", "kv/team": "within each other", "a.b/c-d_e": "", "system": "", "authors": "", "kv2": "",
	} {
		opts := endpoint.Options{Callers: []endpoint.Caller{endpoint.DefaultCaller(mustToken(t, token))}, VaultMounts: []endpoint.VaultMount{{Path: "kv"}, {Path: path}}}
		err := opts.Validate()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "vaultMounts[1]")) {
			t.Errorf("%q: %v, want %q", path, err, want)
		}
	}
}

func TestNamesThatVaultHides(t *testing.T) {
	opts := endpoint.Options{VaultMounts: []endpoint.VaultMount{{Path: "secret"}, {Path: "kv", Version: 1}}}
	for name, want := range map[upstream.SecretName]bool{
		"app/db": false, "secret/db": false, "secret": false, "secret/data": false, "secret/database": false, "system/health": false,
		"secret/data/db": true, "secret/metadata/db": true, "secret/metadata": true, "kv/db": true, "kv": true, "sys/health": true, "auth/token/lookup-self": true,
	} {
		if got := opts.Hides(name); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
	opts.PathPrefix = "/v1/secret/"
	if !opts.Hides("data/db") || opts.Hides("app/db") {
		t.Error("below a prefix that is a mount")
	}
	opts.PathPrefix = "/v1/secret/data/"
	if opts.Hides("app/db") {
		t.Error("the name that Vault's path has is the secret's own")
	}
	opts.PathPrefix = "/secrets/"
	if opts.Hides("secret/data/db") || (endpoint.Options{}).Hides("secret/data/db") {
		t.Error("no path of a name is Vault's")
	}
}
