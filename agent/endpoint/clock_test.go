package endpoint

import (
	"testing"
	"time"
	"unsafe"
)

// beforeJump returns t as it reads after the wall clock was set by d: what was noted before
// keeps the old wall time, and the monotonic one.
func beforeJump(t time.Time, d time.Duration) time.Time {
	wall := (*uint64)(unsafe.Pointer(&t)) // 1 bit, 33 bits of seconds, 30 bits of nanoseconds
	*wall -= uint64(int64(d/time.Second)) << 30
	return t
}

// Ensure that setting the clock of the host neither ends nor prolongs the overlap of tokens.
func TestClockJumpMovesNoTokenOverlap(t *testing.T) {
	now := time.Now()
	for _, jump := range []time.Duration{24 * time.Hour, -24 * time.Hour} {
		until := beforeJump(now.Add(time.Minute), jump)
		if moved := until.Round(0).Sub(now.Add(time.Minute).Round(0)); moved != -jump {
			t.Fatalf("the wall time moved by %s, want %s", moved, -jump)
		}
		token := Token{notAfter: until}
		if token.expiredNow() {
			t.Errorf("%s: the overlap ended early", jump)
		}
		if token.expired(now.Add(59*time.Second)) || !token.expired(now.Add(61*time.Second)) {
			t.Errorf("%s: the overlap does not end when it should", jump)
		}
		ended := Token{notAfter: beforeJump(now.Add(-time.Second), jump)}
		if !ended.expiredNow() {
			t.Errorf("%s: a token came back", jump)
		}
	}
}
