package render

import "maps"

// Continue makes r begin where old stands, which it replaces: a target that is made from the same
// as before stays in the state it was in, unless its file is gone, and hooks stay owed. It is called
// before Run: once while old still runs, so that Ready and Status of r say so from the first moment,
// and once when Run of old has returned, for what has happened meanwhile.
func (r *Renderer) Continue(old *Renderer) {
	there := map[*target]bool{}
	for _, t := range r.targets {
		stamp, err := t.publisher.published()
		there[t] = err == nil && stamp != stampAbsent
	}
	old.mu.Lock()
	defer old.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.owed.dir == old.owed.dir {
		r.owed = old.owed // the numbers of its records go on
	}
	before := map[string]*target{}
	for _, t := range old.targets {
		before[t.name] = t
	}
	for _, t := range r.targets {
		was := before[t.name]
		if was == nil {
			continue
		}
		if t.group != nil && was.group != nil {
			t.group.continueFor(t, was)
		}
		t.targetState = targetState{state: Pending, backoff: newBackoff()}
		if was.definition == t.definition && (was.state != Current || there[t]) {
			t.targetState = was.targetState
			if old.ended {
				t.known = maps.Clone(was.known)
			}
		}
	}
}

// continueFor takes over what the group of was owes for it, and how the last run of an equal hook
// ended. The caller holds the lock of both renderers.
func (g *hookGroup) continueFor(t, was *target) {
	delete(g.owing, t)
	if seq, owed := was.group.owing[was]; owed {
		g.owe(t, seq)
	}
	if g.hook.key(g.splay) == was.group.hook.key(was.group.splay) {
		g.failure, g.noProcess, g.untried = was.group.failure, was.group.noProcess, was.group.untried
	}
}
