package kubernetes

import (
	"errors"
	"io"
	"strconv"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"secretagent/agent/config"
	"secretagent/examples/internal/example"
)

// podMonitor is as much of the Prometheus Operator's API as podmonitor.yaml uses, with what it has in
// comments.
type podMonitor struct {
	Meta `yaml:",inline"`
	Spec struct {
		Selector struct {
			MatchLabels map[string]string `yaml:"matchLabels"`
		} `yaml:"selector"`
		PodMetricsEndpoints []struct {
			Port          string `yaml:"port"`
			Path          string `yaml:"path"`
			Interval      string `yaml:"interval"`
			Scheme        string `yaml:"scheme"`
			Authorization struct {
				Credentials keyRef `yaml:"credentials"`
			} `yaml:"authorization"`
			TLSConfig struct {
				CA struct {
					ConfigMap keyRef `yaml:"configMap"`
				} `yaml:"ca"`
				ServerName string `yaml:"serverName"`
			} `yaml:"tlsConfig"`
		} `yaml:"podMetricsEndpoints"`
	} `yaml:"spec"`
}

type keyRef struct {
	Name string `yaml:"name"`
	Key  string `yaml:"key"`
}

// checkMetrics looks whether the sidecar names the port at which it gives its metrics, and whether the
// PodMonitor scrapes that port of this pod.
func checkMetrics(t *testing.T, cfg *config.Config, labels map[string]string, sidecar container) {
	t.Helper()
	if len(sidecar.Ports) != 1 || cfg.Metrics.Listen != "0.0.0.0:"+strconv.Itoa(sidecar.Ports[0].ContainerPort) {
		t.Fatalf("ports %v, metrics at %s", sidecar.Ports, cfg.Metrics.Listen)
	}
	var m podMonitor
	text := strings.ReplaceAll(example.Read(t, "podmonitor.yaml"), "#scheme", "scheme")
	text = strings.NewReplacer("#authorization", "authorization", "#tlsConfig", "tlsConfig").Replace(text)
	dec := yaml.NewDecoder(strings.NewReader(text), yaml.Strict())
	example.Must(t, dec.Decode(&m))
	if err := dec.Decode(&Meta{}); !errors.Is(err, io.EOF) {
		t.Errorf("after the PodMonitor: %v", err)
	}
	e := m.Spec.PodMetricsEndpoints[0]
	if m.APIVersion != "monitoring.coreos.com/v1" || m.Kind != "PodMonitor" || e.Port != sidecar.Ports[0].Name || e.Path != "/metrics" ||
		e.Scheme != "https" || e.Authorization.Credentials.Key == "" || e.TLSConfig.CA.ConfigMap.Key == "" {
		t.Errorf("%+v", m)
	}
	for name, value := range m.Spec.Selector.MatchLabels {
		if labels[name] != value {
			t.Errorf("the pod has not the label %s: %s", name, value)
		}
	}
}

// TestProbesOverHTTP reads the probes that README shows in place of those of the manifest.
func TestProbesOverHTTP(t *testing.T) {
	_, text, _ := strings.Cut(example.Read(t, "README.md"), "```yaml\nstartupProbe:")
	text, _, _ = strings.Cut("startupProbe:"+text, "```")
	var c container
	example.Must(t, yaml.UnmarshalWithOptions([]byte(text), &c, yaml.Strict()))
	agent, _, _, _ := sidecar(t, "sidecar.yaml", "app")
	port := agent.Ports[0].Name
	for path, probe := range map[string]*probe{"/ready": c.StartupProbe, "/live": c.LivenessProbe} {
		if probe == nil || probe.HTTPGet.Path != path || probe.HTTPGet.Port != port || probe.FailureThreshold == 0 {
			t.Errorf("the probe of %s: %+v", path, probe)
		}
	}
}
