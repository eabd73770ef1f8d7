package upstreamtest

import (
	"fmt"
	"slices"

	"secretagent/upstream"
)

// names returns the secrets that match, through all pages of the given size, sorted.
func (t *suite) names(size int, filters ...upstream.Filter) []upstream.SecretName {
	t.Helper()
	var names []upstream.SecretName
	for number := 1; ; number++ {
		out := t.list(upstream.ListSecretsInput{Filters: filters, Page: upstream.Page{Number: number, Size: size}})
		for _, s := range out.Secrets {
			names = append(names, s.SecretName)
		}
		if len(out.Secrets) == 0 || number > 100 {
			if out.TotalCount != len(names) {
				t.Errorf("the total count is %d of %d", out.TotalCount, len(names))
			}
			slices.Sort(names)
			return names
		}
		if len(out.Secrets) > size {
			t.Errorf("page %d holds %d of at most %d", number, len(out.Secrets), size)
		}
	}
}

func manyNames(n int) []upstream.SecretName {
	var names []upstream.SecretName
	for i := range n {
		names = append(names, upstream.SecretName(fmt.Sprintf("s%02d", i)))
	}
	return names
}

func (t *suite) createMany(n int) []upstream.SecretName {
	t.Helper()
	for _, name := range manyNames(n) {
		t.create(name)
	}
	return manyNames(n)
}

