package endpoint

import (
	"net"

	"golang.org/x/sys/unix"
)

// peersKnown says that the system tells who is at the other end of a unix socket.
const peersKnown = true

// peerOf asks the kernel who connected. The answer was fixed when the connection was made: a
// process that passes its connection on, to a child or over another socket, passes on who it was.
// The kernel does not tell who writes to a stream.
//
// SO_PEERPIDFD would tell whether the process that connected still lives. That is no proof of who
// asks: it can live and have passed the connection on, and one that ended may have left it to a
// child of the same user rightfully. It would cost a descriptor for each connection and a system
// call for each request. A token beside the uid binds each request, as every request carries it.
func peerOf(nc net.Conn) peer {
	uc, ok := nc.(*net.UnixConn)
	if !ok {
		return peer{}
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return peer{}
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil || credErr != nil || cred.Pid == 0 {
		// Pid 0 is a process of another pid namespace whose ids we cannot trust to be ours.
		return peer{}
	}
	return peer{uid: cred.Uid, gid: cred.Gid, pid: cred.Pid, known: true}
}
