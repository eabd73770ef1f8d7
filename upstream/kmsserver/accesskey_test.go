package kmsserver_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"secretagent/upstream"
	"secretagent/upstream/kmsserver"
	"secretagent/upstream/upstreamtest"
)

func TestAccessKeysLimitActionsAndSecrets(t *testing.T) {
	key := fullKey()
	key.Actions = []string{"kms:Get*", "ListSecrets", "PutSecretValue", "TagResources", "ListTagResources", "BatchGetSecretValue", "ListSecretVersionIds"}
	key.Secrets = []string{"web/*", "shared"}
	f := start(t, func(o *kmsserver.Tuned) { o.AccessKeys = []kmsserver.AccessKey{key} })
	for _, name := range []string{"web/db", "web/cache", "shared", "private/db", "webmaster"} {
		f.fake.MustCreate(t, name, "v1", "value of "+name)
	}
	call := func(action string, pairs ...string) answer { t.Helper(); return newSigner(f).call(t, action, pairs...) }
	call("GetSecretValue", "SecretName", "web/db").wants(t, "allowed", 200, "")
	call("GetSecretValue", "SecretName", "acs:kms:fake:0:secret/shared").wants(t, "allowed by ARN", 200, "")
	call("GetSecretValue", "SecretName", "acs:kms:r:1:secret/shared").wants(t, "of another account", 404, "Forbidden.ResourceNotFound")
	call("GetRandomPassword").wants(t, "an action without a secret", 200, "")
	call("DescribeSecret", "SecretName", "web/db").wants(t, "another action", 403, "Forbidden.NoPermission")
	call("DeleteSecret", "SecretName", "web/db", "ForceDeleteWithoutRecovery", "true").wants(t, "deletion", 403, "Forbidden.NoPermission")
	call("GetSecretValue", "SecretName", "acs:kms:r:1:secret/private/db").wants(t, "another secret by ARN", 403, "Forbidden.NoPermission")
	call("TagResources", "ResourceType", "secret", "ResourceId.1", "web/db", "ResourceId.2", "private/db", "Tag.1.Key", "k").wants(t, "one of two", 403, "Forbidden.NoPermission")

	// Existing and missing look the same, whatever else is asked.
	for _, pairs := range [][]string{{}, {"VersionId", "v9"}, {"VersionStage", "nowhere"}, {"VersionId", "v 1"}} {
		var seen []string
		for _, name := range []string{"private/db", "private/none", "webmaster", "webmistress"} {
			a := call("GetSecretValue", append([]string{"SecretName", name}, pairs...)...)
			seen = append(seen, strings.ReplaceAll(a.raw, a.text("RequestId"), ""))
		}
		if len(slices.Compact(slices.Clone(seen))) != 1 {
			t.Errorf("%v: existing and missing differ: %q", pairs, seen)
		}
	}
	if strings.Contains(call("PutSecretValue", "SecretName", "private/db", "VersionId", "v1", "SecretData", "value of private/db").raw, "ResourceExist") {
		t.Error("a put tells about a denied secret")
	}

	a := call("ListSecrets")
	a.wants(t, "list", 200, "")
	if strings.Contains(a.raw, "private") || strings.Contains(a.raw, "webmaster") || a.body["TotalCount"] != 3.0 {
		t.Errorf("list: %s", a.raw)
	}
	a = call("BatchGetSecretValue", "SecretsList", `[{"SecretName":"web/db"},{"SecretName":"private/db"},{"SecretName":"private/none"}]`)
	if a.status != 200 || strings.Contains(a.raw, "value of private") || strings.Count(a.raw, "Forbidden.NoPermission") != 2 {
		t.Errorf("batch: %s", a.raw)
	}
	for _, name := range []string{"web/db", "private/db"} {
		must(t, f.fake.TagResources(t.Context(), []upstream.SecretName{upstream.SecretName(name)}, []upstream.Tag{{Key: "env", Value: "dev"}}))
	}
	a = call("ListTagResources", "ResourceType", "secret", "Tag.1.Key", "env")
	if a.status != 200 || strings.Contains(a.raw, "private") || !strings.Contains(a.raw, "web/db") {
		t.Errorf("tags: %s", a.raw)
	}
}

