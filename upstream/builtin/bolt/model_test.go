package bolt

import (
	"context"
	"testing"

	"secretagent/upstream"
	"secretagent/upstream/builtin"
	"secretagent/upstream/upstreamtest"
)

func TestModel(t *testing.T) {
	sequences := 600
	if testing.Short() || raceDetector {
		sequences = 100
	}
	upstreamtest.CheckModel(t, sequences, func(t *testing.T, maxVersions int, emulate upstreamtest.Emulation) upstreamtest.Model {
		ctx, clock, opts := context.Background(), upstreamtest.NewClock(), testOptions(t)
		opts.MaxVersions, opts.Now, opts.Emulate = maxVersions, clock.Now, builtin.Emulate(emulate)
		var store *Store
		reopen := func() (err error) {
			if store != nil {
				must(t, store.Close())
			}
			store, err = Open(opts)
			must(t, err)
			store.db.bolt.NoSync = true // what is durable is for other tests
			return nil
		}
		must(t, reopen())
		t.Cleanup(func() {
			wantErr(t, store.Close(), nil)
			checkFile(t, opts.Database)
		})
		return upstreamtest.Model{
			Now: clock.Now, Advance: clock.Advance,
			Store: func() upstream.Manager { return store },
			Actions: map[string]upstreamtest.Action{
				"purge":  {Do: func() error { return only(store.Purge(ctx)) }},
				"reopen": {Rarely: true, Do: reopen},
				"rotate": {Rarely: true, Do: func() error { // each makes the keyring longer
					must(t, only(store.RotateKey(ctx, false)))
					return store.Reencrypt(ctx, nil)
				}},
			},
		}
	})
}
