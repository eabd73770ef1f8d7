package builtin

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

// TestRefusals: an error names operation and fault, and nothing is written. What a request says
// by itself is checked in package upstream; here is what needs the database, and one bad request
// of each operation.
func TestRefusals(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	mustCreate(t, s, "a", "v1", "one")
	mustCreate(t, s, "deleted", "v1", "one")
	mustDelete(t, s, "deleted", 7)
	ctx := t.Context()
	create := func(name upstream.SecretName, key string) error {
		_, err := s.CreateSecret(ctx, upstream.CreateSecretInput{SecretName: name, VersionID: "v1", SecretData: secret("one"), EncryptionKeyID: key})
		return err
	}
	put := func(name upstream.SecretName, id upstream.VersionID, data, dataType string) error {
		_, err := s.PutSecretValue(ctx, upstream.PutSecretValueInput{SecretName: name, VersionID: id, SecretData: secret(data), SecretDataType: dataType})
		return err
	}
	remove := func(name upstream.SecretName, days int) error {
		_, err := s.DeleteSecret(ctx, upstream.DeleteSecretInput{SecretName: name, RecoveryWindowInDays: days})
		return err
	}
	rows := func(in upstream.ListTagResourcesInput) error { _, err := s.ListTagResources(ctx, in); return err }
	first := func(_ any, err error) error { return err }
	commits := s.Stats().Commits
	for _, test := range []struct {
		name string
		err  error
		want error
		says string // part of the message
	}{
		{"create without a name", create("", ""), upstream.ErrMissingParameter, "CreateSecret"},
		{"a taken name", create("a", ""), upstream.ErrExists, `"a"`},
		{"a name that waits for deletion", create("deleted", ""), upstream.ErrPendingDeletion, "deleted"},
		{"a key that is not there", create("new", "1"), upstream.ErrKeyNotFound, "1"},
		{"put nothing", put("a", "v2", "", ""), upstream.ErrMissingParameter, "PutSecretValue"},
		{"put to nothing", put("missing", "v2", "two", ""), upstream.ErrNotFound, "missing"},
		{"put to a deleted secret", put("deleted", "v2", "two", ""), upstream.ErrPendingDeletion, "restore"},
		{"put other data", put("a", "v1", "other", ""), upstream.ErrExists, "v1"},
		{"get a bad name", first(s.GetSecretValue(ctx, upstream.SecretRef{SecretName: "a b"})), upstream.ErrInvalidParameter, "SecretName"},
		{"describe a bad name", first(s.DescribeSecret(ctx, "a b", true)), upstream.ErrInvalidParameter, "SecretName"},
		{"a bad label", s.UpdateSecretVersionStage(ctx, upstream.UpdateSecretVersionStageInput{SecretName: "a", VersionStage: "a b"}), upstream.ErrInvalidParameter, "VersionStage"},
		{"a bad page of secrets", first(s.ListSecrets(ctx, upstream.ListSecretsInput{Page: upstream.Page{Size: 101}})), upstream.ErrInvalidParameter, "PageSize"},
		{"a bad page of versions", first(s.ListSecretVersionIDs(ctx, upstream.ListSecretVersionIDsInput{SecretName: "a", Page: upstream.Page{Number: -1}})), upstream.ErrInvalidParameter, "PageNumber"},
		{"no tags", s.TagResources(ctx, []upstream.SecretName{"a"}, nil), upstream.ErrMissingParameter, "Tags"},
		{"untag nothing", s.UntagResources(ctx, upstream.UntagResourcesInput{SecretNames: []upstream.SecretName{"a"}}), upstream.ErrMissingParameter, "TagKeys"},
		{"tag rows of nothing", rows(upstream.ListTagResourcesInput{}), upstream.ErrMissingParameter, "ResourceId"},
		{"a token that is none", rows(upstream.ListTagResourcesInput{SecretNames: []upstream.SecretName{"a"}, NextToken: "!"}), upstream.ErrInvalidParameter, "NextToken"},
		{"a token of another kind", rows(upstream.ListTagResourcesInput{SecretNames: []upstream.SecretName{"a"}, NextToken: base64.RawURLEncoding.EncodeToString([]byte("a b\x00c"))}), upstream.ErrInvalidParameter, "NextToken"},
		{"custom data", s.UpdateSecret(ctx, upstream.UpdateSecretInput{SecretName: "a", CustomData: map[string]string{"k": "v"}}), upstream.ErrInvalidParameter, "CustomData"},
		{"a short window", remove("a", 6), upstream.ErrInvalidParameter, "7 to 30"},
		{"restore a live secret", s.RestoreSecret(ctx, "a"), upstream.ErrNotPendingDeletion, "a"},
		{"rotate", s.RotateSecret(ctx, "a", "v9"), upstream.ErrUnsupported, "not supported"},
		{"a rotation policy", s.UpdateSecretRotationPolicy(ctx, upstream.RotationPolicyInput{SecretName: "a"}), upstream.ErrUnsupported, "not supported"},
		{"a short password", first(s.GetRandomPassword(ctx, upstream.RandomPasswordInput{PasswordLength: 7})), upstream.ErrInvalidParameter, "PasswordLength"},
	} {
		var e *upstream.Error
		if !errors.Is(test.err, test.want) || !errors.As(test.err, &e) || e.Op == "" || !strings.Contains(test.err.Error(), test.says) {
			t.Errorf("%s: got %v, want %v that says %s", test.name, test.err, test.want, test.says)
		}
	}
	if s.Stats().Commits != commits {
		t.Error("something was written")
	}
	wantValue(t, s, "a", "one")
}

