package builtin

import (
	"context"
	"slices"
	"sync"
	"time"

	"secretagent/upstream"
)

const (
	purgeBatch   = 64          // secrets per transaction
	purgeAtMost  = time.Hour   // the longest sleep, for clocks that are set
	purgeAtLeast = time.Second // the shortest one, and the pause after a failure is a minute
	purgeRetry   = time.Minute
)

// schedule is when which secret goes for good. It repeats what the records say, so that the
// purge need not read them all.
type schedule struct {
	mu      sync.Mutex
	at      map[upstream.SecretName]int64 // Unix seconds
	changed chan struct{}                 // size one: look again
}

// set notes a deletion; zero takes it back.
func (s *schedule) set(name upstream.SecretName, at int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at == 0 {
		delete(s.at, name)
		return
	}
	if s.at == nil {
		s.at = map[upstream.SecretName]int64{}
	}
	s.at[name] = at
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// due returns up to limit secrets whose time has come, and when the next one's comes; zero:
// none is planned.
func (s *schedule) due(now int64, limit int) (names []upstream.SecretName, next int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, at := range s.at {
		if at <= now && len(names) < limit {
			names = append(names, name)
		} else if next == 0 || at < next {
			next = at
		}
	}
	slices.Sort(names)
	return names, next
}

// Run purges secrets whose deletion window has passed, until ctx ends or the [Store] is closed.
// It returns nil. Without it such secrets are invisible all the same, but stay in the file.
func (s *Store) Run(ctx context.Context) error {
	for {
		wait := purgeRetry
		next, err := s.purgeDue(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			s.log.Warn("deleted secrets are not purged yet", "retry_in", purgeRetry, "err", err, "hint", "it is tried again; check the disk when it stays")
		case next == 0:
			wait = purgeAtMost
		default:
			wait = min(max(time.Duration(next-s.now())*time.Second, purgeAtLeast), purgeAtMost)
		}
		select {
		case <-time.After(wait):
		case <-s.schedule.changed:
		case <-ctx.Done():
			return nil
		case <-s.quit:
			return nil
		}
	}
}

// purgeDue removes every secret whose time has come and returns when the next one's comes.
func (s *Store) purgeDue(ctx context.Context) (next int64, err error) {
	for {
		names, next := s.schedule.due(s.now(), purgeBatch)
		if len(names) == 0 {
			return next, nil
		}
		var purged []upstream.SecretName
		err := s.write(ctx, call{op: "purge"}, func(t *tx) error {
			purged = purged[:0] // the operation may be executed again
			for _, name := range names {
				r, err := t.stored(name)
				if err != nil {
					return err
				}
				if r == nil || !r.gone(t.now) { // the plan has changed since it was looked up
					t.plan(name, r.plannedFor())
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
			return 0, err
		}
		s.counters.purged.Add(uint64(len(purged)))
		for _, name := range purged {
			s.log.Info("secret purged: its deletion window has passed", "secret", string(name))
		}
	}
}

// plannedFor returns when the secret goes; zero: never. A nil record is that of no secret.
func (r *record) plannedFor() int64 {
	if r == nil {
		return 0
	}
	return r.plannedDelete
}
