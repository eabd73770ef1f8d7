package upstreamtest

import (
	"strings"
	"time"

	"secretagent/upstream"
)

const day = 24 * time.Hour

func (t *suite) removeIn(days int) (time.Time, error) {
	return t.m.DeleteSecret(t.Context(), upstream.DeleteSecretInput{SecretName: app, RecoveryWindowInDays: days})
}

// remove schedules the deletion of app/db.
func (t *suite) remove(days int) time.Time {
	t.Helper()
	planned, err := t.removeIn(days)
	t.ok("delete", err)
	return planned
}

func (t *suite) force() error {
	return only(t.m.DeleteSecret(t.Context(), upstream.DeleteSecretInput{SecretName: app, ForceDeleteWithoutRecovery: true}))
}

// isGone checks that nothing is left of app/db and that its name is free.
func (t *suite) isGone() {
	t.Helper()
	t.refused("read", only(t.get(upstream.SecretRef{SecretName: app})), upstream.ErrNotFound)
	t.refused("describe", only(t.m.DescribeSecret(t.Context(), app, false)), upstream.ErrNotFound)
	t.refused("restore", t.m.RestoreSecret(t.Context(), app), upstream.ErrNotFound)
	t.refused("force again", t.force(), upstream.ErrNotFound)
	if out := t.list(upstream.ListSecretsInput{}); out.TotalCount != 0 || len(out.Secrets) != 0 {
		t.Errorf("still listed: %+v", out)
	}
	t.create(app)
	t.holds("v1 ACSCurrent")
}

var deletingPromises = []promise{
	{"a deletion is planned for the end of the recovery window, thirty days unless told", func(t *suite) {
		for _, c := range []struct{ days, want int }{{0, 30}, {7, 7}, {30, 30}} {
			planned, meta := t.remove(c.days), t.describe(app)
			if !about(planned, meta.CreateTime.Add(time.Duration(c.want)*day)) || !about(planned, meta.PlannedDeleteTime) {
				t.Errorf("window %d: created %s, planned %s, described as %s", c.days, meta.CreateTime, planned, meta.PlannedDeleteTime)
			}
			t.ok("restore", t.m.RestoreSecret(t.Context(), app))
		}
	}},
	{"a recovery window outside seven to thirty days is refused", func(t *suite) {
		for _, days := range []int{-1, 1, 6, 31, 1 << 30} {
			t.refused("delete", only(t.removeIn(days)), upstream.ErrInvalidParameter)
		}
		t.holds("v1 ACSCurrent")
	}},
	{"during the window reads of the value and writes are refused, and the secret stays described and listed with its plan", func(t *suite) {
		planned := t.remove(7)
		t.allRefused(app, []error{upstream.ErrPendingDeletion}, "CreateSecret", "ListSecretVersionIds", "DescribeSecret", "ListSecrets",
			"GetSecretPolicy", "GetRandomPassword", "ListTagResources", "RestoreSecret")
		t.refused("read by version", only(t.get(upstream.SecretRef{SecretName: app, VersionID: "v1"})), upstream.ErrPendingDeletion)
		t.refused("put again", t.putValue("v1", "v1"), upstream.ErrPendingDeletion)
		t.refused("create", t.createWith(app, "v1"), upstream.ErrPendingDeletion)
		t.refused("delete for longer", only(t.removeIn(30)), upstream.ErrPendingDeletion)
		if out := t.list(upstream.ListSecretsInput{}); len(out.Secrets) != 1 || !about(out.Secrets[0].PlannedDeleteTime, planned) {
			t.Errorf("got %+v", out.Secrets)
		}
		if meta := t.describe(app); !about(meta.PlannedDeleteTime, planned) {
			t.Errorf("planned for %s, was %s", meta.PlannedDeleteTime, planned)
		}
	}},
	{"only a secret in its window can be restored; it has its versions and labels back and outlives the window", func(t *suite) {
		t.refused("restore a live secret", t.m.RestoreSecret(t.Context(), app), upstream.ErrNotPendingDeletion)
		t.put("v2")
		t.put("v3", "blue")
		t.remove(7)
		t.ok("restore", t.m.RestoreSecret(t.Context(), app))
		t.holds("v3 blue", "v2 ACSCurrent", "v1 ACSPrevious")
		if meta := t.describe(app); !meta.PlannedDeleteTime.IsZero() {
			t.Errorf("still planned for %s", meta.PlannedDeleteTime)
		}
		t.put("v4")
		t.remove(7)
		t.ok("restore again", t.m.RestoreSecret(t.Context(), app))
		t.pass(30 * day)
		t.holds("v4 ACSCurrent", "v3 blue", "v2 ACSPrevious", "v1")
	}},
	{"a forced deletion is immediate, also during the window, and frees the name", func(t *suite) {
		t.put("v2")
		planned, err := t.m.DeleteSecret(t.Context(), upstream.DeleteSecretInput{
			SecretName: app, ForceDeleteWithoutRecovery: true, RecoveryWindowInDays: 30,
		})
		t.ok("force", err)
		if !planned.IsZero() {
			t.Errorf("planned for %s", planned)
		}
		t.isGone()
		t.remove(7)
		t.ok("force", t.force())
		t.isGone()
	}},
	{"past its window a secret is gone and its name free", func(t *suite) {
		t.put("v2")
		t.remove(7)
		t.pass(7*day - time.Hour)
		t.refused("read before the end", only(t.get(upstream.SecretRef{SecretName: app})), upstream.ErrPendingDeletion)
		t.pass(2 * time.Hour)
		t.isGone()
	}},
}

var metadataPromises = []promise{
	{"a description can be changed, cleared and left alone", func(t *suite) {
		for _, want := range []string{"first", "第二 \"quoted\" & more", strings.Repeat("ü", upstream.MaxDescriptionLen), ""} {
			t.ok("update", t.update(want))
			t.ok("update nothing", t.m.UpdateSecret(t.Context(), upstream.UpdateSecretInput{SecretName: app}))
			if got := t.describe(app).Description; got != want {
				t.Errorf("description is %q, want %q", got, want)
			}
		}
		t.holds("v1 ACSCurrent")
	}},
	{"a description without end is refused", func(t *suite) {
		t.refused("description", t.update(strings.Repeat("d", 20000)), tooMuch...)
	}},
	{"secrets and versions say when they were made and changed", func(t *suite) {
		t.pass(time.Hour)
		t.put("v2")
		created := t.describe(app).CreateTime
		v1, v2 := t.read(upstream.SecretRef{SecretName: app, VersionID: "v1"}), t.read(upstream.SecretRef{SecretName: app, VersionID: "v2"})
		t.pass(time.Hour)
		t.ok("update", t.update("new"))
		updated := t.describe(app).UpdateTime
		if !about(v1.CreateTime, created) || !about(v2.CreateTime, created.Add(time.Hour)) || !about(updated, created.Add(2*time.Hour)) {
			t.Errorf("created %s; v1 made %s, v2 made %s, updated %s", created, v1.CreateTime, v2.CreateTime, updated)
		}
	}},
}
