package builtin

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/keyfile"
)

// Key is a key of the keyring, without its material.
type Key struct {
	ID      string // decimal, as in EncryptionKeyId
	Status  string // enabled, disabled, destroyed or missing
	Primary bool   // seals what is written from now on
	Next    bool   `json:",omitzero"` // becomes primary when all agents hold it

	// CreateTime is when this database first saw the key; zero when it has not yet.
	CreateTime time.Time

	// Secrets and Values are how many secrets' metadata and how many versions are sealed
	// with the key. A key with neither is no longer needed by this database.
	Secrets int
	Values  int
}

// Keys returns the keys of the keyring, in its order, and behind them those that are used here and that it
// lacks, whose Status is missing. It reads the metadata of every secret, as far as the keyring allows.
func (s *Store) Keys(ctx context.Context) ([]Key, error) {
	return answer(ctx, s.view, call{op: "Keys"}, func(t *tx) (out []Key, err error) {
		secrets, values := map[uint32]int{}, map[uint32]int{}
		// Also secrets that wait to be purged: their keys are still needed.
		err = t.eachStored(func(_ upstream.SecretName, r *record) error {
			secrets[r.sealedBy]++
			for i := range r.versions {
				values[r.versions[i].keyID]++
			}
			return nil
		})
		if err != nil && !errors.Is(err, ErrKeyLost) {
			return nil, err
		}
		primary, err := t.inForce()
		if err != nil {
			return nil, err
		}
		next, _, err := t.keyNote(noteNext)
		if err != nil {
			return nil, err
		}
		missing, err := t.missingKeys()
		if err != nil {
			return nil, err
		}
		add := func(id uint32, status string) error {
			created, err := t.keySeen(id)
			out = append(out, Key{
				ID:         formatKeyID(id),
				Status:     strings.ToLower(status),
				Primary:    id == primary,
				Next:       next != nil && id == next.key,
				CreateTime: created,
				Secrets:    secrets[id],
				Values:     values[id],
			})
			return err
		}
		for _, e := range t.keys.entries {
			delete(missing, e.ID)
			if err := add(e.ID, e.Status.String()); err != nil {
				return nil, err
			}
		}
		for _, id := range slices.Sorted(maps.Keys(missing)) {
			if err := add(id, "missing"); err != nil {
				return nil, err
			}
		}
		return out, nil
	})
}

// ReadKeyring reads the keyring file again, which others may have changed. commit makes the Store use what it
// holds now; an error changes nothing. A file is refused that lacks a key which the Store has and which is noted
// here: [Store.RemoveKey] comes first. While the storage does not answer, nothing is refused for that.
func (s *Store) ReadKeyring(ctx context.Context) (commit func(), err error) {
	was := s.keys.Load()
	next, err := newKeys(keyfile.ReadKeyring(s.opts.Keyring, s.opts.KeyringIsCredential))
	if err != nil {
		return nil, err
	}
	noted, err := answer(ctx, s.view, call{op: "ReadKeyring"}, (*tx).notedKeys)
	if err != nil && !errors.Is(err, upstream.ErrUnavailable) {
		return nil, err
	}
	for _, id := range noted {
		if was.aead(id) != nil && next.aead(id) == nil {
			return nil, Errorf(ErrKeyLost, "the keyring %s no longer holds key %d, which may be needed; put it back: secretagent keys remove takes out a key that protects nothing", s.opts.Keyring, id)
		}
	}
	return func() {
		s.rotate.Lock()
		defer s.rotate.Unlock()
		if s.keys.Load() != was {
			return // this process has changed the file meanwhile
		}
		s.keys.Store(next)
		ring(s.keysBell)
		if s.place.Shared {
			return
		}
		if err := s.noteKeys(nil); err != nil {
			s.log.Warn("the keys of the keyring could not be noted", "keyring", s.opts.Keyring, "err", err, "hint", "the next start does it")
		}
		s.refreshKeyState()
	}, nil
}

// refreshKeyState brings up to date what [Store.KeyState] returns, where that is possible.
func (s *Store) refreshKeyState() { _, _ = s.ReadKeyState(context.Background()) }

// RotateKey adds a key to the keyring and returns its id. The file is replaced atomically and is on disk before
// the key is used. Everything that was sealed stays readable, and what is written under the new key is sealed with
// it, except for secrets that were created with a key of their own. With reencrypt, everything is then brought
// under it, as [Store.Reencrypt] does, by the Run of this [Store] or another.
//
// The key becomes primary at once or, in a [Shared] storage, as soon as all agents that run there hold it: by
// this call, or by the Run of the one that gets it last. [Store.ReadKeyState] tells which lack it. A rotation that
// waits already is gone on with: no further key is added then. Nor is one where the last key of the keyring file is
// its primary one and was never used here: somebody has added it for this, and that key is taken.
func (s *Store) RotateKey(ctx context.Context, reencrypt bool) (string, error) {
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
	if s.place.Shared {
		id, err := s.beginRotation(ctx, c, reencrypt)
		if err != nil {
			return "", c.refer(err)
		}
		ring(s.keysBell)
		return id, s.promote(ctx)
	}
	next, err := s.extendKeyring()
	if err != nil {
		return "", c.refer(err)
	}
	s.keys.Store(next)
	id := formatKeyID(next.primary)
	s.log.Info("key rotated", "key", id, "count", len(next.entries))
	// What is in the same transaction as these notes, or after them, uses the new key.
	err = s.write(context.WithoutCancel(ctx), c, func(t *tx) error {
		if err := t.noteKey(next.primary); err != nil || !reencrypt {
			return err
		}
		return t.putKeyNote(noteReencrypt, keyNote{key: next.primary, Since: t.now})
	})
	if err != nil {
		return id, fmt.Errorf("key %s is in the keyring and primary, but could not be noted in the database: %w", id, err)
	}
	s.refreshKeyState()
	if reencrypt {
		ring(s.reencryptBell)
	}
	return id, nil
}

