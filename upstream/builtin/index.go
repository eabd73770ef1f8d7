package builtin

import (
	"cmp"
	"encoding/binary"
	"hash/maphash"
	"iter"
	"math/bits"
	"slices"
	"sort"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/tidwall/btree"

	"secretagent/upstream"
)

// index knows what lists ask about every secret, so that they need not open every record. The
// notices of the storage bring it up to date. No write decides by it.
type index struct {
	mu      sync.Mutex
	secrets *btree.BTreeG[entry] // all, by name
	leaving *btree.BTreeG[entry] // those scheduled for deletion, by time
	tags    tagTable             // of all secrets
	changes uint64               // of all these

	kept    *simplelru.LRU[string, *selection] // :: query → what it selects
	keptFor int                                // how many secrets were gone then
}

// keptSelections is how many filtered lists can be read page by page at the same time without
// another look at all entries.
const keptSelections = 4

// entry is what the index knows of a secret. Of the texts that filters compare it holds hashes
// only, under a seed that this process has drawn: they take less memory, and are no copy of what
// the database keeps sealed.
type entry struct {
	name        upstream.SecretName
	leaves      int64             // when it is purged, in Unix seconds; 0 while it is not scheduled for deletion
	description uint64            // hash
	tags        [inlineTags]tagID // 0 where there is none
	moreTags    string            // further ones, tagIDLen bytes each
}

// inlineTags is how many tags stand in the entry itself. A look at all entries then seldom leads
// to other places in memory, which would cost most of its time.
const inlineTags = 4

// gone is as of a record.
func (e *entry) gone(now int64) bool { return e.leaves != 0 && now >= e.leaves }

// hasOneOf reports whether the secret carries a tag of the set.
func (e *entry) hasOneOf(set tagSet) bool {
	for _, id := range e.tags {
		if set.has(id) {
			return true
		}
	}
	for more := e.moreTags; more != ""; more = more[tagIDLen:] {
		if set.has(firstTagID(more)) {
			return true
		}
	}
	return false
}

// tagID is the number of a tag in the index, from 1.
type tagID uint32

const tagIDLen = 4

func firstTagID(tags string) tagID {
	return tagID(binary.NativeEndian.Uint32([]byte(tags[:tagIDLen])))
}

// tagSums are the hashes of a tag.
type tagSums struct{ key, value uint64 }

// tagTable numbers the tags of all secrets.
type tagTable struct {
	ids  map[tagSums]tagID
	sums []tagSums // :: id → tag
	uses []int     // :: id → how many secrets carry the tag
	free []tagID   // ids of tags that none carries any more
}

// take returns the id of a tag that one more secret carries.
func (t *tagTable) take(tag tagSums) tagID {
	id, ok := t.ids[tag]
	switch {
	case ok:
	case len(t.free) > 0:
		id = t.free[len(t.free)-1]
		t.free = t.free[:len(t.free)-1]
	default:
		id = tagID(len(t.sums))
		t.sums, t.uses = append(t.sums, tag), append(t.uses, 0)
	}
	t.ids[tag], t.sums[id] = id, tag
	t.uses[id]++
	return id
}

// drop notes that one secret fewer carries the tag.
func (t *tagTable) drop(id tagID) {
	if id == 0 {
		return
	}
	if t.uses[id]--; t.uses[id] == 0 {
		delete(t.ids, t.sums[id])
		t.free = append(t.free, id)
	}
}

// dropAll notes that there is no such entry any more.
func (t *tagTable) dropAll(e *entry) {
	for _, id := range e.tags {
		t.drop(id)
	}
	for more := e.moreTags; more != ""; more = more[tagIDLen:] {
		t.drop(firstTagID(more))
	}
}

// where returns the set of the tags for which fn returns true.
func (t *tagTable) where(fn func(tagSums) bool) tagSet {
	set := make(tagSet, len(t.sums)/64+1)
	for id, tag := range t.sums {
		if t.uses[id] > 0 && fn(tag) {
			set[id/64] |= 1 << (id % 64)
		}
	}
	return set
}

