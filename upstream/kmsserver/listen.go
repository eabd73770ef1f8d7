package kmsserver

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// ListenTCP opens a listener for [Signed] access. Without a TLS configuration the address
// must be a loopback one; with one, TLS 1.2 is the least that is spoken whatever the
// configuration says. Port 0 picks a free one.
func ListenTCP(address string, config *tls.Config) (net.Listener, error) {
	resolved, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("kmsserver: listen on %q: %w", address, err)
	}
	if config == nil && !resolved.IP.IsLoopback() {
		return nil, fmt.Errorf("kmsserver: listen on %q: plain HTTP is for loopback addresses only, configure TLS or use 127.0.0.1", address)
	}
	ln, err := net.ListenTCP("tcp", resolved)
	if err != nil {
		return nil, fmt.Errorf("kmsserver: listen on %q: %w", address, err)
	}
	if config == nil {
		return ln, nil
	}
	config = config.Clone()
	config.MinVersion = max(config.MinVersion, tls.VersionTLS12)
	config.NextProtos = []string{"http/1.1"}
	return tls.NewListener(ln, config), nil
}

// ListenUnix opens a unix socket for [Trusted] access. The socket has mode 0600 before
// anybody can connect to it. Its folder is created with mode 0700 where missing.
//
// A socket that is already there is replaced when nobody answers on it; one that is served,
// and anything that is no socket, is an error. Closing the listener removes the socket
// unless another one has taken its place.
func ListenUnix(path string) (net.Listener, error) {
	ln, err := listenUnix(path)
	if err != nil {
		return nil, fmt.Errorf("kmsserver: listen on %q: %w", path, err)
	}
	return ln, nil
}

// listenUnix works in these steps:
//
//  1. refuse a path that is served or is no socket;
//  2. bind inside a new folder that only we can enter, so that nobody reaches the socket
//     before its mode is set, whatever the umask;
//  3. set the mode;
//  4. move the socket to its path, which replaces a stale one in the same instant.
func listenUnix(path string) (*unixListener, error) {
	path, err := filepath.Abs(path) // the listener outlives a change of folder
	if err != nil {
		return nil, err
	}
	folder := filepath.Dir(path)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, err
	}
	if err := checkReplaceable(path); err != nil { // 1
		return nil, err
	}
	private, err := os.MkdirTemp(folder, ".s") // mode 0700
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(private)
	bound := filepath.Join(private, "s")
	if longest := max(len(bound), len(path)); longest > maxSocketPath {
		return nil, fmt.Errorf("the path is %d bytes too long for a unix socket", longest-maxSocketPath)
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: bound, Net: "unix"}) // 2
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false)
	if err := os.Chmod(bound, 0o600); err != nil { // 3
		_ = ln.Close()
		return nil, err
	}
	own, err := os.Lstat(bound)
	if err == nil {
		err = os.Rename(bound, path) // 4
	}
	if err != nil {
		_ = ln.Close()
		return nil, err
	}
	return &unixListener{UnixListener: ln, path: path, own: own}, nil
}

// maxSocketPath is the least that the supported systems allow (macOS; Linux has four more).
const maxSocketPath = 103

func checkReplaceable(path string) error {
	stat, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if stat.Mode().Type() != fs.ModeSocket {
		return errors.New("the file exists and is no socket")
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = conn.Close()
		return errors.New("another process serves this socket")
	}
	if !connectionRefused(err) {
		return fmt.Errorf("the socket exists and cannot be probed: %w", err)
	}
	return nil
}

// unixListener is a listener at the path its socket was moved to.
type unixListener struct {
	*net.UnixListener
	path   string
	own    fs.FileInfo
	remove sync.Once
}

// Addr returns the address that clients dial.
func (l *unixListener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// Close stops listening and removes the socket if it is still this one.
func (l *unixListener) Close() error {
	l.remove.Do(func() {
		if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.own) {
			_ = os.Remove(l.path)
		}
	})
	return l.UnixListener.Close()
}
