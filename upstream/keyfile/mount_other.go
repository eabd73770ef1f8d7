//go:build !linux

package keyfile

// InMemory reports false: only Linux tells.
func InMemory(string) bool { return false }

// MountPoint reports false: the rename that fails finds it out.
func MountPoint(string) bool { return false }

// FreeSpace reports false: the write that fails finds it out.
func FreeSpace(string) (bytes uint64, known bool) { return 0, false }
