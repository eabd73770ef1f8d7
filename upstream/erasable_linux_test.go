package upstream_test

import (
	"runtime"
	"testing"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

func TestBytesNobodyHoldsAreOverwritten(t *testing.T) {
	const n = 100
	planted := upstreamtest.Plant(t)
	held := make([]upstream.SecretData, n)
	for i := range held {
		held[i] = upstream.NewSecretData(planted.Bytes())
	}
	part := held[0].Reveal()[8:] // whoever holds a part keeps the whole
	if got := planted.Count(t); got != n {
		t.Fatalf("%d copies in memory, want %d: what was handed over is not overwritten, or what is held is not found", got, n)
	}
	clear(held[:n-1])
	deadline := time.Now().Add(10 * time.Second)
	for planted.Count(t) != 2 && time.Now().Before(deadline) {
		runtime.GC()
		time.Sleep(time.Millisecond)
	}
	if got := planted.Count(t); got != 2 {
		t.Errorf("%d copies in memory although two are held", got)
	}
	if string(part) != string(held[n-1].Reveal()[8:]) {
		t.Error("bytes were overwritten that are held")
	}
}

func TestErasableTakesItsArgumentOver(t *testing.T) {
	for _, text := range []string{"", "x", "0123456789abcdef", string(make([]byte, 1<<20))} {
		b := []byte(text)
		own := upstream.Erasable(b)
		if string(own) != text || cap(own) > len(text)*5/4+16 {
			t.Errorf("%d bytes became %d of %d", len(text), len(own), cap(own))
		}
		for _, c := range b {
			if c != 0 {
				t.Fatalf("%d bytes were not overwritten", len(text))
			}
		}
	}
}
