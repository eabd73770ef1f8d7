package endpoint_test

import (
	"context"
	"crypto/tls"
	"net"
	"net/http/httptest"
	"testing"
	"time"

	"secretagent/agent/endpoint"
	"secretagent/upstream"
)

// selfSigned returns a certificate that clients do not check.
func selfSigned() *tls.Config {
	srv := httptest.NewTLSServer(nil)
	defer srv.Close()
	return &tls.Config{Certificates: srv.TLS.Certificates}
}

// TestClientsOfTLSThatDoNotRead cannot be told that their connections end. Nobody waits for them.
func TestClientsOfTLSThatDoNotRead(t *testing.T) {
	const clients = 30
	config := selfSigned()
	for end, most := range map[string]time.Duration{"idle": 15 * time.Second, "evicted": 5 * time.Second, "shutdown": 10 * time.Second} {
		t.Run(end, func(t *testing.T) {
			inBubble(t, endpoint.Options{MaxConnections: clients, IdleTimeout: 2 * time.Second}, func(t *testing.T, r *rig) {
				r.put(value("a", "v1", "x", upstream.ACSCurrent))
				connect := func() {
					ours, theirs := net.Pipe()
					t.Cleanup(func() { _ = ours.Close() })
					r.pipes.conns <- tls.Server(theirs, config)
					nc := tls.Client(ours, &tls.Config{InsecureSkipVerify: true})
					c := &client{t, nc, newReader(nc)}
					if got := c.ask("/v1/a"); got.status != 200 {
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
					ctx, cancel := context.WithTimeout(t.Context(), patience)
					defer cancel()
					if err := r.srv.Shutdown(ctx); err != nil {
						t.Error(err)
					}
				}
				if took := time.Since(began); took > most {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}
