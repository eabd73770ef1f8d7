package upstreamtest

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"secretagent/upstream"
)

func manyTags(n int) []upstream.Tag {
	var tags []upstream.Tag
	for i := range n {
		tags = append(tags, upstream.Tag{Key: fmt.Sprintf("k%02d", i), Value: fmt.Sprintf("v%02d", i)})
	}
	return tags
}

// tagged checks the tags of one secret, which are given by key.
func (t *suite) tagged(name upstream.SecretName, want ...upstream.Tag) {
	t.Helper()
	if got := t.describe(name).Tags; !slices.Equal(got, want) {
		t.Errorf("the tags of %s are %v, want %v", name, got, want)
	}
}

// untag removes tags with these keys, or all, from secrets.
func (t *suite) untag(names []upstream.SecretName, all bool, keys ...string) {
	t.Helper()
	t.ok("untag", t.m.UntagResources(t.Context(), upstream.UntagResourcesInput{SecretNames: names, TagKeys: keys, All: all}))
}

// rows returns all rows through all pages, sorted.
func (t *suite) rows(in upstream.ListTagResourcesInput) []upstream.TagRow {
	t.Helper()
	var rows []upstream.TagRow
	for range 100 {
		out, err := t.m.ListTagResources(t.Context(), in)
		t.ok("list tags", err)
		rows = append(rows, out.Rows...)
		if in.NextToken = out.NextToken; in.NextToken == "" {
			break
		}
	}
	slices.SortFunc(rows, func(a, b upstream.TagRow) int {
		return cmp.Or(cmp.Compare(a.SecretName, b.SecretName), cmp.Compare(a.Tag.Key, b.Tag.Key))
	})
	return rows
}

