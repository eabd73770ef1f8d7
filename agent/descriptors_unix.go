//go:build unix

package agent

import (
	"math"

	"golang.org/x/sys/unix"
)

// maxOpenFiles returns the limit of open files of this process; 0: there is none that matters.
// The Go runtime has raised it as far as it may go.
func maxOpenFiles() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || uint64(limit.Cur) > math.MaxInt32 {
		return 0
	}
	return int(limit.Cur)
}