// TestNamesThatAreBeginnings keeps secrets apart whose names begin alike.
func TestNamesThatAreBeginnings(t *testing.T) {
	opts := testOptions(t)
	s := mustOpen(t, opts)
	names := []string{"a", "a/", "a/b", "a/b/c", "a-", "a=", "a@", "aa", "A"}
	for _, name := range names {
		mustCreate(t, s, name, "v1", name)
		mustPut(t, s, name, "v", name+"!")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, opts)
	if _, err := s.DeleteSecret(t.Context(), upstream.DeleteSecretInput{SecretName: "a", ForceDeleteWithoutRecovery: true}); err != nil {
		t.Fatal(err)
	}
	for _, name := range names[1:] {
		wantValue(t, s, name, name+"!")
		wantValue(t, s, name+":ACSPrevious", name)
	}
}

func TestRequestIDs(t *testing.T) {
	form := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	seen := map[string]bool{}
	for range 1000 {
		id := newRequestID()
		if !form.MatchString(id) || seen[id] {
			t.Fatalf("%q", id)
		}
		seen[id] = true
	}
}

// TestFilters: what the conformance suite leaves to the backend.
func TestFilters(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	for _, in := range []upstream.CreateSecretInput{
		{SecretName: "app/db", Tags: []upstream.Tag{{Key: "env", Value: "prod"}, {Key: "team", Value: "a"}}},
		{SecretName: "web", Tags: []upstream.Tag{{Key: "team", Value: "prod"}}},
	} {
		in.VersionID, in.SecretData = "v1", secret("x")
		if _, err := s.CreateSecret(t.Context(), in); err != nil {
			t.Fatal(err)
		}
	}
	one := func(key string, values ...string) upstream.Filter { return upstream.Filter{Key: key, Values: values} }
	for _, test := range []struct {
		name    string
		filters []upstream.Filter
		want    int
	}{
		{"the same key twice", []upstream.Filter{one("TagKey", "env"), one("TagKey", "team")}, 1},
		{"by instance", []upstream.Filter{one("DKMSInstanceId", "kst-x")}, 0},
		{"by creator", []upstream.Filter{one("Creator", "me")}, 0},
		{"without values", []upstream.Filter{one("SecretName")}, 0},
	} {
		out, err := s.ListSecrets(t.Context(), upstream.ListSecretsInput{Filters: test.filters})
		if err != nil || out.TotalCount != test.want || len(out.Secrets) != test.want {
			t.Errorf("%s: %+v, %v", test.name, out, err)
		}
	}
}

