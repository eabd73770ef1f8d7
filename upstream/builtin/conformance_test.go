package builtin

import (
	"testing"

	"secretagent/upstream/upstreamtest"
)

func TestConformance(t *testing.T) {
	upstreamtest.Run(t, func(t *testing.T) upstreamtest.Harness { return harness(t, Emulate{}) })
}

func TestConformanceWithEmulation(t *testing.T) {
	upstreamtest.Run(t, func(t *testing.T) upstreamtest.Harness { return harness(t, emulateAll) })
}

var emulateAll = Emulate{InstanceID: "kst-1", Keys: []string{"key-1", "alias/app"}, PutMovesStages: true}

func harness(t *testing.T, emulate Emulate) upstreamtest.Harness {
	clock := newClock()
	opts := testOptions(t)
	opts.Now, opts.Emulate = clock.now, emulate
	return upstreamtest.Harness{Manager: mustOpen(t, opts), Advance: clock.advance, Emulate: upstreamtest.Emulation(emulate)}
}
