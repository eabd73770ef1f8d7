//go:build unix

package endpoint

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// repeater reads requests of a connection and answers those that repeat the last one, with one
// system call less for each than a loop of reads and writes needs. [net.Conn.Read] always tries
// the socket before it waits, and a client that waits for its answer has sent nothing yet. The
// poller remembers what arrives while a request is answered, so that try can be left out after
// a read that emptied the socket.
//
// What the poller reports once and does not repeat is an end of the stream that came together
// with the last request. A client that closed its side only, and waits for us to close ours, is
// noticed by the sweep instead, see [repeater.ended].
type repeater struct {
	c    *conn
	raw  syscall.RawConn
	step func(fd uintptr) (done bool) // readAndAnswer, which would be allocated for each read

	// The read under way, and its result.
	buf []byte
	n   int
	err error
}

// newRepeater returns nil where there can be no repeater: the bytes of TLS are not those of the
// socket. With an audit log there must be none: closing a connection waits for the step under
// way, and whoever closes it must not wait for the disk.
func newRepeater(c *conn) *repeater {
	socket, ok := c.Conn.(syscall.Conn)
	if !ok || c.srv.opts.Audit != nil {
		return nil
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil // closed already
	}
	r := &repeater{c: c, raw: raw}
	r.step = r.readAndAnswer
	return r
}

// read is the Read of a connection that is between two requests, with a buffer that none of
// them fills. It returns the first bytes that are not a repeated request.
func (r *repeater) read(p []byte) (int, error) {
	r.buf, r.n, r.err = p, 0, nil
	err := r.raw.Read(r.step)
	r.buf = nil
	if err != nil {
		return 0, err // closed, or the deadline is over
	}
	return r.n, r.err
}

// readAndAnswer reports false when there is nothing to do before the socket is readable again.
func (r *repeater) readAndAnswer(fd uintptr) (done bool) {
	n, err := syscall.Read(int(fd), r.buf)
	for errors.Is(err, syscall.EINTR) {
		n, err = syscall.Read(int(fd), r.buf)
	}
	switch {
	case errors.Is(err, syscall.EAGAIN):
		return false
	case err != nil:
		r.err = &net.OpError{Op: "read", Net: r.c.LocalAddr().Network(), Source: r.c.LocalAddr(), Addr: r.c.RemoteAddr(), Err: os.NewSyscallError("read", err)}
		return true
	case n == 0:
		r.err = io.EOF
		return true
	}
	if r.c.at != active {
		r.c.setPhase(active)
	}
	if n < len(r.buf) { // else there may be more in the socket
		answered, err := r.c.srv.answerAgain(r.c, r.buf, n)
		if answered && err == nil {
			r.c.setPhase(idle)
			return false
		}
		if err != nil {
			r.err = err
			return true
		}
	}
	r.n = n
	return true
}

// ended reports whether the client has closed its side and everything it sent is read. It does
// not block and may be called while the connection is read.
func (r *repeater) ended() (ended bool) {
	_ = r.raw.Control(func(fd uintptr) {
		var next [1]byte
		n, _, err := unix.Recvfrom(int(fd), next[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		ended = n == 0 && err == nil
	})
	return ended
}
