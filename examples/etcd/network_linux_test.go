package etcd

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// network is a switch with hosts on it, each in a network namespace of its own. Nothing of it has a name on
// the machine: it is gone when the test and the programs that it has started are.
type network struct {
	t     *testing.T
	inner *os.File // the namespace of the switch
	hosts int
}

// newNetwork skips the test where namespaces cannot be made.
func newNetwork(t *testing.T) *network {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, for network namespaces")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs ip, of iproute2")
	}
	inner, err := newNamespace()
	if err != nil {
		t.Skip("network namespaces cannot be made: ", err)
	}
	n := &network{t: t, inner: inner}
	if out, err := n.run(inner, "ip", "link", "add", "switch", "type", "bridge", "mcast_snooping", "0"); err != nil {
		t.Skipf("a bridge cannot be made: %v: %s", err, out)
	}
	n.must(inner, "ip", "link", "set", "switch", "up")
	return n
}

// host is a machine on the network.
type host struct {
	*network
	space *os.File
	port  string // its end at the switch
	ip    string
}

func (n *network) newHost() *host {
	n.t.Helper()
	space, err := newNamespace()
	if err != nil {
		n.t.Fatal(err)
	}
	n.hosts++
	h := &host{network: n, space: space, port: fmt.Sprint("port", n.hosts), ip: fmt.Sprint("10.77.0.", n.hosts)}
	file := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), space.Fd())
	n.must(n.inner, "ip", "link", "add", h.port, "type", "veth", "peer", "name", "eth0", "netns", file)
	n.must(n.inner, "ip", "link", "set", h.port, "master", "switch", "up")
	n.must(space, "ip", "address", "add", h.ip+"/24", "dev", "eth0")
	n.must(space, "ip", "link", "set", "eth0", "up")
	n.must(space, "ip", "link", "set", "lo", "up")
	return h
}

// cut ways, and how they are healed.
var cuts = []struct{ name, cut, heal string }{
	{"unplugged", "down", "up"}, // both ends see that there is no carrier
	{"silenced", "type bridge_slave state 0", "type bridge_slave state 3"},          // what is sent vanishes
	{"isolated", "type bridge_slave isolated on", "type bridge_slave isolated off"}, // from others that are isolated
}

func (h *host) link(how string) {
	h.must(h.inner, "ip", append([]string{"link", "set", "dev", h.port}, strings.Fields(how)...)...)
}

// start starts a program on the host. It dies with the test.
func (h *host) start(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return within(h.space, cmd.Start)
}

// dial connects from the host.
func (h *host) dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = within(h.space, func() (err error) {
		conn, err = (&net.Dialer{Timeout: 500 * time.Millisecond}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

func (n *network) run(space *os.File, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := within(space, cmd.Start); err != nil {
		return "", err
	}
	err := cmd.Wait()
	return out.String(), err
}

func (n *network) must(space *os.File, name string, args ...string) {
	n.t.Helper()
	if out, err := n.run(space, name, args...); err != nil {
		n.t.Errorf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}

// newNamespace makes a network namespace, which lives as long as the file and what runs in it.
func newNamespace() (space *os.File, err error) {
	err = elsewhere(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() error {
		space, err = os.Open(ownNamespace)
		return err
	})
	return space, err
}

// within runs fn on a thread in the namespace: sockets that it makes, and programs that it starts, are there.
func within(space *os.File, fn func() error) error {
	return elsewhere(func() error { return unix.Setns(int(space.Fd()), unix.CLONE_NEWNET) }, fn)
}

const ownNamespace = "/proc/thread-self/ns/net"

// elsewhere runs fn on a thread that leave takes to another namespace, and takes it back. The thread must not end:
// programs that it has started would end with it.
func elsewhere(leave, fn func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := os.Open(ownNamespace)
	if err != nil {
		return err
	}
	defer own.Close()
	if err := leave(); err != nil {
		return err
	}
	defer func() {
		if err := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); err != nil {
			panic(err) // the thread is of no use to others
		}
	}()
	return fn()
}