// CompleteRotation makes the key primary that a rotation waits with, if no agent of a [Shared] storage lacks it any
// more. The Run of each agent does that, too.
func (s *Store) CompleteRotation(ctx context.Context) error {
	if !s.place.Shared {
		return nil
	}
	return s.promote(ctx)
}

// beginRotation notes which key is next in a shared storage. It adds one to the keyring file if need be, before
// it is noted: a key that is noted is in the file of somebody.
func (s *Store) beginRotation(ctx context.Context, c call, reencrypt bool) (id string, err error) {
	onDisk, err := s.keyringOnDisk()
	if err != nil {
		return "", err
	}
	var waits, fresh uint32
	err = s.view(ctx, c, func(t *tx) error {
		t.keys, waits, fresh = onDisk, 0, 0
		next, held, err := t.keyNote(noteNext)
		if err != nil {
			return err
		}
		if next != nil && !held {
			return errNextElsewhere(next.key)
		}
		if next != nil {
			waits = next.key
		}
		primary, err := t.inForce()
		if err != nil {
			return err
		}
		if last := onDisk.entries[len(onDisk.entries)-1].ID; last == onDisk.primary && primary != 0 && last != primary {
			seen, err := t.Get(Keys, keyOf(last))
			if seen == nil {
				fresh = last
			}
			if err != nil {
				return err
			}
		}
		return t.holdsAll()
	})
	if err != nil {
		return "", err
	}
	next := onDisk
	key := cmp.Or(waits, fresh)
	if key == 0 {
		if next, err = s.extend(onDisk); err != nil {
			return "", err
		}
		key = next.primary
		s.log.Info("key added to the keyring", "key", formatKeyID(key), "keyring", s.opts.Keyring, "count", len(next.entries))
	}
	s.keys.Store(next)
	return formatKeyID(key), s.write(ctx, c, func(t *tx) error {
		note, _, err := t.keyNote(noteNext)
		switch {
		case err != nil:
			return err
		case note == nil && waits != 0:
			return nil // it has become primary meanwhile
		case note == nil:
			note = &keyNote{key: key, Since: t.now}
		case note.key != key:
			return errNextElsewhere(note.key)
		case note.Reencrypt || !reencrypt:
			return nil
		}
		note.Reencrypt = note.Reencrypt || reencrypt
		return t.putKeyNote(noteNext, *note)
	})
}

func errNextElsewhere(key uint32) error {
	return Errorf(ErrKeyLost, "a rotation to key %d waits for agents that lack it, and this keyring lacks it, too; give it the keyring of the agent that has begun, or give the rotation up with: secretagent keys remove %[1]d", key)
}

// keyringOnDisk reads the keyring file, which must hold all keys that are in use. Others use the file as well, so
// what is changed is not what is in memory.
func (s *Store) keyringOnDisk() (*keys, error) {
	onDisk, err := newKeys(keyfile.ReadKeyring(s.opts.Keyring, s.opts.KeyringIsCredential))
	if err != nil {
		return nil, err
	}
	for _, e := range s.keys.Load().entries {
		if e.AEAD != nil && onDisk.aead(e.ID) == nil {
			return nil, Errorf(ErrKeyLost,
				"the keyring %s has changed and no longer holds key %d, which this database may need; put it back first", s.opts.Keyring, e.ID)
		}
	}
	return onDisk, nil
}

// extendKeyring adds a primary key to the keyring file.
func (s *Store) extendKeyring() (*keys, error) {
	onDisk, err := s.keyringOnDisk()
	if err != nil {
		return nil, err
	}
	return s.extend(onDisk)
}

func (s *Store) extend(onDisk *keys) (*keys, error) {
	next, err := newKeys(onDisk.ring.Extend())
	if err != nil {
		return nil, Errorf(ErrKeyringKept, "could not add a key to the keyring (%v); where it is a copy that cannot be changed, add the key to the original with \"secretagent keys add FILE\" and hand it over anew", err)
	}
	return next, nil
}

