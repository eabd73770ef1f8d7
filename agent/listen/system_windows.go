package listen

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/windows"
)

// connectionRefused reports whether nobody listens at the other end.
func connectionRefused(err error) bool { return errors.Is(err, windows.WSAECONNREFUSED) }

// ownerOf says to whom a file belongs.
func ownerOf(fs.FileInfo) string { return "another user" }
