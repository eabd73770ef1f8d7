package etcd

import (
	"testing"

	"secretagent/upstream/builtin"
	"secretagent/upstream/upstreamtest"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	upstreamtest.Run(t, func(t *testing.T) upstreamtest.Harness {
		clock := upstreamtest.NewClock()
		opts := testOptions(t)
		opts.Now = clock.Now
		return upstreamtest.Harness{Manager: mustOpen(t, opts), Advance: clock.Advance, Emulate: upstreamtest.Emulation(builtin.Emulate{})}
	})
}
