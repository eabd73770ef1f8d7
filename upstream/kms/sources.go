package kms

import (
	"bytes"
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/aliyun/credentials-go/credentials/providers"

	"secretagent/upstream"
	"secretagent/upstream/keyfile"
)

// Timeouts of one question to STS or a URI, in milliseconds. The library has its own of one
// second for the metadata service.
var sourceTimeouts = &providers.HttpOptions{ConnectTimeout: 2000, ReadTimeout: 5000}

// opener returns how to make a fetcher of the type of o, which is valid, and the files that it
// depends on.
func (o CredentialOptions) opener() (open func() (fetcher, error), files []string) {
	key := keyFiles{id: o.AccessKeyIDFile, secret: o.AccessKeySecretFile, token: o.SecurityTokenFile}
	chain := []string{cliConfig(), iniFile()}
	switch o.Type {
	case "access_key", "sts":
		return func() (fetcher, error) { return key.read, nil }, key.files()
	case "ram_role_arn":
		if key.id != "" {
			chain = key.files()
		}
		return func() (fetcher, error) { return o.openRAMRole(key) }, chain
	case "ecs_ram_role":
		return func() (fetcher, error) {
			return library(providers.NewECSRAMRoleCredentialsProviderBuilder().
				WithRoleName(o.RoleName).WithDisableIMDSv1(o.DisableIMDSv1).Build())
		}, nil
	case "oidc_role_arn":
		return func() (fetcher, error) { // the library reads the token file at each renewal
			fetch, err := library(o.oidcRole())
			return lasting(o.SessionDuration, fetch), err
		}, nil
	case "credentials_uri":
		return func() (fetcher, error) {
			return library(providers.NewURLCredentialsProviderBuilder().WithUrl(o.URI).WithHttpOptions(sourceTimeouts).Build())
		}, nil
	case "profile":
		file := cmp.Or(o.ProfileFile, cliConfig())
		return func() (fetcher, error) { return library(o.profile(file, o.Profile)) }, []string{file}
	default:
		return func() (fetcher, error) {
			fetch, err := library(o.newChain(), nil)
			return lasting(0, fetch), err
		}, chain
	}
}

func (o CredentialOptions) openRAMRole(key keyFiles) (fetcher, error) {
	var first providers.CredentialsProvider = keyProvider{key}
	if key.id == "" {
		first = o.newChain()
	}
	host := o.stsHost("", false)
	role, err := providers.NewRAMRoleARNCredentialsProviderBuilder().
		WithCredentialsProvider(first).WithRoleArn(o.RoleARN).WithRoleSessionName(o.RoleSessionName).
		WithPolicy(o.Policy).WithExternalId(o.ExternalID).WithStsEndpoint(host).
		WithDurationSeconds(int(o.SessionDuration / time.Second)).WithHttpOptions(sourceTimeouts).Build()
	fetch, err := library(stsProvider{role, host}, err)
	return lasting(o.SessionDuration, fetch), err
}

// oidcRole returns the provider of a role that is assumed with a token. What o leaves out comes from
// the environment.
func (o CredentialOptions) oidcRole() (providers.CredentialsProvider, error) {
	host := o.stsHost("", false)
	role, err := providers.NewOIDCCredentialsProviderBuilder().
		WithRoleArn(o.RoleARN).WithRoleSessionName(o.RoleSessionName).WithPolicy(o.Policy).
		WithOIDCProviderARN(o.OIDCProviderARN).WithOIDCTokenFilePath(o.OIDCTokenFile).WithSTSEndpoint(host).
		WithDurationSeconds(int(o.SessionDuration / time.Second)).WithHttpOptions(sourceTimeouts).Build()
	return stsProvider{role, host}, err
}

// library returns a fetcher over a provider of credentials-go.
func library[P providers.CredentialsProvider](p P, err error) (fetcher, error) {
	if err != nil {
		return nil, err
	}
	if slices.Contains(strings.Split(os.Getenv("DEBUG"), ","), "credential") {
		// The library looks at the variable once, at start, and then prints the session
		// token of the metadata service among the headers.
		return nil, &upstream.Error{Err: upstream.ErrNoCredentials,
			Message: "DEBUG=credential makes the credential library print tokens: unset it and start again"}
	}
	return func() (Credential, error) {
		c, err := p.GetCredentials()
		if err != nil {
			return Credential{}, err
		}
		return Credential{
			AccessKeyID:     c.AccessKeyId,
			AccessKeySecret: upstream.NewSecretData([]byte(c.AccessKeySecret)),
			SecurityToken:   upstream.NewSecretData([]byte(c.SecurityToken)),
			Source:          c.ProviderName,
		}, nil
	}, nil
}

// lasting makes the credentials of fetch say when they end, as far as that is known: the
// library keeps what the service answered about it to itself, but a session that we ask STS
// for ends so long after it was asked for. Others, such as those of the metadata service, say
// nothing.
func lasting(session time.Duration, fetch fetcher) fetcher {
	session = cmp.Or(session, defaultSession)
	var last Credential
	return func() (Credential, error) {
		asked := time.Now()
		c, err := fetch()
		if err != nil {
			return Credential{}, err
		}
		if !c.same(last) {
			if assumed(c.Source) {
				c.Expires = asked.Add(session)
			}
			last = c
		}
		return last, nil
	}
}

// assumed reports whether source is a role that was assumed as this package asked for, or as
// the library does by default. A profile has durations of its own.
func assumed(source string) bool {
	first, _, _ := strings.Cut(source, "/")
	return first == "ram_role_arn" || first == "oidc_role_arn" || source == "default/oidc_role_arn"
}

// keyFiles is a key whose parts are in files. Only the token may have none.
type keyFiles struct{ id, secret, token string }

func (k keyFiles) files() []string {
	return slices.DeleteFunc([]string{k.id, k.secret, k.token}, func(s string) bool { return s == "" })
}

// read returns what the files hold now.
func (k keyFiles) read() (Credential, error) {
	id, err := readPart(k.id)
	secret, err2 := readPart(k.secret)
	if err = cmp.Or(err, err2); err != nil {
		return Credential{}, err
	}
	c := Credential{AccessKeyID: string(id), AccessKeySecret: upstream.NewSecretData(secret), Source: "access_key"}
	if k.token != "" {
		token, err := readPart(k.token)
		if err != nil {
			return Credential{}, err
		}
		c.SecurityToken, c.Source = upstream.NewSecretData(token), "sts"
	}
	return c, nil
}

func readPart(name string) ([]byte, error) {
	b, err := keyfile.CloudKey.Read(name)
	switch b = bytes.TrimSpace(b); {
	case err != nil:
		return nil, err
	case len(b) == 0:
		return nil, sourceError("files", name+" is empty", "")
	case bytes.ContainsAny(b, "\r\n\x00"):
		return nil, sourceError("files", name+" has more than one line", "put one value into each file")
	}
	return b, nil
}

// keyProvider gives a key in files to credentials-go.
type keyProvider struct{ keyFiles }

// GetCredentials implements the library's provider.
func (k keyProvider) GetCredentials() (*providers.Credentials, error) {
	c, err := k.read()
	if err != nil {
		return nil, err
	}
	return &providers.Credentials{
		AccessKeyId:     c.AccessKeyID,
		AccessKeySecret: string(c.AccessKeySecret.Reveal()),
		SecurityToken:   string(c.SecurityToken.Reveal()),
		ProviderName:    c.Source,
	}, nil
}

// GetProviderName implements the library's provider.
func (k keyProvider) GetProviderName() string { return "access_key" }

// cliConfig returns the configuration file of the aliyun CLI as the library finds it.
func cliConfig() string { return fileOf("ALIBABA_CLOUD_CONFIG_FILE", ".aliyun", "config.json") }

// iniFile returns the file with profiles of the older SDKs as the library finds it.
func iniFile() string {
	return fileOf("ALIBABA_CLOUD_CREDENTIALS_FILE", ".alibabacloud", "credentials")
}

func fileOf(variable string, below ...string) string {
	if name := os.Getenv(variable); name != "" {
		return name
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return filepath.Join(append([]string{home}, below...)...)
}
