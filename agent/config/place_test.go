package config

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// leave makes an empty file where an agent would have left one.
func leave(t *testing.T, path string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o700))
	must(t, os.WriteFile(path, nil, 0o600))
}

// TestStateDir has one row for each sentence that the package page says of the state directory.
func TestStateDir(t *testing.T) {
	pid := strconv.Itoa(os.Getpid())
	for _, c := range []struct {
		name, flag, variable, exec string
		left                       string // an earlier agent's files; {} is the folder of the configuration
		want                       string
	}{
		{name: "a clone", want: "{}/var"},
		{name: "a clone that was used", left: "{}/var/data/secrets.db", want: "{}/var"},
		{name: "the flag", flag: "{}/flag", variable: "{}/given", left: "{}/var/run/token", want: "{}/flag"},
		{name: "systemd", variable: "{}/given", exec: pid, want: "{}/given"},
		{name: "an image", variable: "{}/given", want: "{}/given"},
		{name: "systemd with two folders", variable: "{}/given:{}/more", want: "{}/given"},
		{name: "a program that a service has started", variable: "{}/given", exec: "1", want: "{}/var"},
		{name: "the files of an earlier version", variable: "{}/given", left: "{}/var/data/secrets.db", want: "{}/var"},
		{name: "its token", variable: "{}/given", left: "{}/var/run/token", want: "{}/var"},
		{name: "what else is called var", variable: "{}/given", left: "{}/var/log/syslog", want: "{}/given"},
		{name: "files in both", variable: "{}/given", left: "{}/var/data/secrets.db {}/given/keys/keyring.json", want: "{}/given"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			in := func(s string) string { return strings.ReplaceAll(s, "{}", dir) }
			t.Setenv("STATE_DIRECTORY", in(c.variable))
			t.Setenv("SYSTEMD_EXEC_PID", c.exec)
			for _, path := range strings.Fields(in(c.left)) {
				leave(t, path)
			}
			src := []byte(`{upstream: {local: {}}, templates: [{contents: x, destination: $STATE_DIRECTORY/rendered/x}, {contents: x, destination: ./out}]}`)
			file := filepath.Join(dir, "agent.yaml")
			must(t, os.WriteFile(file, src, 0o600))
			source := Source{File: file, StateDir: in(c.flag)}
			cfg, err := source.Load()
			must(t, err)
			want := Path(in(c.want))
			if got := Path(cfg.StateDir()); got != want {
				t.Fatalf("state directory %s, want %s", got, want)
			}
			for got, below := range map[Path]string{
				cfg.Upstream.Local.Database: "/data/secrets.db", cfg.Upstream.Local.Keyring: "/keys/keyring.json",
				cfg.Upstream.Local.API.Socket: "/run/kms.sock", cfg.Endpoint.TokenFile: "/run/token",
				cfg.Render.StateDir: "/state", cfg.Templates[0].Destination: "/rendered/x",
			} {
				if got != want+Path(below) {
					t.Errorf("%s is not %s below %s", got, below, want)
				}
			}
			if got := cfg.Templates[1].Destination; got != Path(dir+"/out") {
				t.Errorf("a relative path: %s", got)
			}
			if r := source.ReadReach(); r.TokenFile != cfg.Endpoint.TokenFile {
				t.Errorf("a client looks for the token at %s, the agent has it at %s", r.TokenFile, cfg.Endpoint.TokenFile)
			}
			// A reload goes on with what was found, also when files have appeared elsewhere.
			leave(t, filepath.Join(dir, "var/data/secrets.db"))
			leave(t, filepath.Join(dir, "given/data/secrets.db"))
			again, err := cfg.Source().Load()
			must(t, err)
			if again.StateDir() != cfg.StateDir() {
				t.Errorf("after a reload %s, before %s", again.StateDir(), cfg.StateDir())
			}
		})
	}
}

