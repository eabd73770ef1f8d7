package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"secretagent/upstream"
)

// The notes in the space [KeyNotes]. Each is sealed with the key that it is about, so that nobody can make one
// who does not hold that key, and whoever lacks it can tell which one it is.
const (
	notePrimary   = "primary"   // of a shared storage: the primary key, whatever the keyring files say
	noteNext      = "next"      // of a shared storage: the key that is to be primary as soon as all agents hold it
	noteReencrypt = "reencrypt" // the re-encryption under way
)

// keyNote is what a note holds. Each uses the fields that it needs.
type keyNote struct {
	key uint32 // that seals the note

	Since     int64 `json:",omitzero"` // Unix seconds
	Reencrypt bool  `json:",omitzero"` // what follows when the key has become primary

	// Of a re-encryption.
	By      string              `json:",omitzero"` // the agent at work, see agents.go
	After   upstream.SecretName `json:",omitzero"` // the last one that is done
	Done    int                 `json:",omitzero"`
	Total   int                 `json:",omitzero"`
	Skipped int                 `json:",omitzero"` // that could not be read
}

// keyNote returns the note of that name; nil when there is none. Where the keyring lacks its key, only the
// key is known, and held is false.
func (t *tx) keyNote(name string) (note *keyNote, held bool, err error) {
	sealed, err := t.Get(KeyNotes, []byte(name))
	if sealed == nil || err != nil {
		return nil, false, err
	}
	note = &keyNote{}
	note.key, _ = sealKey(sealed)
	plain, err := t.keys.open(sealed, t.noteAssociatedData(name))
	if errors.Is(err, errNoSuchKey) {
		return note, false, nil
	}
	if err == nil {
		err = json.Unmarshal(plain, note)
	}
	if err != nil {
		return nil, false, Errorf(ErrDamaged, "the note %q about keys cannot be opened: the keyring is another one with the same key id, or what is kept is damaged", name)
	}
	return note, true, nil
}

func (t *tx) putKeyNote(name string, note keyNote) error {
	plain, err := json.Marshal(note)
	if err != nil {
		return err
	}
	return t.put(KeyNotes, []byte(name), note.key, plain, t.noteAssociatedData(name))
}

// primary returns the id of the key that seals what is written from now on. For a shared storage it is part of
// what the transaction has read: no write is sealed with a key that is primary no more. The first write of all
// makes that of its keyring the primary one.
func (t *tx) primary() (uint32, error) {
	if !t.place.Shared {
		return t.keys.primary, nil
	}
	if t.agreed != 0 {
		return t.agreed, nil
	}
	note, held, err := t.keyNote(notePrimary)
	switch {
	case err != nil:
		return 0, err
	case note == nil:
		note = &keyNote{key: t.keys.primary, Since: t.now}
		if err := t.useKey(note.key); err != nil {
			return 0, err
		}
		if err := t.putKeyNote(notePrimary, *note); err != nil {
			return 0, err
		}
	case !held:
		return 0, errPrimaryLacking(note.key)
	}
	t.agreed = note.key
	return note.key, nil
}

func errPrimaryLacking(key uint32) error {
	return Errorf(ErrKeyLost, "the primary key is %d, which this keyring lacks or has disabled; put the keyring in its place that the other agents have", key)
}

// inForce returns the primary key; zero where a shared storage has none yet.
func (t *tx) inForce() (uint32, error) {
	if !t.place.Shared {
		return t.keys.primary, nil
	}
	note, _, err := t.keyNote(notePrimary)
	if note == nil || err != nil {
		return 0, err
	}
	return note.key, nil
}

// useKey refuses to write with a key before a shared storage has a note of it, and notes it where this keyring
// has all keys that others have noted and all agents hold the key: what is sealed with a key that they lack would
// be lost to them, and an agent with the keyring of another place would mix the two.
func (t *tx) useKey(id uint32) error {
	if !t.place.Shared || slices.Contains(t.noted, id) {
		return nil
	}
	t.noted = append(t.noted, id)
	note, err := t.Get(Keys, keyOf(id))
	if err != nil {
		return err
	}
	if note != nil {
		_, err := t.keySeen(id)
		return err
	}
	if err := t.holdsAll(); err != nil {
		return err
	}
	waiting, err := t.lacking(id)
	if err != nil {
		return err
	}
	if len(waiting) > 0 {
		return Errorf(ErrKeyLost, "key %d is not used yet, and must not be: %s; give all agents the same keyring", id, lackIt(waiting))
	}
	return t.noteKey(id)
}

