package builtin

import (
	"context"
	"fmt"
	"slices"

	"secretagent/upstream"
)

// ListSecrets returns one page of metadata, by name. Secrets that are scheduled for deletion
// are listed. A filter compares for equality; its values are alternatives, and several filters
// must all match.
//
// It opens the records of what is on the page and no others. The first page of filters or globs
// takes a look at the index of all secrets, unless a filter names secrets; the further ones do
// not, until what lists show has changed.
func (s *Store) ListSecrets(ctx context.Context, in upstream.ListSecretsInput) (upstream.ListSecretsOutput, error) {
	c := call{"ListSecrets", upstream.SecretRef{}, in.Validate()}
	if err := c.begin(ctx); err != nil {
		return upstream.ListSecretsOutput{}, err
	}
	if err := s.catchUp(ctx); err != nil {
		return upstream.ListSecretsOutput{}, c.refer(err)
	}
	page := in.Page.WithDefaults(10)
	// Before the snapshot: what it shows can then be newer than the names, but not older.
	names, total := s.index.page(&in, page, s.now())
	return answer(ctx, s.view, c, func(t *tx) (upstream.ListSecretsOutput, error) {
		out := upstream.ListSecretsOutput{Page: page, TotalCount: total}
		err := t.eachOf(ctx, slices.Values(names), func(name upstream.SecretName, r *record) error {
			out.Secrets = append(out.Secrets, metadata(name, r, in.FetchTags))
			return nil
		})
		return out, err
	})
}

// page returns the names on a page of a list, and how many there are on all pages.
func (x *index) page(in *upstream.ListSecretsInput, page upstream.Page, now int64) (names []upstream.SecretName, total int) {
	first, last := page.Span()
	if len(in.Filters) == 0 && in.Permitted == nil {
		return x.span(first, last, now)
	}
	q := query{
		id:        fmt.Sprintf("%#v %#v", in.Filters, in.Permitted), // nil globs are not the same as none
		permitted: in.Permitted,
	}
	for _, f := range in.Filters {
		q.filter(f)
	}
	s := x.selected(q, now)
	for name := range s.from(s.skip(first)) {
		if names = append(names, name); len(names) == last-first {
			break
		}
	}
	return names, s.total
}

// filter adds a condition: one of the values of f.
func (q *query) filter(f upstream.Filter) {
	sums := make([]uint64, len(f.Values))
	for i, v := range f.Values {
		sums[i] = sum(v)
	}
	switch f.Key {
	case "SecretName":
		names := make([]upstream.SecretName, len(f.Values))
		for i, v := range f.Values {
			names[i] = upstream.SecretName(v)
		}
		q.names = append(q.names, sortedNames(names))
	case "Description":
		q.descriptions = append(q.descriptions, sums)
	case "TagKey":
		q.tags = append(q.tags, func(t tagSums) bool { return slices.Contains(sums, t.key) })
	case "TagValue":
		q.tags = append(q.tags, func(t tagSums) bool { return slices.Contains(sums, t.value) })
	case "SecretType":
		q.none = q.none || !slices.Contains(f.Values, upstream.SecretTypeGeneric)
	case "DKMSInstanceId":
		for i, v := range f.Values {
			sums[i] = instanceTag(v).value
		}
		q.tags = append(q.tags, func(t tagSums) bool { return slices.Contains(sums, t.value) })
	default: // Creator: no secret here has one
		q.none = true
	}
}

// tagged returns the secrets whose tags a list may show. Whether those that the list
// names carry the tags, their records tell.
func (x *index) tagged(in *upstream.ListTagResourcesInput, now int64) *selection {
	q := query{id: fmt.Sprintf("tags %#v %#v", in.Tags, in.Permitted), permitted: in.Permitted}
	if len(in.SecretNames) > 0 {
		q.names = [][]upstream.SecretName{sortedNames(in.SecretNames)}
		return x.selected(q, now)
	}
	for _, w := range in.Tags {
		key, value := sum(w.Key), sum(w.Value)
		q.tags = append(q.tags, func(t tagSums) bool { return t.key == key && (t.value == value || w.Value == "") })
	}
	return x.selected(q, now)
}
