package builtin

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"iter"
	"maps"
	"slices"

	"secretagent/upstream"
)

// tx is what one operation does in a transaction, with the secrets decrypted on their way in and out.
type tx struct {
	Reader
	w     Writer // nil in a view
	place *Place
	keys  *keys
	now   int64 // Unix seconds; one moment for everything an operation does

	Notice          // of what it did
	writes int      // changes so far
	agreed uint32   // the primary key, once it was looked for; of a shared storage
	noted  []uint32 // keys that were looked for in the notes, of a shared storage

	// Room for what most need, so that it is allocated once.
	joined     [96]byte // a key or associated data
	oneListed  [1]listed
	oneChanged [1]upstream.SecretName
}

func (s *Store) newTx(r Reader, w Writer) *tx {
	t := &tx{Reader: r, w: w, place: &s.place, keys: s.keys.Load(), now: s.now()}
	t.listed, t.changed = t.oneListed[:0], t.oneChanged[:0]
	return t
}

// call is what an operation is asked for.
type call struct {
	op      string
	ref     upstream.SecretRef
	invalid error // what is wrong with the request by itself
}

// begin refuses a call that need not begin.
func (c call) begin(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return c.refer(c.invalid)
}

func (c call) refer(err error) error { return refer(err, c.op, c.ref) }

// view runs fn on a snapshot.
func (s *Store) view(ctx context.Context, c call, fn func(*tx) error) error {
	if err := c.begin(ctx); err != nil {
		return err
	}
	return c.refer(s.storage.View(ctx, func(r Reader) error { return fn(s.newTx(r, nil)) }))
}

// write runs apply, which validates before it changes anything, in a transaction, and returns when
// it is committed; see [Storage].
func (s *Store) write(ctx context.Context, c call, apply func(*tx) error) error {
	if err := c.begin(ctx); err != nil {
		return err
	}
	if s.opts.ReadOnly {
		return c.refer(Errorf(upstream.ErrUnsupported, "%s is open for reading only", s.place.Name))
	}
	return c.refer(s.storage.Update(ctx, func(w Writer) error {
		t := s.newTx(w, w)
		if err := apply(t); err != nil {
			return err
		}
		if t.writes > 0 {
			w.Announce(t.Notice)
		}
		return nil
	}))
}

// answer is view or write for operations that have an answer. A write may go on after its
// caller has left, so the answer is looked at only when it has ended.
func answer[T any](ctx context.Context, run func(context.Context, call, func(*tx) error) error, c call, fn func(*tx) (T, error)) (none T, err error) {
	var out T
	err = run(ctx, c, func(t *tx) (err error) {
		out, err = fn(t)
		return err
	})
	if err != nil {
		return none, err
	}
	return out, nil
}

// now is the one place where time comes in. The KMS API counts in seconds.
func (s *Store) now() int64 { return s.opts.Now().Unix() }

// find returns the record of a secret, scheduled for deletion or not; nil when there is none
// or its deletion window has passed.
func (t *tx) find(name upstream.SecretName) (*record, error) {
	r, err := t.stored(name)
	if r != nil && r.gone(t.now) {
		r = nil
	}
	return r, err
}

// secret returns the record of a secret that exists, scheduled for deletion or not.
func (t *tx) secret(name upstream.SecretName) (*record, error) {
	r, err := t.find(name)
	if err == nil && r == nil {
		err = Errorf(upstream.ErrNotFound, "there is no secret %q", name)
	}
	return r, err
}

// live returns the record of a secret that is not scheduled for deletion.
func (t *tx) live(name upstream.SecretName) (*record, error) {
	r, err := t.secret(name)
	if err == nil && r.pending() {
		err = errPending(name, r)
	}
	return r, err
}

func errPending(name upstream.SecretName, r *record) error {
	return Errorf(upstream.ErrPendingDeletion,
		"the secret %q is scheduled for deletion at %s; restore it first", name, upstream.WireTime(unixTime(r.plannedDelete)))
}

