package upstream_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

// TestOfAccount makes every call that names a secret, with the ARN of this account and with those
// of others.
func TestOfAccount(t *testing.T) {
	calls := map[string]func(ctx context.Context, m upstream.Manager, name upstream.SecretName) error{
		"GetSecretValue": func(ctx context.Context, m upstream.Manager, name upstream.SecretName) error {
			v, err := m.GetSecretValue(ctx, upstream.SecretRef{SecretName: name})
			if err == nil {
				err = v.Answers(upstream.SecretRef{SecretName: name})
			}
			return err
		},
		"PutSecretValue": func(ctx context.Context, m upstream.Manager, name upstream.SecretName) error {
			_, err := m.PutSecretValue(ctx, upstream.PutSecretValueInput{SecretName: name, VersionID: "v2", SecretData: upstream.NewSecretData([]byte("second"))})
			return err
		},
		"UpdateSecretVersionStage": func(ctx context.Context, m upstream.Manager, name upstream.SecretName) error {
			return m.UpdateSecretVersionStage(ctx, upstream.UpdateSecretVersionStageInput{SecretName: name, VersionStage: "blue", MoveToVersion: "v1"})
		},
		"ListSecretVersionIds": func(ctx context.Context, m upstream.Manager, name upstream.SecretName) error {
			_, err := m.ListSecretVersionIDs(ctx, upstream.ListSecretVersionIDsInput{SecretName: name})
			return err
		},
		"DescribeSecret": func(ctx context.Context, m upstream.Manager, name upstream.SecretName) error {
			_, err := m.DescribeSecret(ctx, name, true)
			return err
		},
		"UpdateSecret": func(ctx context.Context, m upstream.Manager, name upstream.SecretName) error {
			text := "new"
			return m.UpdateSecret(ctx, upstream.UpdateSecretInput{SecretName: name, Description: &text})
		},
		"DeleteSecret": func(ctx context.Context, m upstream.Manager, name upstream.SecretName) error {
			_, err := m.DeleteSecret(ctx, upstream.DeleteSecretInput{SecretName: name})
			return err
		},
		"RestoreSecret": func(ctx context.Context, m upstream.Manager, name upstream.SecretName) error {
			err := m.RestoreSecret(ctx, name)
			if errors.Is(err, upstream.ErrNotPendingDeletion) {
				err = nil
			}
			return err
		},
		"TagResources": func(ctx context.Context, m upstream.Manager, name upstream.SecretName) error {
			return m.TagResources(ctx, []upstream.SecretName{"app/other", name}, []upstream.Tag{{Key: "k", Value: "v"}})
		},
		"UntagResources": func(ctx context.Context, m upstream.Manager, name upstream.SecretName) error {
			return m.UntagResources(ctx, upstream.UntagResourcesInput{SecretNames: []upstream.SecretName{"app/other", name}, TagKeys: []string{"k"}})
		},
		"ListTagResources": func(ctx context.Context, m upstream.Manager, name upstream.SecretName) error {
			_, err := m.ListTagResources(ctx, upstream.ListTagResourcesInput{SecretNames: []upstream.SecretName{name}})
			return err
		},
	}
	for op, call := range calls {
		t.Run(op, func(t *testing.T) {
			fake := upstreamtest.NewFake()
			fake.MustCreate(t, "app/db", "v1", "first")
			fake.MustCreate(t, "app/other", "v1", "first")
			m := upstream.OfAccount(fake, "acs:kms:fake:0")
			fake.Intercept(func(_ context.Context, op string, ref upstream.SecretRef) error {
				t.Errorf("%s of %s reached a backend of another account", op, ref)
				return nil
			})
			for _, foreign := range []upstream.SecretName{"acs:kms:fake:1:secret/app/db", "acs:kms:cn-hangzhou:0:secret/app/db", "acs:kms:fake::secret/app/db"} {
				err := call(t.Context(), m, foreign)
				if known, ok := errors.AsType[*upstream.Error](err); !errors.Is(err, upstream.ErrNotFound) || !ok || known.Op != op || !strings.Contains(err.Error(), "acs:kms:fake:0") {
					t.Errorf("%s: %v", foreign, err)
				}
			}
			fake.Intercept(nil)
			for _, own := range []upstream.SecretName{"app/db", "acs:kms:fake:0:secret/app/db"} {
				if op == "DeleteSecret" {
					_ = fake.RestoreSecret(t.Context(), "app/db")
				}
				if err := call(t.Context(), m, own); err != nil {
					t.Errorf("%s: %v", own, err)
				}
			}
		})
	}
	_, err := upstream.OfAccount(upstreamtest.NewFake(), "acs:kms:fake:0").CreateSecret(t.Context(), upstream.CreateSecretInput{
		SecretName: "acs:kms:fake:0:secret/new", VersionID: "v1", SecretData: upstream.NewSecretData([]byte("x")),
	})
	if !errors.Is(err, upstream.ErrInvalidParameter) {
		t.Errorf("created by ARN: %v", err)
	}
}
