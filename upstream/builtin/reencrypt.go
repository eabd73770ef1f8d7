package builtin

import (
	"cmp"
	"context"
	"errors"
	"time"

	"secretagent/upstream"
)

const (
	reencryptBatch    = 1 << 20              // bytes of values that a transaction of a re-encryption rewrites, at most
	reencryptValues   = 40                   // and how many of them, in a shared storage
	reencryptPauseMin = 5 * time.Millisecond // between two of them, and as long as the last one took where that is more
	reencryptRetry    = 5 * time.Second      // after a failure, doubled up to
	reencryptRetryMax = 5 * time.Minute
	reencryptLook     = 200 * time.Millisecond // how often it is asked how far another agent is
)

// Reencrypt rewrites everything that is not sealed with the primary key: values and metadata,
// also of secrets that were created with a key of their own, which from then on follow the
// primary key. What cannot be read stays as it is, and the first of it is in the error, which comes in the end.
//
// How far it has come is noted in each transaction. When ctx ends, or the process, the [Store.Run] of a process that
// has the storage open goes on with it, or the next Reencrypt. One [Store] is at work on it at a time: where
// another agent is, this call waits for that one.
//
// progress, which may be nil, is called after each step with the number of secrets done and
// the number of secrets there are. Other calls work meanwhile. A rotation during the call makes it begin anew.
func (s *Store) Reencrypt(ctx context.Context, progress func(done, total int)) error {
	if err := s.catchUp(ctx); err != nil {
		return err
	}
	w := reencryption{Store: s, begin: true}
	for {
		began := time.Now()
		turn, err := w.step(ctx)
		if err != nil {
			return err
		}
		if progress != nil && (turn != over || w.found) {
			progress(w.note.Done, max(w.note.Total, w.note.Done))
		}
		pause := time.Since(began) // the others have their turn
		switch turn {
		case over:
			return w.skipped
		case others:
			pause = reencryptLook
		}
		if !s.sleep(ctx, pause) {
			return context.Cause(ctx)
		}
	}
}

// BeginReencrypt notes that a re-encryption is to be done, unless one is noted already, for the [Store.Run] of a
// process that has the storage open. It returns the primary key.
func (s *Store) BeginReencrypt(ctx context.Context) (key string, err error) {
	key, err = answer(ctx, s.write, call{op: "Reencrypt"}, func(t *tx) (string, error) {
		primary, err := t.primary()
		if err != nil {
			return "", err
		}
		note, _, err := t.keyNote(noteReencrypt)
		if err == nil && (note == nil || note.key != primary) {
			err = t.putKeyNote(noteReencrypt, keyNote{key: primary, Since: t.now})
		}
		return formatKeyID(primary), err
	})
	if err == nil {
		s.refreshKeyState()
		ring(s.reencryptBell)
	}
	return key, err
}

// reencryptInTurn goes on with the re-encryption that is under way, whenever there is one, until ctx ends. It is a
// part of [Store.Run].
func (s *Store) reencryptInTurn(ctx context.Context) {
	if !s.place.Shared { // where keepKeys looks
		ring(s.reencryptBell) // an earlier process may have left the task
	}
	for retry := reencryptRetry; ; {
		select {
		case <-s.reencryptBell:
		case <-ctx.Done():
			return
		case <-s.quit:
			return
		}
		err := s.reencryptNoted(ctx)
		if err == nil {
			retry = reencryptRetry
			continue
		}
		if ctx.Err() != nil || errors.Is(err, ErrClosed) {
			return
		}
		if s.place.Shared && errors.Is(err, upstream.ErrUnavailable) {
			continue // told elsewhere; keepKeys rings again
		}
		s.log.Warn("not everything is re-encrypted yet", "retry_in", retry, "err", err, "hint", "it is tried again; check the storage when it stays")
		if !s.sleep(ctx, retry) {
			return
		}
		retry = min(2*retry, reencryptRetryMax)
		ring(s.reencryptBell)
	}
}

// reencryptNoted does what is left of the re-encryption that is noted, if this agent is the one to do it.
func (s *Store) reencryptNoted(ctx context.Context) error {
	w := reencryption{Store: s}
	for {
		began := time.Now()
		turn, err := w.step(ctx)
		if err != nil || turn != mine {
			return err
		}
		if !s.sleep(ctx, max(reencryptPauseMin, time.Since(began))) {
			return nil
		}
	}
}

