package endpoint

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"
)

// maxSocketPath is what fits into a socket address on every system we run on.
const maxSocketPath = 103

// TCPOptions configures [ListenTCP].
type TCPOptions struct {
	// Address is host:port. A host name is resolved once. Port 0 takes a free one.
	Address string

	// TLS makes the listener speak TLS, see [LoadTLS]. Nil is plain text, for loopback only.
	TLS *TLS

	// AllowNonLoopback must be set, and TLS as well, for an address that other hosts can reach.
	AllowNonLoopback bool
}

// listener is a listener made by this package, hence one whose rules were checked.
type listener struct {
	net.Listener
	tls  *tls.Config
	path string      // of a unix socket
	info fs.FileInfo // of the socket as it was made
	addr net.Addr
}

// ListenTCP opens a TCP listener. An address that is not on loopback needs TLS and
// AllowNonLoopback; the error says which is missing.
func ListenTCP(opts TCPOptions) (net.Listener, error) {
	addr, err := net.ResolveTCPAddr("tcp", opts.Address)
	if err != nil {
		return nil, fmt.Errorf("listen on %q: %w", opts.Address, err)
	}
	if !addr.IP.IsLoopback() {
		switch {
		case !opts.AllowNonLoopback:
			return nil, fmt.Errorf("listen on %q: other hosts can reach this address; use 127.0.0.1, or allow it explicitly and configure TLS", opts.Address)
		case opts.TLS == nil:
			return nil, fmt.Errorf("listen on %q: other hosts can reach this address; it needs TLS", opts.Address)
		}
	}
	ln, err := net.ListenTCP("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %q: %w", opts.Address, err)
	}
	l := &listener{Listener: ln, addr: ln.Addr()}
	if opts.TLS != nil {
		l.tls = opts.TLS.Config()
	}
	return l, nil
}

// UnixOptions configures [ListenUnix].
type UnixOptions struct {
	// Path of the socket. Missing folders are made with mode 0755. A socket that nobody
	// listens on is replaced; anything else at the path is an error.
	Path string

	// Mode of the socket; only its permission bits. 0 means 0600. Whoever may write to the
	// socket may connect.
	Mode fs.FileMode

	// Owner and Group of the socket; nil leaves them as they are.
	Owner, Group *int
}

// ListenUnix opens a unix socket. Nobody can connect before its mode and owner are as asked:
// it is made in a folder of its own that only we can enter, and moved to its path when it is
// finished.
func ListenUnix(opts UnixOptions) (net.Listener, error) {
	l, err := listenUnix(opts)
	if err != nil {
		return nil, fmt.Errorf("listen on unix socket %q: %w", opts.Path, err)
	}
	return l, nil
}

func listenUnix(opts UnixOptions) (_ net.Listener, err error) {
	if opts.Path == "" {
		return nil, errors.New("the path is empty")
	}
	if opts.Mode == 0 {
		opts.Mode = 0o600
	}
	dir := filepath.Dir(opts.Path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if err := checkSocketPath(opts.Path); err != nil {
		return nil, err
	}
	private, err := os.MkdirTemp(dir, ".s")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(private) }()
	made := filepath.Join(private, "s")
	if longest := max(len(made), len(opts.Path)); longest > maxSocketPath {
		return nil, fmt.Errorf("the path is %d characters too long for a socket", longest-maxSocketPath)
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: made, Net: "unix"})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false)
	defer func() {
		if err != nil {
			_ = ln.Close()
		}
	}()
	if opts.Owner != nil || opts.Group != nil {
		uid, gid := -1, -1
		if opts.Owner != nil {
			uid = *opts.Owner
		}
		if opts.Group != nil {
			gid = *opts.Group
		}
		if err := os.Chown(made, uid, gid); err != nil {
			return nil, err
		}
	}
	if err := os.Chmod(made, opts.Mode.Perm()); err != nil {
		return nil, err
	}
	info, err := os.Lstat(made)
	if err != nil {
		return nil, err
	}
	if err := os.Rename(made, opts.Path); err != nil {
		return nil, err
	}
	return &listener{Listener: ln, path: opts.Path, info: info, addr: &net.UnixAddr{Name: opts.Path, Net: "unix"}}, nil
}

// checkSocketPath makes sure that only a dead socket is replaced.
func checkSocketPath(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return errors.New("something that is not a socket is there already")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	var d net.Dialer
	if nc, err := d.DialContext(ctx, "unix", path); err == nil {
		_ = nc.Close()
		return errors.New("another process listens on it")
	}
	return nil
}

// Accept returns the next connection, with TLS around it where that is configured; the
// handshake happens when it is first read.
func (l *listener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil || l.tls == nil {
		return nc, err
	}
	return tls.Server(nc, l.tls), nil
}

// Addr returns the address that clients use.
func (l *listener) Addr() net.Addr { return l.addr }

// Close stops listening and removes the socket, unless another has taken its path since.
func (l *listener) Close() error {
	if l.path != "" {
		if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.info) {
			_ = os.Remove(l.path)
		}
	}
	return l.Listener.Close()
}

// checkListener applies the rules to listeners made elsewhere, such as inherited ones.
func checkListener(ln net.Listener) (unix bool, err error) {
	addr := ln.Addr()
	if l, ok := ln.(*listener); ok {
		return l.path != "", nil
	}
	switch a := addr.(type) {
	case *net.UnixAddr:
		return true, nil
	case *net.TCPAddr:
		if !a.IP.IsLoopback() {
			return false, fmt.Errorf("endpoint: %s is reachable from other hosts; open it with ListenTCP and TLS", a)
		}
	}
	return false, nil
}
