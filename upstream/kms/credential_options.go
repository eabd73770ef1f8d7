package kms

import (
	"cmp"
	"log/slog"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"secretagent/upstream"
)

// CredentialOptions says where credentials come from.
type CredentialOptions struct {
	// Type is default (also when empty), access_key, sts, ram_role_arn, ecs_ram_role,
	// oidc_role_arn, credentials_uri or profile.
	Type string

	// A key in files, for access_key and sts, and as the identity that ram_role_arn starts
	// from. Surrounding white space in a file does not count. Files that change are read
	// again, and may be missing for a while.
	AccessKeyIDFile     string
	AccessKeySecretFile string
	SecurityTokenFile   string // sts; optional for ram_role_arn

	// For ram_role_arn, which starts from the default chain when no key is given, and for
	// oidc_role_arn. What is empty comes from the variables ALIBABA_CLOUD_ROLE_ARN,
	// ALIBABA_CLOUD_OIDC_PROVIDER_ARN and ALIBABA_CLOUD_OIDC_TOKEN_FILE.
	RoleARN         string
	RoleSessionName string
	SessionDuration time.Duration // 15m to 12h; zero means 1h
	Policy          string
	ExternalID      string
	OIDCProviderARN string
	OIDCTokenFile   string

	// Of every type that asks STS: those two, default and profile. A host; empty: that of
	// ALIBABA_CLOUD_STS_ENDPOINT, or of the region that a profile, or ALIBABA_CLOUD_STS_REGION with
	// ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED, names, or sts.aliyuncs.com. A role in the ini file of the
	// older SDKs, as a part of default, knows regions only.
	STSEndpoint string

	// For ecs_ram_role.
	RoleName      string // empty: asked from the metadata service
	DisableIMDSv1 bool   // refuse the metadata service when it does not know sessions

	// For credentials_uri; empty: ALIBABA_CLOUD_CREDENTIALS_URI.
	URI string

	// For profile: a profile of the aliyun CLI. Empty: the current one of
	// ~/.aliyun/config.json, or as ALIBABA_CLOUD_PROFILE and ALIBABA_CLOUD_CONFIG_FILE say.
	Profile     string
	ProfileFile string

	// Logger hears of renewals and of a source that fails or is back. Nil discards.
	Logger *slog.Logger
}

var credentialTypes = []string{"default", "access_key", "sts", "ram_role_arn", "ecs_ram_role", "oidc_role_arn", "credentials_uri", "profile"}

// CredentialVariables are the variables of the environment that hold a credential of Alibaba
// Cloud or say where one is, as the SDKs read them. A program that inherits them from the agent
// can do with the cloud what the agent can.
var CredentialVariables = []string{
	"ALIBABA_CLOUD_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_Id", "ALIBABA_CLOUD_ACCESS_KEY_SECRET",
	"ALIBABA_CLOUD_SECURITY_TOKEN", "ALIBABA_CLOUD_ACCESS_KEY_STS_TOKEN",
	"ALIBABA_CLOUD_PRIVATE_KEY", "ALIBABA_CLOUD_PUBLIC_KEY_ID",
	"ALIBABA_CLOUD_ROLE_ARN", "ALIBABA_CLOUD_ROLE_SESSION_NAME",
	"ALIBABA_CLOUD_OIDC_PROVIDER_ARN", "ALIBABA_CLOUD_OIDC_TOKEN_FILE", "ALIBABA_CLOUD_OIDC_TOKEN",
	"ALIBABA_CLOUD_ECS_METADATA", "ALIBABA_CLOUD_CREDENTIALS_URI",
	"ALIBABA_CLOUD_CREDENTIALS_FILE", "ALIBABA_CLOUD_CONFIG_FILE", "ALIBABA_CLOUD_PROFILE",
}

// defaultSession is how long an assumed role lasts.
const defaultSession = time.Hour

// credentialKey is a key with its value and with the types that need it or take it.
type credentialKey struct{ key, value, needed, taken string }

