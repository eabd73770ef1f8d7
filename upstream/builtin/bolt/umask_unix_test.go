//go:build !windows

package bolt

import "golang.org/x/sys/unix"

// openUmask lets new files have every permission they ask for.
func openUmask() (restore func()) {
	old := unix.Umask(0)
	return func() { unix.Umask(old) }
}
