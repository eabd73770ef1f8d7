package bolt

import (
	"cmp"
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

// TestRefusals: a refusal says what is wrong, and nothing is written. What a request says by
// itself is checked in package upstream; here is what needs the database.
func TestRefusals(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	mustCreate(t, s, "a", "v1", "one")
	mustCreate(t, s, "deleted", "v1", "one")
	mustDelete(t, s, "deleted", 7)
	ctx := t.Context()
	create := func(name upstream.SecretName, key string) error {
		return only(s.CreateSecret(ctx, upstream.CreateSecretInput{SecretName: name, VersionID: "v1", SecretData: secret("one"), EncryptionKeyID: key}))
	}
	rows := func(token string) error {
		return only(s.ListTagResources(ctx, upstream.ListTagResourcesInput{SecretNames: []upstream.SecretName{"a"}, NextToken: token}))
	}
	commits := s.Stats().Commits
	for _, test := range []struct {
		name string
		err  error
		want error
		says string // part of the message
	}{
		{"a taken name", create("a", ""), upstream.ErrExists, `"a"`},
		{"a name that waits for deletion", create("deleted", ""), upstream.ErrPendingDeletion, "deleted"},
		{"a key that is not there", create("new", "1"), upstream.ErrKeyNotFound, "1"},
		{"put to nothing", putter(s, "missing", "v2", "two")(), upstream.ErrNotFound, "missing"},
		{"put to a deleted secret", putter(s, "deleted", "v2", "two")(), upstream.ErrPendingDeletion, "restore"},
		{"put other data", putter(s, "a", "v1", "other")(), upstream.ErrExists, "v1"},
		{"a token that is none", rows("!"), upstream.ErrInvalidParameter, "NextToken"},
		{"a token of another kind", rows(base64.RawURLEncoding.EncodeToString([]byte("a b\x00c"))), upstream.ErrInvalidParameter, "NextToken"},
		{"restore a live secret", s.RestoreSecret(ctx, "a"), upstream.ErrNotPendingDeletion, "a"},
	} {
		if !errors.Is(test.err, test.want) || !strings.Contains(test.err.Error(), test.says) {
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
	s := mustOpen(t, testOptions(t))
	names := []string{"a", "a/", "a/b", "a/b/c", "a-", "a=", "a@", "aa", "A"}
	for _, name := range names {
		mustCreate(t, s, name, "v1", name)
		mustPut(t, s, name, "v", name+"!")
	}
	s = reopen(t, s)
	forceDelete(t, s, "a")
	for _, name := range names[1:] {
		wantValue(t, s, name, name+"!")
		wantValue(t, s, name+":ACSPrevious", name)
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
	must(t, s.TagResources(ctx, names, tags))
	var rows []upstream.TagRow
	var sizes []int
	for in := (upstream.ListTagResourcesInput{SecretNames: append(names, "missing")}); len(sizes) == 0 || in.NextToken != ""; {
		out, err := s.ListTagResources(ctx, in)
		must(t, err)
		rows, sizes, in.NextToken = append(rows, out.Rows...), append(sizes, len(out.Rows)), out.NextToken
		must(t, s.UntagResources(ctx, upstream.UntagResourcesInput{SecretNames: names[:1], All: true}))
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
	note(s.Stats(), nil)
	mustRotate(t, s)
	must(t, s.Reencrypt(ctx, nil))
	mustDelete(t, s, "a", 7)
	note(s.GetSecretValue(ctx, upstream.SecretRef{SecretName: "a"}))
	must(t, s.Close())
	material := regexp.MustCompile(`"value":"([^"]+)"`).FindAllStringSubmatch(string(readFile(t, opts.Keyring)), -1)
	if len(material) != 2 {
		t.Fatalf("the keyring has %d keys", len(material))
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
	must(t, filepath.WalkDir(filepath.Dir(filepath.Dir(opts.Database)), func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			check(path, string(readFile(t, path)))
		}
		return err
	}))
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
	_, err := s.RotateKey(ctx, false)
	wantErr(t, err, context.Canceled)
	wantErr(t, s.Reencrypt(ctx, nil), context.Canceled)
}

func compareRows(a, b upstream.TagRow) int {
	return cmp.Or(cmp.Compare(a.SecretName, b.SecretName), cmp.Compare(a.Tag.Key, b.Tag.Key))
}
