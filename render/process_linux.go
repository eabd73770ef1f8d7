package render

import (
	"bytes"
	"errors"
	"fmt"
	"os"
)

// ownerOfProcess returns the number of the user that a process runs as, or errNoProcess. It is
// the real one, which decides whose signals the process gets.
func ownerOfProcess(pid int) (int, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return 0, errNoProcess
		}
		return 0, err
	}
	_, line, _ := bytes.Cut(status, []byte("\nUid:"))
	var uid int
	_, err = fmt.Fscan(bytes.NewReader(line), &uid)
	return uid, err
}
