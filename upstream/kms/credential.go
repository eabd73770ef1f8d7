package kms

import (
	"context"
	"time"

	"secretagent/upstream"
)

// Credential is what one call is signed with. It is one consistent set: the parts of two
// generations never meet in it. Secret and token hide themselves when printed.
type Credential struct {
	AccessKeyID     string
	AccessKeySecret upstream.SecretData
	SecurityToken   upstream.SecretData // empty for a long-lived key
	Source          string              // where it comes from, such as ecs_ram_role
	Expires         time.Time           // zero: never, or not known
}

// same reports whether both are the same credential, wherever they come from.
func (c Credential) same(other Credential) bool {
	return c.AccessKeyID == other.AccessKeyID && c.AccessKeySecret.Equal(other.AccessKeySecret) && c.SecurityToken.Equal(other.SecurityToken)
}

// CredentialProvider gives out credentials. Implementations are safe for concurrent use.
// Errors should be of type [*upstream.Error]; the text of others is not passed on, because
// it can quote what the source answered.
type CredentialProvider interface {
	// Credential returns the credential to sign with now. It is called for every attempt
	// and must be quick once it has one.
	Credential(ctx context.Context) (Credential, error)

	// Renew is called when the service has refused a credential. It returns a newer one, or
	// the refused one again when there is none. It may be called by many at once.
	Renew(ctx context.Context, refused Credential) (Credential, error)
}

// CredentialStatus is what may be shown of a credential source.
type CredentialStatus struct {
	Type      string    // as configured, such as default
	Source    string    `json:",omitzero"` // what was used, such as default/oidc_role_arn; empty: nothing yet
	RenewedAt time.Time `json:",omitzero"` // when the present credential was first seen; zero: never
	CheckedAt time.Time `json:",omitzero"` // when the source last confirmed it
	Expires   time.Time `json:",omitzero"` // when the present credential ends; zero: never, or not known
	Error     string    `json:",omitzero"` // why the source gave nothing last time; empty when it did
}

// StaticCredential returns a provider of one credential that never changes. The token may be
// empty.
func StaticCredential(accessKeyID, accessKeySecret, securityToken string) CredentialProvider {
	c := Credential{AccessKeyID: accessKeyID, AccessKeySecret: upstream.NewSecretData([]byte(accessKeySecret)), Source: "static_ak"}
	if securityToken != "" {
		c.SecurityToken, c.Source = upstream.NewSecretData([]byte(securityToken)), "static_sts"
	}
	return staticCredential{c}
}

type staticCredential struct{ c Credential }

func (s staticCredential) Credential(context.Context) (Credential, error)        { return s.c, nil }
func (s staticCredential) Renew(context.Context, Credential) (Credential, error) { return s.c, nil }
func (s staticCredential) Status() CredentialStatus {
	return CredentialStatus{Type: "static", Source: s.c.Source}
}