// turn is whose it is to go on with a re-encryption.
type turn int

const (
	mine turn = iota
	others
	over
)

// reencryption is the work of one [Store] on one.
type reencryption struct {
	*Store
	begin   bool    // also where none is noted
	noted   bool    // it was, by this work or before
	found   bool    // there was something to look at
	note    keyNote // how far it is
	secrets int     // how many the next transaction is to take; 0: as many as it can
	skipped error   // the first secret that cannot be read
}

// plan is what a step is to do.
type plan struct {
	turn   turn
	stored *keyNote // as it is noted
	note   keyNote  // that, or where to begin
	names  []upstream.SecretName
	more   bool // secrets behind these
}

// step brings some secrets under the primary key, in one transaction, and reports whose turn is next.
func (w *reencryption) step(ctx context.Context) (turn, error) {
	p, err := answer(ctx, w.view, call{op: "Reencrypt"}, w.plan)
	if err != nil || p.turn != mine {
		w.noted = w.noted || p.stored != nil
		if p.turn == others {
			w.note, w.found = p.note, true
			w.refreshKeyState()
		}
		return p.turn, err
	}
	var (
		b    batch
		next *keyNote // nil: nothing was done
		runs int
		size = min(cmp.Or(w.secrets, len(p.names)), len(p.names))
	)
	total := w.index.len()
	err = w.write(ctx, call{op: "Reencrypt"}, func(t *tx) error {
		b, next = batch{}, nil // the operation may be executed again: where others were faster, with less of it
		if runs++; runs > 1 {
			size = (size + 1) / 2
		}
		stored, _, err := t.keyNote(noteReencrypt)
		if err != nil || !stored.same(p.stored) {
			return err
		}
		if primary, err := t.primary(); err != nil || primary != p.note.key {
			return err
		}
		if b, err = t.reencrypt(p.names[:size]); err != nil {
			return err
		}
		note := p.note
		note.By, note.Total = w.id, max(total, note.Done)
		note.Done += b.count
		note.Skipped += len(b.skipped)
		if b.count > 0 {
			note.After = p.names[b.count-1]
		}
		next = &note
		switch {
		case p.more || b.count < len(p.names):
			if stored != nil || t.writes > 0 {
				return t.putKeyNote(noteReencrypt, note)
			}
		case stored != nil:
			return t.delete(KeyNotes, []byte(noteReencrypt))
		}
		return nil
	})
	if err != nil || next == nil {
		return mine, err
	}
	ended := !p.more && b.count == len(p.names)
	w.secrets = 2 * size
	w.noted = w.noted || p.stored != nil || b.wrote && !ended
	w.note, w.found, w.skipped = *next, true, cmp.Or(w.skipped, b.why)
	if len(b.skipped) > 0 {
		w.log.Warn("secrets cannot be read and are not re-encrypted", "secret", joinNames(b.skipped), "count", len(b.skipped), "err", b.why, "hint", "restore them or delete them, then re-encrypt again")
	}
	w.refreshKeyState()
	if !ended {
		return mine, nil
	}
	w.log.Info("secrets re-encrypted", "count", next.Done-next.Skipped, "key", formatKeyID(next.key))
	return over, nil
}

// same reports whether a note is as it was.
func (n *keyNote) same(old *keyNote) bool {
	return n == old || n != nil && old != nil && *n == *old
}

// plan finds out whose turn it is, and what is to be done.
func (w *reencryption) plan(t *tx) (p plan, err error) {
	p.turn = over
	key, err := t.inForce()
	if err != nil || key == 0 {
		return p, err
	}
	stored, held, err := t.keyNote(noteReencrypt)
	if err != nil || stored == nil && (!w.begin || w.noted) {
		return p, err // there is none, or another agent has ended it
	}
	p.stored, p.note = stored, w.note
	if stored != nil {
		p.note = *stored
	}
	if p.note.key != key || stored != nil && !held {
		p.note = keyNote{key: key, Since: t.now} // from the start
	}
	if _, runs, err := t.agent(p.note.By); err != nil {
		return p, err
	} else if runs && p.note.By != w.id {
		p.turn = others
		return p, nil
	}
	if t.keys.aead(key) == nil {
		if w.begin {
			return p, errPrimaryLacking(key)
		}
		return p, nil // another agent can do it
	}
	p.turn = mine
	p.names, p.more, err = t.namesAfter(p.note.After)
	return p, err
}

