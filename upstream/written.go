package upstream

import (
	"context"
	"errors"
	"time"
)

// TellWrites returns m, whose calls that write tell written of the secret whose versions or labels
// they have changed, before they return; also where it is not known whether they did.
func TellWrites(m Manager, written func(context.Context, SecretName)) Manager {
	return tellsWrites{m, written}
}

type tellsWrites struct {
	Manager
	written func(context.Context, SecretName)
}

func (m tellsWrites) tell(ctx context.Context, name SecretName, err error) {
	if err == nil || IsContextError(err) || errors.Is(err, ErrUnavailable) {
		m.written(ctx, name)
	}
}

func (m tellsWrites) CreateSecret(ctx context.Context, in CreateSecretInput) (SecretMetadata, error) {
	meta, err := m.Manager.CreateSecret(ctx, in)
	m.tell(ctx, in.SecretName, err)
	return meta, err
}

func (m tellsWrites) PutSecretValue(ctx context.Context, in PutSecretValueInput) (SecretVersion, error) {
	v, err := m.Manager.PutSecretValue(ctx, in)
	m.tell(ctx, in.SecretName, err)
	return v, err
}

func (m tellsWrites) UpdateSecretVersionStage(ctx context.Context, in UpdateSecretVersionStageInput) error {
	err := m.Manager.UpdateSecretVersionStage(ctx, in)
	m.tell(ctx, in.SecretName, err)
	return err
}

func (m tellsWrites) DeleteSecret(ctx context.Context, in DeleteSecretInput) (time.Time, error) {
	planned, err := m.Manager.DeleteSecret(ctx, in)
	m.tell(ctx, in.SecretName, err)
	return planned, err
}

func (m tellsWrites) RestoreSecret(ctx context.Context, name SecretName) error {
	err := m.Manager.RestoreSecret(ctx, name)
	m.tell(ctx, name, err)
	return err
}
