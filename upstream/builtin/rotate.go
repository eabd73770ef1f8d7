package builtin

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/keyfile"
)

// Key is a key of the keyring, without its material.
type Key struct {
	ID      string // decimal, as in EncryptionKeyId
	Status  string // enabled, disabled or destroyed
	Primary bool   // seals what is written from now on

	// CreateTime is when this database first saw the key; zero when it has not yet.
	CreateTime time.Time

	// Secrets and Values are how many secrets' metadata and how many versions are sealed
	// with the key. A key with neither is no longer needed by this database.
	Secrets int
	Values  int
}

// Keys returns the keys of the keyring, in its order. It reads the metadata of every secret.
func (s *Store) Keys() ([]Key, error) {
	return answer(context.Background(), s.view, call{op: "Keys"}, func(t *tx) (out []Key, err error) {
		secrets, values := map[uint32]int{}, map[uint32]int{}
		// Also secrets that wait to be purged: their keys are still needed.
		err = t.eachStored(func(_ upstream.SecretName, r *record) error {
			secrets[r.sealedBy]++
			for i := range r.versions {
				values[r.versions[i].keyID]++
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		for _, e := range t.keys.entries {
			created, err := t.keySeen(e.ID)
			if err != nil {
				return nil, err
			}
			out = append(out, Key{
				ID:         formatKeyID(e.ID),
				Status:     strings.ToLower(e.Status.String()),
				Primary:    e.ID == t.keys.primary,
				CreateTime: created,
				Secrets:    secrets[e.ID],
				Values:     values[e.ID],
			})
		}
		return out, nil
	})
}

// ReadKeyring reads the keyring file again. commit makes the Store use what it holds now; an error changes
// nothing. It is for a [Shared] storage, whose keyring is changed by those who hand it to all agents.
func (s *Store) ReadKeyring() (commit func(), err error) {
	next, err := newKeys(keyfile.ReadKeyring(s.opts.Keyring, s.opts.KeyringIsCredential))
	if err != nil {
		return nil, err
	}
	return func() {
		s.rotate.Lock()
		defer s.rotate.Unlock()
		s.keys.Store(next)
	}, nil
}

// RotateKey adds a key to the keyring, makes it primary and returns its id. The keyring file is
// replaced atomically and is on disk before the key is used. Everything that was sealed stays
// readable; what is written from now on is sealed with the new key, except for secrets that
// were created with a key of their own.
func (s *Store) RotateKey(ctx context.Context) (string, error) {
	c := call{op: "RotateKey"}
	if err := c.begin(ctx); err != nil {
		return "", err
	}
	select {
	case <-s.quit:
		return "", c.refer(ErrClosed)
	default:
	}
	s.rotate.Lock()
	defer s.rotate.Unlock()
	next, err := s.extendKeyring()
	if err != nil {
		return "", c.refer(err)
	}
	s.keys.Store(next)
	id := formatKeyID(next.primary)
	s.log.Info("key rotated", "key", id, "count", len(next.entries))
	// What is in the same transaction as this note, or after it, uses the new key.
	err = s.write(context.WithoutCancel(ctx), c, func(t *tx) error { return t.noteKey(next.primary) })
	if err != nil {
		return id, fmt.Errorf("key %s is in the keyring and primary, but could not be noted in the database: %w", id, err)
	}
	return id, nil
}

// extendKeyring adds a primary key to the keyring file. Others use the file as well, so it is
// read again and not taken from memory.
func (s *Store) extendKeyring() (*keys, error) {
	onDisk, err := newKeys(keyfile.ReadKeyring(s.opts.Keyring, s.opts.KeyringIsCredential))
	if err != nil {
		return nil, err
	}
	for _, e := range s.keys.Load().entries {
		if e.AEAD != nil && onDisk.aead(e.ID) == nil {
			return nil, errorf(ErrKeyLost,
				"the keyring %s has changed and no longer holds key %d, which this database may need; put it back first", s.opts.Keyring, e.ID)
		}
	}
	next, err := newKeys(onDisk.ring.Extend())
	if err != nil {
		return nil, fmt.Errorf("could not add a key to the keyring: %w", err)
	}
	return next, nil
}

// RemoveKey takes a key out of the keyring that neither is the primary one nor protects anything in
// this database. The file is replaced as by RotateKey.
func (s *Store) RemoveKey(ctx context.Context, id string) error {
	key, err := keyNamed(id)
	c := call{op: "RemoveKey", invalid: err}
	s.rotate.Lock()
	defer s.rotate.Unlock()
	removed := false // the operation may be executed again
	return s.write(ctx, c, func(t *tx) error {
		if !removed {
			if err := t.unused(key); err != nil {
				return err
			}
			ring, err := keyfile.ReadKeyring(s.opts.Keyring, s.opts.KeyringIsCredential)
			if err == nil {
				ring, err = ring.Remove(key)
			}
			next, err := newKeys(ring, err)
			if err != nil {
				return err
			}
			removed, t.keys = true, next
			s.keys.Store(next)
			s.log.Info("key removed", "key", id, "count", len(next.entries))
		}
		return t.delete(Keys, keyOf(key))
	})
}

// unused returns an error unless the key is in the keyring and nothing needs it.
func (t *tx) unused(key uint32) error {
	if !slices.ContainsFunc(t.keys.entries, func(e keyfile.Key) bool { return e.ID == key }) {
		return errorf(upstream.ErrKeyNotFound, "the keyring has no key %d", key)
	}
	if key == t.keys.primary {
		return errorf(ErrKeyInUse, "key %d is the primary one, which seals what is written from now on; rotate first", key)
	}
	return t.eachStored(func(name upstream.SecretName, r *record) error {
		if r.sealedBy == key || r.key == key || slices.ContainsFunc(r.versions, func(v version) bool { return v.keyID == key }) {
			return errorf(ErrKeyInUse, "key %d still protects secret %q, and maybe others; re-encrypt first", key, name)
		}
		return nil
	})
}

// missingKeys returns the keys that the database has seen and the keyring does not hold, or
// holds disabled. A key that the keyring does hold must be the same key.
func (t *tx) missingKeys() (map[uint32]bool, error) {
	missing := map[uint32]bool{}
	cursor := t.Scan(Keys, nil)
	for {
		key, _, err := cursor.Next()
		if key == nil || err != nil {
			return missing, err
		}
		if len(key) != 4 {
			return nil, t.place.Damaged("its list of keys has an entry that is none")
		}
		id := binary.BigEndian.Uint32(key)
		if t.keys.aead(id) == nil {
			missing[id] = true
		} else if _, err := t.keySeen(id); err != nil {
			return nil, err
		}
	}
}

// keyOf is the key of a key's note.
func keyOf(id uint32) []byte { return binary.BigEndian.AppendUint32(nil, id) }

// keySeen returns when the database first saw a key; zero when it has not.
func (t *tx) keySeen(id uint32) (time.Time, error) {
	sealed, err := t.Get(Keys, keyOf(id))
	if sealed == nil || t.keys.aead(id) == nil || err != nil {
		return time.Time{}, err
	}
	plain, err := t.keys.open(sealed, t.keyAssociatedData(id))
	if err != nil || len(plain) != 8 {
		return time.Time{}, errorf(ErrDamaged,
			"what key %d sealed here cannot be opened: the keyring is another one with the same key id, or the database is damaged; put a good copy of each in place", id)
	}
	return unixTime(int64(binary.BigEndian.Uint64(plain))), nil
}

// noteKey seals a note with a key that the database has not seen before.
func (t *tx) noteKey(id uint32) error {
	if note, err := t.Get(Keys, keyOf(id)); note != nil || err != nil {
		return err
	}
	return t.put(Keys, keyOf(id), id, binary.BigEndian.AppendUint64(nil, uint64(t.now)), t.keyAssociatedData(id))
}

// noteKeys notes the enabled keys of the keyring that the database has not seen, and forgets
// keys that are gone and not needed.
func (s *Store) noteKeys(forgotten []uint32) error {
	return s.write(context.Background(), call{op: "Open"}, func(t *tx) error {
		for _, e := range t.keys.entries {
			if e.AEAD == nil {
				continue
			}
			if err := t.noteKey(e.ID); err != nil {
				return err
			}
		}
		for _, id := range forgotten {
			if err := t.delete(Keys, keyOf(id)); err != nil {
				return err
			}
		}
		return nil
	})
}

// reencryptBatch bounds a transaction of [Store.Reencrypt], in bytes of values.
const reencryptBatch = 1 << 20

// Reencrypt rewrites everything that is not sealed with the primary key: values and metadata,
// also of secrets that were created with a key of their own, which from then on follow the
// primary key. Each batch is on disk before the next begins, and what uses the primary key
// already is skipped, so a call after a crash goes on where the last one was.
//
// progress, which may be nil, is called after each batch with the number of secrets done and
// the number of secrets there are. Other calls work meanwhile. A rotation during the call may
// leave secrets under the key that was primary; call again.
func (s *Store) Reencrypt(ctx context.Context, progress func(done, total int)) error {
	const op = "Reencrypt"
	total, done := s.index.len(), 0
	var last upstream.SecretName // that is done
	for more := true; more; {
		after, count := last, 0
		err := s.write(ctx, call{op: op}, func(t *tx) (err error) {
			last, count, more, err = t.reencrypt(after)
			return err
		})
		if err != nil {
			return err
		}
		done += count
		if progress != nil {
			progress(done, max(total, done))
		}
	}
	s.log.Info("secrets re-encrypted", "count", done, "key", formatKeyID(s.keys.Load().primary))
	return nil
}

// reencrypt brings the secrets behind after under the primary key, until the batch is full.
func (t *tx) reencrypt(after upstream.SecretName) (last upstream.SecretName, count int, more bool, err error) {
	last = after
	for size := 0; size < reencryptBatch && !t.full(); count++ {
		// The cursor is placed anew for each secret: a write may move what it points to.
		key, sealed, err := t.Scan(Records, valueKey(last, "")).Next()
		if key == nil || err != nil {
			return last, count, false, err
		}
		name := upstream.SecretName(key)
		r, err := t.openRecord(name, sealed)
		if err != nil {
			return "", 0, false, err
		}
		n, done, err := t.reencryptSecret(name, r, reencryptBatch-size)
		if err != nil {
			return "", 0, false, err
		}
		if !done {
			return last, count, true, nil // the next batch goes on with it
		}
		last = name
		size += n + 512 // the record, and that looking costs something too
	}
	return last, count, true, nil
}

// reencryptSecret brings one secret under the primary key and returns how many bytes of values
// it has rewritten. It is not done when it has rewritten more than room.
func (t *tx) reencryptSecret(name upstream.SecretName, r *record, room int) (size int, done bool, err error) {
	current := r.sealedBy == t.keys.primary && r.key == 0
	r.key = 0
	for i := range r.versions {
		v := &r.versions[i]
		if v.keyID == t.keys.primary {
			continue
		}
		current = false
		if size >= room {
			return size, false, t.putRecord(name, r)
		}
		data, err := t.value(name, v)
		if err != nil {
			return 0, false, err
		}
		size += len(data)
		if err := t.putValue(name, r, v, data); err != nil {
			return 0, false, err
		}
	}
	if current {
		return size, true, nil
	}
	return size, true, errors.Join(t.putRecord(name, r), t.w.Wipe())
}
