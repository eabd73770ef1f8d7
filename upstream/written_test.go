package upstream_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

func TestTellWritesTellsWhatChangesVersionsOrLabels(t *testing.T) {
	fake := upstreamtest.NewFake()
	fake.MustCreate(t, "a", "v1", "first")
	var told []upstream.SecretName
	m := upstream.TellWrites(fake, func(_ context.Context, name upstream.SecretName) { told = append(told, name) })
	ctx, data := t.Context(), upstream.NewSecretData([]byte("x"))
	for _, err := range []error{
		second(m.CreateSecret(ctx, upstream.CreateSecretInput{SecretName: "b", VersionID: "v1", SecretData: data})),
		second(m.PutSecretValue(ctx, upstream.PutSecretValueInput{SecretName: "a", VersionID: "v2", SecretData: data})),
		m.UpdateSecretVersionStage(ctx, upstream.UpdateSecretVersionStageInput{SecretName: "a", VersionStage: upstream.ACSCurrent, MoveToVersion: "v1"}),
		second(m.DeleteSecret(ctx, upstream.DeleteSecretInput{SecretName: "b"})),
		m.RestoreSecret(ctx, "b"),
		second(m.GetSecretValue(ctx, upstream.SecretRef{SecretName: "a"})),
		m.UpdateSecret(ctx, upstream.UpdateSecretInput{SecretName: "a"}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.PutSecretValue(ctx, upstream.PutSecretValueInput{SecretName: "none", VersionID: "v1", SecretData: data}); !errors.Is(err, upstream.ErrNotFound) {
		t.Errorf("a refused put: %v", err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := m.RestoreSecret(ended, "lost"); !errors.Is(err, context.Canceled) {
		t.Errorf("a call that was given up: %v", err)
	}
	if want := []upstream.SecretName{"b", "a", "a", "b", "b", "lost"}; !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
}

func second[T any](_ T, err error) error { return err }
