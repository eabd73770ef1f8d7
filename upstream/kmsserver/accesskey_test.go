package kmsserver_test

import (
	"bytes"
	"fmt"
	"net/url"
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
	f := start(t, func(o *kmsserver.Options) { o.AccessKeys = []kmsserver.AccessKey{key} })
	for _, name := range []string{"web/db", "web/cache", "shared", "private/db", "webmaster"} {
		f.fake.MustCreate(t, name, "v1", "value of "+name)
	}
	s := newSigner(f.address)
	call := func(action string, pairs ...string) answer {
		t.Helper()
		query := url.Values{"Action": {action}}
		for i := 0; i < len(pairs); i += 2 {
			query.Set(pairs[i], pairs[i+1])
		}
		return f.do(t, s.v1(t, "POST", query, nil))
	}
	call("GetSecretValue", "SecretName", "web/db").wants(t, "allowed", 200, "")
	call("GetSecretValue", "SecretName", "acs:kms:r:1:secret/shared").wants(t, "allowed by ARN", 200, "")
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
		if err := f.fake.TagResources(t.Context(), []upstream.SecretName{upstream.SecretName(name)}, []upstream.Tag{{Key: "env", Value: "dev"}}); err != nil {
			t.Fatal(err)
		}
	}
	a = call("ListTagResources", "ResourceType", "secret", "Tag.1.Key", "env")
	if a.status != 200 || strings.Contains(a.raw, "private") || !strings.Contains(a.raw, "web/db") {
		t.Errorf("tags: %s", a.raw)
	}
}

func TestPagesOfAFilteredListAreRight(t *testing.T) {
	key := fullKey()
	key.Secrets = []string{"even/*"}
	f := start(t, func(o *kmsserver.Options) { o.AccessKeys = []kmsserver.AccessKey{key} })
	var want []string
	for i := range 230 {
		if i%2 == 1 {
			f.fake.MustCreate(t, fmt.Sprintf("odd/%03d", i), "v1", "x")
			continue
		}
		name := fmt.Sprintf("even/%03d", i)
		f.fake.MustCreate(t, name, "v1", "x")
		want = append(want, name)
	}
	s := newSigner(f.address)
	var got []string
	for page := 1; page <= 5; page++ {
		a := f.do(t, s.v1(t, "GET", url.Values{"Action": {"ListSecrets"}, "PageNumber": {fmt.Sprint(page)}, "PageSize": {"30"}}, nil))
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
}

func TestPagesOfFilteredTagsAreRight(t *testing.T) {
	key := fullKey()
	key.Secrets = []string{"even/*"}
	f := start(t, func(o *kmsserver.Options) { o.AccessKeys = []kmsserver.AccessKey{key} })
	want := 0
	for i := range 460 {
		name := fmt.Sprintf("odd/%03d", i)
		if i%2 == 0 {
			name = fmt.Sprintf("even/%03d", i)
			want++
		}
		f.fake.MustCreate(t, name, "v1", "x")
		if err := f.fake.TagResources(t.Context(), []upstream.SecretName{upstream.SecretName(name)}, []upstream.Tag{{Key: "env", Value: "dev"}, {Key: "other"}}); err != nil {
			t.Fatal(err)
		}
	}
	s := newSigner(f.address)
	seen := map[string]bool{}
	pages, token := 0, ""
	for {
		a := f.do(t, s.v1(t, "GET", url.Values{"Action": {"ListTagResources"}, "ResourceType": {"secret"}, "Tag.1.Key": {"env"}, "NextToken": {token}}, nil))
		a.wants(t, "list", 200, "")
		if strings.Contains(a.raw, "odd/") {
			t.Fatalf("a forbidden name: %.200s", a.raw)
		}
		for _, row := range a.body["TagResources"].(map[string]any)["TagResource"].([]any) {
			seen[row.(map[string]any)["ResourceId"].(string)] = true
		}
		pages++
		if token = a.text("NextToken"); token == "" {
			break
		}
	}
	if len(seen) != want || pages != 2 {
		t.Errorf("%d secrets on %d pages, want %d on 2", len(seen), pages, want)
	}
	for _, token := range []string{"x", "0", "-1"} {
		f.do(t, s.v1(t, "GET", url.Values{"Action": {"ListTagResources"}, "ResourceType": {"secret"}, "Tag.1.Key": {"env"}, "NextToken": {token}}, nil)).wants(t, token, 400, "InvalidParameter")
	}
}

func TestAccessKeysAtFaultAreNamed(t *testing.T) {
	for what, mutate := range map[string]func(k *kmsserver.AccessKey){
		"id":          func(k *kmsserver.AccessKey) { k.ID = "" },
		"characters":  func(k *kmsserver.AccessKey) { k.ID = "a b" },
		"long":        func(k *kmsserver.AccessKey) { k.ID = strings.Repeat("k", 129) },
		"secret":      func(k *kmsserver.AccessKey) { k.Secret = upstream.SecretData{} },
		"actions":     func(k *kmsserver.AccessKey) { k.Actions = nil },
		"GetSecret\"": func(k *kmsserver.AccessKey) { k.Actions = []string{"*", "GetSecret"} },
		"secrets":     func(k *kmsserver.AccessKey) { k.Secrets = nil },
		"a b":         func(k *kmsserver.AccessKey) { k.Secrets = []string{"a b*"} },
	} {
		key := fullKey()
		mutate(&key)
		_, err := kmsserver.New(upstreamtest.NewFake(), kmsserver.Options{AccessKeys: []kmsserver.AccessKey{key}})
		if err == nil || what != "long" && !strings.Contains(err.Error(), what) || strings.Contains(err.Error(), keySecret) {
			t.Errorf("%s: %v", what, err)
		}
	}
	s, err := kmsserver.New(upstreamtest.NewFake(), kmsserver.Options{AccessKeys: []kmsserver.AccessKey{fullKey()}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SetAccessKeys([]kmsserver.AccessKey{fullKey(), fullKey()}); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("the same id twice: %v", err)
	}
}

func TestLoadAccessKeySecret(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys", "demo.secret")
	first, err := kmsserver.LoadAccessKeySecret(path)
	if err != nil || first.Len() < 26 {
		t.Fatalf("a secret of %d characters, %v", first.Len(), err)
	}
	if again, err := kmsserver.LoadAccessKeySecret(path); err != nil || !bytes.Equal(again.Reveal(), first.Reveal()) {
		t.Errorf("it does not stay: %v", err)
	}
	for content, want := range map[string]string{" \n": "empty", strings.Repeat("x", 5000): "larger"} {
		_ = os.WriteFile(path, []byte(content), 0o600)
		if _, err := kmsserver.LoadAccessKeySecret(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if err := os.WriteFile(path, []byte("  chosen by hand \n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if secret, err := kmsserver.LoadAccessKeySecret(path); err != nil || string(secret.Reveal()) != "chosen by hand" {
		t.Errorf("got %v", err)
	}
	if runtime.GOOS == "windows" {
		return
	}
	_ = os.Chmod(path, 0o640)
	if _, err := kmsserver.LoadAccessKeySecret(path); err == nil || !strings.Contains(err.Error(), "chmod") || strings.Contains(err.Error(), "chosen") {
		t.Errorf("a file that the group can read: %v", err)
	}
}
