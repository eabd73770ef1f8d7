package upstream

import (
	"context"
	"fmt"
	"time"
)

// OfAccount returns m, which knows secrets by their names, for callers who may use ARNs too.
// account is that of m, in the form of [SecretName.Account]: the ARNs of its own secrets mean the
// same as their names, and those of all others are refused with [ErrNotFound].
func OfAccount(m Manager, account string) Manager { return ofAccount{m, account} }

type ofAccount struct {
	Manager
	account string
}

// local returns the names of secrets of this account.
func (m ofAccount) local(op string, names ...SecretName) ([]SecretName, error) {
	var out []SecretName
	for _, n := range names {
		if account := n.Account(); account != "" && account != m.account {
			return nil, Wrap(&Error{
				Message: fmt.Sprintf("the ARN %q belongs to another region or account than this backend, which is %s", n, m.account),
				Err:     ErrNotFound,
			}, op, SecretRef{SecretName: n})
		}
		out = append(out, n.Name())
	}
	return out, nil
}

// localize replaces the name of one secret by what it is called in this account.
func (m ofAccount) localize(op string, name *SecretName) error {
	names, err := m.local(op, *name)
	if err == nil {
		*name = names[0]
	}
	return err
}

func (m ofAccount) GetSecretValue(ctx context.Context, ref SecretRef) (SecretValue, error) {
	asked := ref.SecretName
	if err := m.localize("GetSecretValue", &ref.SecretName); err != nil {
		return SecretValue{}, err
	}
	v, err := m.Manager.GetSecretValue(ctx, ref)
	if err == nil {
		v.SecretName = asked
	}
	return v, err
}

func (m ofAccount) PutSecretValue(ctx context.Context, in PutSecretValueInput) (SecretVersion, error) {
	if err := m.localize("PutSecretValue", &in.SecretName); err != nil {
		return SecretVersion{}, err
	}
	return m.Manager.PutSecretValue(ctx, in)
}

func (m ofAccount) UpdateSecretVersionStage(ctx context.Context, in UpdateSecretVersionStageInput) error {
	if err := m.localize("UpdateSecretVersionStage", &in.SecretName); err != nil {
		return err
	}
	return m.Manager.UpdateSecretVersionStage(ctx, in)
}

func (m ofAccount) ListSecretVersionIDs(ctx context.Context, in ListSecretVersionIDsInput) (ListSecretVersionIDsOutput, error) {
	if err := m.localize("ListSecretVersionIds", &in.SecretName); err != nil {
		return ListSecretVersionIDsOutput{}, err
	}
	return m.Manager.ListSecretVersionIDs(ctx, in)
}

func (m ofAccount) DescribeSecret(ctx context.Context, name SecretName, fetchTags bool) (SecretMetadata, error) {
	if err := m.localize("DescribeSecret", &name); err != nil {
		return SecretMetadata{}, err
	}
	return m.Manager.DescribeSecret(ctx, name, fetchTags)
}

func (m ofAccount) UpdateSecret(ctx context.Context, in UpdateSecretInput) error {
	if err := m.localize("UpdateSecret", &in.SecretName); err != nil {
		return err
	}
	return m.Manager.UpdateSecret(ctx, in)
}

func (m ofAccount) DeleteSecret(ctx context.Context, in DeleteSecretInput) (time.Time, error) {
	if err := m.localize("DeleteSecret", &in.SecretName); err != nil {
		return time.Time{}, err
	}
	return m.Manager.DeleteSecret(ctx, in)
}

func (m ofAccount) RestoreSecret(ctx context.Context, name SecretName) error {
	if err := m.localize("RestoreSecret", &name); err != nil {
		return err
	}
	return m.Manager.RestoreSecret(ctx, name)
}

func (m ofAccount) GetSecretPolicy(ctx context.Context, name SecretName) (string, error) {
	if err := m.localize("GetSecretPolicy", &name); err != nil {
		return "", err
	}
	return m.Manager.GetSecretPolicy(ctx, name)
}

func (m ofAccount) SetSecretPolicy(ctx context.Context, name SecretName, policy string) error {
	if err := m.localize("SetSecretPolicy", &name); err != nil {
		return err
	}
	return m.Manager.SetSecretPolicy(ctx, name, policy)
}

func (m ofAccount) TagResources(ctx context.Context, names []SecretName, tags []Tag) error {
	names, err := m.local("TagResources", names...)
	if err != nil {
		return err
	}
	return m.Manager.TagResources(ctx, names, tags)
}

func (m ofAccount) UntagResources(ctx context.Context, in UntagResourcesInput) (err error) {
	if in.SecretNames, err = m.local("UntagResources", in.SecretNames...); err != nil {
		return err
	}
	return m.Manager.UntagResources(ctx, in)
}

func (m ofAccount) ListTagResources(ctx context.Context, in ListTagResourcesInput) (_ ListTagResourcesOutput, err error) {
	if in.SecretNames, err = m.local("ListTagResources", in.SecretNames...); err != nil {
		return ListTagResourcesOutput{}, err
	}
	return m.Manager.ListTagResources(ctx, in)
}
