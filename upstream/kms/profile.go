package kms

import (
	"cmp"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"slices"

	"github.com/aliyun/credentials-go/credentials/providers"

	"secretagent/upstream/keyfile"
)

// cliProfiles is the configuration of the aliyun CLI.
type cliProfiles struct {
	Current  string
	Profiles []cliProfile
}

// cliProfile is as much of a profile as is needed to ask STS for its role.
type cliProfile struct {
	Name, Mode      string
	AccessKeyID     string `json:"access_key_id"`
	AccessKeySecret string `json:"access_key_secret"`
	RoleARN         string `json:"ram_role_arn"`
	SessionName     string `json:"ram_session_name"`
	Seconds         int    `json:"expired_seconds"`
	Policy          string
	ExternalID      string `json:"external_id"`
	Source          string `json:"source_profile"`
	STSEndpoint     string `json:"sts_endpoint"` // which newer releases of the CLI write
	STSRegion       string `json:"sts_region"`
	VPC             bool   `json:"enable_vpc"`
	OIDCProviderARN string `json:"oidc_provider_arn"`
	OIDCTokenFile   string `json:"oidc_token_file"`
	OIDCToken       string `json:"oidc_token"`
}

// profile returns the provider of a profile of the CLI; without a name, of the current one. What asks
// STS is made here, because the library lets nobody say which; the rest the library makes, and finds
// what is wrong with the file.
func (o CredentialOptions) profile(file, name string) (providers.CredentialsProvider, error) {
	whole, err := providers.NewCLIProfileCredentialsProviderBuilder().WithProfileFile(file).WithProfileName(name).Build()
	if err != nil {
		return nil, err
	}
	all, err := readProfiles(file)
	if err != nil {
		return nil, explain("profile", err)
	}
	name = cmp.Or(name, os.Getenv("ALIBABA_CLOUD_PROFILE"), all.Current)
	if err := all.refuse(name); err != nil {
		return nil, err
	}
	switch role, err := o.profileRole(file, all, name); {
	case err != nil:
		return nil, err
	case role != nil:
		return profileProvider{role}, nil
	}
	return whole, nil
}

// profileRole returns the provider of a profile that is a role which STS gives; nil: it is none.
func (o CredentialOptions) profileRole(file string, all cliProfiles, name string) (providers.CredentialsProvider, error) {
	p := all.named(name)
	host := cmp.Or(o.STSEndpoint, stsFromEnvironment(), hostOf(p.STSEndpoint), regionalSTS(p.STSRegion, p.VPC))
	switch p.Mode {
	case "RamRoleArn", "ChainableRamRoleArn":
		first, err := o.profileSource(file, all, p)
		if err != nil {
			return nil, err
		}
		role, err := providers.NewRAMRoleARNCredentialsProviderBuilder().
			WithCredentialsProvider(first).WithRoleArn(p.RoleARN).WithRoleSessionName(p.SessionName).
			WithPolicy(p.Policy).WithExternalId(p.ExternalID).WithStsEndpoint(host).
			WithDurationSeconds(p.Seconds).WithHttpOptions(sourceTimeouts).Build()
		return stsProvider{role, host}, err
	case "OIDC":
		role, err := providers.NewOIDCCredentialsProviderBuilder().
			WithOIDCToken(p.OIDCToken).WithOIDCTokenFilePath(p.OIDCTokenFile).WithOIDCProviderARN(p.OIDCProviderARN).
			WithRoleArn(p.RoleARN).WithRoleSessionName(p.SessionName).WithPolicy(p.Policy).WithSTSEndpoint(host).
			WithDurationSeconds(p.Seconds).WithHttpOptions(sourceTimeouts).Build()
		return stsProvider{role, host}, err
	}
	return nil, nil
}

// profileSource returns the provider of what the role of a profile is assumed with.
func (o CredentialOptions) profileSource(file string, all cliProfiles, p cliProfile) (providers.CredentialsProvider, error) {
	if p.Mode == "RamRoleArn" {
		return providers.NewStaticAKCredentialsProviderBuilder().WithAccessKeyId(p.AccessKeyID).WithAccessKeySecret(p.AccessKeySecret).Build()
	}
	if role, err := o.profileRole(file, all, p.Source); role != nil || err != nil {
		return role, err
	}
	return providers.NewCLIProfileCredentialsProviderBuilder().WithProfileFile(file).WithProfileName(p.Source).Build()
}

// profileProvider names a profile as the library does.
type profileProvider struct{ providers.CredentialsProvider }

// GetCredentials implements the library's provider.
func (p profileProvider) GetCredentials() (*providers.Credentials, error) {
	return namedBelow("cli_profile", p.CredentialsProvider)
}

// readProfiles reads the file. What the library finds wrong with it by itself is no error.
func readProfiles(file string) (all cliProfiles, err error) {
	text, err := keyfile.CloudProfile.Read(file)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return all, nil
	}
	if err != nil {
		return all, err // the library would wait for the writer of a pipe, or take what another user put there
	}
	if json.Unmarshal(text, &all) != nil {
		return cliProfiles{}, nil
	}
	return all, nil
}

func (all cliProfiles) named(name string) cliProfile {
	if i := slices.IndexFunc(all.Profiles, func(p cliProfile) bool { return p.Name == name }); i >= 0 {
		return all.Profiles[i]
	}
	return cliProfile{}
}

// refuse refuses what the library must not be given: a profile that runs a program, directly or as
// its source, because output that is not as expected is printed to stdout, secrets included; and
// profiles that are sources of each other, which are followed until the stack ends.
func (all cliProfiles) refuse(name string) error {
	for range len(all.Profiles) + 1 {
		p := all.named(name)
		if p.Mode == "External" {
			return sourceError("profile", "a profile of mode External can print what it was given",
				"use credentials_uri for credentials of your own making")
		}
		if name = p.Source; name == "" {
			return nil
		}
	}
	return sourceError("profile", "the source profiles form a loop", "repair the file")
}
