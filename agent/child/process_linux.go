package child

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// awaitExit returns true when the child pid has ended, and leaves it to be reaped; false when
// the end cannot be seen without reaping.
func awaitExit(pid int) bool {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			return err == nil
		}
	}
}

// groupRuns reports whether the process group has members that are not zombies. A zombie has
// closed its files and waits only for its parent.
func groupRuns(id int) bool {
	if unix.Kill(-id, 0) != nil {
		return false
	}
	pids, err := processes()
	if err != nil {
		return true
	}
	for _, pid := range pids {
		if of, err := unix.Getpgid(pid); err != nil || of != id {
			continue
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // gone by now
		}
		// The name before the state is in parentheses and may contain any of them.
		if state := stat[bytes.LastIndexByte(stat, ')')+1:]; !bytes.HasPrefix(state, []byte(" Z")) && !bytes.HasPrefix(state, []byte(" X")) {
			return true
		}
	}
	return false
}

// processes returns the ids of all processes that this one can see.
func processes() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
