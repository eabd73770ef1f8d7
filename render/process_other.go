//go:build !linux

package render

import "errors"

func ownerOfProcess(int) (int, error) {
	return 0, errors.New("this platform does not say to whom a process belongs")
}
