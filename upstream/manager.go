package upstream

import (
	"context"
	"time"
)

// Manager is a whole Secrets Manager for generic secrets: what the KMS API serves and what the
// command line drives. Readers that need less declare less.
//
// Every method may block, returns promptly with the context's error once ctx is done, and is
// safe for concurrent use. Errors wrap the sentinels of this package. A write that returned
// nil is durable.
type Manager interface {
	// GetSecretValue returns the version that ref names; without version and stage, the one
	// that carries [ACSCurrent]. When both are given they must name the same version.
	GetSecretValue(ctx context.Context, ref SecretRef) (SecretValue, error)

	// CreateSecret makes a secret with a first version that carries [ACSCurrent].
	CreateSecret(ctx context.Context, in CreateSecretInput) (SecretMetadata, error)

	// PutSecretValue adds a version and moves labels to it, [ACSCurrent] unless the input
	// names others. It is idempotent: the same id with the same data changes nothing, with
	// other data it fails with [ErrExists]. The result holds the labels of the version.
	PutSecretValue(ctx context.Context, in PutSecretValueInput) (SecretVersion, error)

	// UpdateSecretVersionStage attaches, moves or removes one label.
	UpdateSecretVersionStage(ctx context.Context, in UpdateSecretVersionStageInput) error

	// ListSecretVersionIDs returns one page of versions, newest first.
	ListSecretVersionIDs(ctx context.Context, in ListSecretVersionIDsInput) (ListSecretVersionIDsOutput, error)

	// DescribeSecret returns metadata; tags only when asked for.
	DescribeSecret(ctx context.Context, name SecretName, fetchTags bool) (SecretMetadata, error)

	// ListSecrets returns one page of metadata. The order is the backend's own.
	ListSecrets(ctx context.Context, in ListSecretsInput) (ListSecretsOutput, error)

	// UpdateSecret changes metadata, never versions.
	UpdateSecret(ctx context.Context, in UpdateSecretInput) error

	// DeleteSecret schedules the deletion and returns when it happens; the zero time after
	// a forced, immediate deletion.
	DeleteSecret(ctx context.Context, in DeleteSecretInput) (time.Time, error)

	// RestoreSecret takes a scheduled deletion back. Versions and labels are as they were.
	RestoreSecret(ctx context.Context, name SecretName) error

	// GetSecretPolicy returns the policy of a secret as it was set, JSON, or the default one. It
	// fails with [ErrUnsupported] where the secret can have none.
	GetSecretPolicy(ctx context.Context, name SecretName) (string, error)

	// SetSecretPolicy replaces the policy of a secret. It fails as GetSecretPolicy does.
	SetSecretPolicy(ctx context.Context, name SecretName, policy string) error

	// GetRandomPassword draws a password; nothing is stored.
	GetRandomPassword(ctx context.Context, in RandomPasswordInput) (SecretData, error)

	// TagResources sets tags on every named secret; a key that is there is overwritten.
	TagResources(ctx context.Context, names []SecretName, tags []Tag) error

	// UntagResources removes keys, or all tags, from every named secret.
	UntagResources(ctx context.Context, in UntagResourcesInput) error

	// ListTagResources returns one page of tags, a row per secret and key.
	ListTagResources(ctx context.Context, in ListTagResourcesInput) (ListTagResourcesOutput, error)
}

// CreateSecretInput is the request of [Manager.CreateSecret].
type CreateSecretInput struct {
	SecretName      SecretName
	VersionID       VersionID
	SecretData      SecretData
	SecretDataType  string // empty: DataTypeText
	EncryptionKeyID string // empty: the backend chooses, and tells of no key
	DKMSInstanceID  string // the KMS instance; empty: none
	Policy          string // JSON; empty: the default one
	Description     string
	Tags            []Tag
}

// PutSecretValueInput is the request of [Manager.PutSecretValue].
type PutSecretValueInput struct {
	SecretName     SecretName
	VersionID      VersionID
	SecretData     SecretData
	SecretDataType string         // empty: DataTypeText
	VersionStages  []VersionStage // nil: ACSCurrent
}

// UpdateSecretVersionStageInput is the request of [Manager.UpdateSecretVersionStage]. At
// least one of MoveToVersion and RemoveFromVersion is set.
type UpdateSecretVersionStageInput struct {
	SecretName        SecretName
	VersionStage      VersionStage
	MoveToVersion     VersionID // the version that gets the label
	RemoveFromVersion VersionID // the version that loses it
}

// Page is a page of a list, by number. Zero values mean the first page of default size.
type Page struct {
	Number int // from 1
	Size   int // from 1 to 100
}

// ListSecretVersionIDsInput is the request of [Manager.ListSecretVersionIDs].
type ListSecretVersionIDsInput struct {
	SecretName        SecretName
	IncludeDeprecated bool // also versions without a label
	Page              Page // default size 20
}

// ListSecretVersionIDsOutput is one page of versions.
type ListSecretVersionIDsOutput struct {
	SecretName SecretName
	Versions   []SecretVersion
	Page       Page // as served, defaults filled in
	TotalCount int  // on all pages
}

// Filter selects secrets in [Manager.ListSecrets]: those whose Key equals one of Values.
// Several filters must all match.
type Filter struct {
	Key    string // SecretName, Description, TagKey, TagValue, DKMSInstanceId, SecretType or Creator
	Values []string
}

// ListSecretsInput is the request of [Manager.ListSecrets].
type ListSecretsInput struct {
	Filters   []Filter
	FetchTags bool
	Page      Page // default size 10

	// Permitted are globs; see [Permits]. The answer is as if there were no secrets but those
	// that they permit. Servers set it for callers; the wire has no such parameter.
	Permitted []string
}

// ListSecretsOutput is one page of secrets.
type ListSecretsOutput struct {
	Secrets    []SecretMetadata
	Page       Page // as served, defaults filled in
	TotalCount int  // on all pages
}

// UpdateSecretInput is the request of [Manager.UpdateSecret].
type UpdateSecretInput struct {
	SecretName  SecretName
	Description *string // nil: unchanged
}

// DeleteSecretInput is the request of [Manager.DeleteSecret].
type DeleteSecretInput struct {
	SecretName SecretName

	// ForceDeleteWithoutRecovery deletes at once; the recovery window is then ignored.
	ForceDeleteWithoutRecovery bool

	// RecoveryWindowInDays is 7 to 30; zero means 30.
	RecoveryWindowInDays int
}

// RandomPasswordInput is the request of [Manager.GetRandomPassword].
type RandomPasswordInput struct {
	PasswordLength          int // 8 to 128; zero means 32
	ExcludeCharacters       string
	ExcludeLowercase        bool
	ExcludeUppercase        bool
	ExcludeNumbers          bool
	ExcludePunctuation      bool
	RequireEachIncludedType bool
}

// UntagResourcesInput is the request of [Manager.UntagResources].
type UntagResourcesInput struct {
	SecretNames []SecretName
	TagKeys     []string
	All         bool // every tag; counts only without TagKeys
}

// ListTagResourcesInput is the request of [Manager.ListTagResources]. At least one of
// SecretNames and Tags is set.
type ListTagResourcesInput struct {
	SecretNames []SecretName
	Tags        []Tag // an empty Value matches every value of the key
	NextToken   string
	Permitted   []string // as in [ListSecretsInput]
}

// ListTagResourcesOutput is one page of tags.
type ListTagResourcesOutput struct {
	Rows      []TagRow
	NextToken string // empty at the end
}

// TagRow is one tag of one secret.
type TagRow struct {
	SecretName SecretName
	Tag        Tag
}
