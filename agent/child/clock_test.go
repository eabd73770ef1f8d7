package child

import (
	"testing"
	"time"
	"unsafe"
)

// afterJump returns t as it reads when the wall clock was set by d shortly before.
func afterJump(t time.Time, d time.Duration) time.Time {
	wall := (*uint64)(unsafe.Pointer(&t)) // 1 bit, 33 bits of seconds, 30 bits of nanoseconds
	*wall += uint64(int64(d/time.Second)) << 30
	return t
}

// Ensure that setting the clock of the host neither holds a restart back nor lets more of them
// happen, and that a burst of changes still ends.
func TestClockJump(t *testing.T) {
	for _, jump := range []time.Duration{24 * time.Hour, -24 * time.Hour} {
		p := newTiming(Options{Debounce: 2 * time.Second, RestartWindow: time.Minute, MaxRestarts: 2})
		now := time.Now()
		if moved := afterJump(now, jump).Round(0).Sub(now.Round(0)); moved != jump {
			t.Fatalf("the wall time moved by %s, want %s", moved, jump)
		}
		p.acted(now)
		p.acted(now)
		later := afterJump(now.Add(10*time.Second), jump)
		if got := p.mayAct(later); got.Round(time.Millisecond) != 20*time.Second {
			t.Errorf("%s: the next restart may be in %s, want 20s", jump, got)
		}
		p.noticed(now)
		if got := p.noticed(afterJump(now.Add(time.Second), jump)); got != 2*time.Second {
			t.Errorf("%s: a change waits for %s, want 2s", jump, got)
		}
	}
}