// stored returns the record in the storage, nil when there is none.
func (t *tx) stored(name upstream.SecretName) (*record, error) {
	sealed, err := t.Get(Records, t.join(string(name)))
	if sealed == nil || err != nil {
		return nil, err
	}
	return t.openRecord(name, sealed)
}

func (t *tx) openRecord(name upstream.SecretName, sealed []byte) (*record, error) {
	plain, err := t.keys.open(sealed, t.recordAssociatedData(name))
	if lost := t.lost(err, name, sealed); lost != nil {
		return nil, lost
	}
	if err != nil {
		return nil, t.place.Damaged("the metadata of secret %q %v", name, err)
	}
	r, err := decodeRecord(plain)
	if err != nil {
		return nil, t.place.Damaged("the metadata of secret %q is %v", name, err)
	}
	r.sealedBy, _ = sealKey(sealed)
	return r, nil
}

// value returns the bytes of a version.
func (t *tx) value(name upstream.SecretName, v *version) ([]byte, error) {
	sealed, err := t.Get(Values, t.join(string(name), string(v.id)))
	if err != nil {
		return nil, err
	}
	return t.openValue(name, v, sealed)
}

// openValue returns the bytes of a version that is kept as sealed.
func (t *tx) openValue(name upstream.SecretName, v *version, sealed []byte) ([]byte, error) {
	if sealed == nil {
		return nil, t.place.Damaged("the value of secret %q, version %q is missing", name, v.id)
	}
	if id, ok := sealKey(sealed); !ok || id != v.keyID {
		return nil, t.place.Damaged("the value of secret %q, version %q %v", name, v.id, errSeal)
	}
	plain, err := t.keys.open(sealed, t.valueAssociatedData(name, v.id, v.dataType()))
	if lost := t.lost(err, name, sealed); lost != nil {
		return nil, lost
	}
	if err != nil {
		return nil, t.place.Damaged("the value of secret %q, version %q %v", name, v.id, err)
	}
	return plain, nil
}

func (v *version) dataType() string {
	if v.binary {
		return upstream.DataTypeBinary
	}
	return upstream.DataTypeText
}

// valueKey is the key of a value: names cannot contain the separator.
func valueKey(name upstream.SecretName, id upstream.VersionID) []byte {
	return append(append(append(make([]byte, 0, len(name)+1+len(id)), name...), 0), id...)
}

// keyFor returns the id of the key that seals what is written for r from now on.
func (t *tx) keyFor(r *record) (uint32, error) {
	if r.key == 0 {
		return t.primary()
	}
	return r.key, t.useKey(r.key)
}

// put stores plain, sealed with key id.
func (t *tx) put(space Space, key []byte, id uint32, plain, associatedData []byte) error {
	sealed, err := t.keys.seal(id, plain, associatedData)
	if err != nil {
		return err
	}
	t.writes++
	return t.w.Put(space, key, sealed)
}

func (t *tx) delete(space Space, key []byte) error {
	t.writes++
	return t.w.Delete(space, key)
}

// putRecord stores r.
func (t *tx) putRecord(name upstream.SecretName, r *record) error {
	key, err := t.keyFor(r)
	if err != nil {
		return err
	}
	if err := t.put(Records, []byte(name), key, encodeRecord(nil, r), t.recordAssociatedData(name)); err != nil {
		return err
	}
	t.listed = append(t.listed, listedAs(name, r))
	return nil
}

// putValue stores the bytes of version v and notes in v which key sealed them.
func (t *tx) putValue(name upstream.SecretName, r *record, v *version, data []byte) (err error) {
	if v.keyID, err = t.keyFor(r); err != nil {
		return err
	}
	return t.put(Values, valueKey(name, v.id), v.keyID, data, t.valueAssociatedData(name, v.id, v.dataType()))
}

