package builtin

import (
	"slices"
	"sync"

	"secretagent/upstream"
)

// listeners are the functions that want to hear of changes.
type listeners struct {
	mu    sync.RWMutex
	funcs map[int]func(upstream.SecretName)
	next  int
}

// OnChange calls fn with the name of each secret of which readers see something else: after
// the change is on disk and before its writer is answered, so that fn has run when the writer
// goes on. Changes that are committed together call fn once per secret.
//
// fn holds up the writer: it must not block and must not call the [Store]. After
// cancel has returned, fn is not called again.
func (s *Store) OnChange(fn func(upstream.SecretName)) (cancel func()) {
	l := &s.listeners
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.funcs == nil {
		l.funcs = map[int]func(upstream.SecretName){}
	}
	id := l.next
	l.next++
	l.funcs[id] = fn
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.funcs, id)
	}
}

func (l *listeners) call(changed []upstream.SecretName) {
	slices.Sort(changed)
	l.mu.RLock()
	defer l.mu.RUnlock()
	for _, name := range slices.Compact(changed) {
		for _, fn := range l.funcs {
			fn(name)
		}
	}
}
