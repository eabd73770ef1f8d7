package builtin

import (
	"context"
	"errors"
	"sync"

	"secretagent/upstream"
)

// unreadable are the secrets of a shared storage whose records the keyring lacks the key of. They are in no list.
type unreadable struct {
	mu    sync.Mutex
	names map[upstream.SecretName]bool
}

// set notes whether a secret can be read, and reports whether that is new.
func (u *unreadable) set(name upstream.SecretName, is bool) (news bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.names[name] == is {
		return false
	}
	if u.names == nil {
		u.names = map[upstream.SecretName]bool{}
	}
	if is {
		u.names[name] = true
	} else {
		delete(u.names, name)
	}
	return true
}

// Unreadable returns how many secrets of a [Shared] storage cannot be read, for want of their keys or
// because they are damaged. Reading one tells which.
func (s *Store) Unreadable() int {
	s.unreadable.mu.Lock()
	defer s.unreadable.mu.Unlock()
	return len(s.unreadable.names)
}

// unseal turns a notice of a shared storage into one of what the records say.
func (s *Store) unseal(n Notice) (out Notice) {
	t := s.newTx(nil, nil)
	if n.All {
		there := map[upstream.SecretName]bool{}
		for _, r := range n.Records {
			there[r.Name] = true
		}
		for _, name := range s.index.names() {
			if !there[name] {
				out.listed = append(out.listed, listed{name: name, removed: true})
			}
		}
		s.unreadable.mu.Lock()
		s.unreadable.names = nil
		s.unreadable.mu.Unlock()
		out.changed = append(out.changed, upstream.AnySecret)
	}
	for _, sealed := range n.Records {
		if !n.All {
			out.changed = append(out.changed, sealed.Name)
		}
		l, known := listed{name: sealed.Name, removed: true}, true
		if sealed.Sealed != nil {
			r, err := t.openRecord(sealed.Name, sealed.Sealed)
			if known = err == nil; known {
				l = listedAs(detached(sealed.Name), r)
			}
			if news := s.unreadable.set(sealed.Name, !known); news && !known {
				s.log.Warn("a secret cannot be read", "secret", string(sealed.Name), "err", err, "hint", "give all agents the same keyring")
			}
		} else {
			s.unreadable.set(sealed.Name, false)
		}
		out.listed = append(out.listed, l)
	}
	return out
}

// names returns the names of all secrets.
func (x *index) names() (all []upstream.SecretName) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.secrets.Scan(func(e entry) bool {
		all = append(all, e.name)
		return true
	})
	return all
}

// catchUp returns when the index is up to date, as far as others write to the storage.
func (s *Store) catchUp(ctx context.Context) error {
	if shared, ok := s.storage.(Shared); ok {
		return shared.CatchUp(ctx)
	}
	return nil
}

// full reports whether a transaction should take no other secret, which can have a hundred versions.
func (t *tx) full() bool { return t.place.Shared && t.writes >= 20 }

// errKeyLacking says which key a secret of a shared storage is sealed with.
func errKeyLacking(name upstream.SecretName, sealed []byte) error {
	id, _ := sealKey(sealed)
	return Errorf(ErrKeyLost, "secret %q is sealed with key %d, which this keyring lacks or has disabled; give all agents the same keyring", name, id)
}

// lost returns err, or which key is missing.
func (t *tx) lost(err error, name upstream.SecretName, sealed []byte) error {
	if t.place.Shared && errors.Is(err, errNoSuchKey) {
		return errKeyLacking(name, sealed)
	}
	return nil
}
