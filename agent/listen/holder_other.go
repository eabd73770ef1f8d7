//go:build !linux

package listen

import "net"

// holderOf returns nothing: only Linux tells.
func holderOf(*net.TCPAddr) string { return "" }