// remove deletes a secret with all its versions.
func (t *tx) remove(name upstream.SecretName, r *record) error {
	for i := range r.versions {
		if err := t.delete(Values, valueKey(name, r.versions[i].id)); err != nil {
			return err
		}
	}
	t.listed = append(t.listed, listed{name: name, removed: true})
	return errors.Join(t.delete(Records, []byte(name)), t.w.Wipe())
}

// change notes that readers of the secret see something else after the commit.
func (t *tx) change(name upstream.SecretName) { t.changed = append(t.changed, name) }

// eachOf calls fn for those of the named secrets that exist. It stops with the error of fn, or the
// context's.
func (t *tx) eachOf(ctx context.Context, names iter.Seq[upstream.SecretName], fn func(upstream.SecretName, *record) error) error {
	if _, ok := t.Reader.(Prefetcher); ok {
		all := slices.Collect(names)
		if err := t.prefetch(Records, keysOf(all)); err != nil {
			return err
		}
		names = slices.Values(all)
	}
	for name := range names {
		r, err := t.find(name)
		if err = cmp.Or(ctx.Err(), err); err == nil && r != nil {
			err = fn(name, r)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// eachStored calls fn for every secret, also for those that wait to be purged, by name. It goes on
// past a record that is damaged, and returns the error of the first such record in the end, also
// where fn ended the walk with its error.
func (t *tx) eachStored(fn func(upstream.SecretName, *record) error) (damage error) {
	cursor := t.Scan(Records, nil)
	for {
		key, sealed, err := cursor.Next()
		if key == nil || err != nil {
			return cmp.Or(damage, err)
		}
		r, err := t.openRecord(upstream.SecretName(key), sealed)
		if err != nil {
			damage = cmp.Or(damage, err)
		} else if err := fn(upstream.SecretName(key), r); err != nil {
			return cmp.Or(damage, err)
		}
	}
}

// verify checks that every secret is whole: its metadata authenticates, all its values are
// there, and there are no others. It returns the keys that the database has seen but neither
// uses nor finds in the keyring any more.
func (s *Store) verify(t *tx) (forgotten []uint32, err error) {
	missing, err := t.missingKeys()
	if err != nil {
		return nil, err
	}
	// Both spaces are in the order of names, so one walk through each is enough.
	records, values := t.Scan(Records, nil), t.Scan(Values, nil)
	next, _, err := values.Next()
	for err == nil {
		var key, sealed []byte
		if key, sealed, err = records.Next(); key == nil || err != nil {
			break
		}
		name := upstream.SecretName(key)
		if id, ok := sealKey(sealed); ok && missing[id] {
			return nil, s.errKeyLost(id, name)
		}
		r, err := t.openRecord(name, sealed)
		if err != nil {
			return nil, err
		}
		prefix := valueKey(name, "")
		found := 0
		for ; bytes.HasPrefix(next, prefix); next, _, err = values.Next() {
			if r.find(upstream.VersionID(next[len(prefix):])) < 0 {
				return nil, t.place.Damaged("secret %q has a value too many", name)
			}
			found++
		}
		if err != nil {
			return nil, err
		}
		if _, ok := r.holder(upstream.ACSCurrent); !ok || found != len(r.versions) {
			return nil, t.place.Damaged("a value of secret %q is missing", name)
		}
		for i := range r.versions {
			if id := r.versions[i].keyID; t.keys.aead(id) == nil {
				return nil, s.errKeyLost(id, name)
			}
		}
		t.listed = append(t.listed, listedAs(name, r))
	}
	if err == nil && next != nil {
		err = t.place.Damaged("it holds a value that belongs to no secret")
	}
	if err != nil {
		return nil, err
	}
	return slices.Collect(maps.Keys(missing)), nil
}

func (s *Store) errKeyLost(id uint32, name upstream.SecretName) error {
	return Errorf(ErrKeyLost,
		"secret %q is sealed with key %d, which the keyring %s lacks or has disabled; put the keyring back that the database was used with", name, id, s.opts.Keyring)
}
