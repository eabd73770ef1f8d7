// Package compose holds a sidecar for Compose; this test holds its two files against each
// other.
package compose

import (
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"secretagent/agent/config"
	"secretagent/examples/internal/example"
)

// project is as much of the Compose specification as the file uses; any other key is an error.
type project struct {
	Services map[string]struct {
		Image     string `yaml:"image"`
		DependsOn map[string]struct {
			Condition string `yaml:"condition"`
		} `yaml:"depends_on"`
		User        string   `yaml:"user"`
		GroupAdd    []string `yaml:"group_add"`
		Command     []string `yaml:"command"`
		Restart     string   `yaml:"restart"`
		ReadOnly    bool     `yaml:"read_only"`
		CapDrop     []string `yaml:"cap_drop"`
		SecurityOpt []string `yaml:"security_opt"`
		Init        bool     `yaml:"init"`
		Volumes     []string `yaml:"volumes"`
		Healthcheck struct {
			Test        []string `yaml:"test"`
			Interval    string   `yaml:"interval"`
			Timeout     string   `yaml:"timeout"`
			StartPeriod string   `yaml:"start_period"`
		} `yaml:"healthcheck"`
	} `yaml:"services"`
	Volumes map[string]struct {
		Driver     string            `yaml:"driver"`
		DriverOpts map[string]string `yaml:"driver_opts"`
	} `yaml:"volumes"`
}

func TestComposeFitsTheConfiguration(t *testing.T) {
	var p project
	example.Must(t, yaml.UnmarshalWithOptions([]byte(example.Read(t, "compose.yaml")), &p, yaml.Strict()))
	cfg, err := config.Parse("/etc/secretagent/agent.yaml", []byte(example.Read(t, "agent.yaml")))
	example.Must(t, err)
	app, agent := p.Services["app"], p.Services["agent"]
	if cfg.Endpoint.Listen != "" || len(cfg.Upstream.Local.API.Listen) > 0 || cfg.Metrics.Listen != "" {
		t.Error("the agent listens on a network")
	}
	if app.DependsOn["agent"].Condition != "service_healthy" || len(agent.DependsOn) > 0 {
		t.Errorf("the application waits for %v, the agent for %v", app.DependsOn, agent.DependsOn)
	}
	writable := map[string]bool{} // folders of the agent
	for name, s := range p.Services {
		if !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) || !slices.Equal(s.SecurityOpt, []string{"no-new-privileges:true"}) {
			t.Errorf("%s is not hardened", name)
		}
		for _, v := range s.Volumes {
			part := strings.Split(v, ":")
			if part[0] == "./agent.yaml" {
				continue
			}
			if _, known := p.Volumes[part[0]]; !known {
				t.Errorf("%s mounts %s, which is not declared", name, part[0])
			}
			if name == "agent" && len(part) == 2 {
				writable[part[1]] = true
			}
		}
	}
	for _, path := range []config.Path{
		cfg.Upstream.Local.Database, cfg.Upstream.Local.Keyring, cfg.Upstream.Local.API.Socket,
		cfg.Endpoint.Socket, cfg.Endpoint.TokenFile, cfg.Render.StateDir, cfg.Templates[0].Destination,
	} {
		found := false
		for folder := range writable {
			found = found || strings.HasPrefix(string(path), folder+"/")
		}
		if !found {
			t.Errorf("the agent cannot write %s: its file system is read-only", path)
		}
	}
	// The application is of another user than the agent, that of the image, and reads by its group.
	own := p.Volumes["shared"].DriverOpts["o"]
	if e := cfg.Endpoint; app.User != "1000:1000" || !slices.Equal(app.GroupAdd, []string{"65532"}) || own != "uid=65532,gid=65532,mode=0750" ||
		e.SocketMode != 0o660 || e.TokenMode != 0o640 || cfg.Templates[0].Mode != 0o640 {
		t.Errorf("user %s, groups %s, folder %s, socket %04o, token %04o, file %04o", app.User, app.GroupAdd, own, e.SocketMode, e.TokenMode, cfg.Templates[0].Mode)
	}
	script := strings.Join(app.Command, "\n")
	for _, used := range []config.Path{cfg.Endpoint.Socket, cfg.Endpoint.TokenFile, cfg.Templates[0].Destination} {
		if !strings.Contains(script, string(used)) {
			t.Errorf("the application does not use %s", used)
		}
	}
	// The health check reads no configuration, so that a mistake in it makes no agent unhealthy.
	if want := []string{"CMD", "/secretagent", "status", "--ready", "--socket", string(cfg.Endpoint.Socket)}; !slices.Equal(agent.Healthcheck.Test, want) {
		t.Errorf("the health check is %q", agent.Healthcheck.Test)
	}
	for name, s := range p.Services {
		if s.Restart != "unless-stopped" || strings.HasSuffix(s.Image, ":latest") || !strings.Contains(s.Image, ":") {
			t.Errorf("%s: restart %q, image %q", name, s.Restart, s.Image)
		}
	}
}
