package kmsserver_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"secretagent/upstream/kmsserver"
)

// TestUnknownParameters holds every action against the rule of the package page: where the answer
// holds a secret, what the action does not know is refused, else it is ignored.
func TestUnknownParameters(t *testing.T) {
	f, twin := start(t), start(t) // the twin is asked with an unknown parameter
	for _, f := range []*fixture{f, twin} {
		f.fake.Now = func() time.Time { return vectorTime }
	}
	secretive := []string{"GetSecretValue", "BatchGetSecretValue", "GetRandomPassword"}
	calls := map[string][]string{
		"CreateSecret":             {"SecretName", "app/new", "VersionId", "v1", "SecretData", "x"},
		"PutSecretValue":           {"SecretName", "app/db", "VersionId", "v2", "SecretData", "x"},
		"BatchGetSecretValue":      {"SecretsList", `[{"SecretName":"app/db"}]`},
		"UpdateSecret":             {"SecretName", "app/db", "Description", "new"},
		"UpdateSecretVersionStage": {"SecretName", "app/db", "VersionStage", "blue", "MoveToVersion", "v1"},
		"DeleteSecret":             {"SecretName", "app/db"},
		"TagResource":              {"SecretName", "app/db", "Tags", `[{"TagKey":"k","TagValue":"v"}]`},
		"UntagResource":            {"SecretName", "app/db", "TagKeys", "k"},
		"TagResources":             {"ResourceType", "secret", "ResourceId.1", "app/db", "Tag.1.Key", "k"},
		"UntagResources":           {"ResourceType", "secret", "ResourceId.1", "app/db", "TagKey.1", "k"},
		"ListTagResources":         {"ResourceType", "secret", "ResourceId.1", "app/db"},
		"GetRandomPassword":        {"ExcludePunctuation", "true"},
		"ListSecrets":              nil,
	}
	for _, action := range kmsserver.Actions() {
		pairs, listed := calls[action]
		if !listed {
			pairs = []string{"SecretName", "app/db"}
		}
		for name, value := range map[string]string{"Unknown": "x", "Recipient": "eyJh", "versionid": "v9", "SecretName.1": "app/db", "Empty": ""} {
			for _, f := range []*fixture{f, twin} {
				for _, secret := range []string{"app/db", "app/new"} {
					f.call(t, "DeleteSecret", "SecretName", secret, "ForceDeleteWithoutRecovery", "true")
				}
				f.fake.MustCreate(t, "app/db", "v1", "MARKER")
			}
			without, with := f.call(t, action, pairs...), twin.call(t, action, append(pairs, name, value)...)
			if slices.Contains(secretive, action) && value != "" {
				with.wants(t, action+" with "+name, 400, "InvalidParameter")
				if strings.Contains(with.raw, "MARKER") || !strings.Contains(with.text("Message"), `"`+name+`"`) {
					t.Errorf("%s with %s: %s", action, name, with.raw)
				}
				continue
			}
			hide := func(a answer) string {
				return strings.NewReplacer(a.text("RequestId"), "", a.text("RandomPassword"), "").Replace(a.raw)
			}
			if hide(with) != hide(without) {
				t.Errorf("%s with %s: %s, without %s", action, name, with.raw, without.raw)
			}
		}
	}

	// What every client may send with any action, in the newest SDK's form.
	common := []string{"SecretName", "app/db", "RegionId", "cn-hangzhou", "SignatureType", "", "SourceIp", "10.0.0.1", "SecureTransport", "true", "FetchExtendedConfig", "true"}
	newSigner(f).call(t, "GetSecretValue", common...).wants(t, "common parameters", 200, "")
	for _, member := range []string{`"Recipient":"eyJh"`, `"VersionID":"v9"`, `"Unknown":{"a":1}`} {
		a := f.call(t, "BatchGetSecretValue", "SecretsList", `[{"SecretName":"app/db",`+member+`},{"SecretName":"app/db","FetchExtendedConfig":true}]`)
		if a.status != 200 || strings.Count(a.raw, "MARKER") != 1 || strings.Count(a.raw, `"Code":"InvalidParameter"`) != 1 {
			t.Errorf("%s within a batch: %s", member, a.raw)
		}
	}
	for _, list := range []string{`{}`, `[1]`, `[{"SecretName":"a","SecretName":"b"}]`, `[null]`, `x`} {
		f.call(t, "BatchGetSecretValue", "SecretsList", list).wants(t, list, 400, "InvalidParameter")
	}
}
