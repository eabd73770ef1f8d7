package endpoint_test

import (
	"context"
	"crypto/tls"
	"net"
	"testing"
	"time"

	"secretagent/agent/endpoint"
	"secretagent/upstream"
)

// pipes is a listener of TLS over connections that hold nothing: what one side writes waits until
// the other reads.
type pipes struct {
	conns  chan net.Conn
	closed context.Context
	close  context.CancelFunc
	config *tls.Config
}

func newPipes(t *testing.T) *pipes {
	files := tlsFiles(t)
	pair, err := tls.LoadX509KeyPair(files.CertFile, files.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	p := &pipes{conns: make(chan net.Conn), config: &tls.Config{Certificates: []tls.Certificate{pair}}}
	p.closed, p.close = context.WithCancel(context.Background())
	return p
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case nc := <-p.conns:
		return tls.Server(nc, p.config), nil
	case <-p.closed.Done():
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error { p.close(); return nil }

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Net: "pipe"} }

func (p *pipes) dial(t *testing.T) *client {
	ours, theirs := net.Pipe()
	t.Cleanup(func() { _ = ours.Close() })
	p.conns <- theirs
	nc := tls.Client(ours, &tls.Config{InsecureSkipVerify: true})
	return &client{t, nc, newReader(nc)}
}

// TestClientsOfTLSThatDoNotRead cannot be told that their connections end. Nobody waits for them.
func TestClientsOfTLSThatDoNotRead(t *testing.T) {
	const clients = 30
	for _, end := range []string{"idle", "evicted", "shutdown"} {
		t.Run(end, func(t *testing.T) {
			opts := endpoint.Options{MaxConnections: clients}
			if end == "idle" {
				opts.IdleTimeout = 2 * time.Second
			}
			r := start(t, opts)
			r.put(value("a", "v1", "x", upstream.ACSCurrent))
			ln := newPipes(t)
			r.serve(t, ln)
			connect := func() {
				c := ln.dial(t)
				c.send(request("GET", "/v1/a", hostLine, tokenLine))
				if got := c.receive("GET"); got.status != 200 {
					t.Fatal(got.status)
				}
			}
			for range clients {
				connect()
			}
			began := time.Now()
			switch end {
			case "idle":
				eventually(t, "all are gone", func() bool { return r.srv.Stats().Connections == 0 })
			case "evicted":
				for range 4 {
					connect()
				}
			case "shutdown":
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				if err := r.srv.Shutdown(ctx); err != nil {
					t.Error(err)
				}
			}
			if took := time.Since(began); took > 15*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}
