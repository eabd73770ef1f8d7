package etcd

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"testing"
)

// TestConnectingIsTriedAnewSoon: the first packet to a member that was cut off is lost, and the kernel waits longer and
// longer before it sends another.
func TestConnectingIsTriedAnewSoon(t *testing.T) {
	t.Parallel()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	must(t, err)
	defer syscall.Close(fd)
	must(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	must(t, syscall.Listen(fd, 0))
	name, err := syscall.Getsockname(fd)
	must(t, err)
	address := fmt.Sprint("127.0.0.1:", name.(*syscall.SockaddrInet4).Port)
	for range 3 { // one has room; others get no answer, as from a member that is cut off
		conn, e := dial(t.Context(), address)
		if e == nil {
			defer conn.Close()
		}
		err = e
	}
	if ne := net.Error(nil); !errors.As(err, &ne) || !ne.Timeout() {
		t.Errorf("got %v, not that time is over", err)
	}
}
