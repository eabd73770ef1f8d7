package builtin

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
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

func validCreate() upstream.CreateSecretInput {
	return upstream.CreateSecretInput{SecretName: "a", VersionID: "v1", SecretData: secret("one")}
}

func TestBadRequests(t *testing.T) {
	ctx := context.Background()
	create := func(mutate func(*upstream.CreateSecretInput)) func(*Store) error {
		return func(s *Store) error {
			in := validCreate()
			in.SecretName = "new"
			mutate(&in)
			_, err := s.CreateSecret(ctx, in)
			return err
		}
	}
	put := func(mutate func(*upstream.PutSecretValueInput)) func(*Store) error {
		return func(s *Store) error {
			in := upstream.PutSecretValueInput{SecretName: "a", VersionID: "v2", SecretData: secret("two")}
			mutate(&in)
			_, err := s.PutSecretValue(ctx, in)
			return err
		}
	}
	list := func(in upstream.ListSecretsInput) func(*Store) error {
		return func(s *Store) error { _, err := s.ListSecrets(ctx, in); return err }
	}
	filter := func(key string, values ...string) func(*Store) error {
		return list(upstream.ListSecretsInput{Filters: []upstream.Filter{{Key: key, Values: values}}})
	}
	tag := func(tags ...upstream.Tag) func(*Store) error {
		return func(s *Store) error { return s.TagResources(ctx, []upstream.SecretName{"a"}, tags) }
	}
	manyTags := make([]upstream.Tag, 21)
	for i := range manyTags {
		manyTags[i] = upstream.Tag{Key: fmt.Sprint("k", i)}
	}
	manyNames := make([]upstream.SecretName, 51)
	for i := range manyNames {
		manyNames[i] = "a"
	}
	for _, test := range []struct {
		name string
		call func(*Store) error
		want error
		says string // part of the message
	}{
		{"no name", create(func(in *upstream.CreateSecretInput) { in.SecretName = "" }), upstream.ErrMissingParameter, "SecretName"},
		{"a bad name", create(func(in *upstream.CreateSecretInput) { in.SecretName = "a b" }), upstream.ErrInvalidParameter, "SecretName"},
		{"a reserved name", create(func(in *upstream.CreateSecretInput) { in.SecretName = "acs/x" }), upstream.ErrInvalidParameter, "acs/"},
		{"no version", create(func(in *upstream.CreateSecretInput) { in.VersionID = "" }), upstream.ErrMissingParameter, "VersionId"},
		{"a long version", create(func(in *upstream.CreateSecretInput) { in.VersionID = upstream.VersionID(strings.Repeat("v", 65)) }), upstream.ErrInvalidParameter, "VersionId"},
		{"no data", create(func(in *upstream.CreateSecretInput) { in.SecretData = upstream.SecretData{} }), upstream.ErrMissingParameter, "SecretData"},
		{"too much data", create(func(in *upstream.CreateSecretInput) { in.SecretData = secret(strings.Repeat("x", 30721)) }), upstream.ErrInvalidParameter, "30720"},
		{"data that is not text", create(func(in *upstream.CreateSecretInput) { in.SecretData = secret("\xff") }), upstream.ErrInvalidParameter, "base64"},
		{"a bad data type", create(func(in *upstream.CreateSecretInput) { in.SecretDataType = "json" }), upstream.ErrInvalidParameter, "SecretDataType"},
		{"a managed type", create(func(in *upstream.CreateSecretInput) { in.SecretType = "Rds" }), upstream.ErrUnsupported, "Rds"},
		{"an unknown type", create(func(in *upstream.CreateSecretInput) { in.SecretType = "Other" }), upstream.ErrInvalidParameter, "SecretType"},
		{"an instance", create(func(in *upstream.CreateSecretInput) { in.DKMSInstanceID = "kst-x" }), upstream.ErrInvalidParameter, "DKMSInstanceId"},
		{"rotation", create(func(in *upstream.CreateSecretInput) { in.EnableAutomaticRotation = true }), upstream.ErrInvalidParameter, "EnableAutomaticRotation"},
		{"an interval", create(func(in *upstream.CreateSecretInput) { in.RotationInterval = "7d" }), upstream.ErrInvalidParameter, "RotationInterval"},
		{"a policy", create(func(in *upstream.CreateSecretInput) { in.Policy = "{}" }), upstream.ErrInvalidParameter, "Policy"},
		{"a long description", create(func(in *upstream.CreateSecretInput) { in.Description = strings.Repeat("ü", 257) }), upstream.ErrInvalidParameter, "Description"},
		{"a description that is not text", create(func(in *upstream.CreateSecretInput) { in.Description = "\xff" }), upstream.ErrInvalidParameter, "Description"},
		{"too many tags", create(func(in *upstream.CreateSecretInput) { in.Tags = manyTags }), upstream.ErrInvalidParameter, "Tags"},
		{"a taken name", create(func(in *upstream.CreateSecretInput) { in.SecretName = "a" }), upstream.ErrExists, `"a"`},
		{"a name that waits for deletion", create(func(in *upstream.CreateSecretInput) { in.SecretName = "deleted" }), upstream.ErrPendingDeletion, "deleted"},

		{"put to nothing", put(func(in *upstream.PutSecretValueInput) { in.SecretName = "missing" }), upstream.ErrNotFound, "missing"},
		{"put to a deleted secret", put(func(in *upstream.PutSecretValueInput) { in.SecretName = "deleted" }), upstream.ErrPendingDeletion, "restore"},
		{"put without labels", put(func(in *upstream.PutSecretValueInput) { in.VersionStages = []upstream.VersionStage{} }), upstream.ErrInvalidParameter, "VersionStages"},
		{"put with a bad label", put(func(in *upstream.PutSecretValueInput) { in.VersionStages = []upstream.VersionStage{"a b"} }), upstream.ErrInvalidParameter, "VersionStage"},
		{"put with nine labels", put(func(in *upstream.PutSecretValueInput) {
			in.VersionStages = []upstream.VersionStage{"1", "2", "3", "4", "5", "6", "7", "8", "9"}
		}), upstream.ErrLimitExceeded, "8 labels"},
		{"put other data", put(func(in *upstream.PutSecretValueInput) { in.VersionID = "v1" }), upstream.ErrExists, "v1"},
		{"put with another type", put(func(in *upstream.PutSecretValueInput) {
			in.VersionID, in.SecretData, in.SecretDataType = "v1", secret("one"), "binary"
		}), upstream.ErrExists, "v1"},

		{"page 0 of size 101", list(upstream.ListSecretsInput{Page: upstream.Page{Size: 101}}), upstream.ErrInvalidParameter, "PageSize"},
		{"a negative size", list(upstream.ListSecretsInput{Page: upstream.Page{Size: -1}}), upstream.ErrInvalidParameter, "PageSize"},
		{"a negative page", list(upstream.ListSecretsInput{Page: upstream.Page{Number: -1}}), upstream.ErrInvalidParameter, "PageNumber"},
		{"eleven filters", list(upstream.ListSecretsInput{Filters: make([]upstream.Filter, 11)}), upstream.ErrInvalidParameter, "Filters"},
		{"an unknown filter", filter("Name", "a"), upstream.ErrInvalidParameter, "Filters"},
		{"eleven values", filter("SecretName", strings.Split("abcdefghijk", "")...), upstream.ErrInvalidParameter, "SecretName"},
		{"an empty value", filter("SecretName", ""), upstream.ErrInvalidParameter, "SecretName"},
		{"a name that none can have", filter("SecretName", "a*"), upstream.ErrInvalidParameter, "SecretName"},
		{"a long tag value", filter("TagValue", strings.Repeat("x", 257)), upstream.ErrInvalidParameter, "TagValue"},
		{"a tag key that none can have", filter("TagKey", "a b"), upstream.ErrInvalidParameter, "TagKey"},

		{"no tags", tag(), upstream.ErrMissingParameter, "Tags"},
		{"an empty key", tag(upstream.Tag{Value: "x"}), upstream.ErrInvalidParameter, "TagKey"},
		{"a key of aliyun", tag(upstream.Tag{Key: "aliyun-x"}), upstream.ErrInvalidParameter, "aliyun"},
		{"a key of acs", tag(upstream.Tag{Key: "acs:x"}), upstream.ErrInvalidParameter, "acs:"},
		{"a long key", tag(upstream.Tag{Key: strings.Repeat("x", 129)}), upstream.ErrInvalidParameter, "TagKey"},
		{"a long value", tag(upstream.Tag{Key: "k", Value: strings.Repeat("x", 129)}), upstream.ErrInvalidParameter, "TagValue"},
		{"a value with a space", tag(upstream.Tag{Key: "k", Value: "a b"}), upstream.ErrInvalidParameter, "TagValue"},
		{"a value that is not text", tag(upstream.Tag{Key: "k", Value: "\xff"}), upstream.ErrInvalidParameter, "TagValue"},
		{"tags on nothing", func(s *Store) error { return s.TagResources(ctx, nil, []upstream.Tag{{Key: "k"}}) }, upstream.ErrMissingParameter, "ResourceId"},
		{"tags on too many", func(s *Store) error { return s.TagResources(ctx, manyNames, []upstream.Tag{{Key: "k"}}) }, upstream.ErrInvalidParameter, "ResourceId"},
		{"untag nothing", func(s *Store) error {
			return s.UntagResources(ctx, upstream.UntagResourcesInput{SecretNames: []upstream.SecretName{"a"}})
		}, upstream.ErrMissingParameter, "TagKeys"},
		{"tag rows of nothing", func(s *Store) error {
			_, err := s.ListTagResources(ctx, upstream.ListTagResourcesInput{})
			return err
		}, upstream.ErrMissingParameter, "ResourceId"},
		{"a token of another kind", func(s *Store) error {
			_, err := s.ListTagResources(ctx, upstream.ListTagResourcesInput{SecretNames: []upstream.SecretName{"a"}, NextToken: base64.RawURLEncoding.EncodeToString([]byte("a b\x00c"))})
			return err
		}, upstream.ErrInvalidParameter, "NextToken"},

		{"custom data", func(s *Store) error {
			return s.UpdateSecret(ctx, upstream.UpdateSecretInput{SecretName: "a", CustomData: map[string]string{"k": "v"}})
		}, upstream.ErrInvalidParameter, "CustomData"},
		{"update a deleted secret", func(s *Store) error {
			return s.UpdateSecret(ctx, upstream.UpdateSecretInput{SecretName: "deleted"})
		}, upstream.ErrPendingDeletion, "deleted"},
		{"delete twice", func(s *Store) error {
			_, err := s.DeleteSecret(ctx, upstream.DeleteSecretInput{SecretName: "deleted"})
			return err
		}, upstream.ErrPendingDeletion, "deleted"},
		{"a short window", func(s *Store) error {
			_, err := s.DeleteSecret(ctx, upstream.DeleteSecretInput{SecretName: "a", RecoveryWindowInDays: 6})
			return err
		}, upstream.ErrInvalidParameter, "7 to 30"},
		{"restore a live secret", func(s *Store) error { return s.RestoreSecret(ctx, "a") }, upstream.ErrNotPendingDeletion, "a"},
		{"rotate", func(s *Store) error { return s.RotateSecret(ctx, "a", "v9") }, upstream.ErrUnsupported, "not supported"},
		{"rotate without a version", func(s *Store) error { return s.RotateSecret(ctx, "a", "") }, upstream.ErrMissingParameter, "VersionId"},
		{"rotate nothing", func(s *Store) error { return s.RotateSecret(ctx, "missing", "v9") }, upstream.ErrNotFound, "missing"},
		{"a rotation policy", func(s *Store) error {
			return s.UpdateSecretRotationPolicy(ctx, upstream.RotationPolicyInput{SecretName: "a"})
		}, upstream.ErrUnsupported, "not supported"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := mustOpen(t, testOptions(t))
			mustCreate(t, s, "a", "v1", "one")
			mustCreate(t, s, "deleted", "v1", "one")
			mustDelete(t, s, "deleted", 7)
			commits := s.Stats().Commits
			err := test.call(s)
			wantErr(t, err, test.want)
			var e *upstream.Error
			if !errors.As(err, &e) || e.Op == "" || !strings.Contains(err.Error(), test.says) {
				t.Errorf("unclear: %v", err)
			}
			if s.Stats().Commits != commits {
				t.Error("something was written")
			}
			wantValue(t, s, "a", "one")
		})
	}
}

