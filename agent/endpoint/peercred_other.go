//go:build !linux

package endpoint

import "net"

// peersKnown says that the system tells who is at the other end of a unix socket.
const peersKnown = false

func peerOf(net.Conn) peer { return peer{} }
