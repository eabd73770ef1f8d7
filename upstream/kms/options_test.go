package kms_test

import (
	"os"
	"testing"
	"time"

	"secretagent/upstream/kms"
)

// TestValidateNamesEveryProblem checks the lines of Validate and of New, which are the same.
func TestValidateNamesEveryProblem(t *testing.T) {
	_, noFile := os.ReadFile("/none")
	for _, c := range []struct {
		name string
		opts kms.Options
		want string
	}{
		{"nothing", kms.Options{}, "endpoints: must hold at least one endpoint"},
		{"limits", kms.Options{Endpoints: []kms.Endpoint{{Region: "cn-hangzhou"}}, Timeout: -1, Deadline: -2, Retry: kms.Retry{MaxAttempts: -1, Base: time.Hour},
			Budget: kms.Budget{PerSecond: -1, Burst: -1}, Breaker: kms.Breaker{Failures: -1, Pause: time.Hour}, MaxConcurrent: 5000},
			`timeout: -1ns: must be positive
deadline: -2ns: must not be shorter than timeout, -1ns: no attempt could use it
retry.maxAttempts: -1: must be 1 to 100
retry.cap: 5s: must not be shorter than base, 1h0m0s
budget.perSecond: -1: must be 0.03 to 1000000
budget.burst: -1: must be positive
breaker.failures: -1: must be positive
breaker.maxPause: 1m0s: must not be shorter than pause, 1h0m0s
maxConcurrent: 5000: must be 1 to 1024`},
		{"pauses", kms.Options{Endpoints: []kms.Endpoint{{Region: "cn-hangzhou"}}, Retry: kms.Retry{Base: -1}, Breaker: kms.Breaker{Pause: -1}},
			"retry.base: -1ns: must be positive\nbreaker.pause: -1ns: must be positive"},
		{"regions", kms.Options{Endpoints: []kms.Endpoint{{}, {Host: "kms.example.com"}, {Host: "kms.example.com", Region: "CN!"}}},
			`endpoints[0].region: is missing: the host does not tell it
endpoints[1].region: is missing: the host does not tell it
endpoints[2].region: CN!: must be a region id such as cn-hangzhou`},
		{"schemes", kms.Options{Endpoints: []kms.Endpoint{{Region: "cn-hangzhou", Scheme: "http"}, {Region: "cn-hangzhou", Host: "127.0.0.1.example.com", Scheme: "http"}, {Region: "cn-hangzhou", Scheme: "ftp"}}},
			`endpoints[0].scheme: http: plain http is allowed for a loopback host only: use https
endpoints[1].scheme: http: plain http is allowed for a loopback host only: use https
endpoints[2].scheme: ftp: must be https or http`},
		{"authorities", kms.Options{Endpoints: []kms.Endpoint{{Region: "cn-hangzhou", CAFile: "/none"}, {Region: "cn-hangzhou", CAFile: "options_test.go"},
			{Host: "localhost", Scheme: "http", CAFile: "/none"}, {Socket: "/s", Region: "cn-hangzhou"}}},
			"endpoints[0].caFile: " + noFile.Error() + `
endpoints[1].caFile: options_test.go holds no certificate in PEM form
endpoints[2].caFile: /none: has no use with scheme http
endpoints[3].socket: /s: must stand alone: a socket has no region, host, scheme or CA`},
	} {
		if err := c.opts.Validate(); err == nil || err.Error() != c.want {
			t.Errorf("%s:\n%v\nwant\n%s", c.name, err, c.want)
		}
		if _, err := kms.New(c.opts); err == nil || err.Error() != c.want {
			t.Errorf("%s: New:\n%v", c.name, err)
		}
	}
	for _, host := range []string{"https://kms", "kms:99999", "999.1.1.1:99999", "999.1.1.1", "kms:", "kms:0", "kms:https", "kms/x", "[kms]", "a b"} {
		err := kms.Options{Endpoints: []kms.Endpoint{{Region: "cn-hangzhou", Host: host}}}.Validate()
		if want := "endpoints[0].host: " + host + ": must be a host name, with :port if need be; the scheme has a key of its own"; err == nil || err.Error() != want {
			t.Errorf("%s: %v", host, err)
		}
	}
	for _, e := range []kms.Endpoint{
		{Region: "cn-hangzhou"}, {Host: "kms-vpc.cn-hangzhou.aliyuncs.com"}, {Host: "KMS.cn-hangzhou.aliyuncs.com:443"}, {Host: "localhost:2026", Scheme: "http"},
		{Host: "[::1]:2026", Scheme: "http"}, {Host: "::1", Scheme: "http"}, {Region: "cn-hangzhou", Host: "kst-abc.cryptoservice.kms.aliyuncs.com"}, {Socket: "/run/kms.sock"},
	} {
		opts := kms.Options{Endpoints: []kms.Endpoint{e}}
		if err := opts.Validate(); err != nil {
			t.Errorf("%+v: %v", e, err)
		}
		client, err := kms.New(opts)
		if (err == nil) != (e.Socket != "") {
			t.Errorf("%+v without credentials: %v", e, err)
		}
		if err == nil {
			_ = client.Close()
		}
		connect(t, opts)
	}
}

