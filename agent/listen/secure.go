package listen

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"secretagent/upstream"
)

// secureConn is what lies below a connection of TLS.
type secureConn struct {
	net.Conn
	tls     *TLS
	onPlain func(from net.Addr)
	begun   bool // something was read

	chain []*x509.Certificate // of the client, its own first; guarded by tls.connsMu
}

// Read answers a client that speaks plain HTTP, which no record of TLS can be taken for: those
// begin with a small number.
func (c *secureConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if !c.begun && n > 0 {
		c.begun = true
		if p[0] >= 'A' && p[0] <= 'Z' {
			clear(p[:n]) // a token may be among it
			c.onPlain(c.RemoteAddr())
			c.refusePlain()
			return 0, io.EOF
		}
	}
	return n, err
}

// Close closes the connection.
func (c *secureConn) Close() error {
	c.tls.leave(c)
	return c.Conn.Close()
}

// How long a client that is refused may take to hear of it, and how much of its request is read
// first: what is closed with something unread takes the answer with it.
const (
	refusalTime  = 500 * time.Millisecond
	refusalBytes = 64 << 10
)

// refusePlain says that the listener speaks TLS, in the form of the KMS API, in which the
// endpoint answers as well.
func (c *secureConn) refusePlain() {
	body, _ := json.Marshal(upstream.Fault{ // texts can always be encoded
		HTTPStatus: 400, Code: "InvalidProtocol.NeedSsl", RequestID: upstream.NewRequestID(),
		Message: "This address speaks TLS: use https:// in place of http://.",
	})
	_ = c.SetDeadline(time.Now().Add(refusalTime))
	_, _ = fmt.Fprintf(c.Conn, "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nCache-Control: no-store\r\n"+
		"Connection: close\r\nContent-Length: %d\r\n\r\n%s\n", len(body)+1, body)
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		_, _ = io.CopyN(io.Discard, c.Conn, refusalBytes)
	}
}

// enter notes that c rests on the certificate of a client, unless that is not good any more or
// the listener has ended.
func (t *TLS) enter(c *secureConn, chain []*x509.Certificate) error {
	t.connsMu.Lock()
	defer t.connsMu.Unlock()
	if t.ended {
		return errEnded
	}
	if err := t.current.Load().verify(chain); err != nil {
		return err
	}
	c.chain = chain
	t.conns[c] = struct{}{}
	return nil
}

func (t *TLS) leave(c *secureConn) {
	t.connsMu.Lock()
	defer t.connsMu.Unlock()
	delete(t.conns, c)
}

// endUnverified ends the connections of clients whose certificates are good no longer. The
// handshakes that come after it, or that it waits for in [TLS.enter], see what is current.
func (t *TLS) endUnverified() {
	t.end(func(c *secureConn) bool { return t.current.Load().verify(c.chain) != nil })
}

// EndClients ends every connection that rests on the certificate of a client, for good: those that
// have not finished their handshake are refused then.
func (t *TLS) EndClients() {
	t.connsMu.Lock()
	t.ended = true
	t.connsMu.Unlock()
	t.end(func(*secureConn) bool { return true })
}

var errEnded = errors.New("listen: the listener has ended")

func (t *TLS) end(which func(*secureConn) bool) {
	t.connsMu.Lock()
	defer t.connsMu.Unlock()
	for c := range t.conns {
		if which(c) {
			delete(t.conns, c)
			_ = c.Conn.Close()
		}
	}
}

// verify returns what is wrong with the certificate of a client.
func (s *tlsState) verify(chain []*x509.Certificate) error {
	opts := x509.VerifyOptions{Roots: s.config.ClientCAs, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, cert := range chain[1:] {
		opts.Intermediates.AddCert(cert)
	}
	_, err := chain[0].Verify(opts)
	return err
}
