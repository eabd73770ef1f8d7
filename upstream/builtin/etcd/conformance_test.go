package etcd

import (
	"testing"

	"secretagent/upstream/builtin"
	"secretagent/upstream/upstreamtest"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	upstreamtest.Run(t, func(t *testing.T) upstreamtest.Harness {
		clock := newClock()
		opts := testOptions(t)
		opts.Now = clock.now
		return upstreamtest.Harness{Manager: mustOpen(t, opts), Advance: clock.advance, Emulate: upstreamtest.Emulation(builtin.Emulate{})}
	})
}