// TestValidateNamesEveryProblemOfCredentials checks Validate and NewCredentials, which say the same.
func TestValidateNamesEveryProblemOfCredentials(t *testing.T) {
	clean(t)
	key := func(o kms.CredentialOptions) kms.CredentialOptions {
		o.AccessKeyIDFile, o.AccessKeySecretFile = "/none/id", "/none/secret"
		return o
	}
	for _, c := range []struct {
		opts kms.CredentialOptions
		want string // empty: nothing is wrong
	}{
		{kms.CredentialOptions{SessionDuration: time.Hour}, ""},
		{kms.CredentialOptions{Type: "magic"}, "type: magic: must be default, access_key, sts, ram_role_arn, ecs_ram_role, oidc_role_arn, credentials_uri, profile"},
		{key(kms.CredentialOptions{Type: "access_key"}), ""},
		{kms.CredentialOptions{Type: "sts"}, `accessKeyIdFile: is missing: type sts needs it
accessKeySecretFile: is missing: type sts needs it
securityTokenFile: is missing: type sts needs it`},
		{key(kms.CredentialOptions{Type: "access_key", SecurityTokenFile: "/none/token"}), "securityTokenFile: is not used by type access_key; it belongs to ram_role_arn, sts"},
		{kms.CredentialOptions{URI: "http://127.0.0.1/", DisableIMDSv1: true, SessionDuration: 2 * time.Hour}, `sessionDuration: is not used by type default; it belongs to oidc_role_arn, ram_role_arn
disableIMDSv1: is not used by type default; it belongs to ecs_ram_role
uri: is not used by type default; it belongs to credentials_uri`},
		{kms.CredentialOptions{Type: "ram_role_arn"}, "roleArn: is missing: set it, or ALIBABA_CLOUD_ROLE_ARN"},
		{kms.CredentialOptions{Type: "ram_role_arn", RoleARN: "acs:ram::1:role/r", AccessKeyIDFile: "/none"}, "must have both accessKeyIdFile and accessKeySecretFile, or none"},
		{kms.CredentialOptions{Type: "ram_role_arn", RoleARN: "acs:ram::1:role/r", SecurityTokenFile: "/none"}, "securityTokenFile: has no use without accessKeyIdFile and accessKeySecretFile"},
		{kms.CredentialOptions{Type: "oidc_role_arn", RoleARN: "r", OIDCProviderARN: "p", STSEndpoint: "https://sts", SessionDuration: time.Minute}, `sessionDuration: 1m0s: must be 15m to 12h
stsEndpoint: https://sts: must be a host name, without scheme or path
roleArn: r: must be an ARN that starts with acs:ram::
oidcProviderArn: p: must be an ARN that starts with acs:ram::`},
		{kms.CredentialOptions{Type: "credentials_uri"}, "uri: is missing: set it, or ALIBABA_CLOUD_CREDENTIALS_URI"},
		{kms.CredentialOptions{Type: "credentials_uri", URI: "file:///MARKER"}, "uri: must be an http or https URL"},
		{kms.CredentialOptions{Type: "credentials_uri", URI: "http://user:MARKER@127.0.0.1/"}, "uri: must not contain a user or password"},
		{kms.CredentialOptions{Type: "profile", ProfileFile: "/none"}, ""},
	} {
		for _, validate := range []func() error{c.opts.Validate, func() error { _, err := kms.NewCredentials(c.opts); return err }} {
			text := ""
			if err := validate(); err != nil {
				text = err.Error()
			}
			if text != c.want {
				t.Errorf("%+v:\n%s\nwant\n%s", c.opts, text, c.want)
			}
		}
	}
}