var listingPromises = []promise{
	{"pages of secrets cover all, once each", func(t *suite) {
		want := append(one, t.createMany(12)...)
		for _, size := range []int{1, 4, 13, 100} {
			if got := t.names(size); !slices.Equal(got, want) {
				t.Errorf("pages of %d: %v", size, got)
			}
		}
		out := t.list(upstream.ListSecretsInput{})
		if len(out.Secrets) != 10 || out.TotalCount != 13 || out.Page != (upstream.Page{Number: 1, Size: 10}) {
			t.Errorf("without a page: %d of %d, page %+v", len(out.Secrets), out.TotalCount, out.Page)
		}
		out = t.list(upstream.ListSecretsInput{Page: upstream.Page{Number: 1 << 30, Size: 100}})
		if len(out.Secrets) != 0 || out.TotalCount != 13 {
			t.Errorf("past the end: %d of %d", len(out.Secrets), out.TotalCount)
		}
	}},
	{"pages of versions are newest first and cover all, once each", func(t *suite) {
		t.putUpTo(7)
		var got []upstream.VersionID
		for number := 1; number <= 4; number++ {
			out := t.versions(upstream.ListSecretVersionIDsInput{IncludeDeprecated: true, Page: upstream.Page{Number: number, Size: 3}})
			if out.TotalCount != 7 || out.Page != (upstream.Page{Number: number, Size: 3}) || out.SecretName != app {
				t.Errorf("total %d, page %+v, name %s", out.TotalCount, out.Page, out.SecretName)
			}
			for _, v := range out.Versions {
				got = append(got, v.VersionID)
				if v.CreateTime.IsZero() {
					t.Errorf("%s was never made", v.VersionID)
				}
			}
		}
		if want := []upstream.VersionID{"v7", "v6", "v5", "v4", "v3", "v2", "v1"}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}},
	{"versions without a label are listed only when asked for", func(t *suite) {
		t.putUpTo(3)
		out := t.versions(upstream.ListSecretVersionIDsInput{})
		if len(out.Versions) != 2 || out.TotalCount != 2 || out.Versions[0].VersionID != "v3" || out.Versions[1].VersionID != "v2" {
			t.Errorf("got %+v", out)
		}
		if out.Page != (upstream.Page{Number: 1, Size: 20}) {
			t.Errorf("the default page is %+v", out.Page)
		}
		t.holds("v3 ACSCurrent", "v2 ACSPrevious", "v1")
	}},
	{"a page out of range is refused", func(t *suite) {
		for _, page := range []upstream.Page{{Number: -1}, {Size: -1}, {Size: 101}} {
			t.refused("secrets", only(t.m.ListSecrets(t.Context(), upstream.ListSecretsInput{Page: page})), upstream.ErrInvalidParameter)
			t.refused("versions", only(t.m.ListSecretVersionIDs(t.Context(), upstream.ListSecretVersionIDsInput{SecretName: app, Page: page})), upstream.ErrInvalidParameter)
		}
	}},
	{"a filter selects exact values, one of several, and all filters must match", func(t *suite) {
		for _, s := range []upstream.CreateSecretInput{
			{SecretName: "a", Description: "one", Tags: []upstream.Tag{{Key: "env", Value: "dev"}}},
			{SecretName: "ab", Description: "one", Tags: []upstream.Tag{{Key: "env", Value: "prod"}, {Key: "tier", Value: "web"}}},
			{SecretName: "b", Description: "two", Tags: []upstream.Tag{{Key: "team", Value: "prod"}}},
		} {
			s.VersionID, s.SecretData = "v1", data("x")
			t.ok("create", only(t.m.CreateSecret(t.Context(), s)))
		}
		for _, c := range []struct {
			filters []upstream.Filter
			want    []upstream.SecretName
		}{
			{nil, []upstream.SecretName{"a", "ab", app, "b"}},
			{[]upstream.Filter{{Key: "SecretName", Values: []string{"a"}}}, []upstream.SecretName{"a"}},
			{[]upstream.Filter{{Key: "SecretName", Values: []string{"a", "b", "c"}}}, []upstream.SecretName{"a", "b"}},
			{[]upstream.Filter{{Key: "SecretName", Values: []string{"A"}}}, nil},
			{[]upstream.Filter{{Key: "Description", Values: []string{"one"}}}, []upstream.SecretName{"a", "ab"}},
			{[]upstream.Filter{{Key: "TagKey", Values: []string{"env"}}}, []upstream.SecretName{"a", "ab"}},
			{[]upstream.Filter{{Key: "TagValue", Values: []string{"prod"}}}, []upstream.SecretName{"ab", "b"}},
			{[]upstream.Filter{{Key: "SecretType", Values: []string{"Generic"}}}, []upstream.SecretName{"a", "ab", app, "b"}},
			{[]upstream.Filter{{Key: "SecretType", Values: []string{"Rds"}}}, nil},
			{[]upstream.Filter{{Key: "TagKey", Values: []string{"env"}}, {Key: "TagValue", Values: []string{"prod"}}}, []upstream.SecretName{"ab"}},
			{[]upstream.Filter{{Key: "TagKey", Values: []string{"env"}}, {Key: "TagKey", Values: []string{"tier"}}}, []upstream.SecretName{"ab"}},
			{[]upstream.Filter{{Key: "DKMSInstanceId", Values: []string{"kst-x"}}}, nil},
			{[]upstream.Filter{{Key: "Creator", Values: []string{"me"}}}, nil},
			{[]upstream.Filter{{Key: "SecretName"}}, nil},
			{[]upstream.Filter{{Key: "Description", Values: []string{"one"}}, {Key: "SecretName", Values: []string{"b"}}}, nil},
		} {
			if got := t.names(2, c.filters...); !slices.Equal(got, c.want) {
				t.Errorf("%v: got %v, want %v", c.filters, got, c.want)
			}
		}
	}},
	{"a filter that is malformed is refused", func(t *suite) {
		eleven := slices.Repeat([]string{"x"}, 11)
		for _, filters := range [][]upstream.Filter{
			{{Key: "Colour", Values: []string{"x"}}},
			{{Values: []string{"x"}}},
			{{Key: "SecretName", Values: eleven}},
			slices.Repeat([]upstream.Filter{{Key: "SecretName", Values: []string{"x"}}}, 11),
		} {
			t.refused(fmt.Sprintf("%.60v", filters), only(t.m.ListSecrets(t.Context(), upstream.ListSecretsInput{Filters: filters})), invalid...)
		}
	}},
	{"a list entry describes the secret; tags only when asked for", func(t *suite) {
		t.tag(one, manyTags(1)...)
		for _, fetch := range []bool{false, true} {
			out := t.list(upstream.ListSecretsInput{FetchTags: fetch})
			if len(out.Secrets) != 1 {
				t.Fatalf("got %+v", out)
			}
			s := out.Secrets[0]
			if s.SecretName != app || s.SecretType != upstream.SecretTypeGeneric || s.CreateTime.IsZero() || s.UpdateTime.IsZero() || !s.PlannedDeleteTime.IsZero() {
				t.Errorf("got %+v", s)
			}
			if (len(s.Tags) == 1) != fetch {
				t.Errorf("fetch tags %t: got %v", fetch, s.Tags)
			}
		}
	}},
}
