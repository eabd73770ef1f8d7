package builtin

import (
	"context"
	"errors"
	"sync"
	"time"

	"secretagent/upstream"
)

const (
	purgeBatch   = 64          // secrets per transaction, at most
	purgeAtMost  = time.Hour   // the longest sleep, for clocks that are set; what is planned meanwhile is a week away
	purgeAtLeast = time.Second // the shortest one, and the pause after a failure is a minute
	purgeRetry   = time.Minute
)

// Run does what a running agent does in the background, until ctx ends or the [Store] is closed: it purges
// secrets whose deletion window has passed, and goes on with a re-encryption. In a [Shared] storage it also shows
// the others which keys this agent holds, and completes a rotation that waits for it. It returns nil. Without it
// secrets whose time has come are invisible all the same, but stay where they are.
func (s *Store) Run(ctx context.Context) error {
	var background sync.WaitGroup
	defer background.Wait()
	if shared, ok := s.storage.(Shared); ok {
		background.Go(func() { s.keepKeys(ctx, shared) })
	}
	background.Go(func() { s.reencryptInTurn(ctx) })
	s.purgeInTime(ctx)
	return nil
}

func (s *Store) purgeInTime(ctx context.Context) {
	for {
		wait := purgeRetry
		next, err := s.Purge(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			s.log.Warn("deleted secrets are not purged yet", "retry_in", purgeRetry, "err", err, "hint", "it is tried again; check the disk when it stays")
		case next == 0:
			wait = purgeAtMost
		default:
			wait = min(max(time.Duration(next-s.now())*time.Second, purgeAtLeast), purgeAtMost)
		}
		if !s.sleep(ctx, wait) {
			return
		}
	}
}

// Purge removes every secret whose deletion window has passed and returns when the next one's does, in
// Unix seconds; zero: none is planned.
func (s *Store) Purge(ctx context.Context) (next int64, err error) {
	if err := s.catchUp(ctx); err != nil {
		return 0, err
	}
	due, next := s.index.due(s.now())
	for len(due) > 0 {
		n, batchErr := s.purge(ctx, due[:min(len(due), purgeBatch)])
		err, due = errors.Join(err, batchErr), due[n:]
	}
	return next, err
}

// purge removes those of the first ones of the named secrets whose time has come, as many as fit into
// one transaction, and returns how many it has looked at. A damaged record holds up no others.
func (s *Store) purge(ctx context.Context, names []upstream.SecretName) (looked int, _ error) {
	var (
		purged []upstream.SecretName
		damage error
	)
	err := s.write(ctx, call{op: "purge"}, func(t *tx) error {
		purged, damage, looked = purged[:0], nil, 0 // the operation may be executed again
		for _, name := range names {
			if t.full() {
				break
			}
			looked++
			r, err := t.stored(name)
			if err != nil {
				damage = errors.Join(damage, err)
				continue
			}
			if r == nil || !r.gone(t.now) { // restored, or made anew, since it was looked up
				continue
			}
			if err := t.remove(name, r); err != nil {
				return err
			}
			t.change(name)
			purged = append(purged, name)
		}
		return nil
	})
	if err != nil {
		return len(names), err
	}
	s.purged.Add(uint64(len(purged)))
	for _, name := range purged {
		s.log.Info("secret purged: its deletion window has passed", "secret", string(name))
	}
	return looked, damage
}
