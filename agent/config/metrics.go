package config

// Metrics is where others than the applications of this host, such as Prometheus and the probes of
// an orchestrator, see how the agent does: /metrics, /live and /ready, and nothing else.
type Metrics struct {
	Listen string `yaml:"listen" off:"true" address:"true"` // a TCP address, of any interface; empty means none
	TLS    *TLS   `yaml:"tls"`                              // nil: plain HTTP

	// TokenFile holds the token that /metrics needs, and that shows the names of secrets, files and
	// callers in it; created when missing. Empty: /metrics needs none, and shows none of them.
	TokenFile Path `yaml:"tokenFile" path:"watch,write"`
}

func (m *Metrics) check(p *problems) {
	for _, name := range []string{"tls", "tokenFile"} {
		if m.Listen == "" && p.has("metrics."+name) {
			p.addf("metrics."+name, "", "has no use without metrics.listen")
		}
	}
}