func TestPagesOfFilteredListsAreRight(t *testing.T) {
	key := fullKey()
	key.Secrets = []string{"even/*"}
	f := start(t, func(o *kmsserver.Tuned) { o.AccessKeys = []kmsserver.AccessKey{key} })
	var want []string
	for i := range 460 {
		name := fmt.Sprintf("odd/%03d", i)
		if i%2 == 0 {
			name = fmt.Sprintf("even/%03d", i)
			want = append(want, name)
		}
		f.fake.MustCreate(t, name, "v1", "x")
		must(t, f.fake.TagResources(t.Context(), []upstream.SecretName{upstream.SecretName(name)}, []upstream.Tag{{Key: "env", Value: "dev"}, {Key: "other"}}))
	}
	s := newSigner(f)
	var got []string
	for page := 1; page <= 9; page++ {
		a := s.call(t, "ListSecrets", "PageNumber", fmt.Sprint(page), "PageSize", "30")
		if a.body["TotalCount"] != float64(len(want)) || a.body["PageNumber"] != float64(page) || a.body["PageSize"] != 30.0 {
			t.Errorf("page %d: %.200s", page, a.raw)
		}
		for _, s := range a.body["SecretList"].(map[string]any)["Secret"].([]any) {
			got = append(got, s.(map[string]any)["SecretName"].(string))
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %d names, want %d", len(got), len(want))
	}

	tags := func(token string) answer {
		return s.call(t, "ListTagResources", "ResourceType", "secret", "Tag.1.Key", "env", "NextToken", token)
	}
	got = nil
	pages := 0
	for token := ""; pages == 0 || token != ""; pages++ {
		a := tags(token)
		a.wants(t, "tags", 200, "")
		for _, row := range a.body["TagResources"].(map[string]any)["TagResource"].([]any) {
			got = append(got, row.(map[string]any)["ResourceId"].(string))
		}
		token = a.text("NextToken")
	}
	if !slices.Equal(got, want) || pages != 2 {
		t.Errorf("tags of %d secrets on %d pages, want %d on 2", len(got), pages, len(want))
	}
	for _, token := range []string{"x", "-1"} {
		tags(token).wants(t, token, 400, "InvalidParameter")
	}
}

func TestAccessKeysAtFaultAreNamed(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	_ = os.WriteFile(secret, []byte(" \n"), 0o600)
	for want, mutate := range map[string]func(k *kmsserver.AccessKey){
		`accessKeys[0].id: must be 1 to 128 letters`:                             func(k *kmsserver.AccessKey) { k.ID = "" },
		`accessKeys[0].id: a b: must be`:                                         func(k *kmsserver.AccessKey) { k.ID = "a b" },
		`kkk: must be 1 to 128`:                                                  func(k *kmsserver.AccessKey) { k.ID = strings.Repeat("k", 129) },
		`accessKeys[0].secretFile: is missing`:                                   func(k *kmsserver.AccessKey) { k.Secret = upstream.SecretData{} },
		`accessKeys[0].actions: must not be empty; ["*"] allows everything`:      func(k *kmsserver.AccessKey) { k.Actions = nil },
		`accessKeys[0].actions[1]: GetSecret: must be an action`:                 func(k *kmsserver.AccessKey) { k.Actions = []string{"*", "GetSecret"} },
		`accessKeys[0].actions[0]: Get?ecretValue: must be an action`:            func(k *kmsserver.AccessKey) { k.Actions = []string{"Get?ecretValue"} },
		`accessKeys[0].secrets: must not be empty; ["*"] allows everything`:      func(k *kmsserver.AccessKey) { k.Secrets = nil },
		`accessKeys[0].secrets[0]: a b*: must be the name of a secret, with *`:   func(k *kmsserver.AccessKey) { k.Secrets = []string{"a b*"} },
		`accessKeys[0].secrets[1]: demo/?: must be the name of a secret, with *`: func(k *kmsserver.AccessKey) { k.Secrets = []string{"*", "demo/?"} },
	} {
		key := fullKey()
		mutate(&key)
		opts := kmsserver.Options{AccessKeys: []kmsserver.AccessKey{key}}
		_, err := kmsserver.New(upstreamtest.NewFake(), opts)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), keySecret) || !errors.As(err, new(upstream.OptionErrors)) {
			t.Errorf("%s: %v", want, err)
		}
		if checked := opts.Validate(); checked == nil || checked.Error() != err.Error() {
			t.Errorf("%s: Validate: %v", want, checked)
		}
	}
	twice := fullKey()
	twice.SecretFile = secret
	err := start(t).server.SetAccessKeys([]kmsserver.AccessKey{twice, twice})
	for _, want := range []string{"accessKeys[1].id: " + keyID + ": is given to two keys: choose another", "accessKeys[1].secretFile: " + secret + ": is shared by two keys: give each its own"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the same key twice, without %q: %v", want, err)
		}
	}
}

