// Package etcd holds three members of etcd and two agents that share them, for Compose and for
// Kubernetes; this test runs them as these files say.
package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"secretagent/agent/config"
	"secretagent/examples/internal/example"
	"secretagent/upstream"
	"secretagent/upstream/keyfile"
	"secretagent/upstream/kms"
	"secretagent/upstream/upstreamtest"
)

type service struct {
	Image       string            `yaml:"image"`
	Command     []string          `yaml:"command"`
	Environment map[string]string `yaml:"environment"`
	Volumes     []string          `yaml:"volumes"`
	DependsOn   map[string]struct {
		Condition string `yaml:"condition"`
	} `yaml:"depends_on"`
	User        string   `yaml:"user"`
	GroupAdd    []string `yaml:"group_add"`
	Restart     string   `yaml:"restart"`
	ReadOnly    bool     `yaml:"read_only"`
	CapDrop     []string `yaml:"cap_drop"`
	SecurityOpt []string `yaml:"security_opt"`
	Init        bool     `yaml:"init"`
	Healthcheck struct {
		Test        []string `yaml:"test"`
		Interval    string   `yaml:"interval"`
		Timeout     string   `yaml:"timeout"`
		StartPeriod string   `yaml:"start_period"`
	} `yaml:"healthcheck"`
}

// project is as much of the Compose specification as the file uses; any other key is an error.
type project struct {
	Etcd     any                `yaml:"x-etcd"`
	Settings any                `yaml:"x-settings"`
	Agent    any                `yaml:"x-agent"`
	Services map[string]service `yaml:"services"`
	Volumes  map[string]struct {
		Driver     string            `yaml:"driver"`
		DriverOpts map[string]string `yaml:"driver_opts"`
	} `yaml:"volumes"`
}

var members = []string{"etcd-0", "etcd-1", "etcd-2"}

func compose(t *testing.T) (p project) {
	t.Helper()
	example.Must(t, yaml.UnmarshalWithOptions([]byte(example.Read(t, "compose.yaml")), &p, yaml.Strict()))
	return p
}

func TestComposeFitsTheConfiguration(t *testing.T) {
	p := compose(t)
	cfg, err := config.Parse("/etc/secretagent/agent.yaml", []byte(example.Read(t, "agent.yaml")))
	example.Must(t, err)
	mounted := func(service string, path config.Path) bool {
		return slices.ContainsFunc(p.Services[service].Volumes, func(v string) bool {
			return strings.HasPrefix(string(path), strings.Split(v, ":")[1]+"/")
		})
	}
	for _, agent := range []string{"agent-1", "agent-2"} {
		for _, path := range []config.Path{
			cfg.Upstream.Etcd.TLS.CAFile, cfg.Upstream.Etcd.TLS.CertFile, cfg.Upstream.Etcd.TLS.KeyFile, cfg.Upstream.Etcd.Keyring,
			cfg.Endpoint.Socket, cfg.Endpoint.TokenFile, cfg.Templates[0].Destination, cfg.Render.StateDir, cfg.Upstream.Etcd.API.Socket,
		} {
			if !mounted(agent, path) {
				t.Errorf("%s has no volume with %s", agent, path)
			}
		}
	}
	var cluster []string
	for i, name := range members {
		cluster = append(cluster, name+"=https://"+name+":2380")
		s := p.Services[name]
		if s.Environment["ETCD_NAME"] != name || cfg.Upstream.Etcd.Endpoints[i] != "https://"+name+":2379" ||
			s.Environment["ETCD_ADVERTISE_CLIENT_URLS"] != cfg.Upstream.Etcd.Endpoints[i] ||
			s.Environment["ETCD_INITIAL_ADVERTISE_PEER_URLS"] != "https://"+name+":2380" || s.Volumes[1] != name+":/var/lib/etcd" {
			t.Errorf("%s: %v, %v", name, s.Environment, s.Volumes)
		}
	}
	if got := p.Services["etcd-0"].Environment["ETCD_INITIAL_CLUSTER"]; got != strings.Join(cluster, ",") {
		t.Errorf("the members are %s", got)
	}
	for name, s := range p.Services {
		if !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) || !slices.Equal(s.SecurityOpt, []string{"no-new-privileges:true"}) ||
			s.Restart != "unless-stopped" || strings.HasSuffix(s.Image, ":latest") || !strings.Contains(s.Image, ":") {
			t.Errorf("%s is not hardened: %+v", name, s)
		}
		for _, v := range s.Volumes {
			source := strings.Split(v, ":")[0]
			if _, declared := p.Volumes[source]; !declared && !strings.HasPrefix(source, "./") {
				t.Errorf("%s mounts %s, which is not declared", name, source)
			}
		}
	}
}

