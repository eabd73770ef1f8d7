package cache

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
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

// minSize returns what r takes in the file at least.
func (r *record) minSize() int64 { return int64(128 + r.Value.SecretData.Len()) }

// plain returns r as it is sealed. The caller overwrites it.
func (r *record) plain() ([]byte, error) {
	meta := *r
	meta.Value.SecretData = upstream.SecretData{}
	text, err := json.Marshal(&meta)
	if err != nil {
		return nil, err
	}
	data := r.Value.SecretData.Reveal()
	plain := make([]byte, 0, 4+len(text)+len(data))
	plain = binary.BigEndian.AppendUint32(plain, uint32(len(text)))
	return append(append(plain, text...), data...), nil
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
func isEnd(plain []byte) (count uint64, ok bool) {
	if len(plain) != 12 || binary.BigEndian.Uint32(plain) != 0 {
		return 0, false
	}
	return binary.BigEndian.Uint64(plain[4:]), true
}

// associatedData ties a record to its file and its place in it.
func associatedData(header []byte, index uint64) []byte {
	return binary.BigEndian.AppendUint64(append([]byte(nil), header...), index)
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
	sh := c.shardOf(r.Ref.SecretName)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	e := sh.obtain(r.Ref)
	r.Value.SecretName = sharedName(r.Value.SecretName, e.ref.SecretName)
	e.value, e.memo = &r.Value, new(upstream.Memo)
	e.fetchedAt, e.since, e.confirmed = r.FetchedAt, r.Since, r.Confirmed
	e.sealed, e.sealedAt = true, c.at(r.FetchedAt)
	if c.oversize(e, limits) {
		e.clear()
		c.settle(sh, e)
		return true // a smaller bound is no damage
	}
	c.settle(sh, e)
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
		held bool
		used int64
	}
	var all []candidate
	for _, sh := range c.shards {
		sh.mu.Lock()
		for _, e := range sh.secrets {
			for ; e != nil; e = e.next {
				if e.value != nil {
					all = append(all, candidate{e, e.wanted() == held, e.used})
				}
			}
		}
		sh.mu.Unlock()
	}
	slices.SortFunc(all, func(a, b candidate) int {
		if a.held != b.held {
			if a.held {
				return -1
			}
			return 1
		}
		return cmp.Compare(b.used, a.used)
	})
	limits := c.limits.Load()
	for _, one := range all {
		if r := c.record(one.e, limits); r != nil && !yield(r) {
			return
		}
	}
}

// record returns what belongs in the sealed file of e; nil for nothing.
func (c *Cache) record(e *entry, limits *Limits) *record {
	sh := c.shardOf(e.ref.SecretName)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if e.value == nil || !c.servable(e, limits) {
		return nil
	}
	e.sealed, e.sealedAt = true, c.at(e.fetchedAt)
	return &record{Ref: e.ref, FetchedAt: e.fetchedAt.Round(0).UTC(), Since: e.since, Confirmed: e.confirmed, Value: *e.value}
}

// seal has the value of e written to the sealed file. What was merely confirmed is written
// only when the age in the file has become too wrong. The caller holds the shard.
func (c *Cache) seal(e *entry, changed bool, limits *Limits) {
	if limits.MaxStale == Never {
		return
	}
	if changed || !e.sealed || c.at(e.fetchedAt)-e.sealedAt >= int64(limits.MaxStale/confirmShare) {
		c.sealed.changed(false)
	}
}

// unseal has the value of e leave the sealed file; gone says that the upstream has none for
// us any more. The caller holds the shard.
func (c *Cache) unseal(e *entry, gone bool) {
	if e.sealed {
		e.sealed = false
		c.sealed.changed(gone)
	}
}
