package etcd

import (
	"context"
	"testing"

	"secretagent/upstream"
	"secretagent/upstream/builtin"
	"secretagent/upstream/upstreamtest"
)

// TestModel has two stores take the calls in turn: together they do what one does.
func TestModel(t *testing.T) {
	t.Parallel()
	sequences := 20
	if testing.Short() {
		sequences = 10
	}
	upstreamtest.CheckModel(t, sequences, func(t *testing.T, maxVersions int, emulate upstreamtest.Emulation) upstreamtest.Model {
		clock, opts := upstreamtest.NewClock(), testOptions(t)
		opts.MaxVersions, opts.Now, opts.Emulate = maxVersions, clock.Now, builtin.Emulate(emulate)
		stores, calls := []*Store{mustOpen(t, opts), mustOpen(t, another(opts))}, 0
		next := func() *Store {
			calls++
			return stores[calls%2]
		}
		return upstreamtest.Model{
			Now: clock.Now, Advance: clock.Advance,
			Store: func() upstream.Manager { return next() },
			BeforeList: func() {
				until(t, "both have been told the same", func() bool {
					var revs [2]int64
					for i, s := range stores {
						s.db.watch.mu.Lock()
						if revs[i] = s.db.watch.rev; len(s.db.watch.ahead) > 0 {
							revs[i] = -int64(i) - 1
						}
						s.db.watch.mu.Unlock()
					}
					return revs[0] == revs[1]
				})
			},
			Actions: map[string]upstreamtest.Action{
				"purge": {Do: func() error { return only(next().Purge(context.Background())) }},
				"rotate": {Rarely: true, Do: func() error { // each makes the keyring longer
					must(t, only(next().RotateKey(context.Background(), false)))
					for _, s := range stores {
						use, err := s.ReadKeyring(context.Background())
						must(t, err)
						use()
					}
					return next().Reencrypt(context.Background(), nil)
				}},
			},
		}
	})
}
