package upstream_test

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"secretagent/upstream"
)

type (
	create = upstream.CreateSecretInput
	put    = upstream.PutSecretValueInput
	tags   = []upstream.Tag
	names  = []upstream.SecretName
)

func newCreate(change func(*create)) create {
	in := create{SecretName: "a", VersionID: "v1", SecretData: upstream.NewSecretData([]byte("one"))}
	change(&in)
	return in
}

func newPut(change func(*put)) put {
	in := put{SecretName: "a", VersionID: "v1", SecretData: upstream.NewSecretData([]byte("one"))}
	change(&in)
	return in
}

func manyTags(n int) (all tags) {
	for i := range n {
		all = append(all, upstream.Tag{Key: fmt.Sprint("k", i)})
	}
	return all
}

func TestBadRequests(t *testing.T) {
	data := func(s string) upstream.SecretData { return upstream.NewSecretData([]byte(s)) }
	badCreate := func(change func(*create)) error { return newCreate(change).Validate() }
	badPut := func(change func(*put)) error { return newPut(change).Validate() }
	list := func(page upstream.Page) error {
		return errors.Join(upstream.ListSecretsInput{Page: page}.Validate(), upstream.ListSecretVersionIDsInput{SecretName: "a", Page: page}.Validate())
	}
	filter := func(key string, values ...string) error {
		return upstream.ListSecretsInput{Filters: []upstream.Filter{{Key: key, Values: values}}}.Validate()
	}
	tag := func(all ...upstream.Tag) error { return upstream.ValidateTagResources(names{"a"}, all) }
	stage := func(stage upstream.VersionStage, to, from upstream.VersionID) error {
		return upstream.UpdateSecretVersionStageInput{SecretName: "a", VersionStage: stage, MoveToVersion: to, RemoveFromVersion: from}.Validate()
	}
	untag := func(in upstream.UntagResourcesInput) error { in.SecretNames = names{"a"}; return in.Validate() }
	rows := func(in upstream.ListTagResourcesInput) error { return in.Validate() }
	draw := func(in upstream.RandomPasswordInput) error { _, err := in.Draw(); return err }
	long := strings.Repeat("x", 20000)

	missing, invalid := upstream.ErrMissingParameter, upstream.ErrInvalidParameter
	for _, test := range []struct {
		name string
		err  error
		want error
		says string // part of the message
	}{
		{"no name", badCreate(func(in *create) { in.SecretName = "" }), missing, "SecretName"},
		{"a bad name", badCreate(func(in *create) { in.SecretName = "a b" }), invalid, "SecretName"},
		{"a reserved name", badCreate(func(in *create) { in.SecretName = "acs/x" }), invalid, "acs/"},
		{"no version", badCreate(func(in *create) { in.VersionID = "" }), missing, "VersionId"},
		{"a long version", badCreate(func(in *create) { in.VersionID = upstream.VersionID(strings.Repeat("v", 65)) }), invalid, "VersionId"},
		{"no data", badCreate(func(in *create) { in.SecretData = upstream.SecretData{} }), missing, "SecretData"},
		{"too much data", badCreate(func(in *create) { in.SecretData = data(strings.Repeat("x", 30721)) }), invalid, "30720"},
		{"data that is not text", badCreate(func(in *create) { in.SecretData = data("\xff") }), invalid, "base64"},
		{"a bad data type", badCreate(func(in *create) { in.SecretDataType = "json" }), invalid, "SecretDataType"},
		{"a long description", badCreate(func(in *create) { in.Description = strings.Repeat("ü", 257) }), invalid, "Description"},
		{"a description that is not text", badCreate(func(in *create) { in.Description = "\xff" }), invalid, "Description"},
		{"too many tags", badCreate(func(in *create) { in.Tags = manyTags(21) }), invalid, "Tags"},

		{"put without a name", badPut(func(in *put) { in.SecretName = "" }), missing, "SecretName"},
		{"put without a version", badPut(func(in *put) { in.VersionID = "" }), missing, "VersionId"},
		{"put without data", badPut(func(in *put) { in.SecretData = upstream.SecretData{} }), missing, "SecretData"},
		{"put without labels", badPut(func(in *put) { in.VersionStages = []upstream.VersionStage{} }), invalid, "VersionStages"},
		{"put with a bad label", badPut(func(in *put) { in.VersionStages = []upstream.VersionStage{"a b"} }), invalid, "VersionStage"},
		{"put with nine labels", badPut(func(in *put) { in.VersionStages = slices.Repeat([]upstream.VersionStage{"l"}, 9) }), upstream.ErrLimitExceeded, "8 labels"},

		{"a stage without a label", stage("", "v1", ""), missing, "VersionStage"},
		{"a stage to and from nowhere", stage("green", "", ""), missing, "MoveToVersion"},
		{"a built-in label removed", stage("ACSPrevious", "", "v1"), invalid, "MoveToVersion"},
		{"a label to a bad version", stage("green", "v 1", ""), invalid, "VersionId"},
		{"a label from a bad version", stage("green", "", "v 1"), invalid, "VersionId"},

		{"page 0 of size 101", list(upstream.Page{Size: 101}), invalid, "PageSize"},
		{"a negative size", list(upstream.Page{Size: -1}), invalid, "PageSize"},
		{"a negative page", list(upstream.Page{Number: -1}), invalid, "PageNumber"},
		{"eleven filters", upstream.ListSecretsInput{Filters: make([]upstream.Filter, 11)}.Validate(), invalid, "Filters"},
		{"an unknown filter", filter("Name", "a"), invalid, "Filters"},
		{"eleven values", filter("SecretName", strings.Split("abcdefghijk", "")...), invalid, "SecretName"},
		{"an empty value", filter("SecretName", ""), invalid, "SecretName"},
		{"a name that none can have", filter("SecretName", "a*"), invalid, "SecretName"},
		{"a name that is not ASCII", filter("SecretName", "ü"), invalid, "SecretName"},
		{"a long tag value in a filter", filter("TagValue", strings.Repeat("x", 257)), invalid, "TagValue"},
		{"a tag key that none can have", filter("TagKey", "a b"), invalid, "TagKey"},

		{"no tags", tag(), missing, "Tags"},
		{"an empty key", tag(upstream.Tag{Value: "x"}), invalid, "TagKey"},
		{"a key of aliyun", tag(upstream.Tag{Key: "aliyun-x"}), invalid, "aliyun"},
		{"a key of acs", tag(upstream.Tag{Key: "acs:x"}), invalid, "acs:"},
		{"a long key", tag(upstream.Tag{Key: long[:129]}), invalid, "TagKey"},
		{"a long value", tag(upstream.Tag{Key: "k", Value: long[:129]}), invalid, "TagValue"},
		{"a value with a space", tag(upstream.Tag{Key: "k", Value: "a b"}), invalid, "TagValue"},
		{"a value that is not text", tag(upstream.Tag{Key: "k", Value: "\xff"}), invalid, "TagValue"},
		{"tags on nothing", upstream.ValidateTagResources(nil, manyTags(1)), missing, "ResourceId"},
		{"tags on too many", upstream.ValidateTagResources(slices.Repeat(names{"a"}, 51), manyTags(1)), invalid, "ResourceId"},
		{"tags on a bad name", upstream.ValidateTagResources(names{"a b"}, manyTags(1)), invalid, "SecretName"},
		{"untag nothing", untag(upstream.UntagResourcesInput{}), missing, "TagKeys"},
		{"untag an empty key", untag(upstream.UntagResourcesInput{TagKeys: []string{"k", ""}}), invalid, "TagKeys"},
		{"untag a key that none can have", untag(upstream.UntagResourcesInput{TagKeys: []string{"a b"}}), invalid, "TagKeys"},
		{"untag too many keys", untag(upstream.UntagResourcesInput{TagKeys: strings.Split(long[:21], "")}), invalid, "TagKeys"},
		{"untag no secret", upstream.UntagResourcesInput{All: true}.Validate(), missing, "ResourceId"},
		{"tag rows of nothing", rows(upstream.ListTagResourcesInput{}), missing, "ResourceId"},
		{"tag rows of a bad tag", rows(upstream.ListTagResourcesInput{Tags: tags{{Key: "a b"}}}), invalid, "TagKey"},
		{"tag rows of too many", rows(upstream.ListTagResourcesInput{SecretNames: slices.Repeat(names{"a"}, 51)}), invalid, "ResourceId"},

		{"update with a long description", upstream.UpdateSecretInput{SecretName: "a", Description: &long}.Validate(), invalid, "Description"},
		{"a short window", upstream.DeleteSecretInput{SecretName: "a", RecoveryWindowInDays: 6}.Validate(), invalid, "7 to 30"},
		{"a long window", upstream.DeleteSecretInput{SecretName: "a", RecoveryWindowInDays: 31}.Validate(), invalid, "7 to 30"},

		{"a short password", draw(upstream.RandomPasswordInput{PasswordLength: 7}), invalid, "8 to 128"},
		{"a long password", draw(upstream.RandomPasswordInput{PasswordLength: 129}), invalid, "8 to 128"},
		{"a negative password", draw(upstream.RandomPasswordInput{PasswordLength: -1}), invalid, "8 to 128"},
		{"no type is left", draw(upstream.RandomPasswordInput{ExcludeLowercase: true, ExcludeUppercase: true, ExcludeNumbers: true, ExcludePunctuation: true}), invalid, "ExcludeCharacters"},
		{"no character is left", draw(upstream.RandomPasswordInput{ExcludeCharacters: lowercase + uppercase + numbers + punctuation}), invalid, "ExcludeCharacters"},
	} {
		var e *upstream.Error
		if !errors.Is(test.err, test.want) || !errors.As(test.err, &e) || !strings.Contains(test.err.Error(), test.says) {
			t.Errorf("%s: got %v, want %v about %s", test.name, test.err, test.want, test.says)
		} else if test.want == missing && e.Parameter != test.says || test.want == invalid && !strings.HasSuffix(e.Message, ": "+e.Reason+".") {
			t.Errorf("%s: parameter %q, reason %q", test.name, e.Parameter, e.Reason)
		}
	}
}