// batch is what one transaction of a re-encryption has done.
type batch struct {
	count   int // secrets
	wrote   bool
	skipped []upstream.SecretName
	why     error // of the first one
}

// reencrypt brings secrets under the primary key, as many of them as fit into the transaction.
func (t *tx) reencrypt(names []upstream.SecretName) (b batch, err error) {
	if err := t.prefetch(Records, keysOf(names)); err != nil {
		return b, err
	}
	for size := 0; b.count < len(names) && size < reencryptBatch && !t.full(); b.count++ {
		name := names[b.count]
		r, err := t.stored(name)
		n, done := 0, true
		if err == nil && r != nil {
			n, done, err = t.reencryptSecret(name, r, reencryptBatch-size)
		}
		b.wrote = t.writes > 0
		if isUnreadable(err) {
			b.skipped = append(b.skipped, name)
			b.why = cmp.Or(b.why, err)
		} else if err != nil {
			return b, err
		}
		if !done {
			return b, nil // the next batch goes on with it
		}
		size += n + 512 // the record, and that looking costs something too
	}
	return b, nil
}

// keysOf returns the keys of records.
func keysOf(names []upstream.SecretName) [][]byte {
	keys := make([][]byte, len(names))
	for i, name := range names {
		keys[i] = []byte(name)
	}
	return keys
}

// prefetch reads keys at once, where the storage can.
func (t *tx) prefetch(space Space, keys [][]byte) error {
	if p, ok := t.Reader.(Prefetcher); ok && len(keys) > 1 {
		return p.Prefetch(space, keys)
	}
	return nil
}

// namesAfter returns the names of the next secrets, as many as a transaction of a re-encryption can take, and
// whether there may be more.
func (t *tx) namesAfter(after upstream.SecretName) (names []upstream.SecretName, more bool, err error) {
	most := 2048
	if t.place.Shared {
		most = 32
	}
	cursor := t.Scan(Records, valueKey(after, ""))
	for len(names) < most {
		key, _, err := cursor.Next()
		if key == nil || err != nil {
			return names, false, err
		}
		names = append(names, upstream.SecretName(key))
	}
	return names, true, nil
}

// isUnreadable reports whether a secret itself is the trouble, and not the storage.
func isUnreadable(err error) bool { return errors.Is(err, ErrDamaged) || errors.Is(err, ErrKeyLost) }

// reencryptSecret brings one secret under the primary key and returns how many bytes of values
// it has rewritten. It is not done when it has rewritten more than room. A value that cannot be read stays as it
// is, the others are rewritten, and its error is returned.
func (t *tx) reencryptSecret(name upstream.SecretName, r *record, room int) (size int, done bool, damage error) {
	primary, err := t.primary()
	if err != nil {
		return 0, false, err
	}
	current := r.sealedBy == primary && r.key == 0
	r.key = 0
	var others [][]byte
	for i := range r.versions {
		if r.versions[i].keyID != primary {
			others = append(others, valueKey(name, r.versions[i].id))
		}
	}
	if err := t.prefetch(Values, others[:min(len(others), reencryptValues)]); err != nil {
		return 0, false, err
	}
	for i := range r.versions {
		v := &r.versions[i]
		if v.keyID == primary {
			continue
		}
		if size >= room {
			return size, false, t.putRecord(name, r)
		}
		data, err := t.value(name, v)
		if isUnreadable(err) {
			damage = errors.Join(damage, err)
			continue
		}
		if err != nil {
			return 0, false, err
		}
		current = false
		size += len(data)
		if t.place.Shared {
			size += reencryptBatch / reencryptValues
		}
		if err := t.putValue(name, r, v, data); err != nil {
			return 0, false, err
		}
	}
	if current {
		return size, true, damage
	}
	if err := errors.Join(t.putRecord(name, r), t.w.Wipe()); err != nil {
		return 0, false, err
	}
	return size, true, damage
}
