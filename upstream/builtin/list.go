package builtin

import (
	"context"
	"fmt"
	"slices"
	"unicode/utf8"

	"secretagent/upstream"
)

// Limits of lists and filters.
const (
	maxPageSize     = 100
	maxFilters      = 10
	maxFilterValues = 10
	maxFilterValue  = 256 // characters
)

// ListSecrets returns one page of metadata, by name. Secrets that are scheduled for deletion
// are listed. A filter compares for equality; its values are alternatives, and several filters
// must all match.
func (s *Store) ListSecrets(ctx context.Context, in upstream.ListSecretsInput) (upstream.ListSecretsOutput, error) {
	const op = "ListSecrets"
	page, err := checkPage(in.Page, 10)
	if err == nil {
		err = checkFilters(in.Filters)
	}
	if err != nil {
		return upstream.ListSecretsOutput{}, refer(err, op, upstream.SecretRef{})
	}
	out := upstream.ListSecretsOutput{Page: page}
	first, last := pageSpan(page)
	err = s.view(ctx, op, upstream.SecretRef{}, func(t *tx) error {
		return t.each(ctx, func(name upstream.SecretName, r *record) error {
			if !matches(in.Filters, name, r) {
				return nil
			}
			if out.TotalCount >= first && out.TotalCount < last {
				out.Secrets = append(out.Secrets, s.metadata(name, r, in.FetchTags))
			}
			out.TotalCount++
			return nil
		})
	})
	if err != nil {
		return upstream.ListSecretsOutput{}, err
	}
	return out, nil
}

// checkPage fills the defaults of a page in.
func checkPage(page upstream.Page, defaultSize int) (upstream.Page, error) {
	if page.Number == 0 {
		page.Number = 1
	}
	if page.Size == 0 {
		page.Size = defaultSize
	}
	if page.Number < 1 {
		return page, upstream.InvalidParameter("PageNumber", "pages are counted from 1")
	}
	if page.Size < 1 || page.Size > maxPageSize {
		return page, upstream.InvalidParameter("PageSize", fmt.Sprintf("%d is not in the range 1 to %d", page.Size, maxPageSize))
	}
	return page, nil
}

// onPage returns the elements of all that are on the page.
func onPage[T any](all []T, page upstream.Page) []T {
	first, last := pageSpan(page)
	return all[min(first, len(all)):min(last, len(all))]
}

// pageSpan returns the indexes of the first element on the page and of the first one behind
// it. Pages too far out to be counted are empty.
func pageSpan(page upstream.Page) (first, last int) {
	const most = 1 << 31
	if page.Number > most/maxPageSize {
		return most, most
	}
	return (page.Number - 1) * page.Size, page.Number * page.Size
}

// filterValue says for each filter key which characters its values have, and how many.
var filterValue = map[string]struct {
	limit   int
	allowed func(rune) bool
}{
	"SecretName":     {upstream.MaxSecretNameLen, nameRune},
	"Description":    {maxFilterValue, nil},
	"TagKey":         {maxFilterValue, tagRune},
	"TagValue":       {maxFilterValue, tagRune},
	"DKMSInstanceId": {maxFilterValue, nil},
	"SecretType":     {maxFilterValue, nil},
	"Creator":        {maxFilterValue, nil},
}

func nameRune(r rune) bool { return upstream.SecretName(string(r)).Validate() == nil }

func checkFilters(filters []upstream.Filter) error {
	if len(filters) > maxFilters {
		return upstream.InvalidParameter("Filters", fmt.Sprintf("there are %d, at most %d are allowed", len(filters), maxFilters))
	}
	for _, f := range filters {
		rule, ok := filterValue[f.Key]
		if !ok {
			return upstream.InvalidParameter("Filters", "a Key must be SecretName, Description, TagKey, TagValue, DKMSInstanceId, SecretType or Creator")
		}
		if len(f.Values) > maxFilterValues {
			return upstream.InvalidParameter("Filters", fmt.Sprintf("%s has %d values, at most %d are allowed", f.Key, len(f.Values), maxFilterValues))
		}
		for _, v := range f.Values {
			if n := utf8.RuneCountInString(v); n < 1 || n > rule.limit {
				return upstream.InvalidParameter("Filters", fmt.Sprintf("a value of %s has %d characters; 1 to %d are allowed", f.Key, n, rule.limit))
			}
			for _, r := range v {
				if rule.allowed != nil && !rule.allowed(r) {
					return upstream.InvalidParameter("Filters", fmt.Sprintf("a value of %s has a character that none can have", f.Key))
				}
			}
		}
	}
	return nil
}

// matches reports whether a secret passes every filter.
func matches(filters []upstream.Filter, name upstream.SecretName, r *record) bool {
	for _, f := range filters {
		has := func(value string) bool { return slices.Contains(f.Values, value) }
		var ok bool
		switch f.Key {
		case "SecretName":
			ok = has(string(name))
		case "Description":
			ok = has(r.description)
		case "SecretType":
			ok = has(upstream.SecretTypeGeneric)
		case "TagKey":
			ok = slices.ContainsFunc(r.tags, func(t upstream.Tag) bool { return has(t.Key) })
		case "TagValue":
			ok = slices.ContainsFunc(r.tags, func(t upstream.Tag) bool { return has(t.Value) })
		default: // DKMSInstanceId, Creator: no secret here has one
		}
		if !ok {
			return false
		}
	}
	return true
}