// TestLargestRequests: what the limits allow is valid.
func TestLargestRequests(t *testing.T) {
	data := upstream.NewSecretData([]byte(strings.Repeat("ü", 15360)))
	long := upstream.Tag{Key: strings.Repeat("ü", 128), Value: `/\_-.+=:@` + strings.Repeat("x", 119)}
	for i, err := range []error{
		newCreate(func(in *create) {
			in.SecretName, in.VersionID = upstream.SecretName(strings.Repeat("n", 192)), upstream.VersionID(strings.Repeat("v", 64))
			in.SecretData, in.SecretDataType = data, "binary"
			in.Description, in.Tags = strings.Repeat("ü", 256), append(manyTags(19), long)
		}).Validate(),
		newPut(func(in *put) { in.VersionStages = slices.Repeat([]upstream.VersionStage{"l"}, 8) }).Validate(),
		upstream.ListSecretsInput{Page: upstream.Page{Size: 100}, Filters: slices.Repeat([]upstream.Filter{{Key: "Description", Values: slices.Repeat([]string{strings.Repeat("ü", 256)}, 10)}}, 10)}.Validate(),
		upstream.ValidateTagResources(slices.Repeat(names{"a"}, 50), tags{long}),
		upstream.DeleteSecretInput{SecretName: "a", RecoveryWindowInDays: 7}.Validate(),
		upstream.DeleteSecretInput{SecretName: "a", RecoveryWindowInDays: 99, ForceDeleteWithoutRecovery: true}.Validate(),
	} {
		if err != nil {
			t.Errorf("request %d: %v", i, err)
		}
	}
	if w := (upstream.DeleteSecretInput{}).Window(); w != 30*24*time.Hour {
		t.Errorf("the window is %v unless told", w)
	}
	for _, number := range []int{1 << 31, math.MaxInt} { // a page past the end is empty, however far out
		if first, last := (upstream.Page{Number: number, Size: 100}).Span(); first != last {
			t.Errorf("page %d has elements %d to %d", number, first, last)
		}
	}
}

// The characters of a password, as the KMS API lists them.
const (
	lowercase   = "abcdefghijklmnopqrstuvwxyz"
	uppercase   = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	numbers     = "0123456789"
	punctuation = "!\"#$%&'()*+,-./:;<=>?@[\\]^_{|}~"
)

func TestPasswords(t *testing.T) {
	each := func(p string) bool {
		return strings.ContainsAny(p, lowercase) && strings.ContainsAny(p, uppercase) && strings.ContainsAny(p, numbers) && strings.ContainsAny(p, punctuation)
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
			data, err := test.in.Draw()
			p := string(data.Reveal())
			if err != nil || !form.MatchString(p) || strings.ContainsAny(p, " `") || test.name == "each type" && !each(p) {
				t.Fatalf("%s: %q, %v", test.name, p, err)
			}
		}
	}
}

// TestPasswordsAreUniform counts characters: each must come up about equally often.
func TestPasswordsAreUniform(t *testing.T) {
	counts := map[byte]int{}
	const passwords = 3000
	for range passwords {
		p, err := upstream.RandomPasswordInput{PasswordLength: 128}.Draw()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range p.Reveal() {
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
