//go:build unix

package kmsserver

import (
	"errors"
	"syscall"
)

// connectionRefused reports whether nobody listens at the other end.
func connectionRefused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }
