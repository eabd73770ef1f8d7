package builtin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	"go.etcd.io/bbolt"

	"secretagent/upstream"
)

// tx is one transaction, with the secrets decrypted on their way in and out.
type tx struct {
	bolt *bbolt.Tx
	keys *keys
	now  int64 // Unix seconds; one moment for everything an operation does

	secretsBucket, valuesBucket *bbolt.Bucket // looked up on first use

	// What the operations of a write transaction did.
	writes  int                           // changes of the database so far
	changed []upstream.SecretName         // secrets whose readers see something else now
	planned map[upstream.SecretName]int64 // deletions that were planned, or zero: taken back
}

// transact runs fn in one transaction; begin is View or Update of the database. A memory
// fault or panic in it, which is how bbolt meets damage, becomes an error.
func (s *Store) transact(begin func(func(*bbolt.Tx) error) error, fn func(*tx) error) (err error) {
	if broken := s.broken.Load(); broken != nil {
		return *broken
	}
	began, writable := false, false
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("a transaction met a damaged page", "err", fmt.Sprint(p), "stack", string(debug.Stack()), "hint", "restore the database and its keyring from a backup")
			failure := damaged("a page of it cannot be read")
			// A read that had begun has been undone. Otherwise bbolt may be left with its
			// locks held or its list of free pages wrong.
			if !began || writable {
				s.broken.CompareAndSwap(nil, &failure)
			}
			err = failure
		}
	}()
	return begin(func(b *bbolt.Tx) error {
		began, writable = true, b.Writable()
		return fn(&tx{bolt: b, keys: s.keys.Load(), now: s.now()})
	})
}

