package bolt

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"secretagent/upstream"
	"secretagent/upstream/builtin"
	"secretagent/upstream/upstreamtest"
)

// spoil changes a record on disk, so that whoever opens it fails.
func spoil(t *testing.T, s *Store, name string) {
	t.Helper()
	must(t, s.db.bolt.Update(func(tx *bbolt.Tx) error {
		sealed := bytes.Clone(tx.Bucket(buckets[builtin.Records]).Get([]byte(name)))
		sealed[len(sealed)-1] ^= 1
		return tx.Bucket(buckets[builtin.Records]).Put([]byte(name), sealed)
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
// notices, whatever the list selects by, and whether it was read before or not. Also the search
// for what is to be purged opens none.
func TestAPageOpensOnlyWhatIsOnIt(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	odd, described := []upstream.Tag{{Key: "odd", Value: "1"}}, "odd"
	for i := range 100 {
		name := fmt.Sprintf("s%03d", i)
		mustCreate(t, s, name, "v1", "x")
		if i%2 == 1 {
			must(t, s.TagResources(t.Context(), []upstream.SecretName{upstream.SecretName(name)}, odd))
			must(t, s.UpdateSecret(t.Context(), upstream.UpdateSecretInput{SecretName: upstream.SecretName(name), Description: &described}))
		}
	}
	mustDelete(t, s, "s010", 7)
	s = reopen(t, s)
	for i := range 100 {
		if i/10 != 9 {
			spoil(t, s, fmt.Sprintf("s%03d", i))
		}
	}
	for range 2 { // the second time, the selections are known
		for _, list := range []struct {
			what               string
			in                 upstream.ListSecretsInput
			page, size         int
			total, first, onIt int
			damaged            int // a page that must fail
		}{
			{"all", upstream.ListSecretsInput{}, 10, 10, 100, 90, 10, 1},
			{"behind all", upstream.ListSecretsInput{}, 11, 10, 100, 0, 0, 9},
			{"a tag", upstream.ListSecretsInput{Filters: filters("TagKey", "odd")}, 10, 5, 50, 91, 5, 9},
			{"a value of a tag", upstream.ListSecretsInput{Filters: filters("TagValue", "1")}, 10, 5, 50, 91, 5, 1},
			{"a description", upstream.ListSecretsInput{Filters: filters("Description", "odd", "TagKey", "odd")}, 10, 5, 50, 91, 5, 1},
			{"globs", upstream.ListSecretsInput{Permitted: []string{"s00*", "s09*"}}, 2, 10, 20, 90, 10, 1},
			{"a name", upstream.ListSecretsInput{Filters: []upstream.Filter{{Key: "SecretName", Values: []string{"s095", "none", "s005"}}}}, 2, 1, 2, 95, 1, 1},
		} {
			list.in.Page = upstream.Page{Number: list.page, Size: list.size}
			t.Run(list.what, func(t *testing.T) {
				wantPage(t, s, list.in, list.total, list.first, list.onIt)
				list.in.Page.Number = list.damaged
				wantErr(t, only(s.ListSecrets(t.Context(), list.in)), builtin.ErrDamaged)
			})
		}
		for _, in := range []upstream.ListTagResourcesInput{
			{Tags: odd, NextToken: base64.RawURLEncoding.EncodeToString([]byte("s090\x00odd"))},
			{Tags: odd, Permitted: []string{"s09*"}},
			{SecretNames: []upstream.SecretName{"s001", "s091", "s093", "s095", "s097", "s099"}, Permitted: []string{"s09*"}},
		} {
			if out, err := s.ListTagResources(t.Context(), in); err != nil || len(out.Rows) != 5 {
				t.Errorf("tags: %+v %v", out.Rows, err)
			}
		}
		if next, err := s.Purge(t.Context()); err != nil || next == 0 {
			t.Errorf("the next purge is at %d, %v", next, err)
		}
	}
}

// TestTheIndexIsWhatTheRecordsSay makes changes of every kind at random. The index that they leave
// behind is the one that a start makes from the records.
func TestTheIndexIsWhatTheRecordsSay(t *testing.T) {
	clock := upstreamtest.NewClock()
	opts := testOptions(t)
	opts.Now = clock.Now
	s := mustOpen(t, opts)
	random := rand.New(rand.NewPCG(1, 2))
	for range 600 {
		name := upstream.SecretName(fmt.Sprint("s", random.IntN(12)))
		var tags []upstream.Tag
		for range random.IntN(8) {
			tags = append(tags, upstream.Tag{Key: fmt.Sprint("k", random.IntN(12)), Value: fmt.Sprint("v", random.IntN(3))})
		}
		description := fmt.Sprint(random.IntN(3))
		switch ctx := t.Context(); random.IntN(8) { // refusals are as good
		case 0, 1:
			_, _ = s.CreateSecret(ctx, upstream.CreateSecretInput{SecretName: name, VersionID: "v1", SecretData: secret("x"), Tags: tags, Description: description})
		case 2:
			_ = s.TagResources(ctx, []upstream.SecretName{name}, tags)
		case 3:
			_ = s.UntagResources(ctx, upstream.UntagResourcesInput{SecretNames: []upstream.SecretName{name}, TagKeys: []string{"k1", "k2", "k3"}})
		case 4:
			_ = s.UpdateSecret(ctx, upstream.UpdateSecretInput{SecretName: name, Description: &description})
		case 5:
			_, _ = s.DeleteSecret(ctx, upstream.DeleteSecretInput{SecretName: name, RecoveryWindowInDays: 7, ForceDeleteWithoutRecovery: random.IntN(2) == 0})
		case 6:
			_ = s.RestoreSecret(ctx, name)
		case 7:
			clock.Advance(time.Duration(random.IntN(4)) * day)
			if random.IntN(2) == 0 {
				must(t, only(s.Purge(ctx)))
			}
		}
	}
	grown := listed(t, s)
	s = reopen(t, s)
	if made := listed(t, s); !strings.Contains(made, "s1") || grown != made {
		t.Errorf("after the changes the lists are\n%s\nand after a start\n%s", grown, made)
	}
}

// listed describes what is in the index: what every filter and every tag selects, and when the next
// secret is purged.
func listed(t *testing.T, s *Store) string {
	var all strings.Builder
	list := func(key, value string) {
		in := upstream.ListSecretsInput{Page: upstream.Page{Size: 100}}
		if key != "" {
			in.Filters = filters(key, value)
		}
		out, err := s.ListSecrets(t.Context(), in)
		must(t, err)
		fmt.Fprintf(&all, "%s %s:", key, value)
		for _, m := range out.Secrets {
			fmt.Fprintf(&all, " %s", m.SecretName)
		}
		fmt.Fprintf(&all, " of %d\n", out.TotalCount)
	}
	list("", "")
	for i := range 12 {
		list("TagKey", fmt.Sprint("k", i))
		list("TagValue", fmt.Sprint("v", i))
		list("Description", fmt.Sprint(i))
		for j := range 3 {
			out, err := s.ListTagResources(t.Context(), upstream.ListTagResourcesInput{Tags: []upstream.Tag{{Key: fmt.Sprint("k", i), Value: fmt.Sprint("v", j)}}})
			must(t, err)
			fmt.Fprintln(&all, out.Rows)
		}
	}
	next, err := s.Purge(t.Context())
	must(t, err)
	fmt.Fprintln(&all, "the next purge:", next)
	return all.String()
}

// TestListsFollowEveryChange: whatever a list with a filter shows can change between two pages.
func TestListsFollowEveryChange(t *testing.T) {
	clock := upstreamtest.NewClock()
	opts := testOptions(t)
	opts.Now = clock.Now
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
	clock.Advance(8 * day)
	want("a2") // not purged yet
	if out, err := s.ListSecrets(t.Context(), upstream.ListSecretsInput{}); err != nil || out.TotalCount != 1 || len(out.Secrets) != 1 || out.Secrets[0].SecretName != "a2" {
		t.Errorf("%+v %v", out, err)
	}
	clock.Advance(-8 * day)
	want("a1", "a2") // the clock was set back
	must(t, s.RestoreSecret(t.Context(), "a1"))
	clock.Advance(8 * day)
	want("a1", "a2")
	must(t, s.UntagResources(t.Context(), upstream.UntagResourcesInput{SecretNames: []upstream.SecretName{"a2"}, All: true}))
	want("a1")
	forceDelete(t, s, "a1")
	want()
}
