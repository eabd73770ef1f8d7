package agent

import (
	"log/slog"
	"net"
	"time"

	"secretagent/agent/config"
	"secretagent/agent/endpoint"
	"secretagent/agent/listen"
	"secretagent/upstream"
	"secretagent/upstream/keyfile"
)

// sectionMetrics is where agent.yaml says how others on the network see how the agent does.
const sectionMetrics = "metrics"

// metricsListeners returns what the metrics are given on. Plain text may leave the host: without a
// token there is nothing to hide, see [Agent.writeMetrics], and with one [Warnings] tells.
func metricsListeners(cfg *config.Metrics) []listen.Options {
	if cfg.Listen == "" {
		return nil
	}
	return []listen.Options{listen.TCPOptions{Address: cfg.Listen, AllowNonLoopback: true, AllowPlain: true, TLS: tlsFiles(cfg.TLS)}}
}

// loadScrapers returns who may see all metrics there, after previous; nobody in particular without a
// token. The error is [upstream.OptionErrors] below the section.
func loadScrapers(cfg *config.Config, previous []endpoint.Caller, log *slog.Logger, load loadFile) ([]endpoint.Caller, error) {
	if cfg.Metrics.TokenFile == "" {
		return nil, nil
	}
	caller := endpoint.Caller{Name: partMetrics, Metrics: true}
	var p upstream.OptionErrors
	p.Add("tokenFile", giveToken(&caller, keyfile.Token, string(cfg.Metrics.TokenFile), log, load))
	return endpoint.WithOverlap(previous, []endpoint.Caller{caller}, time.Now().Add(cfg.Endpoint.TokenGrace)), p.Err()
}

// newMonitor makes the server of the metrics.
func (a *Agent) newMonitor(scrapers []endpoint.Caller) (*endpoint.Server, error) {
	srv, err := endpoint.NewMonitor(endpoint.MonitorOptions{
		Callers: scrapers, Ready: a.readiness, Metrics: a.writeMetrics, Logger: a.log.With("part", partMetrics),
	})
	return srv, inSection(sectionMetrics, err)
}

// checkMetrics checks the section.
func checkMetrics(cfg *config.Config) error {
	var p upstream.OptionErrors
	_, err := loadScrapers(cfg, nil, slog.New(slog.DiscardHandler), previewForAnyUser)
	p.Add("", err)
	p.Add("", checkListeners(metricsListeners(&cfg.Metrics)))
	return p.Err()
}

// checkScrapeToken returns that the token for the metrics would cross a network in the clear. Metrics
// without TLS and without a token are no problem: they are for whoever reaches them.
func checkScrapeToken(cfg *config.Metrics) error {
	if cfg.TokenFile == "" || cfg.TLS != nil {
		return nil
	}
	if addr, err := net.ResolveTCPAddr("tcp", cfg.Listen); err == nil && addr.IP.IsLoopback() {
		return nil
	}
	var p upstream.OptionErrors
	p.Addf("metrics.tokenFile", string(cfg.TokenFile), "its token goes over the network in the clear, and so do the names of secrets that it shows: set metrics.tls")
	return p.Err()
}
