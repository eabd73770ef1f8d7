//go:build unix

package render

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// nonBlock keeps an open from waiting for the writer of a pipe.
const nonBlock = syscall.O_NONBLOCK

// ownGroup makes cmd the leader of a new process group.
func ownGroup(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

// killGroup kills cmd and everything it started that is still in its group.
func killGroup(cmd *exec.Cmd) error {
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != syscall.ESRCH {
		return err
	}
	return os.ErrProcessDone
}

// refusedByNobody reports whether nobody listens where a connection was to go.
func refusedByNobody(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// parseSignal reads a name with or without SIG, in any case.
func parseSignal(name string) (os.Signal, error) {
	full := strings.ToUpper(name)
	if !strings.HasPrefix(full, "SIG") {
		full = "SIG" + full
	}
	if sig := unix.SignalNum(full); sig != 0 {
		return sig, nil
	}
	return nil, errors.New("must be the name of a signal, such as HUP or USR1")
}