// TestTagPages: changes between two pages shift nothing else.
func TestTagPages(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	ctx := t.Context()
	var names []upstream.SecretName
	var tags []upstream.Tag
	for k := range 20 {
		tags = append(tags, upstream.Tag{Key: fmt.Sprintf("k%02d", k)})
	}
	for i := range 23 {
		names = append(names, upstream.SecretName(fmt.Sprintf("s/%02d", i)))
		mustCreate(t, s, string(names[i]), "v1", "x")
	}
	if err := s.TagResources(ctx, names, tags); err != nil {
		t.Fatal(err)
	}
	var rows []upstream.TagRow
	var sizes []int
	for in := (upstream.ListTagResourcesInput{SecretNames: append(names, "missing")}); len(sizes) == 0 || in.NextToken != ""; {
		out, err := s.ListTagResources(ctx, in)
		if err != nil {
			t.Fatal(err)
		}
		rows, sizes, in.NextToken = append(rows, out.Rows...), append(sizes, len(out.Rows)), out.NextToken
		if err := s.UntagResources(ctx, upstream.UntagResourcesInput{SecretNames: names[:1], All: true}); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(sizes, []int{200, 200, 60}) {
		t.Errorf("pages of %v rows", sizes)
	}
	if !slices.IsSortedFunc(rows, compareRows) || len(slices.CompactFunc(rows, func(a, b upstream.TagRow) bool { return compareRows(a, b) == 0 })) != 460 {
		t.Error("the rows are not sorted, or one is there twice")
	}
}

// TestTheValueIsNowhere puts a marker through everything and looks for it where it must not be.
func TestTheValueIsNowhere(t *testing.T) {
	const marker = "MARKER-d41d8cd98f00b204"
	opts := testOptions(t)
	var log upstreamtest.Buffer
	opts.Logger = log.Logger()
	s := mustOpen(t, opts)
	ctx := t.Context()
	var texts strings.Builder
	note := func(what any, err error) { fmt.Fprintf(&texts, "%v %+v %#v %s %v\n", what, what, what, what, err) }

	in := upstream.CreateSecretInput{SecretName: "a", VersionID: "v1", SecretData: secret(marker)}
	note(s.CreateSecret(ctx, in))
	note(s.CreateSecret(ctx, in))
	for _, data := range []string{marker, marker + "\xff", strings.Repeat(marker, 2000)} {
		note(s.PutSecretValue(ctx, upstream.PutSecretValueInput{SecretName: "a", VersionID: "v1", SecretData: secret(data)}))
		in := upstream.PutSecretValueInput{SecretName: "a", VersionID: "v2", SecretData: secret(data), SecretDataType: "odd"}
		note(s.PutSecretValue(ctx, in))
		note(in, nil)
	}
	mustPut(t, s, "a", "v2", marker+"2")
	note(s.GetSecretValue(ctx, upstream.SecretRef{SecretName: "a"}))
	note(s, nil)
	note(*s.keys.Load(), nil)
	note(s.Stats(), nil)
	_, err := s.RotateKey(ctx)
	if err := errors.Join(err, s.Reencrypt(ctx, nil)); err != nil {
		t.Fatal(err)
	}
	mustDelete(t, s, "a", 7)
	note(s.GetSecretValue(ctx, upstream.SecretRef{SecretName: "a"}))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	keyring, err := os.ReadFile(opts.Keyring)
	material := regexp.MustCompile(`"value":"([^"]+)"`).FindAllStringSubmatch(string(keyring), -1)
	if err != nil || len(material) != 2 {
		t.Fatalf("the keyring has %d keys, %v", len(material), err)
	}
	check := func(where, content string) {
		if strings.Contains(content, marker) {
			t.Errorf("the value is readable in %s", where)
		}
		for _, m := range material {
			if where != opts.Keyring && strings.Contains(content, m[1]) {
				t.Errorf("key material is in %s", where)
			}
		}
	}
	check("a log or a text", log.String()+texts.String())
	err = filepath.WalkDir(filepath.Dir(filepath.Dir(opts.Database)), func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			var content []byte
			content, err = os.ReadFile(path)
			check(path, string(content))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestTimeIsInSeconds: the API counts in seconds, and so do all answers.
func TestTimeIsInSeconds(t *testing.T) {
	opts := testOptions(t)
	opts.Now = func() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 999_999_999, time.FixedZone("", 3600)) }
	s := mustOpen(t, opts)
	mustCreate(t, s, "a", "v1", "one")
	v, err := s.GetSecretValue(t.Context(), upstream.SecretRef{SecretName: "a"})
	if want := time.Date(2026, 3, 1, 11, 0, 0, 0, time.UTC); err != nil || v.CreateTime != want {
		t.Errorf("%v, %v", v.CreateTime, err)
	}
}

// TestKeysWithAnEndedContext: the conformance suite asks this of every method of a Manager.
func TestKeysWithAnEndedContext(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.RotateKey(ctx)
	wantErr(t, err, context.Canceled)
	wantErr(t, s.Reencrypt(ctx, nil), context.Canceled)
}
