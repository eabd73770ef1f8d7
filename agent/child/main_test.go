package child

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

// TestMain makes the test binary the application, or a supervisor that can be killed, when a
// test starts it as such.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		if play, ok := roles[os.Args[1]]; ok {
			os.Exit(play(os.Args[2:]))
		}
	}
	// Programs built with the race detector would linger for a second at their end.
	_ = os.Setenv("GORACE", "atexit_sleep_ms=0")
	goleak.VerifyTestMain(m)
}

// roles are what the test binary can be other than a test: name → main function.
var roles = map[string]func(args []string) int{}
