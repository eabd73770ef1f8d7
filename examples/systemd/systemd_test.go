// Package systemd holds a hardened service; this test has systemd judge it.
package systemd

import (
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"secretagent/agent/config"
	"secretagent/examples/internal/example"
)

func TestVerify(t *testing.T) {
	analyze := example.Tool(t, "systemd-analyze")
	bin := example.Build(t)
	unit := strings.ReplaceAll(example.Read(t, "secretagent.service"), "/usr/local/bin/secretagent", bin)
	path := filepath.Join(t.TempDir(), "secretagent.service")
	example.Write(t, path, unit)
	// man pages need not be installed where this runs.
	out, code := example.Output(t, "", nil, analyze, "verify", "--man=no", path)
	if code != 0 || strings.Contains(out, "secretagent.service") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	// The same check must be able to fail.
	example.Write(t, path, strings.Replace(unit, "ProtectSystem=strict", "ProtectSystems=strict", 1))
	if out, _ := example.Output(t, "", nil, analyze, "verify", "--man=no", path); !strings.Contains(out, "ProtectSystems") {
		t.Errorf("a wrong key is not noticed:\n%s", out)
	}
}

// TestVerifyTheApplication: its unit is one, and asks for what the agent's configuration gives.
func TestVerifyTheApplication(t *testing.T) {
	unit := example.Read(t, "app.service")
	cfg, err := config.Load("agent.yaml")
	example.Must(t, err)
	asked := regexp.MustCompile(`(?m)^LoadCredential=([a-z-]+):(.*)$`).FindAllStringSubmatch(unit, -1)
	if c := cfg.Endpoint.Credentials; len(asked) != 2 || len(c.Units["app.service"]) != 1 || c.Units["app.service"][0].Secret != "app/*" {
		t.Errorf("%v %+v", asked, c)
	}
	for _, a := range asked {
		if a[2] != string(cfg.Endpoint.Credentials.Socket) {
			t.Errorf("%s: the agent listens on %s", a[0], cfg.Endpoint.Credentials.Socket)
		}
	}
	analyze := example.Tool(t, "systemd-analyze")
	dir := t.TempDir()
	example.Write(t, filepath.Join(dir, "secretagent.service"), strings.ReplaceAll(example.Read(t, "secretagent.service"), "/usr/local/bin/secretagent", "/bin/true"))
	path := filepath.Join(dir, "app.service")
	example.Write(t, path, unit)
	if out, code := example.Output(t, "", nil, analyze, "verify", "--man=no", path); code != 0 || strings.Contains(out, "app.service") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
}

func TestScoreIsTheOneInTheReadme(t *testing.T) {
	analyze := example.Tool(t, "systemd-analyze")
	stated := regexp.MustCompile(`\*\*(\d+\.\d)\*\*`).FindStringSubmatch(example.Read(t, "README.md"))
	if stated == nil {
		t.Fatal("README.md states no score")
	}
	want, err := strconv.ParseFloat(stated[1], 64)
	example.Must(t, err)
	out, _ := example.Output(t, "", nil, analyze, "security", "--no-pager", "--offline=true", "secretagent.service")
	found := regexp.MustCompile(`Overall exposure level for secretagent\.service: (\d+\.\d)`).FindStringSubmatch(out)
	if found == nil {
		t.Skipf("this systemd-analyze cannot judge a file (systemd 250 can): %s", out)
	}
	if got, err := strconv.ParseFloat(found[1], 64); err != nil || got > want {
		t.Errorf("the score is %s, README.md states %s", found[1], stated[1])
	}
}

func TestConfigurationFitsTheUnit(t *testing.T) {
	cfg, err := config.Load("agent.yaml")
	example.Must(t, err)
	unit := example.Read(t, "secretagent.service")
	// Everything is written to the two folders that the unit makes.
	for _, path := range []config.Path{
		cfg.Upstream.Local.Database, cfg.Upstream.Local.API.Socket,
		cfg.Endpoint.TokenFile, cfg.Endpoint.Credentials.Socket, cfg.Render.StateDir,
	} {
		if p := string(path); !strings.HasPrefix(p, "/var/lib/secretagent/") && !strings.HasPrefix(p, "/run/secretagent/") {
			t.Errorf("%s is in no folder of the service", p)
		}
	}
	// systemd puts credentials into a folder that bears the name of the unit.
	name, found := strings.CutPrefix(string(cfg.Upstream.Local.Keyring), "/run/credentials/secretagent.service/")
	if !found || !strings.Contains(unit, "\nLoadCredential="+name+":") {
		t.Errorf("the unit has no credential %s", cfg.Upstream.Local.Keyring)
	}
}