// keys returns the keys below upstream.alibaba.credentials, without type. What a type takes
// comes from the environment variables of the cloud where it is not given.
func (o CredentialOptions) keys() []credentialKey {
	session, v1 := "", ""
	if o.SessionDuration != 0 && o.SessionDuration != defaultSession { // the default belongs to every type
		session = o.SessionDuration.String()
	}
	if o.DisableIMDSv1 {
		v1 = "true"
	}
	const roles = "oidc_role_arn ram_role_arn"
	return []credentialKey{
		{"accessKeyIdFile", o.AccessKeyIDFile, "access_key sts", "ram_role_arn"},
		{"accessKeySecretFile", o.AccessKeySecretFile, "access_key sts", "ram_role_arn"},
		{"securityTokenFile", o.SecurityTokenFile, "sts", "ram_role_arn"},
		{"roleArn", o.RoleARN, "", roles},
		{"roleSessionName", o.RoleSessionName, "", roles},
		{"sessionDuration", session, "", roles},
		{"policy", o.Policy, "", roles},
		{"externalId", o.ExternalID, "", "ram_role_arn"},
		{"stsEndpoint", o.STSEndpoint, "", stsTypes},
		{"oidcProviderArn", o.OIDCProviderARN, "", "oidc_role_arn"},
		{"oidcTokenFile", o.OIDCTokenFile, "", "oidc_role_arn"},
		{"roleName", o.RoleName, "", "ecs_ram_role"},
		{"disableIMDSv1", v1, "", "ecs_ram_role"},
		{"uri", o.URI, "", "credentials_uri"},
		{"profile", o.Profile, "", "profile"},
		{"profileFile", o.ProfileFile, "", "profile"},
	}
}

// Validate returns all problems of o as [upstream.OptionErrors], with keys below
// upstream.alibaba.credentials. It accepts what [NewCredentials] accepts: files need not exist.
func (o CredentialOptions) Validate() error {
	o.Type = cmp.Or(o.Type, "default")
	var p upstream.OptionErrors
	if !slices.Contains(credentialTypes, o.Type) {
		p.Addf("type", o.Type, "must be %s", strings.Join(credentialTypes, ", "))
		return p
	}
	for _, k := range o.keys() {
		types := strings.Fields(k.needed + " " + k.taken)
		switch {
		case k.value == "" && slices.Contains(strings.Fields(k.needed), o.Type):
			p.Addf(k.key, "", "is missing: type %s needs it", o.Type)
		case k.value != "" && !slices.Contains(types, o.Type):
			slices.Sort(types)
			p.Addf(k.key, "", "is not used by type %s; it belongs to %s", o.Type, strings.Join(types, ", "))
		}
	}
	switch o.Type {
	case "ram_role_arn":
		if (o.AccessKeyIDFile == "") != (o.AccessKeySecretFile == "") {
			p.Addf("", "", "must have both accessKeyIdFile and accessKeySecretFile, or none")
		} else if o.AccessKeyIDFile == "" && o.SecurityTokenFile != "" {
			p.Addf("securityTokenFile", "", "has no use without accessKeyIdFile and accessKeySecretFile")
		}
		checkEnv(&p, "roleArn", o.RoleARN, "ALIBABA_CLOUD_ROLE_ARN")
	case "credentials_uri":
		checkEnv(&p, "uri", o.URI, "ALIBABA_CLOUD_CREDENTIALS_URI")
	}
	o.checkValues(&p)
	return p.Err()
}

// checkEnv adds a problem when neither a key nor the variable in its place is given.
func checkEnv(p *upstream.OptionErrors, key, value, variable string) {
	if value == "" && os.Getenv(variable) == "" {
		p.Addf(key, "", "is missing: set it, or %s", variable)
	}
}

func (o CredentialOptions) checkValues(p *upstream.OptionErrors) {
	if o.SessionDuration != 0 && (o.SessionDuration < 15*time.Minute || o.SessionDuration > 12*time.Hour) {
		p.Addf("sessionDuration", o.SessionDuration.String(), "must be 15m to 12h")
	}
	o.checkSTS(p)
	for _, arn := range []struct{ key, value string }{{"roleArn", o.RoleARN}, {"oidcProviderArn", o.OIDCProviderARN}} {
		if arn.value != "" && !strings.HasPrefix(arn.value, "acs:ram::") {
			p.Addf(arn.key, arn.value, "must be an ARN that starts with acs:ram::")
		}
	}
	if o.URI == "" {
		return
	}
	// The URI may hold a token: it is not quoted.
	switch u, err := url.Parse(o.URI); {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		p.Addf("uri", "", "must be an http or https URL")
	case u.User != nil:
		p.Addf("uri", "", "must not contain a user or password")
	}
}
