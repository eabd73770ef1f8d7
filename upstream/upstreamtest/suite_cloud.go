package upstreamtest

import (
	"strings"

	"secretagent/upstream"
)

var cloudPromises = []promise{
	{"a KMS instance, a key of the cloud and a policy are refused, and nothing is created, unless they are emulated", func(t *suite) {
		refusals := map[string]struct {
			in   upstream.CreateSecretInput
			with error
		}{
			"another instance": {upstream.CreateSecretInput{DKMSInstanceID: "kst-other"}, upstream.ErrInvalidParameter},
			"another key":      {upstream.CreateSecretInput{EncryptionKeyID: "alias/other"}, upstream.ErrKeyNotFound},
			"a bad policy":     {upstream.CreateSecretInput{Policy: `{"Version":"1"}`}, upstream.ErrInvalidParameter},
		}
		if t.emulate.InstanceID == "" {
			refusals["a policy"] = struct {
				in   upstream.CreateSecretInput
				with error
			}{upstream.CreateSecretInput{Policy: upstream.DefaultPolicy}, upstream.ErrInvalidParameter}
			t.refused("get a policy", only(t.m.GetSecretPolicy(t.Context(), app)), upstream.ErrUnsupported)
			t.refused("set a policy", t.m.SetSecretPolicy(t.Context(), app, upstream.DefaultPolicy), upstream.ErrUnsupported)
		}
		for what, c := range refusals {
			c.in.SecretName, c.in.VersionID, c.in.SecretData = "app/new", "v1", data("x")
			t.refused(what, only(t.m.CreateSecret(t.Context(), c.in)), c.with)
		}
		if names := t.names(100); len(names) != 1 {
			t.Errorf("the secrets are %v", names)
		}
	}},
	{"where they are emulated they are kept as they were given, whatever happens to the secret", func(t *suite) {
		t.emulates()
		const policy = `{ "Version": "1", "Statement": [{"Sid":"ours", "Effect":"Deny", "Principal":{"RAM":["acs:ram::1:user/ü"]}, "Action":["kms:GetSecretValue"], "Resource":["*"]}]}`
		for _, key := range t.emulate.Keys {
			name := upstream.SecretName("app/" + key)
			meta, err := t.m.CreateSecret(t.Context(), upstream.CreateSecretInput{
				SecretName: name, VersionID: "v1", SecretData: data("v1"), DKMSInstanceID: t.emulate.InstanceID, EncryptionKeyID: key, Policy: policy,
			})
			t.ok("create", err)
			if meta.DKMSInstanceID != t.emulate.InstanceID {
				t.Errorf("the answer has the instance %q", meta.DKMSInstanceID)
			}
			kept := func() {
				t.Helper()
				if meta := t.describe(name); meta.DKMSInstanceID != t.emulate.InstanceID || meta.EncryptionKeyID != key {
					t.Errorf("instance %q, key %q", meta.DKMSInstanceID, meta.EncryptionKeyID)
				}
				t.hasPolicy(name, policy)
			}
			kept()
			t.ok("put", only(t.m.PutSecretValue(t.Context(), upstream.PutSecretValueInput{SecretName: name, VersionID: "v2", SecretData: data("v2")})))
			t.reads(upstream.SecretRef{SecretName: name}, "v2", upstream.ACSCurrent)
			t.ok("delete", only(t.m.DeleteSecret(t.Context(), upstream.DeleteSecretInput{SecretName: name})))
			kept()
			t.ok("restore", t.m.RestoreSecret(t.Context(), name))
			kept()
		}
		in := upstream.ListSecretsInput{Filters: []upstream.Filter{{Key: "DKMSInstanceId", Values: []string{t.emulate.InstanceID}}}}
		if out := t.list(in); out.TotalCount != len(t.emulate.Keys) || out.Secrets[0].SecretName == app {
			t.Errorf("in the instance are %+v", out.Secrets)
		}
	}},
	{"where they are emulated a secret has the default policy until another of the documented form is set", func(t *suite) {
		t.emulates()
		t.hasPolicy(app, upstream.DefaultPolicy)
		changed := strings.Replace(upstream.DefaultPolicy, "kms:*", "kms:Get*", 1)
		t.ok("set", t.m.SetSecretPolicy(t.Context(), app, changed))
		for _, bad := range []string{"", "{}", changed + " x", changed + strings.Repeat(" ", upstream.MaxPolicyLen)} {
			t.refused("set", t.m.SetSecretPolicy(t.Context(), app, bad), invalid...)
		}
		t.hasPolicy(app, changed)
		t.holds("v1 ACSCurrent")
		t.remove(7)
		t.hasPolicy(app, changed)
	}},
}

// emulates skips the test where nothing is emulated.
func (t *suite) emulates() {
	t.Helper()
	if t.emulate.InstanceID == "" {
		t.Skip("this backend emulates no KMS instance")
	}
}

func (t *suite) hasPolicy(name upstream.SecretName, want string) {
	t.Helper()
	got, err := t.m.GetSecretPolicy(t.Context(), name)
	t.ok("get the policy", err)
	if got != want {
		t.Errorf("the policy of %s is %s, want %s", name, got, want)
	}
}
