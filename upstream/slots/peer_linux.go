package slots

import (
	"net"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// PeersKnown says that the system tells who is at the other end of a unix socket.
const PeersKnown = true

// overflowID stands for users and groups that have no number in a user namespace, unless somebody
// has changed it in /proc/sys/kernel.
const overflowID = 65534

// numbered reports whether every user and group of the host has a number in our user namespace, as
// in most containers, so that overflowID is the user who has that number.
var numbered = sync.OnceValue(func() bool {
	return !slices.ContainsFunc([]string{"uid", "gid"}, func(kind string) bool {
		ranges, err := os.ReadFile("/proc/self/" + kind + "_map")
		return err != nil || !slices.Equal(strings.Fields(string(ranges)), []string{"0", "0", "4294967295"})
	})
})

// PeerOf asks the kernel who connected. The answer was fixed when the connection was made: a
// process that passes its connection on, to a child or over another socket, passes on who it was.
// The kernel does not tell who writes to a stream.
//
// SO_PEERPIDFD would tell whether the process that connected still lives. That is no proof of who
// asks: it can live and have passed the connection on, and one that ended may have left it to a
// child of the same user rightfully. It would cost a descriptor for each connection and a system
// call for each request. A token beside the uid binds each request, as every request carries it.
//
// In containers that share a folder, a process is of another pid namespace than the agent, and has no
// number here: PID is 0. Who it is the kernel tells all the same, in the terms of the agent's user
// namespace. Who has no number in these is not known, as all of those look alike: with PrivateUsers=yes
// of systemd, and in rootless containers, that is most of the host.
func PeerOf(nc net.Conn) (p Peer, known bool) {
	uc, ok := nc.(*net.UnixConn)
	if !ok {
		return p, false
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return p, false
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil || credErr != nil {
		return p, false
	}
	if (cred.Uid == overflowID || cred.Gid == overflowID) && !numbered() {
		return p, false
	}
	return Peer{UID: cred.Uid, GID: cred.Gid, PID: cred.Pid}, true
}