// tagSet has a bit for each tag.
type tagSet []uint64

func (s tagSet) has(id tagID) bool { return s[id/64]>>(id%64)&1 != 0 }

func byName(a, b entry) bool { return a.name < b.name }

func newTree(less func(a, b entry) bool) *btree.BTreeG[entry] {
	return btree.NewBTreeGOptions(less, btree.Options{NoLocks: true})
}

func newIndex() *index {
	kept, _ := simplelru.NewLRU[string, *selection](keptSelections, nil) // the size is positive
	return &index{
		secrets: newTree(byName),
		leaving: newTree(func(a, b entry) bool { return cmp.Or(cmp.Compare(a.leaves, b.leaves), cmp.Compare(a.name, b.name)) < 0 }),
		tags:    tagTable{ids: map[tagSums]tagID{}, sums: make([]tagSums, 1), uses: make([]int, 1)}, // 0 is no tag
		kept:    kept,
	}
}

// listed is what a write changes about lists.
type listed struct {
	name        upstream.SecretName
	removed     bool
	leaves      int64  // as of an entry,
	description uint64 // and this
	tags        []tagSums
}

// listedAs returns what lists are to know of a secret.
func listedAs(name upstream.SecretName, r *record) listed {
	l := listed{name: name, leaves: r.plannedDelete, description: sum(r.description)}
	for _, tag := range r.tags {
		l.tags = append(l.tags, tagSums{sum(tag.Key), sum(tag.Value)})
	}
	if r.dkmsInstanceID != "" {
		l.tags = append(l.tags, instanceTag(r.dkmsInstanceID))
	}
	return l
}

// instanceTag is how the index knows the KMS instance of a secret, which few have: as a tag that
// nobody can set or ask for, because of the character in it.
func instanceTag(id string) tagSums { return tagSums{sum("\x00"), sum("\x00" + id)} }

var seed = maphash.MakeSeed()

// sum is the hash of a text that filters compare.
func sum(text string) uint64 { return maphash.String(seed, text) }

// apply brings the index up to date.
func (x *index) apply(changes []listed) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, l := range changes {
		next := entry{name: l.name, leaves: l.leaves, description: l.description}
		var more []byte
		for i, tag := range l.tags {
			if id := x.tags.take(tag); i < inlineTags {
				next.tags[i] = id
			} else {
				more = binary.NativeEndian.AppendUint32(more, uint32(id))
			}
		}
		next.moreTags = string(more)
		var old entry
		if l.removed {
			old, _ = x.secrets.Delete(next)
		} else {
			old, _ = x.secrets.Set(next)
		}
		x.tags.dropAll(&old)
		if old == next {
			continue
		}
		x.changes++
		x.kept.Purge()
		if old.leaves != 0 {
			x.leaving.Delete(old)
		}
		if next.leaves != 0 {
			x.leaving.Set(next)
		}
	}
}

// len returns how many secrets there are, those that wait to be purged included.
func (x *index) len() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.secrets.Len()
}

// due returns the secrets whose deletion window has passed, and when the next one's does; zero:
// none is scheduled.
func (x *index) due(now int64) (gone []upstream.SecretName, next int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.dueLocked(now)
}

// dueLocked is due for who holds mu.
func (x *index) dueLocked(now int64) (gone []upstream.SecretName, next int64) {
	x.leaving.Scan(func(e entry) bool {
		if !e.gone(now) {
			next = e.leaves
			return false
		}
		gone = append(gone, e.name)
		return true
	})
	return gone, next
}

// span returns the names from the first one on and before the last one in the list of all, and
// how many there are.
func (x *index) span(first, last int, now int64) (names []upstream.SecretName, total int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	gone, _ := x.dueLocked(now) // of the same moment as the count of all
	total = x.secrets.Len() - len(gone)
	collect := func(e entry) bool {
		if !e.gone(now) {
			names = append(names, e.name)
		}
		return len(names) < last
	}
	if start, ok := x.secrets.GetAt(first); ok && len(gone) == 0 {
		last -= first
		x.secrets.Ascend(start, collect)
	} else if first < total { // some are gone, for the moment until they are purged
		x.secrets.Scan(collect)
		names = names[min(first, len(names)):]
	}
	return names, total
}

