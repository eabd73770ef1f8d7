package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"secretagent/upstream"
)

// presence is what a running agent tells the others, in the space [Agents]. It is in clear text, as the ids of
// keys are anyway, and of a later version of the program it may hold more.
type presence struct {
	Agent string // for people: host and process
	Keys  []uint32
}

// hold returns the presence of an agent that runs with these keys.
func (k *keys) hold() presence {
	host, err := os.Hostname()
	if err != nil {
		host = "?"
	}
	p := presence{Agent: fmt.Sprintf("%s (pid %d)", host, os.Getpid())}
	for _, e := range k.entries {
		if e.AEAD != nil {
			p.Keys = append(p.Keys, e.ID)
		}
	}
	return p
}

// lacking returns the agents that run and do not hold a key.
func (t *tx) lacking(id uint32) (agents []string, err error) {
	cursor := t.Scan(Agents, nil)
	for {
		key, value, err := cursor.Next()
		if key == nil || err != nil {
			return agents, err
		}
		if p := presenceOf(key, value); !slices.Contains(p.Keys, id) {
			agents = append(agents, p.Agent)
		}
	}
}

// presenceOf takes what it cannot read for an agent that holds nothing.
func presenceOf(key, value []byte) (p presence) {
	if err := json.Unmarshal(value, &p); err != nil || p.Agent == "" {
		return presence{Agent: fmt.Sprintf("%q", key)}
	}
	return p
}

// agent returns the name of an agent, and whether it runs.
func (t *tx) agent(id string) (name string, runs bool, err error) {
	if id == "" || !t.place.Shared {
		return "", false, nil
	}
	value, err := t.Get(Agents, []byte(id))
	if value == nil || err != nil {
		return "", false, err
	}
	return presenceOf([]byte(id), value).Agent, true, nil
}

// lackIt says which agents lack a key, the first ones by name.
func lackIt(agents []string) string {
	const named = 5
	if more := len(agents) - named; more > 0 {
		return fmt.Sprintf("%s and %d other agents lack it", strings.Join(agents[:named], ", "), more)
	}
	if len(agents) == 1 {
		return "agent " + agents[0] + " lacks it"
	}
	return "agents " + strings.Join(agents, ", ") + " lack it"
}

// keepKeys tells the others which keys this agent holds, completes a rotation that waited for the last agent,
// and lets the re-encryption go on that is under way, until ctx ends. It is the part of [Store.Run] for a
// shared storage. That the storage does not answer is told elsewhere.
func (s *Store) keepKeys(ctx context.Context, shared Shared) {
	lacked, failed := "", ""
	for {
		state, err := s.beat(ctx, shared)
		switch {
		case err == nil:
			lacked, failed = s.warnLacking(state, lacked), ""
			if state.Reencryption != nil {
				ring(s.reencryptBell)
			}
		case errors.Is(err, upstream.ErrUnavailable) || ctx.Err() != nil || err.Error() == failed:
		default:
			failed = err.Error()
			s.log.Warn("this agent takes no part in the rotation of keys", "err", err, "hint", "it goes on by itself when that is mended; a role at etcd needs readwrite on the prefix")
		}
		select {
		case <-time.After(shared.Pulse()):
		case <-s.keysBell:
		case <-ctx.Done():
			return
		case <-s.quit:
			return
		}
	}
}

// beat does once what keepKeys does.
func (s *Store) beat(ctx context.Context, shared Shared) (KeyState, error) {
	value, err := json.Marshal(s.keys.Load().hold())
	if err == nil {
		err = shared.Present(ctx, []byte(s.id), value)
	}
	if err != nil {
		return KeyState{}, err
	}
	state, err := s.ReadKeyState(ctx)
	if err != nil || state.Rotation == nil || len(state.Rotation.Waiting) > 0 {
		return state, err
	}
	if err := s.promote(ctx); err != nil {
		return state, err
	}
	return s.ReadKeyState(ctx)
}

// warnLacking warns once of each set of keys that the keyring lacks.
func (s *Store) warnLacking(state KeyState, warned string) string {
	lacking := strings.Join(state.Lacking, ", ")
	if lacking == warned {
		return warned
	}
	if lacking == "" {
		s.log.Info("the keyring holds all keys that others use")
		return lacking
	}
	s.log.Warn("the keyring lacks keys that others use: what they seal cannot be read, and nothing be written where the primary one is among them",
		"key", lacking, "keyring", s.opts.Keyring, "hint", "put the keyring in its place that the other agents have: it is taken over within seconds")
	return lacking
}

// promote makes the next key the primary one, unless an agent lacks it. Of several that try at the same time one
// does it.
func (s *Store) promote(ctx context.Context) error {
	done := ""
	err := s.write(ctx, call{op: "RotateKey"}, func(t *tx) error {
		done = ""
		next, held, err := t.keyNote(noteNext)
		if next == nil || !held || err != nil {
			return err
		}
		waiting, err := t.lacking(next.key)
		if len(waiting) > 0 || err != nil {
			return err
		}
		if err := t.holdsAll(); err != nil {
			return err
		}
		if err := t.noteKey(next.key); err != nil {
			return err
		}
		if err := t.putKeyNote(notePrimary, keyNote{key: next.key, Since: t.now}); err != nil {
			return err
		}
		if next.Reencrypt {
			if err := t.putKeyNote(noteReencrypt, keyNote{key: next.key, Since: t.now}); err != nil {
				return err
			}
		}
		done = formatKeyID(next.key)
		return t.delete(KeyNotes, []byte(noteNext))
	})
	if err == nil && done != "" {
		s.log.Info("key rotated: all agents hold it", "key", done)
	}
	return err
}

// ring rings a bell that has room for one.
func ring(bell chan struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}

// names of secrets that were skipped, for the log.
func joinNames(names []upstream.SecretName) string {
	const named = 5
	var b strings.Builder
	for i, name := range names[:min(len(names), named)] {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(string(name))
	}
	return b.String()
}
