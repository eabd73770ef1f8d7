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
		done := tellProgress(&screen, "asking")
		time.Sleep(progressAfter / 2)
		done()
		if screen.String() != "" {
			t.Errorf("told of what was quick: %q", screen.String())
		}
		done = tellProgress(&screen, "asking")
		time.Sleep(2*progressAfter + progressAfter/2)
		done()
		done()
		if want := "\r\x1b[Kasking … 1s\r\x1b[Kasking … 2s\r\x1b[K"; screen.String() != want {
			t.Errorf("got %q, want %q", screen.String(), want)
		}
	})
}