// Ensure that a configuration in /etc/secretagent leaves nothing there, and that whoever reads it,
// root or not, finds the same place.
func TestStateOfTheSystem(t *testing.T) {
	if keepsState("/etc/secretagent/var") {
		t.Skip("this host has an agent of its own")
	}
	for file, want := range map[string]string{
		"/etc/secretagent/agent.yaml":     "/var/lib/secretagent",
		"/etc/secretagent/../x/agent.yml": "/etc/x/var",
		"/etc/secretagent/more/a.yaml":    "/etc/secretagent/more/var",
	} {
		cfg, err := Parse(file, []byte("upstream: {local: {}}"))
		must(t, err)
		if cfg.StateDir() != want {
			t.Errorf("%s: %s, want %s", file, cfg.StateDir(), want)
		}
	}
}

func TestStateVariableThatIsNoFolder(t *testing.T) {
	t.Setenv("STATE_DIRECTORY", "state")
	_, err := Parse("/etc/agent.yaml", []byte("upstream: {local: {}}"))
	if err == nil || !strings.Contains(err.Error(), "STATE_DIRECTORY must begin with the absolute path") {
		t.Errorf("error %v", err)
	}
	if r := (Source{File: "/etc/agent.yaml"}).parseReach([]byte("upstream: {local: {}}")); r.TokenFile != "/etc/var/run/token" || r.Err != nil {
		t.Errorf("a client: %s, %v", r.TokenFile, r.Err)
	}
}

func TestPathsAreNotExpanded(t *testing.T) {
	for path, want := range map[string]string{
		"$STATE_DIRECTORY":        "/var/lib/secretagent",
		"$STATE_DIRECTORY/a/../b": "/var/lib/secretagent/b",
		"./$HOME":                 "/etc/secretagent/$HOME",
		"a$b":                     "/etc/secretagent/a$b",
		"$HOME/x":                 "",
		"$STATE_DIRECTORYX":       "",
		"${STATE_DIRECTORY}/x":    "",
	} {
		cfg, err := parse("upstream: {local: {}}\nrender: {root: '" + path + "'}\n")
		switch {
		case want == "" && (err == nil || !strings.Contains(err.Error(), "render.root") || !strings.Contains(err.Error(), "$STATE_DIRECTORY/ is the only")):
			t.Errorf("%s: error %v", path, err)
		case want != "" && err != nil:
			t.Errorf("%s: %v", path, err)
		case want != "" && cfg.Render.Root != Path(want):
			t.Errorf("%s: %s, want %s", path, cfg.Render.Root, want)
		}
	}
}

// Ensure that --keyring takes the place of keyrings that are named and of those that are not, and of
// nothing else, and that a change of it is seen.
func TestKeyringOfTheCommandLine(t *testing.T) {
	file := filepath.Join(t.TempDir(), "agent.yaml")
	for src, keyrings := range map[string]int{
		"upstream: {local: {keyring: /etc/k}}\ncache: {sealed: {}}": 2,
		"upstream: {local: {}}": 1,
		"upstream: {alibaba: {endpoints: [{region: cn-hangzhou}]}}\ncache: {sealed: {keyring: k}}": 1,
		"upstream: {alibaba: {endpoints: [{region: cn-hangzhou}]}}":                                0,
	} {
		must(t, os.WriteFile(file, []byte(src), 0o600))
		cfg, err := Source{File: file, Keyring: "/run/credentials/../credentials/k"}.Load()
		must(t, err)
		cfg, err = cfg.Source().Load()
		must(t, err)
		var got []Path
		if l := cfg.Upstream.Local; l != nil {
			got = append(got, l.Keyring)
		}
		if s := cfg.Cache.Sealed; s != nil {
			got = append(got, s.Keyring)
		}
		watched := strings.Contains(strings.Join(cfg.Files(), " ")+" ", "/run/credentials/k ")
		if strings.Count(strings.Join(paths(got), " "), "/run/credentials/k") != keyrings || len(got) != keyrings || watched != (keyrings > 0) {
			t.Errorf("%s: %v, watched %v", src, got, cfg.Files())
		}
	}
}

func paths(list []Path) (s []string) {
	for _, p := range list {
		s = append(s, string(p))
	}
	return s
}
