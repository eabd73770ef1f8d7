//go:build !unix

package render

import (
	"errors"
	"os"
	"os/exec"
)

const nonBlock = 0

// ownGroup does nothing: there are no process groups here.
func ownGroup(*exec.Cmd) {}

func killGroup(cmd *exec.Cmd) error { return cmd.Process.Kill() }

// refusedByNobody is not known here.
func refusedByNobody(error) bool { return false }

func parseSignal(string) (os.Signal, error) {
	return nil, errors.New("cannot be sent: this platform has no signals; use command or http")
}
