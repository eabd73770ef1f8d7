package kms

import (
	"cmp"
	"encoding/json"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/aliyun/credentials-go/credentials/providers"

	"secretagent/upstream"
)

// stsVariable names the STS that the agent asks, as the webhook of ACK sets it for its pods. The
// credential library does not know it.
const stsVariable = "ALIBABA_CLOUD_STS_ENDPOINT"

// stsHost returns the STS that is asked: that of the configuration, that of the environment, or
// the one of a region.
func (o CredentialOptions) stsHost(region string, vpc bool) string {
	return cmp.Or(o.STSEndpoint, stsFromEnvironment(), regionalSTS(region, vpc))
}

// regionalSTS returns the STS that the library asks for itself.
func regionalSTS(region string, vpc bool) string {
	region = cmp.Or(region, os.Getenv("ALIBABA_CLOUD_STS_REGION"))
	switch {
	case region == "":
		return "sts.aliyuncs.com"
	case vpc || strings.EqualFold(os.Getenv("ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED"), "true"):
		return "sts-vpc." + region + ".aliyuncs.com"
	}
	return "sts." + region + ".aliyuncs.com"
}

// stsFromEnvironment returns the host that the variable names.
func stsFromEnvironment() string { return hostOf(os.Getenv(stsVariable)) }

// hostOf returns the host of what some write as a URL.
func hostOf(endpoint string) string {
	_, host, isURL := strings.Cut(strings.TrimSpace(endpoint), "://")
	if !isURL {
		host = strings.TrimSpace(endpoint)
	}
	return strings.TrimSuffix(host, "/")
}

// stsProvider is a provider of the library that asks STS. Its errors say which one.
type stsProvider struct {
	providers.CredentialsProvider
	host string
}

// GetCredentials implements the library's provider.
func (p stsProvider) GetCredentials() (*providers.Credentials, error) {
	c, err := p.CredentialsProvider.GetCredentials()
	if err != nil {
		return nil, stsErrorOf(p.host, err)
	}
	return c, nil
}

// stsError is the failure of a question to STS.
type stsError struct {
	host      string
	code      string // of its answer; empty: there was none, or none of STS
	requestID string
	err       error // as the library returns it, which may quote the answer
}

func (e *stsError) Error() string { return "STS at " + e.host + ": " + cmp.Or(e.code, "no answer") }

// Unwrap returns the error of the library.
func (e *stsError) Unwrap() error { return e.err }

// stsErrorOf returns err as an [stsError] where it comes from STS. What was wrong before that, such
// as a token file that cannot be read, stays what it is.
func stsErrorOf(host string, err error) error {
	text := err.Error()
	for _, refused := range []string{"refresh session token failed: ", "get session token failed: "} {
		if body, ok := strings.CutPrefix(text, refused); ok {
			e := &stsError{host: host, err: err}
			var said struct{ Code, RequestID string }
			if json.Unmarshal([]byte(body), &said) == nil && plainCode.MatchString(said.Code) {
				e.code = said.Code
				if plainCode.MatchString(said.RequestID) {
					e.requestID = said.RequestID
				}
			}
			return e
		}
	}
	if unanswered.MatchString(text) || strings.HasPrefix(text, "get oidc sts token err") || strings.HasPrefix(text, "refresh RoleArn sts token err") {
		return &stsError{host: host, err: err}
	}
	return err
}

// explain says in our own words what STS did. Of its answer no more than code and request id get
// out: a message can quote what was sent.
func (e *stsError) explain(kind string) error {
	what, fix := "STS at "+e.host, fixOf(kind)
	switch {
	case e.code == "" && unanswered.MatchString(e.err.Error()):
		what += ": " + overProxy(proxyFor(http.ProxyFromEnvironment, "https://"+e.host), e.err) + plain(e.err)
	case e.code == "":
		what += ": " + errUnusable
	default:
		what += " answers " + e.code
		for _, known := range stsCodes {
			if strings.Contains(e.code, known.code) {
				what, fix = what+": "+known.what, known.fix
				break
			}
		}
	}
	err := sourceError(kind, what, fix)
	err.RequestID = e.requestID
	return err
}

const errUnusable = "the answer is not one of STS"

// stsCodes are codes of STS, the particular before the general.
var stsCodes = []struct{ code, what, fix string }{
	{"EntityNotExist.Role", "it knows no such role", "check the role ARN"},
	{"AuthenticationFail.OIDCToken", "it refuses the OIDC token", "check that the identity provider of the role trusts this cluster"},
	{"NoPermission", "it does not allow this identity to assume the role", "grant sts:AssumeRole and check the trust policy of the role"},
	{"InvalidAccessKeyId", "it does not know the access key", "check the key that the role is assumed with"},
	{"SignatureDoesNotMatch", "it refuses the signature", "check the access key secret"},
	{"InvalidSecurityToken", "it refuses the security token", "renew the token that the role is assumed with"},
	{"Throttling", "it throttles", "many agents ask at once; it will be asked again"},
}

// checkSTS adds the problems of what says which STS is asked.
func (o CredentialOptions) checkSTS(p *upstream.OptionErrors) {
	if _, ok := hostname(o.STSEndpoint); !ok && o.STSEndpoint != "" {
		p.Addf("stsEndpoint", withoutUser(o.STSEndpoint), "must be a host name, without scheme or path")
	}
	if host := stsFromEnvironment(); host != "" && o.STSEndpoint == "" && o.asksSTS() {
		if _, ok := hostname(host); !ok {
			p.Addf("stsEndpoint", withoutUser(host), "the variable %s must be a host name, without path", stsVariable)
		}
	}
}

// withoutUser returns what a message may show of text that should be a host: a user and password before
// it are not for others.
func withoutUser(text string) string { return text[strings.LastIndexByte(text, '@')+1:] }

// stsTypes are the types that ask STS, or may.
const stsTypes = "default oidc_role_arn profile ram_role_arn"

func (o CredentialOptions) asksSTS() bool { return slices.Contains(strings.Fields(stsTypes), o.Type) }