var taggingPromises = []promise{
	{"tags are added, overwritten and removed, and described only when asked for", func(t *suite) {
		t.tag(one, upstream.Tag{Key: "env", Value: "dev"}, upstream.Tag{Key: "tier", Value: "web"})
		t.tag(one, upstream.Tag{Key: "env", Value: "prod"}, upstream.Tag{Key: "empty"})
		t.tagged(app, upstream.Tag{Key: "empty"}, upstream.Tag{Key: "env", Value: "prod"}, upstream.Tag{Key: "tier", Value: "web"})
		if meta, err := t.m.DescribeSecret(t.Context(), app, false); err != nil || len(meta.Tags) != 0 {
			t.Errorf("not asked for: %v, %v", meta.Tags, err)
		}
		t.untag(one, false, "tier", "never-there")
		t.tagged(app, upstream.Tag{Key: "empty"}, upstream.Tag{Key: "env", Value: "prod"})
	}},
	{"several secrets are tagged and untagged at once", func(t *suite) {
		t.create("a")
		t.create("b")
		ab, tags := []upstream.SecretName{"a", "b"}, manyTags(2)
		t.tag(ab, tags...)
		for _, want := range [][]upstream.Tag{tags, tags[1:]} {
			t.tagged("a", want...)
			t.tagged("b", want...)
			t.tagged(app)
			t.untag(ab, false, "k00")
		}
	}},
	{"all tags go with All, which counts only without keys", func(t *suite) {
		t.tag(one, manyTags(3)...)
		t.untag(one, true, "k00")
		t.tagged(app, manyTags(3)[1:]...)
		t.untag(one, true)
		t.tagged(app)
	}},
	{"a secret has at most twenty tags", func(t *suite) {
		t.tag(one, manyTags(upstream.MaxTags)...)
		t.refused("one more", t.m.TagResources(t.Context(), one, []upstream.Tag{{Key: "extra"}}), tooMuch...)
		t.tag(one, manyTags(upstream.MaxTags)...)
		t.tagged(app, manyTags(upstream.MaxTags)...)
		t.refused("more than twenty at once", t.m.TagResources(t.Context(), one, manyTags(upstream.MaxTags+1)), tooMuch...)
	}},
	{"keys and values are bounded and the service's own keys reserved", func(t *suite) {
		long, odd := strings.Repeat("t", upstream.MaxTagLen), `Az09/\_-.+=:@`
		t.tag(one, upstream.Tag{Key: long, Value: odd}, upstream.Tag{Key: odd, Value: long})
		for _, tag := range []upstream.Tag{
			{Key: long + "t"}, {Key: "k", Value: long + "t"}, {Value: "no key"}, {Key: "a b"}, {Key: "k", Value: "a,b"},
			{Key: "aliyun-mine"}, {Key: "acs:mine"},
		} {
			t.refused(fmt.Sprintf("%.20q", tag), t.m.TagResources(t.Context(), one, []upstream.Tag{tag}), invalid...)
		}
		t.tagged(app, upstream.Tag{Key: odd, Value: long}, upstream.Tag{Key: long, Value: odd})
	}},
	{"an unknown secret is not found and no other is changed", func(t *suite) {
		both := []upstream.SecretName{app, missing}
		t.refused("tag", t.m.TagResources(t.Context(), both, manyTags(1)), upstream.ErrNotFound)
		t.tagged(app)
		t.tag(one, manyTags(1)...)
		t.refused("untag", t.m.UntagResources(t.Context(), upstream.UntagResourcesInput{SecretNames: both, All: true}), upstream.ErrNotFound)
		t.tagged(app, manyTags(1)...)
	}},
	{"a request that names nothing is refused", func(t *suite) {
		t.refused("no secret", t.m.TagResources(t.Context(), nil, manyTags(1)), invalid...)
		t.refused("no tag", t.m.TagResources(t.Context(), one, nil), invalid...)
		t.refused("untag no secret", t.m.UntagResources(t.Context(), upstream.UntagResourcesInput{TagKeys: []string{"k"}}), invalid...)
		t.refused("untag no key", t.m.UntagResources(t.Context(), upstream.UntagResourcesInput{SecretNames: one}), invalid...)
		t.refused("list", only(t.m.ListTagResources(t.Context(), upstream.ListTagResourcesInput{})), invalid...)
	}},
	{"more than fifty secrets in one request are refused", func(t *suite) {
		names := manyNames(upstream.MaxTagSecrets + 1)
		t.refused("tag", t.m.TagResources(t.Context(), names, manyTags(1)), tooMuch...)
		t.refused("list", only(t.m.ListTagResources(t.Context(), upstream.ListTagResourcesInput{SecretNames: names})), tooMuch...)
	}},
	{"tags are listed by secret, by tag and by both", func(t *suite) {
		t.create("a")
		t.create("b")
		t.tag([]upstream.SecretName{"a"}, upstream.Tag{Key: "env", Value: "dev"}, upstream.Tag{Key: "tier", Value: "web"})
		t.tag([]upstream.SecretName{"b"}, upstream.Tag{Key: "env", Value: "prod"})
		aEnv := upstream.TagRow{SecretName: "a", Tag: upstream.Tag{Key: "env", Value: "dev"}}
		aTier := upstream.TagRow{SecretName: "a", Tag: upstream.Tag{Key: "tier", Value: "web"}}
		bEnv := upstream.TagRow{SecretName: "b", Tag: upstream.Tag{Key: "env", Value: "prod"}}
		if got := t.rows(upstream.ListTagResourcesInput{SecretNames: []upstream.SecretName{"a"}}); !slices.Equal(got, []upstream.TagRow{aEnv, aTier}) {
			t.Errorf("by secret: %v", got)
		}
		if got := t.rows(upstream.ListTagResourcesInput{SecretNames: []upstream.SecretName{"a", "b"}}); !slices.Equal(got, []upstream.TagRow{aEnv, aTier, bEnv}) {
			t.Errorf("by secrets: %v", got)
		}
		// Whether the other tags of a match are listed as well is the backend's choice.
		for _, c := range []struct {
			in      upstream.ListTagResourcesInput
			has, no upstream.TagRow
		}{
			{upstream.ListTagResourcesInput{Tags: []upstream.Tag{{Key: "env", Value: "dev"}}}, aEnv, bEnv},
			{upstream.ListTagResourcesInput{Tags: []upstream.Tag{{Key: "tier"}}}, aTier, bEnv},
			{upstream.ListTagResourcesInput{SecretNames: []upstream.SecretName{"b"}, Tags: []upstream.Tag{{Key: "env"}}}, bEnv, aEnv},
		} {
			if got := t.rows(c.in); !slices.Contains(got, c.has) || slices.Contains(got, c.no) {
				t.Errorf("%v: got %v, want %v and not %v", c.in, got, c.has, c.no)
			}
		}
		if got := t.rows(upstream.ListTagResourcesInput{Tags: []upstream.Tag{{Key: "env", Value: "never"}}}); len(got) != 0 {
			t.Errorf("by a value that nobody has: %v", got)
		}
	}},
	{"pages of tags cover all, once each", func(t *suite) {
		names := t.createMany(11)
		t.tag(names, manyTags(upstream.MaxTags)...)
		first, err := t.m.ListTagResources(t.Context(), upstream.ListTagResourcesInput{SecretNames: names})
		t.ok("list", err)
		if len(first.Rows) != upstream.TagRowsPerPage || first.NextToken == "" {
			t.Errorf("the first page holds %d rows, next token %q", len(first.Rows), first.NextToken)
		}
		rows := t.rows(upstream.ListTagResourcesInput{SecretNames: names})
		if total := len(rows); total != 11*upstream.MaxTags || len(slices.Compact(rows)) != total {
			t.Errorf("%d rows, %d of them different", total, len(slices.Compact(rows)))
		}
		t.refused("a made-up token", only(t.m.ListTagResources(t.Context(), upstream.ListTagResourcesInput{SecretNames: names, NextToken: "never given out"})), upstream.ErrInvalidParameter)
	}},
}