// Ensure that a key whose file is of no use signs nothing and keeps no other from it, and that its
// requests cannot be replayed once it is back.
func TestAKeyWithoutSecretIsShutOutAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(path, []byte(keySecret), 0o600))
	key, other := fullKey(), fullKey()
	key.Secret, key.SecretFile, other.ID = upstream.SecretData{}, path, "other"
	keys := []kmsserver.AccessKey{key, other}
	f := start(t, func(o *kmsserver.Tuned) { o.AccessKeys = keys })
	s, o := newSigner(f), newSigner(f)
	o.id = "other"
	s.call(t, "ListSecrets", "SignatureNonce", "once").wants(t, "before", 200, "")
	for _, ruin := range []func() error{
		func() error { return os.WriteFile(path, []byte(" \n"), 0o600) },
		func() error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
	} {
		must(t, ruin())
		must(t, (kmsserver.Options{AccessKeys: keys}).Validate())
		if err := kmsserver.CheckSecretFiles(keys); err == nil || !strings.Contains(err.Error(), "accessKeys[0].secretFile: ") {
			t.Error(err)
		}
		must(t, f.server.SetAccessKeys(keys))
		if got := f.server.ShutOut(); len(got) != 1 || got[keyID] == "" {
			t.Errorf("shut out: %v", got)
		}
		s.call(t, "ListSecrets").wants(t, "shut out", 404, "InvalidAccessKeyId.NotFound")
		o.call(t, "ListSecrets").wants(t, "the other", 200, "")
	}
	must(t, errors.Join(os.Remove(path), os.WriteFile(path, []byte(keySecret), 0o600)))
	must(t, f.server.SetAccessKeys(keys))
	if got := f.server.ShutOut(); len(got) != 0 {
		t.Errorf("shut out: %v", got)
	}
	s.call(t, "ListSecrets").wants(t, "back", 200, "")
	s.call(t, "ListSecrets", "SignatureNonce", "once").wants(t, "replayed", 400, "SignatureNonceUsed")
}

func TestSecretFilesOfAccessKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys", "demo.secret")
	key := fullKey()
	key.Secret, key.SecretFile = upstream.SecretData{}, path
	keys := []kmsserver.AccessKey{key}
	must(t, (kmsserver.Options{AccessKeys: keys}).Validate()) // the file could be made
	if _, err := os.Stat(filepath.Dir(path)); err == nil {
		t.Fatal("Validate made something")
	}
	f := start(t, func(o *kmsserver.Tuned) { o.AccessKeys = keys })
	s := newSigner(f)
	list := func(secret string) answer {
		s.secret = secret
		return s.call(t, "ListSecrets")
	}
	made, err := os.ReadFile(path)
	if err != nil || len(made) < 26 {
		t.Fatalf("a secret of %d characters: %v", len(made), err)
	}
	list(strings.TrimSpace(string(made))).wants(t, "the secret that was made", 200, "")
	must(t, f.server.SetAccessKeys(keys))
	list(strings.TrimSpace(string(made))).wants(t, "it stays", 200, "")
	_ = os.WriteFile(path, []byte("  chosen by hand \n"), 0o600)
	must(t, f.server.SetAccessKeys(keys))
	list("chosen by hand").wants(t, "another", 200, "")
	if runtime.GOOS == "windows" {
		return
	}
	_ = os.Chmod(path, 0o640)
	must(t, f.server.SetAccessKeys(keys))
	if reason := f.server.ShutOut()[keyID]; !strings.Contains(reason, "chmod") || strings.Contains(reason, "chosen") {
		t.Errorf("a file that the group can read: %q", reason)
	}
	list("chosen by hand").wants(t, "shut out", 404, "InvalidAccessKeyId.NotFound")
}
