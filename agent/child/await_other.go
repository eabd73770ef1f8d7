//go:build unix && !linux

package child

import "golang.org/x/sys/unix"

// awaitExit returns false at once, so that the application is reaped before the rest of its
// group is killed. In the moment in between the id of an empty group could be given to another
// process; that ids are reused slowly makes it unlikely.
func awaitExit(int) bool { return false }

// groupRuns reports whether the process group has members. Zombies that their new parent has not
// collected yet count.
func groupRuns(id int) bool { return unix.Kill(-id, 0) == nil }
