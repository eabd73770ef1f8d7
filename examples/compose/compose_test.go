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
		Image       string   `yaml:"image"`
		User        string   `yaml:"user"`
		GroupAdd    []string `yaml:"group_add"`
		Command     []string `yaml:"command"`
		NetworkMode string   `yaml:"network_mode"`
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
	cfg, err := config.Load("agent.yaml")
	example.Must(t, err)
	app, agent := p.Services["app"], p.Services["agent"]
	if agent.NetworkMode != "service:app" {
		t.Errorf("the agent has the network %q", agent.NetworkMode)
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
		cfg.Endpoint.TokenFile, cfg.Render.StateDir, cfg.Templates[0].Destination,
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
	if app.User != "1000:1000" || !slices.Equal(app.GroupAdd, []string{"65532"}) || own != "uid=65532,gid=65532,mode=0750" || cfg.Endpoint.TokenMode != 0o640 || cfg.Templates[0].Mode != 0o640 {
		t.Errorf("user %s, groups %s, folder %s, token %04o, file %04o", app.User, app.GroupAdd, own, cfg.Endpoint.TokenMode, cfg.Templates[0].Mode)
	}
	script := strings.Join(app.Command, "\n")
	for _, used := range []string{"http://" + cfg.Endpoint.Listen, string(cfg.Endpoint.TokenFile), string(cfg.Templates[0].Destination)} {
		if !strings.Contains(script, used) {
			t.Errorf("the application does not use %s", used)
		}
	}
	if !slices.Contains(agent.Volumes, "./agent.yaml:"+agent.Healthcheck.Test[len(agent.Healthcheck.Test)-1]+":ro") {
		t.Error("the health check reads another configuration than the one that is mounted")
	}
}
