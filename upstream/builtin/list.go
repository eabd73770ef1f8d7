package builtin

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/tidwall/btree"

	"secretagent/upstream"
)

// ListSecrets returns one page of metadata, by name. Secrets that are scheduled for deletion
// are listed. A filter compares for equality; its values are alternatives, and several filters
// must all match.
//
// A page costs what is on it. The first page with filters or globs costs a look at every secret,
// unless the filter names secrets; the further ones do not, until what lists show has changed.
func (s *Store) ListSecrets(ctx context.Context, in upstream.ListSecretsInput) (upstream.ListSecretsOutput, error) {
	c := call{"ListSecrets", upstream.SecretRef{}, in.Validate()}
	if err := c.begin(ctx); err != nil {
		return upstream.ListSecretsOutput{}, err
	}
	page := in.Page.WithDefaults(10)
	// Before the snapshot: what it shows can then be newer than the names, but not older.
	names := s.index.lookUp(&in, page, s.now())
	return answer(ctx, s.view, c, func(t *tx) (out upstream.ListSecretsOutput, err error) {
		if !names.known {
			if err := names.find(ctx, t, &in, page); err != nil {
				return out, err
			}
			s.index.keep(&in, names)
		}
		out.Page, out.TotalCount = page, names.total
		for _, name := range names.page {
			if err := ctx.Err(); err != nil {
				return out, err
			}
			switch r, err := t.find(name); {
			case err != nil:
				return out, err
			case r != nil: // not removed since
				out.Secrets = append(out.Secrets, metadata(name, r, in.FetchTags))
			}
		}
		return out, nil
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

// index knows the names of all secrets in order, so that a list need not open every record to
// count them. The writer brings it up to date after each commit and before it answers.
type index struct {
	mu      sync.Mutex
	names   btree.Set[upstream.SecretName]
	leaving map[upstream.SecretName]int64            // :: secret scheduled for deletion → when, in Unix seconds
	changes uint64                                   // of anything that a filter looks at
	kept    *simplelru.LRU[string, *selectedSecrets] // :: filters and globs → what they select
}

// keptSelections is how many filtered lists can be read page by page at the same time without
// looking at every secret again.
const keptSelections = 4

// listed is what a write changes about lists.
type listed struct {
	name      upstream.SecretName
	removed   bool
	described bool  // only what filters look at
	leaves    int64 // Unix seconds; 0 while it is not scheduled for deletion
}

// apply brings the index up to date.
func (x *index) apply(changes []listed) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.kept == nil {
		x.kept, _ = simplelru.NewLRU[string, *selectedSecrets](keptSelections, nil) // the size is positive
		x.leaving = map[upstream.SecretName]int64{}
	}
	before := x.changes
	for _, l := range changes {
		switch {
		case l.described:
			x.changes++
		case l.removed:
			x.changes++
			x.names.Delete(l.name)
			delete(x.leaving, l.name)
		case !x.names.Contains(l.name) || x.leaving[l.name] != l.leaves:
			x.changes++
			x.names.Insert(l.name)
			if delete(x.leaving, l.name); l.leaves != 0 {
				x.leaving[l.name] = l.leaves
			}
		}
	}
	if x.changes != before {
		x.kept.Purge()
	}
}

// selectedSecrets are the secrets that a list shows.
type selectedSecrets struct {
	known bool // total and page are
	total int
	page  []upstream.SecretName

	// For those that are selected by filters or globs.
	all     []upstream.SecretName
	changes uint64 // of the index when the look at every secret began
	gone    int    // secrets that were gone and not purged yet
}

// lookUp returns what a list is to show, as far as it is known without a look at records.
func (x *index) lookUp(in *upstream.ListSecretsInput, page upstream.Page, now int64) *selectedSecrets {
	x.mu.Lock()
	defer x.mu.Unlock()
	out := &selectedSecrets{changes: x.changes}
	for _, at := range x.leaving {
		if now >= at {
			out.gone++
		}
	}
	if len(in.Filters) > 0 || in.Permitted != nil {
		if kept, ok := x.kept.Get(selection(in)); ok && kept.gone == out.gone {
			out.cut(kept.all, page)
		}
		return out
	}
	out.known, out.total = true, x.names.Len()-out.gone
	first, last := page.Span()
	if first >= out.total {
		return out
	}
	collect := func(name upstream.SecretName) bool {
		if at := x.leaving[name]; at != 0 && now >= at {
			return true
		}
		if first > 0 {
			first--
			last--
			return true
		}
		out.page = append(out.page, name)
		return len(out.page) < last
	}
	if out.gone > 0 { // for the moment until they are purged
		x.names.Scan(collect)
		return out
	}
	start, _ := x.names.GetAt(first)
	first, last = 0, last-first
	x.names.Ascend(start, collect)
	return out
}

// find looks at the records for what in selects.
func (l *selectedSecrets) find(ctx context.Context, t *tx, in *upstream.ListSecretsInput, page upstream.Page) error {
	var named []upstream.SecretName // nil: the filters name none
	for _, f := range in.Filters {
		if f.Key == "SecretName" {
			for _, v := range f.Values {
				named = append(named, upstream.SecretName(v))
			}
		}
	}
	var all []upstream.SecretName
	err := t.eachOf(ctx, named, "", func(name upstream.SecretName, r *record) error {
		if upstream.Permits(in.Permitted, name) && matches(in.Filters, name, r) {
			all = append(all, name)
		}
		return nil
	})
	l.cut(all, page)
	return err
}

// cut makes page the names of one page of all.
func (l *selectedSecrets) cut(all []upstream.SecretName, page upstream.Page) {
	first, last := page.Span()
	l.known, l.all, l.total = true, all, len(all)
	l.page = all[min(first, len(all)):min(last, len(all))]
}

// keep remembers what in selects, unless that may have changed since.
func (x *index) keep(in *upstream.ListSecretsInput, found *selectedSecrets) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if found.changes == x.changes {
		x.kept.Add(selection(in), found)
	}
}

// selection is what a list depends on besides its page. Nil globs are not the same as none.
func selection(in *upstream.ListSecretsInput) string {
	return fmt.Sprintf("%#v %#v", in.Filters, in.Permitted)
}