// RemoveKey takes a key out of the keyring that neither is the primary one nor protects anything here. The
// file is replaced as by RotateKey. From a [Shared] storage a key is removed when no agent can need it any more;
// the other agents have it in their files until these are replaced, and where the file of this one cannot be
// changed, the error is an [ErrKeyringKept]. A rotation to the key that waits is given up.
func (s *Store) RemoveKey(ctx context.Context, id string) error {
	key, err := keyNamed(id)
	c := call{op: "RemoveKey", invalid: err}
	s.rotate.Lock()
	defer s.rotate.Unlock()
	primary, err := s.forgetKey(ctx, c, key)
	if err != nil {
		return err
	}
	next, err := newKeys(keyfile.ReadKeyring(s.opts.Keyring, s.opts.KeyringIsCredential))
	if err == nil && slices.ContainsFunc(next.entries, func(e keyfile.Key) bool { return e.ID == key }) {
		next, err = newKeys(next.ring.Remove(key, primary))
	}
	s.refreshKeyState()
	ring(s.keysBell)
	if err != nil {
		return c.refer(Errorf(ErrKeyringKept, "key %d protects nothing here any more and is forgotten, but stays in the keyring: %v", key, err))
	}
	s.keys.Store(next)
	s.log.Info("key removed", "key", id, "count", len(next.entries))
	return nil
}

// forgetKey removes the note of a key that nothing needs, and returns the primary one. What is sealed is looked at in
// a transaction before, which would take too long where others write all the time: once a key is not the primary one,
// only a new secret with a key of its own can come to need it, and notes the key anew; see claimKey.
func (s *Store) forgetKey(ctx context.Context, c call, key uint32) (primary uint32, err error) {
	for {
		var before []byte
		err := s.view(ctx, c, func(t *tx) (err error) {
			if before, err = t.Get(Keys, keyOf(key)); err == nil {
				before = bytes.Clone(before)
				err = t.unused(key)
			}
			return err
		})
		if err != nil {
			return 0, err
		}
		same := false
		err = s.write(ctx, c, func(t *tx) error {
			now, err := t.Get(Keys, keyOf(key))
			if same = err == nil && bytes.Equal(now, before); !same {
				return err
			}
			if primary, err = t.inForce(); err != nil {
				return err
			}
			if primary == key {
				return errPrimary(key)
			}
			next, _, err := t.keyNote(noteNext)
			if err == nil && next != nil && next.key == key {
				err = t.delete(KeyNotes, []byte(noteNext))
			}
			if err == nil && now != nil {
				err = t.delete(Keys, keyOf(key))
			}
			return err
		})
		if err != nil || same {
			return primary, err
		}
	}
}

func errPrimary(key uint32) error {
	return Errorf(ErrKeyInUse, "key %d is the primary one, which seals what is written from now on; rotate first", key)
}

// unused returns an error unless the key is in the keyring, or next, and nothing needs it.
func (t *tx) unused(key uint32) error {
	primary, err := t.inForce()
	if err != nil {
		return err
	}
	next, _, err := t.keyNote(noteNext)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(t.keys.entries, func(e keyfile.Key) bool { return e.ID == key }) && (next == nil || next.key != key) {
		return Errorf(upstream.ErrKeyNotFound, "the keyring has no key %d", key)
	}
	if key == primary || primary == 0 && key == t.keys.primary {
		return errPrimary(key)
	}
	return t.eachStored(func(name upstream.SecretName, r *record) error {
		if r.sealedBy == key || r.key == key || slices.ContainsFunc(r.versions, func(v version) bool { return v.keyID == key }) {
			return Errorf(ErrKeyInUse, "key %d still protects secret %q, and maybe others; re-encrypt first", key, name)
		}
		return nil
	})
}

// notedKeys returns the keys that the database has seen.
func (t *tx) notedKeys() (ids []uint32, err error) {
	cursor := t.Scan(Keys, nil)
	for {
		key, _, err := cursor.Next()
		if key == nil || err != nil {
			return ids, err
		}
		if len(key) != 4 {
			return nil, t.place.Damaged("its list of keys has an entry that is none")
		}
		ids = append(ids, binary.BigEndian.Uint32(key))
	}
}

// missingKeys returns the keys that the database has seen and the keyring does not hold, or
// holds disabled. A key that the keyring does hold must be the same key.
func (t *tx) missingKeys() (map[uint32]bool, error) {
	missing := map[uint32]bool{}
	noted, err := t.notedKeys()
	for _, id := range noted {
		if t.keys.aead(id) == nil {
			missing[id] = true
		} else if _, err := t.keySeen(id); err != nil {
			return nil, err
		}
	}
	return missing, err
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
		return time.Time{}, Errorf(ErrDamaged,
			"what key %d sealed here cannot be opened: the keyring is another one with the same key id, or the database is damaged; put a good copy of each in place", id)
	}
	return unixTime(int64(binary.BigEndian.Uint64(plain))), nil
}

// noteKey seals a note with a key that the database has not seen before.
func (t *tx) noteKey(id uint32) error {
	if note, err := t.Get(Keys, keyOf(id)); note != nil || err != nil {
		return err
	}
	return t.putKeySeen(id, t.now)
}

func (t *tx) putKeySeen(id uint32, at int64) error {
	return t.put(Keys, keyOf(id), id, binary.BigEndian.AppendUint64(nil, uint64(at)), t.keyAssociatedData(id))
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
