package command

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestProgressIsToldAfterASecondAndTakenAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var screen strings.Builder
		var b bar
		done := tellProgress(&screen, "asking", &b)
		time.Sleep(progressAfter / 2)
		done()
		if screen.String() != "" {
			t.Errorf("told of what was quick: %q", screen.String())
		}
		done = tellProgress(&screen, "asking", &b)
		time.Sleep(2*progressAfter + progressAfter/2)
		done()
		done()
		if want := "\r\x1b[Kasking … 1s\r\x1b[Kasking … 2s\r\x1b[K"; screen.String() != want {
			t.Errorf("got %q, want %q", screen.String(), want)
		}
		screen.Reset()
		done = tellProgress(&screen, "moving", &b)
		b.set(3, 8)
		time.Sleep(progressAfter + progressAfter/2)
		b.set(9, 8) // more than there were
		time.Sleep(progressAfter)
		done()
		want := "\r\x1b[Kmoving [#########---------------] 3 of 8 … 1s\r\x1b[Kmoving [########################] 8 of 8 … 2s\r\x1b[K"
		if screen.String() != want {
			t.Errorf("got %q, want %q", screen.String(), want)
		}
	})
}
