// Package listen opens the listeners of the agent: TCP, with TLS or without, and unix sockets.
//
//	ln, err := listen.Open(listen.TCPOptions{Address: "127.0.0.1:2025"})
//	ln, err := listen.Open(listen.UnixOptions{Path: "run/agent.sock", Mode: 0o660, Group: "app"})
//
// Every rule about where the agent may listen is decided here:
//
//   - Plain TCP stays on loopback. An address that other hosts can reach needs TLS, and
//     [TCPOptions].AllowNonLoopback as well. Only what is no secret may do without TLS, see
//     [TCPOptions].AllowPlain.
//   - Nobody can connect to a unix socket before its mode and owner are as asked.
//   - A unix socket that is there already is replaced only when nobody listens on it. Only a
//     refused connection says so: when the agent may not connect, or the other process has no
//     room for a connection, the socket is in use and [Open] fails.
//   - Root makes no socket by a path that another user could lead elsewhere.
//   - A listener removes its socket when it is closed, unless another took the path meanwhile.
//   - Running out of descriptors ends no listener: it accepts again when there are some.
//   - Certificates may change on disk while the agent runs, see [TLS].
//   - A connection lives no longer than the authority behind the certificate of its client is
//     trusted.
//   - A client that speaks plain HTTP to a listener of TLS is told so.
//
// Problems name keys as agent.yaml spells them below the section of the listener.
//
// # Design notes
//
// A unix socket is made in a folder of its own, ".s" and a number, beside its path, and moved
// when it is finished. Making it in place and calling chmod after would let others connect in
// between; a umask belongs to the whole process. A process that is killed meanwhile leaves the
// folder behind, and the next one that listens there removes it.
//
// The folder of the socket is locked (flock) from the look at the old socket until the new one
// is in its place. So of two agents that start at once the second finds the first one's socket
// alive, and a folder that is left over is none that somebody is working with. Another user who
// may read the folder could hold the lock for ever; after a short while the agent goes on
// without it.
//
// On BSD and macOS the kernel refuses a connection also when the backlog is full. There a
// process that does not accept for long can still be taken for a dead one.
package listen

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"secretagent/upstream"
)

// Options are [TCPOptions] or [UnixOptions]. Equal ones describe the same listener.
type Options interface {
	// Validate returns every problem of the options as [upstream.OptionErrors]. It reads the
	// files that they name, and creates and opens nothing.
	Validate() error

	open() (*Listener, error)
}

// Listener is a listener that [Open] made.
type Listener struct {
	net.Listener
	opts Options
	addr net.Addr
	tls  *TLS

	closed     chan struct{} // by Close
	onShortage func(err error, retryIn time.Duration)
	onRecovery func(failures int)
	onPlain    func(from net.Addr)

	path   string      // of a unix socket
	info   fs.FileInfo // of the socket as it was made
	remove sync.Once   // guards closed as well
}

// Open opens a listener. The error is [upstream.OptionErrors].
func Open(opts Options) (*Listener, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	ln, err := opts.open()
	if err != nil {
		return nil, err
	}
	ln.opts, ln.closed = opts, make(chan struct{})
	ln.onShortage, ln.onRecovery, ln.onPlain = func(error, time.Duration) {}, func(int) {}, func(net.Addr) {}
	return ln, nil
}

// Options returns what the listener was opened with.
func (l *Listener) Options() Options { return l.opts }

// TLS returns the certificate of the listener; nil when it speaks plain text.
func (l *Listener) TLS() *TLS { return l.tls }

// Secure reports whether connections speak TLS.
func (l *Listener) Secure() bool { return l.tls != nil }

// Addr returns the address that clients use.
func (l *Listener) Addr() net.Addr { return l.addr }

// OnShortage sets what [Listener.Accept] calls, each time, when the process or the host is short
// of something, before it pauses for retryIn; shortage may make room. recovery is called with the
// number of failures when it accepts again. Call it before the first Accept.
func (l *Listener) OnShortage(shortage func(err error, retryIn time.Duration), recovery func(failures int)) {
	l.onShortage, l.onRecovery = shortage, recovery
}

// OnPlainHTTP sets what hears of a client that spoke plain HTTP where TLS is configured, and was
// told so. Call it before the first Accept.
func (l *Listener) OnPlainHTTP(hear func(from net.Addr)) { l.onPlain = hear }

