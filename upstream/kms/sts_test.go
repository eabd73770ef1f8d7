package kms_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"secretagent/upstream"
	"secretagent/upstream/kms"
	"secretagent/upstream/upstreamtest"
)

// rrsa sets what the webhook of ACK gives its pods, but for the STS.
func rrsa(t *testing.T) {
	t.Helper()
	t.Setenv("ALIBABA_CLOUD_ROLE_ARN", "acs:ram::1:role/r")
	t.Setenv("ALIBABA_CLOUD_OIDC_PROVIDER_ARN", "acs:ram::1:oidc-provider/p")
	t.Setenv("ALIBABA_CLOUD_OIDC_TOKEN_FILE", write(t, t.TempDir(), "oidc", "MARKER-oidc"))
}

// Every type that asks STS asks the one that the configuration names, and else the one of the
// environment, which the library does not know.
func TestEveryTypeAsksTheSTSThatIsNamed(t *testing.T) {
	clean(t)
	i, _ := newIssuer(t)
	sts := strings.TrimPrefix(i.sts.URL, "https://")
	dir := t.TempDir()
	id, secretFile := write(t, dir, "id", keyID), write(t, dir, "secret", keySecret)
	oidc := write(t, dir, "oidc", "MARKER-oidc")
	role := `"ram_role_arn":"acs:ram::1:role/r","ram_session_name":"s","expired_seconds":900,"sts_region":"cn-nowhere","enable_vpc":true`
	profiles := write(t, dir, "config.json", `{"current":"role","profiles":[
		{"name":"role","mode":"RamRoleArn","access_key_id":"`+keyID+`","access_key_secret":"`+keySecret+`",`+role+`},
		{"name":"key","mode":"AK","access_key_id":"`+keyID+`","access_key_secret":"`+keySecret+`"},
		{"name":"chained","mode":"ChainableRamRoleArn","source_profile":"key",`+role+`},
		{"name":"pod","mode":"OIDC","oidc_provider_arn":"acs:ram::1:oidc-provider/p","oidc_token_file":"`+oidc+`",`+role+`}]}`)
	for _, c := range []struct {
		name, source string
		opts         kms.CredentialOptions
		env          func(t *testing.T)
	}{
		{"oidc_role_arn", "oidc_role_arn", kms.CredentialOptions{Type: "oidc_role_arn"}, rrsa},
		{"ram_role_arn", "ram_role_arn/access_key", kms.CredentialOptions{Type: "ram_role_arn", RoleARN: "acs:ram::1:role/r", AccessKeyIDFile: id, AccessKeySecretFile: secretFile}, nil},
		{"a profile with a role", "cli_profile/ram_role_arn/static_ak", kms.CredentialOptions{Type: "profile", ProfileFile: profiles}, nil},
		{"a profile on another", "cli_profile/ram_role_arn/cli_profile/static_ak", kms.CredentialOptions{Type: "profile", ProfileFile: profiles, Profile: "chained"}, nil},
		{"a profile with OIDC", "cli_profile/oidc_role_arn", kms.CredentialOptions{Type: "profile", ProfileFile: profiles, Profile: "pod"}, nil},
		{"default in a pod", "default/oidc_role_arn", kms.CredentialOptions{}, rrsa},
		{"default with a profile", "default/cli_profile/ram_role_arn/static_ak", kms.CredentialOptions{}, func(t *testing.T) { t.Setenv("ALIBABA_CLOUD_CONFIG_FILE", profiles) }},
	} {
		for _, variable := range []string{sts, "https://" + sts + "/", "127.0.0.1:1"} {
			t.Run(c.name+" "+variable, func(t *testing.T) {
				t.Setenv("ALIBABA_CLOUD_STS_ENDPOINT", variable)
				t.Setenv("ALIBABA_CLOUD_STS_REGION", "cn-nowhere")
				if c.env != nil {
					c.env(t)
				}
				opts := c.opts
				if variable == "127.0.0.1:1" {
					opts.STSEndpoint = sts // comes first
				}
				if got, err := source(t, opts).Credential(t.Context()); err != nil || got.AccessKeyID != "STS.1" || got.Source != c.source {
					t.Errorf("got %v from %q, want %s: %v", got.AccessKeyID, got.Source, c.source, err)
				}
			})
		}
	}
	t.Setenv("ALIBABA_CLOUD_STS_ENDPOINT", "sts.aliyuncs.com/path")
	if err := (kms.CredentialOptions{}).Validate(); err == nil || !strings.Contains(err.Error(), "ALIBABA_CLOUD_STS_ENDPOINT") {
		t.Errorf("a variable that is no host: %v", err)
	}
	if err := (kms.CredentialOptions{Type: "access_key", AccessKeyIDFile: id, AccessKeySecretFile: secretFile}).Validate(); err != nil {
		t.Errorf("a type that does not ask STS: %v", err)
	}
}

