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
	FetchedAt time.Time // by the newest time known then

	// The interval in which the value is known to have been the same; see entry. Ticks go
	// on counting from one run to the next.
	Since, Confirmed uint64

	Value upstream.SecretValue // its data encode as a placeholder
}

// plain returns r as it is sealed, or nil when it takes more than limit bytes or cannot be
// encoded. The caller overwrites it.
func (r *record) plain(limit int64) []byte {
	data := r.Value.SecretData.Reveal()
	meta := *r
	meta.Value.SecretData = upstream.SecretData{}
	text, err := json.Marshal(&meta)
	if err != nil {
		return nil
	}
	size := 4 + len(text) + len(data)
	if int64(size) > limit {
		return nil
	}
	plain := make([]byte, 0, size)
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

// endRecord returns the last record, with the number of those before it, and when it is written.
func endRecord(count int, at time.Time) []byte {
	end := binary.BigEndian.AppendUint64(make([]byte, 4, 20), uint64(count))
	return binary.BigEndian.AppendUint64(end, uint64(at.UnixNano()))
}

// isEnd undoes endRecord. The JSON of no other record is empty. Earlier versions left the time
// out.
func isEnd(plain []byte) (count int, at time.Time, ok bool) {
	if len(plain) != 12 && len(plain) != 20 || binary.BigEndian.Uint32(plain) != 0 {
		return 0, at, false
	}
	if len(plain) == 20 {
		at = time.Unix(0, int64(binary.BigEndian.Uint64(plain[12:])))
	}
	return int(binary.BigEndian.Uint64(plain[4:])), at, true
}

// associatedData ties a record to its file and its place in it.
func associatedData(header []byte, index int) []byte {
	return binary.BigEndian.AppendUint64(slices.Clone(header), uint64(index))
}

// loadSealed puts what the sealed file holds into an empty cache. None of it is fresh: it
// has to be confirmed, or is served stale while the upstream cannot answer. How old it is
// follows from the newest time in the file when the wall clock is behind that.
func (c *Cache) loadSealed() {
	if c.sealed == nil {
		return
	}
	c.sealed.content, c.sealed.clock = c.records, c.clock
	c.sealed.every = func() time.Duration { return c.limits.Load().MaxStale / confirmShare }
	if c.limits.Load().MaxStale == Never {
		c.sealed.changed(false) // nothing is to be in it
		return
	}
	c.clock.told(c.sealed.load(c.restore))
	if skew := c.clock.skew(); skew > 0 {
		c.log.Warn("the clock of this host is behind the newest time in the sealed cache; the age of values is counted from that, and they are served as stale until the upstream answers",
			"code", codeClockSkew, "behind", skew.Round(time.Second), "hint", "set the clock; check that time synchronisation works")
	}
	if old := c.dropTooOld(); old > 0 {
		c.sealed.hold()
		c.log.Info("values of the sealed cache are too old to be served", "path", c.sealed.path, "too_old", old, "loaded", c.sealed.st.Loaded)
	}
	c.evict()
}

// dropTooOld drops restored values that may not be served any more, and returns how many.
func (c *Cache) dropTooOld() int {
	st, now := &c.sealed.st, c.now()
	for _, s := range c.shards {
		sh := s.lock()
		sh.each(func(e *entry) {
			if sh.ended(e, now) {
				sh.change(e)
				e.clear()
				e.sealed = false
				st.TooOld++
				st.Loaded--
			}
		})
		sh.unlock()
	}
	return st.TooOld
}

// restore makes the value of r that of its entry. It reports false for what no cache has written.
func (c *Cache) restore(r *record) bool {
	if r.Ref.Validate() != nil || r.Ref != r.Ref.WithDefaults() {
		return false
	}
	sh := c.lock(r.Ref.SecretName)
	defer sh.unlock()
	e := sh.obtain(r.Ref)
	r.Value.SecretName = sharedName(r.Value.SecretName, e.ref.SecretName)
	e.value, e.derived = &r.Value, new(upstream.Derived)
	e.fetchedAt, e.since, e.confirmed = c.clock.of(r.FetchedAt), r.Since, r.Confirmed
	e.restored, e.sealed = true, true
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

// Restored returns when the sealed file was written that the cache began with, zero where there was none, and whether
// the value of one of refs is from there and the upstream has not confirmed it yet. Then it may lack what
// changed after that time, before a crash. A value that was confirmed stays so.
func (c *Cache) Restored(refs ...upstream.SecretRef) (asOf time.Time, unconfirmed bool) {
	if c.sealed == nil || c.sealed.written.IsZero() {
		return asOf, false
	}
	for _, ref := range refs {
		ref = ref.WithDefaults()
		sh := c.lock(ref.SecretName)
		e := sh.find(ref)
		unconfirmed = unconfirmed || e != nil && e.restored
		sh.unlock()
	}
	return c.sealed.written, unconfirmed
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
	if !sh.servable(e, sh.c.now()) {
		return nil
	}
	e.sealed = true
	return &record{Ref: e.ref, FetchedAt: sh.c.clock.known(e.fetchedAt).UTC(), Since: e.since, Confirmed: e.confirmed, Value: *e.value}
}

// seal has the value of e written to the sealed file. That it was merely confirmed is written
// when all of the file is, now and then.
func (sh lockedShard) seal(e *entry, changed bool) {
	if (changed || !e.sealed || sh.c.sealed.holds()) && sh.c.limits.Load().MaxStale != Never {
		sh.c.sealed.changed(false)
	}
}

// unseal has the value of e leave the sealed file; gone says that the upstream has none for
// us any more. A file that is held may have one of which e knows nothing any more.
func (sh lockedShard) unseal(e *entry, gone bool) {
	was, held := e.sealed, sh.c.sealed.holds()
	e.sealed = false
	if gone && held || was && (gone || !held) {
		sh.c.sealed.changed(gone)
	}
}