// query tells which secrets a list selects: those that meet every condition.
type query struct {
	id           string // differs from that of any other query without names
	permitted    []string
	names        [][]upstream.SecretName // for each, it has one of these names
	descriptions [][]uint64              // for each, one of these descriptions
	tags         []func(tagSums) bool    // for each, one tag for which it returns true
	none         bool                    // no secret can
}

// selection is what a query selects of the secrets as they were.
type selection struct {
	secrets *btree.BTreeG[entry]
	chosen  []uint64 // :: place in secrets → a bit
	total   int
}

// selected returns what q selects.
func (x *index) selected(q query, now int64) *selection {
	if q.none {
		return &selection{}
	}
	x.mu.Lock()
	gone, _ := x.dueLocked(now)
	if len(gone) != x.keptFor {
		x.kept.Purge()
		x.keptFor = len(gone)
	}
	if kept, ok := x.kept.Get(q.id); ok && len(q.names) == 0 {
		x.mu.Unlock()
		return kept
	}
	sets := make([]tagSet, len(q.tags))
	for i, fn := range q.tags {
		sets[i] = x.tags.where(fn)
	}
	of, changes := x.secrets.Copy(), x.changes // it costs who changes a node meanwhile a copy of that
	x.mu.Unlock()
	if len(q.names) > 0 {
		of = named(of, q.names[0])
	}
	s := &selection{secrets: of, chosen: make([]uint64, of.Len()/64+1)}
	place := 0
	of.Scan(func(e entry) bool {
		if !e.gone(now) && q.selects(&e, sets) {
			s.chosen[place/64] |= 1 << (place % 64)
			s.total++
		}
		place++
		return true
	})
	x.mu.Lock()
	defer x.mu.Unlock()
	if changes == x.changes && len(gone) == x.keptFor && len(q.names) == 0 {
		x.kept.Add(q.id, s)
	}
	return s
}

// named returns those of the secrets that have one of the names.
func named(secrets *btree.BTreeG[entry], names []upstream.SecretName) *btree.BTreeG[entry] {
	found := newTree(byName)
	for _, name := range names {
		if e, ok := secrets.Get(entry{name: name}); ok {
			found.Set(e)
		}
	}
	return found
}

// skip returns the place of the first that is selected after n others.
func (s *selection) skip(n int) (place int) {
	for i, word := range s.chosen {
		if count := bits.OnesCount64(word); n >= count {
			n -= count
			continue
		}
		for ; n > 0; n-- {
			word &= word - 1 // without the lowest bit
		}
		return 64*i + bits.TrailingZeros64(word)
	}
	return 64 * len(s.chosen)
}

// find returns the first place of a name that is not less than the one given.
func (s *selection) find(name upstream.SecretName) (place int) {
	return sort.Search(s.secrets.Len(), func(i int) bool {
		e, _ := s.secrets.GetAt(i)
		return e.name >= name
	})
}

// from yields the names of those that are selected, in order, from a place on.
func (s *selection) from(place int) iter.Seq[upstream.SecretName] {
	return func(yield func(upstream.SecretName) bool) {
		for ; place < 64*len(s.chosen); place++ {
			word := s.chosen[place/64] >> (place % 64)
			if word == 0 {
				place |= 63 // the last one of the word
				continue
			}
			place += bits.TrailingZeros64(word)
			if e, _ := s.secrets.GetAt(place); !yield(e.name) {
				return
			}
		}
	}
}

// selects reports whether an entry meets every condition; sets are those of q.tags.
func (q *query) selects(e *entry, sets []tagSet) bool {
	for _, names := range q.names {
		if !slices.Contains(names, e.name) {
			return false
		}
	}
	for _, sums := range q.descriptions {
		if !slices.Contains(sums, e.description) {
			return false
		}
	}
	for _, set := range sets {
		if !e.hasOneOf(set) {
			return false
		}
	}
	return upstream.Permits(q.permitted, e.name)
}
