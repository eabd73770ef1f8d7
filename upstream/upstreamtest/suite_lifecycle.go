package upstreamtest

import (
	"strings"
	"time"

	"secretagent/upstream"
)

const day = 24 * time.Hour

// remove schedules the deletion of app/db.
func (t *suite) remove(days int) time.Time {
	t.Helper()
	planned, err := t.m.DeleteSecret(t.Context(), upstream.DeleteSecretInput{SecretName: app, RecoveryWindowInDays: days})
	t.ok("delete", err)
	return planned
}

func (t *suite) force() error {
	_, err := t.m.DeleteSecret(t.Context(), upstream.DeleteSecretInput{SecretName: app, ForceDeleteWithoutRecovery: true})
	return err
}

var deletingPromises = []promise{
	{"a deletion is planned for the end of the recovery window, thirty days unless told", func(t *suite) {
		for _, c := range []struct{ days, want int }{{0, 30}, {7, 7}, {30, 30}} {
			t.create(app)
			planned := t.remove(c.days)
			meta := t.describe(app, false)
			if !about(planned, meta.CreateTime.Add(time.Duration(c.want)*day)) || !about(planned, meta.PlannedDeleteTime) {
				t.Errorf("window %d: created %s, planned %s, described as %s", c.days, meta.CreateTime, planned, meta.PlannedDeleteTime)
			}
			t.ok("force", t.force())
		}
	}},
	{"a recovery window outside seven to thirty days is refused", func(t *suite) {
		t.create(app)
		for _, days := range []int{-1, 1, 6, 31, 1 << 30} {
			t.refused("delete", only(t.m.DeleteSecret(t.Context(), upstream.DeleteSecretInput{SecretName: app, RecoveryWindowInDays: days})), upstream.ErrInvalidParameter)
		}
		t.marks(upstream.ACSCurrent, "v1")
	}},
	{"reads of the value and writes are refused during the window", func(t *suite) {
		t.create(app)
		t.remove(7)
		t.allRefused(app, []error{upstream.ErrPendingDeletion}, "CreateSecret", "ListSecretVersionIds", "DescribeSecret", "ListSecrets",
			"GetRandomPassword", "ListTagResources", "RestoreSecret", "RotateSecret", "UpdateSecretRotationPolicy")
		t.refused("read by version", only(t.get(upstream.SecretRef{SecretName: app, VersionID: "v1"})), upstream.ErrPendingDeletion)
		t.refused("put again", only(t.m.PutSecretValue(t.Context(), upstream.PutSecretValueInput{SecretName: app, VersionID: "v1", SecretData: data("v1")})), upstream.ErrPendingDeletion)
		t.refused("create", only(t.m.CreateSecret(t.Context(), upstream.CreateSecretInput{SecretName: app, VersionID: "v1", SecretData: data("v1")})), upstream.ErrPendingDeletion)
	}},
	{"the secret stays described and listed during the window", func(t *suite) {
		t.create(app)
		planned := t.remove(7)
		if out := t.list(upstream.ListSecretsInput{}); len(out.Secrets) != 1 || !about(out.Secrets[0].PlannedDeleteTime, planned) {
			t.Errorf("got %+v", out.Secrets)
		}
	}},
	{"a second deletion is refused and the first plan stays", func(t *suite) {
		t.create(app)
		planned := t.remove(7)
		t.refused("delete", only(t.m.DeleteSecret(t.Context(), upstream.DeleteSecretInput{SecretName: app, RecoveryWindowInDays: 30})), upstream.ErrPendingDeletion)
		if meta := t.describe(app, false); !about(meta.PlannedDeleteTime, planned) {
			t.Errorf("planned for %s, was %s", meta.PlannedDeleteTime, planned)
		}
	}},
	{"a restored secret has its versions and labels back", func(t *suite) {
		t.create(app)
		t.put("v2")
		t.put("v3", "blue")
		t.remove(7)
		t.ok("restore", t.m.RestoreSecret(t.Context(), app))
		t.holds("v3 blue", "v2 ACSCurrent", "v1 ACSPrevious")
		t.marks(upstream.ACSCurrent, "v2")
		if meta := t.describe(app, false); !meta.PlannedDeleteTime.IsZero() {
			t.Errorf("still planned for %s", meta.PlannedDeleteTime)
		}
		t.put("v4")
		t.remove(7)
		t.ok("restore again", t.m.RestoreSecret(t.Context(), app))
		t.marks(upstream.ACSCurrent, "v4")
	}},
	{"only a secret in its window can be restored", func(t *suite) {
		t.create(app)
		t.refused("live", t.m.RestoreSecret(t.Context(), app), upstream.ErrNotPendingDeletion)
		t.ok("force", t.force())
		t.refused("deleted", t.m.RestoreSecret(t.Context(), app), upstream.ErrNotFound)
		t.refused("force again", t.force(), upstream.ErrNotFound)
	}},
	{"a forced deletion is immediate, ignores the window and frees the name", func(t *suite) {
		t.create(app)
		t.put("v2")
		planned, err := t.m.DeleteSecret(t.Context(), upstream.DeleteSecretInput{
			SecretName: app, ForceDeleteWithoutRecovery: true, RecoveryWindowInDays: 30,
		})
		t.ok("force", err)
		if !planned.IsZero() {
			t.Errorf("planned for %s", planned)
		}
		t.refused("read", only(t.get(upstream.SecretRef{SecretName: app})), upstream.ErrNotFound)
		t.refused("describe", only(t.m.DescribeSecret(t.Context(), app, false)), upstream.ErrNotFound)
		t.create(app)
		t.holds("v1 ACSCurrent")
	}},
	{"a secret in its window can be deleted by force", func(t *suite) {
		t.create(app)
		t.remove(7)
		t.ok("force", t.force())
		t.refused("describe", only(t.m.DescribeSecret(t.Context(), app, false)), upstream.ErrNotFound)
		t.create(app)
	}},
	{"past its window a secret is gone and its name free", func(t *suite) {
		t.needAdvance()
		t.create(app)
		t.put("v2")
		t.remove(7)
		t.advance(7*day - time.Hour)
		t.refused("read before the end", only(t.get(upstream.SecretRef{SecretName: app})), upstream.ErrPendingDeletion)
		t.advance(2 * time.Hour)
		t.refused("read", only(t.get(upstream.SecretRef{SecretName: app})), upstream.ErrNotFound)
		t.refused("describe", only(t.m.DescribeSecret(t.Context(), app, false)), upstream.ErrNotFound)
		t.refused("restore", t.m.RestoreSecret(t.Context(), app), upstream.ErrNotFound)
		out := t.list(upstream.ListSecretsInput{})
		if out.TotalCount != 0 || len(out.Secrets) != 0 {
			t.Errorf("still listed: %+v", out)
		}
		t.create(app)
		t.holds("v1 ACSCurrent")
	}},
	{"a restored secret outlives the window", func(t *suite) {
		t.needAdvance()
		t.create(app)
		t.remove(7)
		t.advance(6 * day)
		t.ok("restore", t.m.RestoreSecret(t.Context(), app))
		t.advance(30 * day)
		t.marks(upstream.ACSCurrent, "v1")
	}},
}

