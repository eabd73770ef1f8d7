package agent

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"secretagent/agent/config"
)

func TestConnectionsAreComparedWithTheLimitOfOpenFiles(t *testing.T) {
	cfg := &config.Config{Endpoint: config.Endpoint{MaxConnections: 800, MaxWaiting: 4096}}
	api := &config.Config{Endpoint: cfg.Endpoint, Upstream: config.Upstream{Local: &config.Local{API: config.API{Socket: "kms.sock", Listen: "127.0.0.1:0"}}}}
	for _, test := range []struct {
		cfg     *config.Config
		limit   int
		clients int
		want    string
	}{
		{cfg, 0, 0, ""},
		{cfg, 1 << 20, 0, ""},
		{cfg, 4992, 0, ""},
		{cfg, 4991, 4895, "limit=4991 needed=4992"},
		{cfg, 1024, 928, "limit=1024 needed=4992"},
		{api, 1024, 512, "limit=1024 needed=5504"},
		{api, 256, 128, "(800) and endpoint.maxWaiting (4096), which have 128 together now"},
	} {
		var log bytes.Buffer
		if got := maxClients(test.cfg, test.limit, slog.New(slog.NewTextHandler(&log, nil))); got != test.clients {
			t.Errorf("limit %d: %d clients, want %d", test.limit, got, test.clients)
		}
		if (test.want == "") != (log.Len() == 0) || !strings.Contains(log.String(), test.want) {
			t.Errorf("limit %d: %s", test.limit, log.String())
		}
	}
}