// Accept returns the next connection, a [tls.Conn] where TLS is configured; the handshake
// happens when it is first read. Out of descriptors or memory, it pauses and tries again, until
// that works or the listener is closed: whatever error it returns is for good.
func (l *Listener) Accept() (net.Conn, error) {
	failures := 0
	for pause := time.Duration(0); ; failures++ {
		nc, err := l.Listener.Accept()
		if err == nil {
			if failures > 0 {
				l.onRecovery(failures)
			}
			if l.tls != nil {
				nc = tls.Server(&secureConn{Conn: nc, tls: l.tls, onPlain: l.onPlain}, l.tls.config)
			}
			return nc, nil
		}
		if !temporary(err) {
			return nil, err
		}
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		l.onShortage(err, pause)
		select {
		case <-time.After(pause):
		case <-l.closed:
		}
	}
}

// temporary reports whether accepting may work again: the process or the host ran out of
// something, or a client left before it was accepted.
func temporary(err error) bool {
	passing := []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EINTR}
	return slices.ContainsFunc(passing, func(e error) bool { return errors.Is(err, e) })
}

// Close stops listening and removes the socket, unless another has taken its path since.
func (l *Listener) Close() error {
	l.remove.Do(func() { // once: a successor's socket can look like this one after it is gone
		close(l.closed)
		if l.path == "" {
			return
		}
		if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.info) {
			_ = os.Remove(l.path)
		}
	})
	return l.Listener.Close()
}

// TCPOptions describe a TCP listener.
type TCPOptions struct {
	// Address is host:port. A host name is resolved once. Port 0 takes a free one.
	Address string

	// TLS names the files of the certificate. The zero value is plain text, for loopback only.
	TLS TLSFiles

	// AllowNonLoopback must be set, and TLS as well, for an address that other hosts can reach.
	AllowNonLoopback bool

	// AllowPlain lets such an address do without TLS, where nothing that is said there is a secret.
	AllowPlain bool
}

// Validate checks address and TLS files.
func (o TCPOptions) Validate() error {
	var problems upstream.OptionErrors
	if _, err := o.resolve(); err != nil {
		problems = append(problems, problem("listen", o.Address, err))
	}
	if o.TLS != (TLSFiles{}) {
		problems.Add("tls", o.TLS.Validate())
	}
	return problems.Err()
}

// resolve returns the address to listen on, or why that must not be.
func (o TCPOptions) resolve() (*net.TCPAddr, error) {
	_, port, err := net.SplitHostPort(o.Address)
	if _, numErr := strconv.ParseUint(o.Address, 10, 16); numErr == nil {
		return nil, fmt.Errorf("is a port without a host: write \"127.0.0.1:%s\"", o.Address)
	}
	if n, numErr := strconv.Atoi(port); err != nil || numErr != nil || n < 0 || n > 65535 || strings.Trim(port, "0123456789") != "" {
		return nil, errors.New("must be host:port, such as 127.0.0.1:2025, or off")
	}
	addr, err := net.ResolveTCPAddr("tcp", o.Address)
	switch {
	case err != nil:
		return nil, err
	case addr.IP.IsLoopback():
	case !o.AllowNonLoopback:
		return nil, errors.New("is no loopback address: listen on 127.0.0.1, or set allowNonLoopback and tls")
	case o.TLS == (TLSFiles{}) && !o.AllowPlain:
		return nil, errors.New("is no loopback address: set tls, or listen on 127.0.0.1")
	}
	return addr, nil
}

func (o TCPOptions) open() (*Listener, error) {
	l := &Listener{}
	if o.TLS != (TLSFiles{}) {
		var err error
		if l.tls, err = LoadTLS(o.TLS); err != nil {
			var problems upstream.OptionErrors
			problems.Add("tls", err)
			return nil, problems
		}
	}
	addr, err := o.resolve()
	if err == nil {
		l.Listener, err = net.ListenTCP("tcp", addr)
	}
	if errors.Is(err, syscall.EADDRINUSE) {
		err = fmt.Errorf("another process%s listens there: stop it, or choose another port (%w)", holderOf(addr), syscall.EADDRINUSE)
	}
	if err != nil {
		return nil, upstream.OptionErrors{problem("listen", o.Address, err)}
	}
	l.addr = l.Listener.Addr()
	return l, nil
}

// problem returns err as a problem with the value of key.
func problem(key, value string, err error) *upstream.OptionError {
	return &upstream.OptionError{Key: key, Value: value, Reason: err.Error(), Err: err}
}
