package agent

import (
	"fmt"
	"log/slog"

	"secretagent/agent/config"
	"secretagent/agent/credentials"
	"secretagent/agent/endpoint"
	"secretagent/upstream/kmsserver"
)

// reservedFiles is how many descriptors the agent keeps for itself: files that it reads and
// writes, hooks and their pipes, the connections to the upstream and those for health.
const reservedFiles = 96

// maxClients returns how many clients of the endpoint may be connected, waiting ones included,
// so that the rest of the agent never runs out of descriptors; 0: as many as cfg allows. limit is
// that of the process; 0: there is none.
func maxClients(cfg *config.Config, limit int, log *slog.Logger) int {
	other := reservedFiles
	if api, _ := cfg.Upstream.API(); api != nil {
		other += kmsserver.MaxConnections * len(apiListeners(api))
		if api.Listen != "" {
			other += kmsserver.MaxWatchers
		}
	}
	if cfg.Endpoint.Credentials != nil {
		other += credentials.MaxConnections
	}
	if cfg.Metrics.Listen != "" {
		other += endpoint.MonitorConnections
	}
	needed := cfg.Endpoint.MaxConnections + cfg.Endpoint.MaxWaiting + other
	if limit == 0 || needed <= limit {
		return 0
	}
	clients := max(limit-other, limit/2)
	log.Warn("fewer clients can be connected than the configuration allows: the limit of open files is too low", "part", partEndpoint, "limit", limit, "needed", needed,
		"hint", fmt.Sprintf("raise it to %d (LimitNOFILE, ulimit -n), or lower endpoint.maxConnections (%d) and endpoint.maxWaiting (%d), which have %d together now",
			needed, cfg.Endpoint.MaxConnections, cfg.Endpoint.MaxWaiting, clients))
	return clients
}
