//go:build unix

package cache_test

import (
	"os"
	"syscall"
)

// unusable returns what can be in the place of the sealed file, and how to make it.
func unusable(path string) map[string]func() error {
	return map[string]func() error{
		"a pipe":   func() error { return syscall.Mkfifo(path, 0o600) },
		"a device": func() error { return os.Symlink(os.DevNull, path) },
	}
}