// TestLargestAndSmallest: what the limits allow is possible.
func TestLargestAndSmallest(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	ctx := context.Background()
	in := upstream.CreateSecretInput{
		SecretName: upstream.SecretName(strings.Repeat("n", 192)), VersionID: upstream.VersionID(strings.Repeat("v", 64)),
		SecretData: secret(strings.Repeat("ü", 15360)), SecretDataType: "binary", SecretType: "Generic",
		Description: strings.Repeat("ü", 256), ExtendedConfig: "ignored",
	}
	for i := range 20 {
		in.Tags = append(in.Tags, upstream.Tag{Key: fmt.Sprint(strings.Repeat("k", 126), string(rune('a'+i))), Value: strings.Repeat("ü", 128)})
	}
	if _, err := s.CreateSecret(ctx, in); err != nil {
		t.Fatal(err)
	}
	v, err := s.GetSecretValue(ctx, upstream.SecretRef{SecretName: in.SecretName})
	if err != nil || !v.SecretData.Equal(in.SecretData) || v.SecretDataType != "binary" {
		t.Errorf("%+v, %v", v, err)
	}
	m, err := s.DescribeSecret(ctx, in.SecretName, true)
	if err != nil || len(m.Tags) != 20 || m.Description != in.Description {
		t.Errorf("%+v, %v", m, err)
	}
	wantErr(t, s.TagResources(ctx, []upstream.SecretName{in.SecretName}, []upstream.Tag{{Key: "one-more"}}), upstream.ErrLimitExceeded)
	mustCreate(t, s, "n", "v", "x")
	wantValue(t, s, "n", "x")
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

func TestARN(t *testing.T) {
	opts := testOptions(t)
	opts.Region, opts.AccountID = "cn-hangzhou", "123456"
	s := mustOpen(t, opts)
	m, err := s.CreateSecret(t.Context(), validCreate())
	if err != nil || m.ARN != "acs:kms:cn-hangzhou:123456:secret/a" {
		t.Errorf("%q, %v", m.ARN, err)
	}
	wantValue(t, s, m.ARN, "one")
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

func TestFilters(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	ctx := context.Background()
	for _, in := range []upstream.CreateSecretInput{
		{SecretName: "app/db", Description: "database", Tags: []upstream.Tag{{Key: "env", Value: "prod"}, {Key: "team", Value: "a"}}},
		{SecretName: "app/db2", Description: "Database", Tags: []upstream.Tag{{Key: "env", Value: "dev"}}},
		{SecretName: "web", Tags: []upstream.Tag{{Key: "team", Value: "prod"}}},
	} {
		in.VersionID, in.SecretData = "v1", secret("x")
		if _, err := s.CreateSecret(ctx, in); err != nil {
			t.Fatal(err)
		}
	}
	mustDelete(t, s, "web", 7)
	one := func(key string, values ...string) upstream.Filter { return upstream.Filter{Key: key, Values: values} }
	for _, test := range []struct {
		name    string
		filters []upstream.Filter
		want    string
	}{
		{"none", nil, "app/db app/db2 web"},
		{"by name, whole", []upstream.Filter{one("SecretName", "app/db")}, "app/db"},
		{"by name, alternatives", []upstream.Filter{one("SecretName", "web", "nothing", "app/db2")}, "app/db2 web"},
		{"by description, case counts", []upstream.Filter{one("Description", "database")}, "app/db"},
		{"by tag key", []upstream.Filter{one("TagKey", "team")}, "app/db web"},
		{"by tag value", []upstream.Filter{one("TagValue", "prod")}, "app/db web"},
		{"by key and value", []upstream.Filter{one("TagKey", "env"), one("TagValue", "prod")}, "app/db"},
		{"the same key twice", []upstream.Filter{one("TagKey", "env"), one("TagKey", "team")}, "app/db"},
		{"by type", []upstream.Filter{one("SecretType", "Generic")}, "app/db app/db2 web"},
		{"by another type", []upstream.Filter{one("SecretType", "Rds")}, ""},
		{"by instance", []upstream.Filter{one("DKMSInstanceId", "kst-x")}, ""},
		{"by creator", []upstream.Filter{one("Creator", "me")}, ""},
		{"without values", []upstream.Filter{one("SecretName")}, ""},
	} {
		out, err := s.ListSecrets(ctx, upstream.ListSecretsInput{Filters: test.filters})
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		var names []string
		for _, m := range out.Secrets {
			names = append(names, string(m.SecretName))
			if m.Tags != nil || (m.SecretName == "web") == m.PlannedDeleteTime.IsZero() {
				t.Errorf("%s: %+v", test.name, m)
			}
		}
		if got := strings.Join(names, " "); got != test.want || out.TotalCount != len(names) {
			t.Errorf("%s: got %q of %d, want %q", test.name, got, out.TotalCount, test.want)
		}
	}
	// A page past the end is empty, however far out.
	for _, number := range []int{2, 1 << 31, math.MaxInt} {
		out, err := s.ListSecrets(ctx, upstream.ListSecretsInput{Page: upstream.Page{Number: number, Size: 100}})
		if err != nil || len(out.Secrets) != 0 || out.TotalCount != 3 || out.Page.Number != number {
			t.Errorf("page %d: %+v, %v", number, out, err)
		}
	}
}

func TestTagPages(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	ctx := context.Background()
	var names []upstream.SecretName
	want := 0
	for i := range 23 { // 460 rows
		name := fmt.Sprintf("s/%02d", i)
		mustCreate(t, s, name, "v1", "x")
		names = append(names, upstream.SecretName(name))
		var tags []upstream.Tag
		for k := range 20 {
			tags = append(tags, upstream.Tag{Key: fmt.Sprintf("k%02d", k), Value: fmt.Sprint(i % 2)})
			want++
		}
		if err := s.TagResources(ctx, names[i:], tags); err != nil {
			t.Fatal(err)
		}
	}
	var rows []upstream.TagRow
	var sizes []int
	in := upstream.ListTagResourcesInput{SecretNames: append(names, "missing")}
	for {
		out, err := s.ListTagResources(ctx, in)
		if err != nil {
			t.Fatal(err)
		}
		rows, sizes = append(rows, out.Rows...), append(sizes, len(out.Rows))
		if out.NextToken == "" {
			break
		}
		in.NextToken = out.NextToken
		if len(sizes) == 1 { // what is gone before the next page shifts nothing
			if err := s.UntagResources(ctx, upstream.UntagResourcesInput{SecretNames: names[:1], All: true}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !slices.Equal(sizes, []int{200, 200, 60}) || len(rows) != want {
		t.Errorf("pages of %v rows, %d in all, want %d", sizes, len(rows), want)
	}
	if !slices.IsSortedFunc(rows, compareRows) {
		t.Error("the rows are not sorted")
	}
	for i := 1; i < len(rows); i++ {
		if compareRows(rows[i-1], rows[i]) == 0 {
			t.Errorf("row %v is there twice", rows[i])
		}
	}
	// A secret must carry all the tags asked for; the rows are those of their keys.
	out, err := s.ListTagResources(ctx, upstream.ListTagResourcesInput{Tags: []upstream.Tag{{Key: "k01", Value: "1"}, {Key: "k02"}}})
	if err != nil || len(out.Rows) != 2*11 || out.NextToken != "" {
		t.Errorf("%d rows, %v", len(out.Rows), err)
	}
	if err := s.TagResources(ctx, []upstream.SecretName{"s/01", "missing"}, []upstream.Tag{{Key: "k00", Value: "changed"}}); !errors.Is(err, upstream.ErrNotFound) {
		t.Error(err)
	}
	m, err := s.DescribeSecret(ctx, "s/01", true)
	if err != nil || m.Tags[0].Value != "1" {
		t.Errorf("one of two was tagged: %v, %v", m.Tags, err)
	}
}

func TestPasswords(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	draw := func(in upstream.RandomPasswordInput) (string, error) {
		p, err := s.GetRandomPassword(t.Context(), in)
		return string(p.Reveal()), err
	}
	for _, test := range []struct {
		name string
		in   upstream.RandomPasswordInput
		form string
	}{
		{"default", upstream.RandomPasswordInput{}, `^[!-_a-~]{32}$`},
		{"shortest", upstream.RandomPasswordInput{PasswordLength: 8}, `^[!-_a-~]{8}$`},
		{"longest", upstream.RandomPasswordInput{PasswordLength: 128}, `^[!-_a-~]{128}$`},
		{"numbers", upstream.RandomPasswordInput{ExcludeLowercase: true, ExcludeUppercase: true, ExcludePunctuation: true}, `^[0-9]{32}$`},
		{"no numbers", upstream.RandomPasswordInput{ExcludeNumbers: true}, `^[^0-9]{32}$`},
		{"one letter left", upstream.RandomPasswordInput{ExcludeNumbers: true, ExcludeUppercase: true, ExcludePunctuation: true, ExcludeCharacters: lowercase[1:]}, `^a{32}$`},
		{"each type", upstream.RandomPasswordInput{PasswordLength: 8, RequireEachIncludedType: true, ExcludeCharacters: "@"}, `^[^@]{8}$`},
		{"a type that is excluded by its characters", upstream.RandomPasswordInput{RequireEachIncludedType: true, ExcludeCharacters: numbers}, `^[^0-9]{32}$`},
	} {
		form := regexp.MustCompile(test.form)
		for range 200 {
			p, err := draw(test.in)
			if err != nil || !form.MatchString(p) || strings.ContainsAny(p, " `") {
				t.Fatalf("%s: %q, %v", test.name, p, err)
			}
			if test.name == "each type" && !(strings.ContainsAny(p, lowercase) && strings.ContainsAny(p, uppercase) && strings.ContainsAny(p, numbers) && strings.ContainsAny(p, punctuation)) {
				t.Fatalf("%s: %q", test.name, p)
			}
		}
	}
	for _, in := range []upstream.RandomPasswordInput{
		{PasswordLength: 7}, {PasswordLength: 129}, {PasswordLength: -1},
		{ExcludeLowercase: true, ExcludeUppercase: true, ExcludeNumbers: true, ExcludePunctuation: true},
		{ExcludeCharacters: lowercase + uppercase + numbers + punctuation},
	} {
		_, err := draw(in)
		wantErr(t, err, upstream.ErrInvalidParameter)
	}
	if n := len(lowercase + uppercase + numbers + punctuation); n != 93 {
		t.Errorf("the alphabet has %d characters", n)
	}
}

// TestPasswordsAreUniform counts characters: each must come up about equally often.
func TestPasswordsAreUniform(t *testing.T) {
	counts := map[byte]int{}
	const passwords = 3000
	for range passwords {
		p, err := randomPassword(upstream.RandomPasswordInput{PasswordLength: 128})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range p {
			counts[c]++
		}
	}
	mean := float64(passwords*128) / 93
	for c, n := range counts {
		// Six standard deviations: a false alarm comes once in millions of runs.
		if d := math.Abs(float64(n) - mean); d > 6*math.Sqrt(mean) {
			t.Errorf("%q came %d times, about %.0f were expected", c, n, mean)
		}
	}
	if len(counts) != 93 {
		t.Errorf("%d characters came up", len(counts))
	}
}

// TestTheValueIsNowhere puts a marker through everything and looks for it where it must not be.
func TestTheValueIsNowhere(t *testing.T) {
	const marker = "MARKER-d41d8cd98f00b204"
	opts := testOptions(t)
	var log upstreamtest.Buffer
	opts.Logger = log.Logger()
	s := mustOpen(t, opts)
	ctx := context.Background()
	var texts []string
	note := func(what any, err error) {
		texts = append(texts, fmt.Sprintf("%v %+v %#v %s %v", what, what, what, what, err))
	}

	in := validCreate()
	in.SecretData = secret(marker)
	m, err := s.CreateSecret(ctx, in)
	note(m, err)
	m, err = s.CreateSecret(ctx, in)
	note(m, err)
	for _, data := range []string{marker, marker + "\xff", strings.Repeat(marker, 2000)} {
		v, err := s.PutSecretValue(ctx, upstream.PutSecretValueInput{SecretName: "a", VersionID: "v1", SecretData: secret(data)})
		note(v, err)
		in := upstream.PutSecretValueInput{SecretName: "a", VersionID: "v2", SecretData: secret(data), SecretDataType: "odd"}
		v, err = s.PutSecretValue(ctx, in)
		note(v, err)
		note(in, nil)
	}
	mustPut(t, s, "a", "v2", marker+"2")
	value, err := s.GetSecretValue(ctx, upstream.SecretRef{SecretName: "a"})
	note(value, err)
	note(s, nil)
	note(*s.keys.Load(), nil)
	note(s.Stats(), nil)
	if _, err := s.RotateKey(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Reencrypt(ctx, nil); err != nil {
		t.Fatal(err)
	}
	mustDelete(t, s, "a", 7)
	_, err = s.GetSecretValue(ctx, upstream.SecretRef{SecretName: "a"})
	note(nil, err)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	keyring, err := os.ReadFile(opts.Keyring)
	if err != nil {
		t.Fatal(err)
	}
	material := regexp.MustCompile(`"value":"([^"]+)"`).FindAllStringSubmatch(string(keyring), -1)
	if len(material) != 2 {
		t.Fatalf("the keyring has %d keys", len(material))
	}
	// Damage is where a value could slip into an error.
	text := log.String() + strings.Join(texts, "\n")
	for _, m := range material {
		if strings.Contains(text, m[1]) {
			t.Error("key material is in a log or a text")
		}
	}
	if strings.Contains(text, marker) {
		t.Error("the value is in a log or a text")
	}
	root := filepath.Dir(filepath.Dir(opts.Database))
	err = filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		if strings.Contains(string(content), marker) {
			t.Errorf("the value is readable in %s", path)
		}
		for _, m := range material {
			if path != opts.Keyring && strings.Contains(string(content), m[1]) {
				t.Errorf("key material is in %s", path)
			}
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

// TestCallsWhoseContextHasEnded: no call does anything then.
func TestCallsWhoseContextHasEnded(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	mustCreate(t, s, "a", "v1", "one")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	name := []upstream.SecretName{"a"}
	calls := map[string]func() error{
		"GetSecretValue": func() error { _, err := s.GetSecretValue(ctx, upstream.SecretRef{SecretName: "a"}); return err },
		"DescribeSecret": func() error { _, err := s.DescribeSecret(ctx, "a", true); return err },
		"ListSecrets":    func() error { _, err := s.ListSecrets(ctx, upstream.ListSecretsInput{}); return err },
		"ListSecretVersionIDs": func() error {
			_, err := s.ListSecretVersionIDs(ctx, upstream.ListSecretVersionIDsInput{SecretName: "a"})
			return err
		},
		"ListTagResources": func() error {
			_, err := s.ListTagResources(ctx, upstream.ListTagResourcesInput{SecretNames: name})
			return err
		},
		"GetRandomPassword": func() error { _, err := s.GetRandomPassword(ctx, upstream.RandomPasswordInput{}); return err },
		"DeleteSecret":      func() error { _, err := s.DeleteSecret(ctx, upstream.DeleteSecretInput{SecretName: "a"}); return err },
		"TagResources":      func() error { return s.TagResources(ctx, name, []upstream.Tag{{Key: "k"}}) },
		"RotateKey":         func() error { _, err := s.RotateKey(ctx); return err },
		"Reencrypt":         func() error { return s.Reencrypt(ctx, nil) },
	}
	for what, call := range calls {
		if err := call(); err != context.Canceled {
			t.Errorf("%s: %v", what, err)
		}
	}
	wantValue(t, s, "a", "one")
}