// TestManifestsAreThoseOfCompose holds what has to be the same in both against each other.
func TestManifestsAreThoseOfCompose(t *testing.T) {
	p := compose(t)
	etcd, agents := example.Read(t, "kubernetes/etcd.yaml"), example.Read(t, "kubernetes/agents.yaml")
	if !strings.Contains(etcd, "image: "+p.Services["etcd-0"].Image+"\n") {
		t.Errorf("the manifests have another image than %s", p.Services["etcd-0"].Image)
	}
	of := func(name string) string { // ETCD_CLIENT_CERT_AUTH=true → --client-cert-auth
		value := p.Services["etcd-0"].Environment[name]
		flag := "--" + strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(name, "ETCD_"), "_", "-"))
		if value == "true" {
			return flag
		}
		return flag + "=" + value
	}
	for name := range p.Services["etcd-0"].Environment {
		switch name {
		case "ETCD_NAME", "ETCD_INITIAL_CLUSTER", "ETCD_INITIAL_ADVERTISE_PEER_URLS", "ETCD_ADVERTISE_CLIENT_URLS":
			continue // with other host names
		}
		if strings.HasPrefix(name, "ETCD_") && !regexp.MustCompile(`(?m)^ +- `+regexp.QuoteMeta(of(name))+`( #.*)?$`).MatchString(etcd) {
			t.Errorf("the manifests lack %s", of(name))
		}
	}
	_, text, _ := strings.Cut(agents, "agent.yaml: |\n")
	text, _, _ = strings.Cut(text, "\n---\n")
	text = regexp.MustCompile(`(?m)^    `).ReplaceAllString(text, "")
	cfg, err := config.Parse("/etc/secretagent/agent.yaml", []byte(text))
	example.Must(t, err)
	for i, name := range members {
		if cfg.Upstream.Etcd.Endpoints[i] != "https://"+name+".etcd:2379" {
			t.Errorf("endpoints %v", cfg.Upstream.Etcd.Endpoints)
		}
	}
	for _, path := range []config.Path{
		cfg.Upstream.Etcd.TLS.CAFile, cfg.Upstream.Etcd.TLS.CertFile, cfg.Upstream.Etcd.TLS.KeyFile, cfg.Upstream.Etcd.Keyring,
		cfg.Upstream.Etcd.API.Socket, cfg.Endpoint.TokenFile, cfg.Templates[0].Destination, cfg.Render.StateDir,
	} {
		folder := string(path)
		for folder != "/" && !strings.Contains(agents, "mountPath: "+folder+"}") && !strings.Contains(agents, "mountPath: "+folder+", ") {
			folder = filepath.Dir(folder)
		}
		if folder == "/" {
			t.Errorf("no volume has %s", path)
		}
	}
}