// What STS does in the way of the default chain is told with its host and its code, and nothing that
// it quotes. Whatever it is, the role of the node does not take the place of the pod's.
func TestTheDefaultChainTellsWhatSTSDid(t *testing.T) {
	clean(t)
	i, _ := newIssuer(t)
	i.metadata()
	rrsa(t)
	sts := strings.TrimPrefix(i.sts.URL, "https://")
	for _, c := range []struct{ name, sts, odd, refusal, want string }{
		{"unreachable", "127.0.0.1:1", "", "", "no credentials from default/oidc_role_arn: STS at 127.0.0.1:1: connection refused"},
		{"not an answer", sts, "MARKER-text", "", "STS at " + sts + ": the answer is not one of STS"},
		{"failing", sts, "down", "", "STS at " + sts + ": the answer is not one of STS"},
		{"throttling", sts, "", "Throttling.User", "STS at " + sts + " answers Throttling.User: it throttles"},
		{"in trouble", sts, "", "ServiceUnavailable", "STS at " + sts + " answers ServiceUnavailable; check that the STS endpoint can be reached"},
		{"refusing", sts, "", "AuthenticationFail.OIDCToken.Expired", "STS at " + sts + " answers AuthenticationFail.OIDCToken.Expired: it refuses the OIDC token"},
		{"refusing for another reason", sts, "", "InvalidParameter.RoleArn", "STS at " + sts + " answers InvalidParameter.RoleArn"},
	} {
		t.Run(c.name, func(t *testing.T) {
			i.answers(c.odd)
			i.refuses(c.refusal)
			var log upstreamtest.Buffer
			s := source(t, kms.CredentialOptions{STSEndpoint: c.sts, Logger: log.Logger()})
			_, err := s.Credential(t.Context())
			text := log.String() + s.Status().Error
			if !errors.Is(err, upstream.ErrNoCredentials) || !strings.Contains(err.Error(), c.want) || !strings.Contains(s.Status().Error, c.want) || !strings.Contains(log.String(), c.want) {
				t.Errorf("got %v, want %s\n%s", err, c.want, text)
			}
			if c.refusal != "" && !strings.Contains(fmt.Sprint(err), "request id 4C1F-77") {
				t.Errorf("no request id: %v", err)
			}
			if strings.Contains(fmt.Sprint(err)+text+log.String(), "MARKER") {
				t.Errorf("shown: %v %s", err, text)
			}
		})
	}
}

// What is set up in another way than by STS for the pod: a role of a profile ends the chain, too, and so
// does a pod whose token is not there. A file in which there is nobody does not, and the log tells.
func TestWhereTheDefaultChainEnds(t *testing.T) {
	clean(t)
	i, _ := newIssuer(t)
	i.metadata()
	i.refuses("NoPermission")
	sts := strings.TrimPrefix(i.sts.URL, "https://")
	dir := t.TempDir()
	role := write(t, dir, "role.json", `{"current":"r","profiles":[{"name":"r","mode":"RamRoleArn","access_key_id":"`+keyID+`","access_key_secret":"`+keySecret+`","ram_role_arn":"acs:ram::1:role/r","ram_session_name":"s","expired_seconds":900}]}`)
	for _, c := range []struct{ name, variable, value, want string }{
		{"a profile", "ALIBABA_CLOUD_CONFIG_FILE", role, "default/profile: STS at " + sts + " answers NoPermission"},
		{"a pod without its token", "ALIBABA_CLOUD_OIDC_TOKEN_FILE", dir + "/none", "default/oidc_role_arn: "},
		{"an empty file", "ALIBABA_CLOUD_CONFIG_FILE", write(t, dir, "empty.json", "{}"), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if strings.Contains(c.variable, "OIDC") {
				rrsa(t)
			}
			t.Setenv(c.variable, c.value)
			var log upstreamtest.Buffer
			got, err := source(t, kms.CredentialOptions{STSEndpoint: sts, Logger: log.Logger()}).Credential(t.Context())
			switch {
			case c.want != "" && (!errors.Is(err, upstream.ErrNoCredentials) || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got %q, %v, want %s", got.Source, err, c.want)
			case c.want == "" && (err != nil || got.Source != "default/ecs_ram_role" || !strings.Contains(log.String(), "the next one is used")):
				t.Errorf("got %q, %v\n%s", got.Source, err, log.String())
			}
		})
	}
}

// TestAUserBeforeAHostIsNotShown: whoever writes credentials into the name of a host is told, without them.
func TestAUserBeforeAHostIsNotShown(t *testing.T) {
	const host = "user:MARKER@sts.example.com"
	shows := func(what string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), "must be a host name") || strings.Contains(err.Error(), "MARKER") {
			t.Errorf("%s: %v", what, err)
		}
	}
	o := kms.CredentialOptions{Type: "default", STSEndpoint: host}
	shows("the option", o.Validate())
	o.STSEndpoint = ""
	t.Setenv("ALIBABA_CLOUD_STS_ENDPOINT", host)
	shows("the variable", o.Validate())
	shows("a gateway", kms.Options{Endpoints: []kms.Endpoint{{Host: host}}}.Validate())
}
