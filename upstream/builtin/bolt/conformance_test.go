package bolt

import (
	"testing"

	"secretagent/upstream/builtin"
	"secretagent/upstream/upstreamtest"
)

func TestConformance(t *testing.T) {
	upstreamtest.Run(t, func(t *testing.T) upstreamtest.Harness { return harness(t, builtin.Emulate{}) })
}

func TestConformanceWithEmulation(t *testing.T) {
	upstreamtest.Run(t, func(t *testing.T) upstreamtest.Harness { return harness(t, emulateAll) })
}

var emulateAll = builtin.Emulate{InstanceID: "kst-1", Keys: []string{"key-1", "alias/app"}, PutMovesStages: true}

func harness(t *testing.T, emulate builtin.Emulate) upstreamtest.Harness {
	clock := upstreamtest.NewClock()
	opts := testOptions(t)
	opts.Now, opts.Emulate = clock.Now, emulate
	return upstreamtest.Harness{Manager: mustOpen(t, opts), Advance: clock.Advance, Emulate: upstreamtest.Emulation(emulate)}
}
