package builtin

import (
	"context"
	"slices"

	"secretagent/upstream"
)

// ListSecrets returns one page of metadata, by name. Secrets that are scheduled for deletion
// are listed. A filter compares for equality; its values are alternatives, and several filters
// must all match.
func (s *Store) ListSecrets(ctx context.Context, in upstream.ListSecretsInput) (upstream.ListSecretsOutput, error) {
	return answer(ctx, s.view, call{"ListSecrets", upstream.SecretRef{}, in.Validate()}, func(t *tx) (out upstream.ListSecretsOutput, err error) {
		out.Page = in.Page.WithDefaults(10)
		first, last := out.Page.Span()
		err = t.each(ctx, func(name upstream.SecretName, r *record) error {
			if !matches(in.Filters, name, r) {
				return nil
			}
			if out.TotalCount >= first && out.TotalCount < last {
				out.Secrets = append(out.Secrets, metadata(name, r, in.FetchTags))
			}
			out.TotalCount++
			return nil
		})
		return out, err
	})
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
