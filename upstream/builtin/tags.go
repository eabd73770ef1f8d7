package builtin

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"slices"
	"strings"

	"secretagent/upstream"
)

// mergeTags returns old with tags set, sorted by key. A key that is there is overwritten; the
// last one wins.
func mergeTags(old, tags []upstream.Tag) ([]upstream.Tag, error) {
	merged := slices.Clone(old)
	for _, tag := range tags {
		i, found := slices.BinarySearchFunc(merged, tag.Key, func(t upstream.Tag, key string) int { return cmp.Compare(t.Key, key) })
		if found {
			merged[i] = tag
		} else {
			merged = slices.Insert(merged, i, tag)
		}
	}
	if len(merged) > upstream.MaxTags {
		return nil, Errorf(upstream.ErrLimitExceeded, "a secret has at most %d tags", upstream.MaxTags)
	}
	return merged, nil
}

// TagResources sets tags on every named secret; a key that is there is overwritten. When one
// secret cannot be tagged, none is.
func (s *Store) TagResources(ctx context.Context, names []upstream.SecretName, tags []upstream.Tag) error {
	c := call{"TagResources", firstOf(names), upstream.ValidateTagResources(names, tags)}
	tags = slices.Clone(tags)
	return s.retag(ctx, c, names, func(old []upstream.Tag) ([]upstream.Tag, error) { return mergeTags(old, tags) })
}

// UntagResources removes keys, or all tags, from every named secret. A key that is not there
// is no error. When one secret cannot be changed, none is.
func (s *Store) UntagResources(ctx context.Context, in upstream.UntagResourcesInput) error {
	c := call{"UntagResources", firstOf(in.SecretNames), in.Validate()}
	keys := slices.Clone(in.TagKeys)
	return s.retag(ctx, c, in.SecretNames, func(old []upstream.Tag) ([]upstream.Tag, error) {
		return slices.DeleteFunc(old, func(t upstream.Tag) bool { return len(keys) == 0 || slices.Contains(keys, t.Key) }), nil
	})
}

// retag replaces the tags of all named secrets, or of none.
func (s *Store) retag(ctx context.Context, c call, names []upstream.SecretName, change func([]upstream.Tag) ([]upstream.Tag, error)) error {
	names = sortedNames(names)
	return s.write(ctx, c, func(t *tx) error {
		records := make([]*record, len(names))
		for i, name := range names {
			r, err := t.live(name)
			if err == nil {
				r.tags, err = change(r.tags)
			}
			if err != nil {
				return refer(err, c.op, secretRef(name))
			}
			r.updated, records[i] = t.now, r
		}
		for i, name := range names {
			if err := t.putRecord(name, records[i]); err != nil {
				return err
			}
		}
		return nil
	})
}

// sortedNames returns the names in order, each once.
func sortedNames(names []upstream.SecretName) []upstream.SecretName {
	return slices.Compact(slices.Sorted(slices.Values(names)))
}

func firstOf(names []upstream.SecretName) upstream.SecretRef {
	if len(names) == 0 {
		return upstream.SecretRef{}
	}
	return secretRef(names[0])
}

// errPageFull ends a walk early.
var errPageFull = errors.New("the page is full")

// ListTagResources returns one page of 200 tags, a row per secret and key, by name and key.
// With names, only those secrets are looked at, and names that do not exist have no rows. With
// tags, only secrets that carry all of them are, and only the rows of those keys are returned.
//
// A token says where the next page starts; changes between two pages shift nothing else.
func (s *Store) ListTagResources(ctx context.Context, in upstream.ListTagResourcesInput) (upstream.ListTagResourcesOutput, error) {
	after, err := parseTagToken(in.NextToken)
	c := call{"ListTagResources", firstOf(in.SecretNames), cmp.Or(in.Validate(), err)}
	if err := c.begin(ctx); err != nil {
		return upstream.ListTagResourcesOutput{}, err
	}
	if err := s.catchUp(ctx); err != nil {
		return upstream.ListTagResourcesOutput{}, c.refer(err)
	}
	tagged := s.index.tagged(&in, s.now())
	return answer(ctx, s.view, c, func(t *tx) (out upstream.ListTagResourcesOutput, err error) {
		err = t.eachOf(ctx, tagged.from(tagged.find(after.SecretName)), func(name upstream.SecretName, r *record) error {
			for _, row := range tagRows(name, r, in.Tags) {
				switch {
				case in.NextToken != "" && compareRows(row, after) <= 0:
				case len(out.Rows) == upstream.TagRowsPerPage:
					out.NextToken = tagToken(out.Rows[len(out.Rows)-1])
					return errPageFull
				default:
					out.Rows = append(out.Rows, row)
				}
			}
			return nil
		})
		if err == errPageFull {
			err = nil
		}
		return out, err
	})
}

// tagRows returns the rows of a secret: those of the wanted keys when it carries every wanted
// tag, all of them when none is wanted.
func tagRows(name upstream.SecretName, r *record, wanted []upstream.Tag) []upstream.TagRow {
	carries := func(w upstream.Tag) bool {
		return slices.ContainsFunc(r.tags, func(t upstream.Tag) bool { return t.Key == w.Key && (w.Value == "" || t.Value == w.Value) })
	}
	for _, w := range wanted {
		if !carries(w) {
			return nil
		}
	}
	var rows []upstream.TagRow
	for _, tag := range r.tags {
		if len(wanted) == 0 || slices.ContainsFunc(wanted, func(w upstream.Tag) bool { return w.Key == tag.Key }) {
			rows = append(rows, upstream.TagRow{SecretName: name, Tag: tag})
		}
	}
	return rows
}

func compareRows(a, b upstream.TagRow) int {
	return cmp.Or(cmp.Compare(a.SecretName, b.SecretName), cmp.Compare(a.Tag.Key, b.Tag.Key))
}

// A token names the last row of the page before: neither part can contain the separator.
func tagToken(last upstream.TagRow) string {
	return base64.RawURLEncoding.EncodeToString([]byte(string(last.SecretName) + "\x00" + last.Tag.Key))
}

func parseTagToken(token string) (upstream.TagRow, error) {
	if token == "" {
		return upstream.TagRow{}, nil
	}
	text, err := base64.RawURLEncoding.DecodeString(token)
	name, key, ok := strings.Cut(string(text), "\x00")
	if err != nil || !ok || upstream.SecretName(name).Validate() != nil {
		return upstream.TagRow{}, upstream.InvalidParameter("NextToken", "it is not one that ListTagResources has returned")
	}
	return upstream.TagRow{SecretName: upstream.SecretName(name), Tag: upstream.Tag{Key: key}}, nil
}