// TestTheExampleRuns has three members run with the settings of compose.yaml and the certificates of
// certs.sh, gives the rights by the commands of README.md, and has two agents share them.
func TestTheExampleRuns(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts three etcds")
	}
	program, sh := upstreamtest.EtcdProgram(t), example.Tool(t, "sh")
	example.Tool(t, "openssl")
	dir, err := os.MkdirTemp("", "ex") // short, for the sockets
	example.Must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	script, err := filepath.Abs("certs.sh")
	example.Must(t, err)
	if out, code := example.Output(t, dir, nil, sh, script, "etcd-0", "etcd-1", "etcd-2"); code != 0 {
		t.Fatal(out)
	}
	_, err = keyfile.CreateKeyring(filepath.Join(dir, "keyring.json"))
	example.Must(t, err)

	p, hosts, free := compose(t), []string{}, upstreamtest.FreeAddresses(t, 9)
	for i, name := range members {
		hosts = append(hosts, name+":2379", free[3*i], name+":2380", free[3*i+1], name+":2381", free[3*i+2])
	}
	local := strings.NewReplacer(append(hosts, "/etc/etcd/", dir+"/tls/etcd/")...)
	processes := map[string]*exec.Cmd{}
	start := func(name string) {
		cmd := exec.Command(program)
		cmd.Env = append(os.Environ(), "ETCD_HEARTBEAT_INTERVAL=20", "ETCD_ELECTION_TIMEOUT=400", "ETCD_LOGGER=zap", "ETCD_LOG_LEVEL=error")
		for key, value := range p.Services[name].Environment {
			switch {
			case !strings.HasPrefix(key, "ETCD_"):
				continue
			case key == "ETCD_DATA_DIR":
				value = filepath.Join(dir, name)
			}
			value = strings.Replace(value, "0.0.0.0:", name+":", 1)
			cmd.Env = append(cmd.Env, key+"="+local.Replace(value))
		}
		example.Must(t, cmd.Start())
		processes[name] = cmd
	}
	kill := func(name string) {
		_ = processes[name].Process.Kill()
		_ = processes[name].Wait()
	}
	for _, name := range members {
		start(name)
		t.Cleanup(func() { kill(name) })
	}
	giveRights(t, dir, local.Replace("https://etcd-0:2379"))

	text := example.Read(t, "agent.yaml")
	agents := strings.NewReplacer(append(hosts, "/etc/etcd/", dir+"/tls/agent/", "/etc/secretagent-keys/", dir+"/", "/run/secretagent/", "./")...)
	var managers []*kms.Client
	for _, name := range []string{"1", "2"} {
		example.Within(t, filepath.Join(dir, name), agents.Replace(text)+"process: {noDump: false}\n")
		m, err := kms.New(kms.Options{Endpoints: []kms.Endpoint{{Socket: filepath.Join(dir, name, "var/run/kms.sock")}}})
		example.Must(t, err)
		t.Cleanup(func() { _ = m.Close() })
		managers = append(managers, m)
	}
	file := func(want string) {
		t.Helper()
		example.Eventually(t, want, func() bool {
			text, _ := os.ReadFile(filepath.Join(dir, "2", "app.env"))
			return strings.Contains(string(text), want)
		})
	}
	file("first")
	put := func(version, password string) error {
		_, err := managers[0].PutSecretValue(t.Context(), upstream.PutSecretValueInput{
			SecretName: "demo/db", VersionID: upstream.VersionID(version), SecretData: upstream.NewSecretData(fmt.Appendf(nil, `{"username":"app","password":%q}`, password)),
		})
		return err
	}
	example.Must(t, put("v2", "second"))
	file("second")
	kill("etcd-1") // one may be missing
	example.Eventually(t, "a write without one member", func() bool { return put("v3", "third") == nil })
	file("third")
}

// giveRights does what the lines of README.md do that begin with etcdctl, as root.
func giveRights(t *testing.T, dir, endpoint string) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(dir+"/tls/etcd/root.crt", dir+"/tls/etcd/root.key")
	example.Must(t, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(example.Read(t, dir+"/tls/etcd/ca.crt")))
	client, err := clientv3.New(clientv3.Config{
		Endpoints: []string{endpoint}, Logger: zap.NewNop(), TLS: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, Certificates: []tls.Certificate{pair}},
	})
	example.Must(t, err)
	defer client.Close()
	example.Eventually(t, "a leader", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := client.Get(ctx, "up")
		return err == nil
	})
	commands := 0
	for _, line := range regexp.MustCompile(`(?m)^etcdctl (.*)$`).FindAllStringSubmatch(example.Read(t, "README.md"), -1) {
		words := strings.Fields(line[1])
		ctx := t.Context()
		switch {
		case slices.Equal(words[:2], []string{"role", "add"}):
			_, err = client.RoleAdd(ctx, words[2])
		case slices.Equal(words[:2], []string{"role", "grant-permission"}) && slices.Equal(words[3:5], []string{"--prefix=true", "readwrite"}):
			_, err = client.RoleGrantPermission(ctx, words[2], words[5], clientv3.GetPrefixRangeEnd(words[5]), clientv3.PermissionType(clientv3.PermReadWrite))
		case slices.Equal(words[:2], []string{"user", "add"}) && words[3] == "--no-password":
			_, err = client.UserAddWithOptions(ctx, words[2], "", &clientv3.UserAddOptions{NoPassword: true})
		case slices.Equal(words[:2], []string{"user", "grant-role"}):
			_, err = client.UserGrantRole(ctx, words[2], words[3])
		case slices.Equal(words, []string{"auth", "enable"}):
			_, err = client.AuthEnable(ctx)
		default:
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", line[0], err)
		}
		commands++
	}
	if commands != 7 {
		t.Fatalf("README.md gives rights with %d commands", commands)
	}
}
