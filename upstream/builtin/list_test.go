package builtin

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"go.etcd.io/bbolt"

	"secretagent/upstream"
)

// spoil changes a record on disk, so that whoever opens it fails.
func spoil(t *testing.T, s *Store, name string) {
	t.Helper()
	must(t, s.db.Update(func(tx *bbolt.Tx) error {
		sealed := bytes.Clone(tx.Bucket(bucketSecrets).Get([]byte(name)))
		sealed[len(sealed)-1] ^= 1
		return tx.Bucket(bucketSecrets).Put([]byte(name), sealed)
	}))
}

// wantPage checks what is on a page of ten.
func wantPage(t *testing.T, s *Store, in upstream.ListSecretsInput, total, first, n int) {
	t.Helper()
	out, err := s.ListSecrets(t.Context(), in)
	wantErr(t, err, nil)
	if out.TotalCount != total || len(out.Secrets) != n || n > 0 && out.Secrets[0].SecretName != upstream.SecretName(fmt.Sprintf("s%03d", first)) {
		t.Errorf("page %d: %d of %d: %+v", in.Page.Number, len(out.Secrets), out.TotalCount, out.Secrets)
	}
}

// TestAPageOpensOnlyWhatIsOnIt: every record that is not on the page is spoiled, and nobody
// notices. Also after a restart, and in pages of filters and globs once the first was read.
func TestAPageOpensOnlyWhatIsOnIt(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	odd := []upstream.Tag{{Key: "odd", Value: "1"}}
	for i := range 100 {
		name := fmt.Sprintf("s%03d", i)
		mustCreate(t, s, name, "v1", "x")
		if i%2 == 1 {
			must(t, s.TagResources(t.Context(), []upstream.SecretName{upstream.SecretName(name)}, odd))
		}
	}
	s = reopen(t, s)
	page := func(n int) upstream.ListSecretsInput {
		return upstream.ListSecretsInput{Page: upstream.Page{Number: n, Size: 10}}
	}
	tagged, permitted := page(1), page(1)
	tagged.Filters = []upstream.Filter{{Key: "TagKey", Values: []string{"odd"}}}
	permitted.Permitted = []string{"s00*", "s09*"}
	wantPage(t, s, tagged, 50, 1, 10)
	wantPage(t, s, permitted, 20, 0, 10)
	mustPut(t, s, "s007", "v2", "y") // nothing that a list shows
	for i := range 100 {
		if i/10 != 9 {
			spoil(t, s, fmt.Sprintf("s%03d", i))
		}
	}
	wantPage(t, s, page(10), 100, 90, 10)
	wantPage(t, s, page(11), 100, 0, 0)
	wantErr(t, only(s.ListSecrets(t.Context(), page(1))), ErrDamaged)
	tagged.Page.Number, permitted.Page.Number = 5, 2
	wantErr(t, only(s.ListSecrets(t.Context(), tagged)), ErrDamaged) // s081 to s099
	tagged.Page = upstream.Page{Number: 10, Size: 5}
	wantPage(t, s, tagged, 50, 91, 5)
	wantPage(t, s, permitted, 20, 90, 10)
	wantPage(t, s, upstream.ListSecretsInput{Filters: []upstream.Filter{{Key: "SecretName", Values: []string{"s095", "none"}}}}, 1, 95, 1)
	in := upstream.ListTagResourcesInput{Tags: odd, NextToken: tagToken(upstream.TagRow{SecretName: "s090", Tag: odd[0]})}
	if out, err := s.ListTagResources(t.Context(), in); err != nil || len(out.Rows) != 5 {
		t.Errorf("tags: %+v %v", out.Rows, err)
	}
}

// TestListsFollowEveryChange: whatever a list with a filter shows can change between two pages.
func TestListsFollowEveryChange(t *testing.T) {
	clock := newClock()
	opts := testOptions(t)
	opts.Now = clock.now
	s := mustOpen(t, opts)
	tag := []upstream.Tag{{Key: "env", Value: "dev"}}
	described := "dev"
	filters := []upstream.Filter{{Key: "Description", Values: []string{described}}, {Key: "TagKey", Values: []string{"env"}}}
	want := func(names ...upstream.SecretName) {
		t.Helper()
		for range 2 { // found, and remembered
			for _, in := range []upstream.ListSecretsInput{{Filters: filters}, {Filters: filters, Permitted: []string{"*"}}, {Filters: filters, Permitted: []string{"a*"}}} {
				out, err := s.ListSecrets(t.Context(), in)
				wantErr(t, err, nil)
				var got []upstream.SecretName
				for _, m := range out.Secrets {
					got = append(got, m.SecretName)
				}
				if !slices.Equal(got, names) || out.TotalCount != len(names) {
					t.Errorf("%v: got %v of %d, want %v", in, got, out.TotalCount, names)
				}
			}
			if out, err := s.ListSecrets(t.Context(), upstream.ListSecretsInput{Permitted: []string{}}); err != nil || out.TotalCount != 0 {
				t.Errorf("nothing permitted: %+v %v", out, err)
			}
		}
	}
	want()
	mustCreate(t, s, "a1", "v1", "x")
	mustCreate(t, s, "a2", "v1", "x")
	want()
	must(t, s.TagResources(t.Context(), []upstream.SecretName{"a1", "a2"}, tag))
	want()
	must(t, s.UpdateSecret(t.Context(), upstream.UpdateSecretInput{SecretName: "a1", Description: &described}))
	want("a1")
	must(t, s.UpdateSecret(t.Context(), upstream.UpdateSecretInput{SecretName: "a2", Description: &described}))
	want("a1", "a2")
	mustDelete(t, s, "a1", 7)
	want("a1", "a2")
	clock.advance(8 * day)
	want("a2") // not purged yet
	if out, err := s.ListSecrets(t.Context(), upstream.ListSecretsInput{}); err != nil || out.TotalCount != 1 || len(out.Secrets) != 1 || out.Secrets[0].SecretName != "a2" {
		t.Errorf("%+v %v", out, err)
	}
	clock.advance(-8 * day)
	want("a1", "a2") // the clock was set back
	must(t, s.RestoreSecret(t.Context(), "a1"))
	clock.advance(8 * day)
	want("a1", "a2")
	must(t, s.UntagResources(t.Context(), upstream.UntagResourcesInput{SecretNames: []upstream.SecretName{"a2"}, All: true}))
	want("a1")
	forceDelete(t, s, "a1")
	want()
}
