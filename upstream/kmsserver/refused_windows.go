package kmsserver

import (
	"errors"

	"golang.org/x/sys/windows"
)

// connectionRefused reports whether nobody listens at the other end.
func connectionRefused(err error) bool { return errors.Is(err, windows.WSAECONNREFUSED) }
