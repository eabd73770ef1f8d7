package kms

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"io/fs"
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
	ini := fileOf("ALIBABA_CLOUD_CREDENTIALS_FILE", ".alibabacloud", "credentials") // of the older SDKs
	chain := []string{cliConfig(), ini}
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
		return o.openOIDCRole, nil // the library reads the token file at each renewal
	case "credentials_uri":
		return func() (fetcher, error) {
			return library(providers.NewURLCredentialsProviderBuilder().WithUrl(o.URI).WithHttpOptions(sourceTimeouts).Build())
		}, nil
	case "profile":
		file := cmp.Or(o.ProfileFile, cliConfig())
		return func() (fetcher, error) { return openProfile(file, o.Profile) }, []string{file}
	default:
		return openDefault, chain
	}
}

func (o CredentialOptions) openRAMRole(key keyFiles) (fetcher, error) {
	var first providers.CredentialsProvider = keyProvider{key}
	if key.id == "" {
		chain, err := defaultChain()
		if err != nil {
			return nil, err
		}
		first = chain
	}
	fetch, err := library(providers.NewRAMRoleARNCredentialsProviderBuilder().
		WithCredentialsProvider(first).WithRoleArn(o.RoleARN).WithRoleSessionName(o.RoleSessionName).
		WithPolicy(o.Policy).WithExternalId(o.ExternalID).WithStsEndpoint(o.STSEndpoint).
		WithDurationSeconds(int(o.SessionDuration / time.Second)).WithHttpOptions(sourceTimeouts).Build())
	return lasting(o.SessionDuration, fetch), err
}

func (o CredentialOptions) openOIDCRole() (fetcher, error) {
	fetch, err := library(providers.NewOIDCCredentialsProviderBuilder().
		WithRoleArn(o.RoleARN).WithRoleSessionName(o.RoleSessionName).WithPolicy(o.Policy).
		WithOIDCProviderARN(o.OIDCProviderARN).WithOIDCTokenFilePath(o.OIDCTokenFile).WithSTSEndpoint(o.STSEndpoint).
		WithDurationSeconds(int(o.SessionDuration / time.Second)).WithHttpOptions(sourceTimeouts).Build())
	return lasting(o.SessionDuration, fetch), err
}

func openProfile(file, profile string) (fetcher, error) {
	if err := refuseProfile(file, profile); err != nil {
		return nil, err
	}
	return library(providers.NewCLIProfileCredentialsProviderBuilder().WithProfileFile(file).WithProfileName(profile).Build())
}

func openDefault() (fetcher, error) {
	fetch, err := library(defaultChain())
	return lasting(0, fetch), err
}

// defaultChain returns the default chain of the library. The profile of the CLI is of no
// account where the chain ends before it, with a key in the environment.
func defaultChain() (*providers.DefaultCredentialsProvider, error) {
	keyed := os.Getenv("ALIBABA_CLOUD_ACCESS_KEY_ID") != "" && os.Getenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET") != ""
	if !keyed && !strings.EqualFold(os.Getenv("ALIBABA_CLOUD_CLI_PROFILE_DISABLED"), "true") {
		if err := refuseProfile(cliConfig(), ""); err != nil {
			return nil, err
		}
	}
	return providers.NewDefaultCredentialsProvider(), nil
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

type cliProfile struct {
	Name, Mode string
	Source     string `json:"source_profile"`
}

// refuseProfile refuses what the library must not be given: a profile that runs a program,
// directly or as its source, because output that is not as expected is printed to stdout,
// secrets included; and profiles that are sources of each other, which the library follows
// until the stack ends. What else is wrong with the file is left to the library to find.
func refuseProfile(file, profile string) error {
	text, err := keyfile.CloudProfile.Read(file)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return err // the library would wait for the writer of a pipe, or take what another user put there
	}
	var config struct {
		Current  string
		Profiles []cliProfile
	}
	if json.Unmarshal(text, &config) != nil {
		return nil
	}
	profile = cmp.Or(profile, os.Getenv("ALIBABA_CLOUD_PROFILE"), config.Current)
	for range len(config.Profiles) + 1 {
		i := slices.IndexFunc(config.Profiles, func(p cliProfile) bool { return p.Name == profile })
		if i < 0 {
			return nil
		}
		if config.Profiles[i].Mode == "External" {
			return sourceError("profile", "a profile of mode External can print what it was given",
				"use credentials_uri for credentials of your own making")
		}
		profile = config.Profiles[i].Source
	}
	return sourceError("profile", "the source profiles form a loop", "repair the file")
}