var metadataPromises = []promise{
	{"a description can be changed, cleared and left alone", func(t *suite) {
		t.create(app)
		for _, want := range []string{"first", "第二 \"quoted\" & more", strings.Repeat("ü", upstream.MaxDescriptionLen), ""} {
			t.ok("update", t.m.UpdateSecret(t.Context(), upstream.UpdateSecretInput{SecretName: app, Description: &want}))
			t.ok("update nothing", t.m.UpdateSecret(t.Context(), upstream.UpdateSecretInput{SecretName: app}))
			meta := t.describe(app, false)
			if meta.Description != want {
				t.Errorf("description is %q, want %q", meta.Description, want)
			}
		}
		t.holds("v1 ACSCurrent")
	}},
	{"custom data of a generic secret and a description without end are refused", func(t *suite) {
		t.create(app)
		err := t.m.UpdateSecret(t.Context(), upstream.UpdateSecretInput{SecretName: app, CustomData: map[string]string{"a": "b"}})
		t.refused("custom data", err, notForGenerics...)
		long := strings.Repeat("d", 20000)
		t.refused("description", t.m.UpdateSecret(t.Context(), upstream.UpdateSecretInput{SecretName: app, Description: &long}), tooMuch...)
	}},
	{"secrets and versions say when they were made and changed", func(t *suite) {
		t.needAdvance()
		t.create(app)
		t.advance(time.Hour)
		t.put("v2")
		meta := t.describe(app, false)
		v1, v2 := t.read(upstream.SecretRef{SecretName: app, VersionID: "v1"}), t.read(upstream.SecretRef{SecretName: app, VersionID: "v2"})
		if !about(v1.CreateTime, meta.CreateTime) || !about(v2.CreateTime, v1.CreateTime.Add(time.Hour)) {
			t.Errorf("created %s; v1 made %s, v2 made %s", meta.CreateTime, v1.CreateTime, v2.CreateTime)
		}
		t.advance(time.Hour)
		description := "new"
		t.ok("update", t.m.UpdateSecret(t.Context(), upstream.UpdateSecretInput{SecretName: app, Description: &description}))
		if updated := t.describe(app, false).UpdateTime; !about(updated, meta.CreateTime.Add(2*time.Hour)) {
			t.Errorf("created %s, updated %s", meta.CreateTime, updated)
		}
	}},
}

var rotatingPromises = []promise{
	{"a generic secret cannot be rotated by the backend", func(t *suite) {
		t.create(app)
		t.refused("rotate", t.m.RotateSecret(t.Context(), app, "v2"), upstream.ErrUnsupported)
		err := t.m.UpdateSecretRotationPolicy(t.Context(), upstream.RotationPolicyInput{
			SecretName: app, EnableAutomaticRotation: true, RotationInterval: "604800s",
		})
		t.refused("policy", err, upstream.ErrUnsupported)
		t.refused("policy off", t.m.UpdateSecretRotationPolicy(t.Context(), upstream.RotationPolicyInput{SecretName: app}), upstream.ErrUnsupported)
		t.refused("rotate without a version", t.m.RotateSecret(t.Context(), app, ""), invalid...)
		t.holds("v1 ACSCurrent")
	}},
}
