package cache

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"math"
	"slices"
	"time"

	"secretagent/upstream"
)

// record is one value in the sealed file. Before it is sealed it is
//
//	length of the JSON, JSON of record, secret data
//
// The data stay out of the JSON, whose encoder keeps copies in buffers that cannot be
// overwritten.
type record struct {
	Ref       upstream.SecretRef
	FetchedAt time.Time // wall clock

	// The interval in which the value is known to have been the same; see entry. Ticks go
	// on counting from one run to the next.
	Since, Confirmed uint64

	Value upstream.SecretValue // its data encode as a placeholder
}

// plain returns r as it is sealed, or nil when it takes more than limit bytes or cannot be
// encoded. The caller overwrites it.
func (r *record) plain(limit int64) []byte {
	data := r.Value.SecretData.Reveal()
	if int64(len(data)) > limit {
		return nil
	}
	meta := *r
	meta.Value.SecretData = upstream.SecretData{}
	text, err := json.Marshal(&meta)
	if err != nil {
		return nil
	}
	plain := make([]byte, 0, 4+len(text)+len(data))
	plain = binary.BigEndian.AppendUint32(plain, uint32(len(text)))
	return append(append(plain, text...), data...)
}

// parseRecord undoes plain, which it overwrites. It returns nil for what is no record.
func parseRecord(plain []byte) *record {
	defer clear(plain)
	if len(plain) < 4 {
		return nil
	}
	n, rest := uint64(binary.BigEndian.Uint32(plain)), plain[4:]
	if n > uint64(len(rest)) {
		return nil
	}
	var r struct {
		record
		Value struct {
			upstream.SecretValue
			SecretData any // outweighs the embedded one, which does not decode
		}
	}
	if json.Unmarshal(rest[:n], &r) != nil {
		return nil
	}
	r.record.Value = r.Value.SecretValue
	r.record.Value.SecretData = upstream.NewSecretData(rest[n:])
	return &r.record
}

// endRecord returns the last record, with the number of those before it.
func endRecord(count int) []byte {
	return binary.BigEndian.AppendUint64(make([]byte, 4, 12), uint64(count))
}

// isEnd undoes endRecord. The JSON of no other record is empty.
func isEnd(plain []byte) (count int, ok bool) {
	if len(plain) != 12 || binary.BigEndian.Uint32(plain) != 0 {
		return 0, false
	}
	return int(binary.BigEndian.Uint64(plain[4:])), true
}

// associatedData ties a record to its file and its place in it.
func associatedData(header []byte, index int) []byte {
	return binary.BigEndian.AppendUint64(slices.Clone(header), uint64(index))
}

// loadSealed puts what the sealed file holds into an empty cache. None of it is fresh: it
// has to be confirmed, or is served stale while the upstream cannot answer.
func (c *Cache) loadSealed() {
	if c.sealed == nil {
		return
	}
	c.sealed.content = c.records
	c.sealed.load(c.restore)
	c.evict()
}

// restore makes the value of r that of its entry. It reports false when it may not be served.
func (c *Cache) restore(r *record) bool {
	limits := c.limits.Load()
	if limits.MaxStale == Never || time.Since(r.FetchedAt) > limits.MaxStale || time.Until(r.FetchedAt) > clockSkew ||
		r.Ref.Validate() != nil || r.Ref != r.Ref.WithDefaults() {
		return false
	}
	sh := c.lock(r.Ref.SecretName)
	defer sh.unlock()
	e := sh.obtain(r.Ref)
	r.Value.SecretName = sharedName(r.Value.SecretName, e.ref.SecretName)
	e.value, e.derived = &r.Value, new(upstream.Derived)
	// The monotonic clock counts on from here: a clock that is set back later makes nothing younger.
	now := time.Now()
	e.fetchedAt, e.since, e.confirmed = now.Add(r.FetchedAt.Sub(now)), r.Since, r.Confirmed
	e.sealed, e.sealedAt = true, c.at(r.FetchedAt)
	if sh.oversize(e) {
		e.clear()
		return true // a smaller bound is no damage
	}
	sh.rehome(e)
	c.sealed.st.Loaded++
	e.used = int64(-c.sealed.st.Loaded) // in the order of the file
	c.tick.Store(max(c.tick.Load(), r.Confirmed))
	if r.Since != unproven {
		c.tick.Store(max(c.tick.Load(), r.Since))
	}
	return true
}

// records calls yield with everything that belongs in the sealed file, until it has enough:
// first what is declared or subscribed to, then what was used last. No lock is held meanwhile.
func (c *Cache) records(yield func(*record) bool) {
	type candidate struct {
		e    *entry
		used int64
	}
	var all []candidate
	for _, s := range c.shards {
		sh := s.lock()
		sh.each(func(e *entry) {
			switch {
			case e.value == nil:
			case e.keep() == keptAlways:
				all = append(all, candidate{e, math.MaxInt64})
			default:
				all = append(all, candidate{e, e.used})
			}
		})
		sh.unlock()
	}
	slices.SortFunc(all, func(a, b candidate) int { return cmp.Compare(b.used, a.used) })
	for _, one := range all {
		sh := c.lock(one.e.ref.SecretName)
		r := sh.record(one.e)
		sh.unlock()
		if r != nil && !yield(r) {
			return
		}
	}
}

// record returns what belongs in the sealed file of e; nil for nothing.
func (sh lockedShard) record(e *entry) *record {
	if !sh.servable(e) {
		return nil
	}
	e.sealed, e.sealedAt = true, sh.c.at(e.fetchedAt)
	return &record{Ref: e.ref, FetchedAt: e.fetchedAt.Round(0).UTC(), Since: e.since, Confirmed: e.confirmed, Value: *e.value}
}

// seal has the value of e written to the sealed file. What was merely confirmed is written
// only when the age in the file has become too wrong.
func (sh lockedShard) seal(e *entry, changed bool) {
	maxStale := sh.c.limits.Load().MaxStale
	if maxStale == Never {
		return
	}
	if changed || !e.sealed || sh.c.at(e.fetchedAt)-e.sealedAt >= int64(maxStale/confirmShare) {
		sh.c.sealed.changed(false)
	}
}

// unseal has the value of e leave the sealed file; gone says that the upstream has none for
// us any more.
func (sh lockedShard) unseal(e *entry, gone bool) {
	if e.sealed {
		e.sealed = false
		sh.c.sealed.changed(gone)
	}
}
