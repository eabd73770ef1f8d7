package endpoint

import (
	"io"
	"net"
	"strings"
	"testing"

	"github.com/valyala/fasthttp"

	"secretagent/upstream"
)

// loopConn gives its reader the same request n times, one per read, and swallows the answers:
// a connection without the kernel.
type loopConn struct {
	net.Conn
	request []byte
	n       int
	written int
}

func (c *loopConn) Read(p []byte) (int, error) {
	if c.n == 0 {
		return 0, io.EOF
	}
	c.n--
	return copy(p, c.request), nil
}

func (c *loopConn) Write(p []byte) (int, error) { c.written += len(p); return len(p), nil }
func (c *loopConn) Close() error                { return nil }

// BenchmarkLoop measures what a request costs outside the kernel: fasthttp with a constant
// answer, and the endpoint.
func BenchmarkLoop(b *testing.B) {
	s, _ := newHeld(b)
	request := []byte("GET /v1/app/db HTTP/1.1\r\nHost: 127.0.0.1:2025\r\nUser-Agent: bench/1.0\r\nAccept: */*\r\nX-KMS-Token: " +
		strings.Repeat("0123456789abcdef", 4) + "\r\n\r\n")
	b.Run("ceiling", func(b *testing.B) {
		b.ReportAllocs()
		a, _ := s.secrets.Peek(upstream.SecretRef{})
		body := upstream.GetSecretValueJSON(a.Value)
		srv := &fasthttp.Server{Handler: func(ctx *fasthttp.RequestCtx) {
			ctx.SetContentType("application/json")
			ctx.SetBody(body)
		}}
		c := &loopConn{request: request, n: b.N}
		if err := srv.ServeConn(c); err != nil || c.written < 300*b.N {
			b.Fatal(err, c.written)
		}
	})
	b.Run("endpoint", func(b *testing.B) {
		b.ReportAllocs()
		inner := &loopConn{request: request, n: b.N}
		c := &conn{Conn: inner}
		c.setNumber(2, s.process)
		s.table.Add(&c.Slot, c.Conn, "test")
		defer s.table.Remove(&c.Slot)
		if err := s.http.ServeConn(c); err != nil || inner.written < 300*b.N {
			b.Fatal(err, inner.written)
		}
	})
}