// view runs fn on a snapshot of the database.
func (s *Store) view(ctx context.Context, op string, ref upstream.SecretRef, fn func(*tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.counters.reads.Add(1)
	return refer(s.transact(s.db.View, fn), op, ref)
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
		err = notFound("there is no secret %q", name)
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
	return &upstream.Error{
		Message: fmt.Sprintf("the secret %q is scheduled for deletion at %s; restore it first", name, upstream.WireTime(unixTime(r.plannedDelete))),
		Err:     upstream.ErrPendingDeletion,
	}
}

// stored returns the record in the database, nil when there is none.
func (t *tx) stored(name upstream.SecretName) (*record, error) {
	secrets, err := t.bucket(&t.secretsBucket, bucketSecrets)
	if err != nil {
		return nil, err
	}
	sealed := secrets.Get([]byte(name))
	if sealed == nil {
		return nil, nil
	}
	return t.openRecord(name, sealed)
}

func (t *tx) openRecord(name upstream.SecretName, sealed []byte) (*record, error) {
	plain, err := t.keys.open(sealed, recordAssociatedData(name))
	if err != nil {
		return nil, damaged("the metadata of secret %q %v", name, err)
	}
	r, err := decodeRecord(plain)
	if err != nil {
		return nil, damaged("the metadata of secret %q is %v", name, err)
	}
	return r, nil
}

// value returns the bytes of a version.
func (t *tx) value(name upstream.SecretName, v *version) ([]byte, error) {
	values, err := t.bucket(&t.valuesBucket, bucketValues)
	if err != nil {
		return nil, err
	}
	sealed := values.Get(valueKey(name, v.id))
	if sealed == nil {
		return nil, damaged("the value of secret %q, version %q is missing", name, v.id)
	}
	if id, ok := sealKey(sealed); !ok || id != v.keyID {
		return nil, damaged("the value of secret %q, version %q %v", name, v.id, errSeal)
	}
	plain, err := t.keys.open(sealed, valueAssociatedData(name, v.id, v.dataType()))
	if err != nil {
		return nil, damaged("the value of secret %q, version %q %v", name, v.id, err)
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
func (t *tx) keyFor(r *record) uint32 {
	if r.key != 0 {
		return r.key
	}
	return t.keys.primary
}

// putRecord stores r.
func (t *tx) putRecord(name upstream.SecretName, r *record) error {
	secrets, err := t.bucket(&t.secretsBucket, bucketSecrets)
	if err != nil {
		return err
	}
	sealed, err := t.keys.seal(t.keyFor(r), encodeRecord(nil, r), recordAssociatedData(name))
	if err != nil {
		return err
	}
	t.writes++
	return secrets.Put([]byte(name), sealed)
}

// putValue stores the bytes of version v and notes in v which key sealed them.
func (t *tx) putValue(name upstream.SecretName, r *record, v *version, data []byte) error {
	values, err := t.bucket(&t.valuesBucket, bucketValues)
	if err != nil {
		return err
	}
	v.keyID = t.keyFor(r)
	sealed, err := t.keys.seal(v.keyID, data, valueAssociatedData(name, v.id, v.dataType()))
	if err != nil {
		return err
	}
	t.writes++
	return values.Put(valueKey(name, v.id), sealed)
}

func (t *tx) deleteValue(name upstream.SecretName, id upstream.VersionID) error {
	values, err := t.bucket(&t.valuesBucket, bucketValues)
	if err != nil {
		return err
	}
	t.writes++
	return values.Delete(valueKey(name, id))
}

// remove deletes a secret with all its versions.
func (t *tx) remove(name upstream.SecretName, r *record) error {
	for i := range r.versions {
		if err := t.deleteValue(name, r.versions[i].id); err != nil {
			return err
		}
	}
	secrets, err := t.bucket(&t.secretsBucket, bucketSecrets)
	if err != nil {
		return err
	}
	t.writes++
	t.plan(name, 0)
	return secrets.Delete([]byte(name))
}

// change notes that readers of the secret see something else after the commit.
func (t *tx) change(name upstream.SecretName) { t.changed = append(t.changed, name) }

// plan notes when the secret is to be purged; zero: not at all.
func (t *tx) plan(name upstream.SecretName, at int64) {
	if t.planned == nil {
		t.planned = map[upstream.SecretName]int64{}
	}
	t.planned[name] = at
}

func (t *tx) bucket(cached **bbolt.Bucket, name []byte) (*bbolt.Bucket, error) {
	if *cached == nil {
		if *cached = t.bolt.Bucket(name); *cached == nil {
			return nil, damaged("it has no bucket %q", name)
		}
	}
	return *cached, nil
}

// each calls fn for every secret whose deletion window has not passed, by name. It stops with
// the error of fn, or the context's.
func (t *tx) each(ctx context.Context, fn func(upstream.SecretName, *record) error) error {
	secrets, err := t.bucket(&t.secretsBucket, bucketSecrets)
	if err != nil {
		return err
	}
	cursor := secrets.Cursor()
	for key, sealed := cursor.First(); key != nil; key, sealed = cursor.Next() {
		if err := ctx.Err(); err != nil {
			return err
		}
		name := upstream.SecretName(key)
		r, err := t.openRecord(name, sealed)
		if err != nil {
			return err
		}
		if r.gone(t.now) {
			continue
		}
		if err := fn(name, r); err != nil {
			return err
		}
	}
	return nil
}

// verify checks that every secret is whole: its metadata authenticates, all its values are
// there, and there are no others. It fills the schedule of deletions. It returns the keys that
// the database has seen but neither uses nor finds in the keyring any more.
func (s *Store) verify(t *tx) (forgotten []uint32, err error) {
	format := t.bolt.Bucket(bucketFormat)
	if format == nil {
		return nil, errors.New("is a bbolt file, but not a secretagent database")
	}
	if v := format.Get(formatKey); !bytes.Equal(v, formatValue) {
		return nil, fmt.Errorf("has format %q, of which this program knows nothing; it reads format %q", v, formatValue)
	}
	missing, err := t.missingKeys()
	if err != nil {
		return nil, err
	}
	secrets, err := t.bucket(&t.secretsBucket, bucketSecrets)
	if err != nil {
		return nil, err
	}
	values, err := t.bucket(&t.valuesBucket, bucketValues)
	if err != nil {
		return nil, err
	}
	// Both buckets are in the order of names, so one walk through each is enough.
	valueCursor := values.Cursor()
	valueKey, _ := valueCursor.First()
	secretCursor := secrets.Cursor()
	for key, sealed := secretCursor.First(); key != nil; key, sealed = secretCursor.Next() {
		name := upstream.SecretName(key)
		if id, ok := sealKey(sealed); ok && missing[id] {
			return nil, s.errKeyLost(id, name)
		}
		r, err := t.openRecord(name, sealed)
		if err != nil {
			return nil, err
		}
		prefix := append(bytes.Clone(key), 0)
		found := 0
		for ; bytes.HasPrefix(valueKey, prefix); valueKey, _ = valueCursor.Next() {
			if r.find(upstream.VersionID(valueKey[len(prefix):])) < 0 {
				return nil, damaged("secret %q has a value too many", name)
			}
			found++
		}
		if _, ok := r.holder(upstream.ACSCurrent); !ok || found != len(r.versions) {
			return nil, damaged("a value of secret %q is missing", name)
		}
		for i := range r.versions {
			if id := r.versions[i].keyID; t.keys.aead(id) == nil {
				return nil, s.errKeyLost(id, name)
			}
		}
		if r.pending() {
			s.schedule.set(name, r.plannedDelete)
		}
	}
	if valueKey != nil {
		return nil, damaged("it holds a value that belongs to no secret")
	}
	for id := range missing {
		forgotten = append(forgotten, id)
	}
	return forgotten, nil
}

func (s *Store) errKeyLost(id uint32, name upstream.SecretName) error {
	return &upstream.Error{
		Message: fmt.Sprintf("secret %q is sealed with key %d, which the keyring %s lacks or has disabled; put the keyring back that the database was used with", name, id, s.opts.Keyring),
		Err:     ErrKeyLost,
	}
}
