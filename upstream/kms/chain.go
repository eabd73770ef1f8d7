package kms

import (
	"log/slog"
	"os"
	"strings"

	"github.com/aliyun/credentials-go/credentials/providers"

	"secretagent/upstream"
)

// chain is the default chain: the first member that has credentials gives them from then on. The
// library has one of its own, with the same members in the same order, which can neither be told
// where STS is nor says which member has failed, and why.
//
// Where STS gives a role no credentials, or the variables of a pod name one and it has none, the chain
// ends, while that of the library goes on. Whoever is given the role of a pod must not work with that
// of its node, whether STS is down or refuses: that one may read what the pod may not, and what it may
// not read would be taken for forbidden, and dropped.
type chain struct {
	members []member
	used    *member // nil: none has given credentials yet
	log     *slog.Logger
}

// member is a place where the default chain looks for credentials.
type member struct {
	kind  string // a type of CredentialOptions
	setUp bool   // somebody has named it, so that its failure is news
	open  func() (providers.CredentialsProvider, error)

	provider providers.CredentialsProvider // nil: not opened yet
}

// newChain returns the default chain as the environment says now.
func (o CredentialOptions) newChain() *chain {
	set := func(names ...string) bool {
		for _, name := range names {
			if os.Getenv(name) == "" {
				return false
			}
		}
		return true
	}
	exists := func(file string) bool {
		_, err := os.Stat(file)
		return err == nil
	}
	c := &chain{log: o.Logger}
	add := func(kind string, setUp bool, open func() (providers.CredentialsProvider, error)) {
		c.members = append(c.members, member{kind: kind, setUp: setUp, open: open})
	}
	if set("ALIBABA_CLOUD_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_SECRET") {
		add("access_key", true, func() (providers.CredentialsProvider, error) {
			return providers.NewEnvironmentVariableCredentialsProviderBuilder().Build()
		})
	}
	if set("ALIBABA_CLOUD_ROLE_ARN", "ALIBABA_CLOUD_OIDC_PROVIDER_ARN") && (set("ALIBABA_CLOUD_OIDC_TOKEN_FILE") || set("ALIBABA_CLOUD_OIDC_TOKEN")) {
		add("oidc_role_arn", true, o.oidcRole)
		return c
	}
	if !strings.EqualFold(os.Getenv("ALIBABA_CLOUD_CLI_PROFILE_DISABLED"), "true") {
		file := cliConfig()
		add("profile", exists(file), func() (providers.CredentialsProvider, error) { return o.profile(file, "") })
	}
	ini := iniFile()
	add("profile", exists(ini), func() (providers.CredentialsProvider, error) {
		p, err := providers.NewProfileCredentialsProviderBuilder().Build()
		return stsProvider{p, regionalSTS("", false)}, err // which it asks for a role
	})
	if !strings.EqualFold(os.Getenv("ALIBABA_CLOUD_ECS_METADATA_DISABLED"), "true") {
		add("ecs_ram_role", false, func() (providers.CredentialsProvider, error) {
			return providers.NewECSRAMRoleCredentialsProviderBuilder().Build()
		})
	}
	if set("ALIBABA_CLOUD_CREDENTIALS_URI") {
		add("credentials_uri", true, func() (providers.CredentialsProvider, error) {
			return providers.NewURLCredentialsProviderBuilder().WithHttpOptions(sourceTimeouts).Build()
		})
	}
	return c
}

// GetProviderName implements the library's provider.
func (c *chain) GetProviderName() string { return "default" }

// GetCredentials implements the library's provider. Its error is one of ours: that of the first
// member that is set up.
func (c *chain) GetCredentials() (*providers.Credentials, error) {
	if c.used != nil {
		return c.ask(c.used)
	}
	var first error
	for i := range c.members {
		m := &c.members[i]
		got, err := c.ask(m)
		if err == nil {
			if first != nil {
				c.log.Warn("an identity that is set up gave no credentials: the next one is used", "source", got.ProviderName, "err", first,
					"hint", "set upstream.alibaba.credentials.type to the one that is meant")
			}
			c.used = m
			return got, nil
		}
		if is[*stsError](err) || is[*upstream.Error](err) {
			return nil, explain("default/"+m.kind, err)
		}
		if m.setUp && first == nil {
			first = explain("default/"+m.kind, err)
		}
	}
	if first == nil {
		first = sourceError("default", "neither environment, OIDC, CLI profile, ini profile, ECS metadata nor credentials URI gave any",
			"set ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET, or set up another of them, or name one with upstream.alibaba.credentials.type")
	}
	return nil, first
}

func (c *chain) ask(m *member) (*providers.Credentials, error) {
	if m.provider == nil {
		p, err := m.open()
		if err != nil {
			return nil, err
		}
		m.provider = p
	}
	return namedBelow("default", m.provider)
}

// namedBelow returns the credentials of p, below the name of the one who asks for them.
func namedBelow(name string, p providers.CredentialsProvider) (*providers.Credentials, error) {
	c, err := p.GetCredentials()
	if err != nil {
		return nil, err
	}
	below := *c
	if below.ProviderName == "" {
		below.ProviderName = p.GetProviderName()
	}
	below.ProviderName = name + "/" + below.ProviderName
	return &below, nil
}