// holdsAll refuses to bring in a key where this keyring lacks one that others use.
func (t *tx) holdsAll() error {
	missing, err := t.missingKeys()
	if err != nil {
		return err
	}
	for other := range missing {
		return Errorf(ErrKeyLost, "the keyring lacks key %d, which others use here, and so must bring in no other one; give all agents the same keyring", other)
	}
	return nil
}

// claimKey notes that a secret is about to have a key of its own, unless that is 0, so that a RemoveKey of it that
// has looked before looks again.
func (t *tx) claimKey(id uint32) error {
	if id == 0 {
		return nil
	}
	if err := t.useKey(id); err != nil {
		return err
	}
	seen, err := t.keySeen(id)
	if seen.IsZero() || err != nil {
		return err // written a moment ago, in this transaction
	}
	return t.putKeySeen(id, seen.Unix())
}

// KeyState is what a [Store] knows of what its keys are to do.
type KeyState struct {
	// Primary is the key that seals what is written; empty before the first write to a [Shared] storage. Lacking are
	// the keys that others use there and this keyring lacks: what they seal cannot be read, and where the primary
	// one is among them, nothing be written.
	Primary string   `json:",omitzero"`
	Lacking []string `json:",omitempty"`

	Rotation     *KeyRotation  `json:",omitempty"` // that waits for agents
	Reencryption *Reencryption `json:",omitempty"` // under way
}

// KeyRotation is a key that becomes primary as soon as all agents hold it.
type KeyRotation struct {
	Key       string
	Since     time.Time
	Reencrypt bool     `json:",omitzero"`  // then everything is re-encrypted
	Waiting   []string `json:",omitempty"` // agents that lack it, by host and process
}

// Reencryption is how far everything is brought under the primary key.
type Reencryption struct {
	Key         string
	Done, Total int    // secrets
	Skipped     int    `json:",omitzero"` // of Done: those that cannot be read, and stay as they are
	By          string `json:",omitzero"` // the agent at work, by host and process; empty: none, or the only one there is
}

// KeyState returns what was known a moment ago; see [Store.ReadKeyState].
func (s *Store) KeyState() KeyState { return *s.keyState.Load() }

// ReadKeyState asks the storage.
func (s *Store) ReadKeyState(ctx context.Context) (KeyState, error) {
	state, err := answer(ctx, s.view, call{op: "KeyState"}, (*tx).keyState)
	if err == nil {
		s.keyState.Store(&state)
	}
	return state, err
}

func (t *tx) keyState() (state KeyState, err error) {
	primary, err := t.inForce()
	if err != nil {
		return state, err
	}
	if primary != 0 {
		state.Primary = formatKeyID(primary)
	}
	noted, err := t.notedKeys()
	if err != nil {
		return state, err
	}
	for _, id := range noted {
		if t.keys.aead(id) == nil {
			state.Lacking = append(state.Lacking, formatKeyID(id))
		}
	}
	next, _, err := t.keyNote(noteNext)
	if err != nil {
		return state, err
	}
	if next != nil {
		waiting, err := t.lacking(next.key)
		if err != nil {
			return state, err
		}
		state.Rotation = &KeyRotation{formatKeyID(next.key), unixTime(next.Since), next.Reencrypt, waiting}
	}
	task, _, err := t.keyNote(noteReencrypt)
	if err != nil {
		return state, err
	}
	if task != nil {
		by, _, err := t.agent(task.By)
		if err != nil {
			return state, err
		}
		state.Reencryption = &Reencryption{formatKeyID(task.key), task.Done, max(task.Total, task.Done), task.Skipped, by}
	}
	return state, nil
}
