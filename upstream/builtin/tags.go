package builtin

import (
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"secretagent/upstream"
)

// Limits of tags.
const (
	maxTags         = 20  // per secret, and per request
	maxTagText      = 128 // characters of a key or a value
	maxTagResources = 50  // secrets per request
	tagRowsPerPage  = 200
)

func tagRune(r rune) bool {
	return unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune(`/\_-.+=:@`, r)
}

func checkTags(tags []upstream.Tag) error {
	if len(tags) > maxTags {
		return upstream.InvalidParameter("Tags", fmt.Sprintf("there are %d, at most %d are allowed", len(tags), maxTags))
	}
	for _, tag := range tags {
		if tag.Key == "" {
			return upstream.InvalidParameter("TagKey", "it is empty")
		}
		if strings.HasPrefix(tag.Key, "aliyun") || strings.HasPrefix(tag.Key, "acs:") {
			return upstream.InvalidParameter("TagKey", "it must not start with aliyun or acs:")
		}
		if err := checkTagText("TagKey", tag.Key); err != nil {
			return err
		}
		if err := checkTagText("TagValue", tag.Value); err != nil {
			return err
		}
	}
	return nil
}

func checkTagText(param, text string) error {
	if n := utf8.RuneCountInString(text); n > maxTagText {
		return upstream.InvalidParameter(param, fmt.Sprintf("it has %d characters, at most %d are allowed", n, maxTagText))
	}
	for i, r := range text {
		if !tagRune(r) {
			return upstream.InvalidParameter(param, fmt.Sprintf(`byte %d is not part of a letter, a digit or one of / \ _ - . + = : @`, i+1))
		}
	}
	return nil
}

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
	if len(merged) > maxTags {
		return nil, limitExceeded("a secret has at most %d tags", maxTags)
	}
	return merged, nil
}

// TagResources sets tags on every named secret; a key that is there is overwritten. When one
// secret cannot be tagged, none is.
func (s *Store) TagResources(ctx context.Context, names []upstream.SecretName, tags []upstream.Tag) error {
	const op = "TagResources"
	err := checkTags(tags)
	if len(tags) == 0 {
		err = upstream.MissingParameter("Tags")
	}
	if err != nil {
		return refer(err, op, firstOf(names))
	}
	tags = slices.Clone(tags)
	return s.retag(ctx, op, names, func(old []upstream.Tag) ([]upstream.Tag, error) { return mergeTags(old, tags) })
}

// UntagResources removes keys, or all tags, from every named secret. A key that is not there
// is no error. When one secret cannot be changed, none is.
func (s *Store) UntagResources(ctx context.Context, in upstream.UntagResourcesInput) error {
	const op = "UntagResources"
	var err error
	switch {
	case len(in.TagKeys) == 0 && !in.All:
		err = upstream.MissingParameter("TagKeys")
	case len(in.TagKeys) > maxTags:
		err = upstream.InvalidParameter("TagKeys", fmt.Sprintf("there are %d, at most %d are allowed", len(in.TagKeys), maxTags))
	default:
		for _, key := range in.TagKeys {
			if key == "" {
				err = upstream.InvalidParameter("TagKeys", "one of them is empty")
			} else if err == nil {
				err = checkTagText("TagKeys", key)
			}
		}
	}
	if err != nil {
		return refer(err, op, firstOf(in.SecretNames))
	}
	keys := slices.Clone(in.TagKeys)
	return s.retag(ctx, op, in.SecretNames, func(old []upstream.Tag) ([]upstream.Tag, error) {
		if len(keys) == 0 {
			return nil, nil
		}
		return slices.DeleteFunc(old, func(t upstream.Tag) bool { return slices.Contains(keys, t.Key) }), nil
	})
}

// retag replaces the tags of all named secrets, or of none.
func (s *Store) retag(ctx context.Context, op string, names []upstream.SecretName, change func([]upstream.Tag) ([]upstream.Tag, error)) error {
	names, err := checkTagResources(names)
	if err == nil && len(names) == 0 {
		err = upstream.MissingParameter("ResourceId")
	}
	if err != nil {
		return refer(err, op, firstOf(names))
	}
	return s.write(ctx, op, firstOf(names), func(t *tx) error {
		records := make([]*record, len(names))
		for i, name := range names {
			r, err := t.live(name)
			if err == nil {
				r.tags, err = change(r.tags)
			}
			if err != nil {
				return refer(err, op, secretRef(name))
			}
			r.updated = t.now
			if t.keys.aead(t.keyFor(r)) == nil {
				return errUnknownKey(t.keyFor(r))
			}
			records[i] = r
		}
		for i, name := range names {
			if err := t.putRecord(name, records[i]); err != nil {
				return err
			}
		}
		return nil
	})
}

// checkTagResources returns the names sorted, each once.
func checkTagResources(names []upstream.SecretName) ([]upstream.SecretName, error) {
	if len(names) > maxTagResources {
		return nil, upstream.InvalidParameter("ResourceId", fmt.Sprintf("there are %d, at most %d are allowed", len(names), maxTagResources))
	}
	for _, name := range names {
		if err := name.Validate(); err != nil {
			return nil, err
		}
	}
	names = slices.Clone(names)
	slices.Sort(names)
	return slices.Compact(names), nil
}

func firstOf(names []upstream.SecretName) upstream.SecretRef {
	if len(names) == 0 {
		return upstream.SecretRef{}
	}
	return secretRef(names[0])
}

// ListTagResources returns one page of 200 tags, a row per secret and key, by name and key.
// With names, only those secrets are looked at, and names that do not exist have no rows. With
// tags, only secrets that carry all of them are, and only the rows of those keys are returned.
//
// A token says where the next page starts; changes between two pages shift nothing else.
func (s *Store) ListTagResources(ctx context.Context, in upstream.ListTagResourcesInput) (upstream.ListTagResourcesOutput, error) {
	const op = "ListTagResources"
	names, err := checkTagResources(in.SecretNames)
	switch {
	case err != nil:
	case len(in.SecretNames) == 0 && len(in.Tags) == 0:
		err = upstream.MissingParameter("ResourceId")
	default:
		err = checkTags(in.Tags)
	}
	var after upstream.TagRow
	if err == nil {
		after, err = parseTagToken(in.NextToken)
	}
	if err != nil {
		return upstream.ListTagResourcesOutput{}, refer(err, op, firstOf(names))
	}
	var out upstream.ListTagResourcesOutput
	collect := func(name upstream.SecretName, r *record) error {
		for _, row := range tagRows(name, r, in.Tags) {
			if in.NextToken != "" && compareRows(row, after) <= 0 {
				continue
			}
			if len(out.Rows) == tagRowsPerPage {
				out.NextToken = tagToken(out.Rows[tagRowsPerPage-1])
				return errPageFull
			}
			out.Rows = append(out.Rows, row)
		}
		return nil
	}
	err = s.view(ctx, op, firstOf(names), func(t *tx) error {
		if len(names) == 0 {
			return t.each(ctx, collect)
		}
		for _, name := range names {
			r, err := t.find(name)
			if err != nil {
				return err
			}
			if r == nil {
				continue
			}
			if err := collect(name, r); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil && out.NextToken == "" {
		return upstream.ListTagResourcesOutput{}, err
	}
	return out, nil
}

// errPageFull ends a walk early.
var errPageFull = &upstream.Error{Message: "the page is full", Err: upstream.ErrInternal}

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
