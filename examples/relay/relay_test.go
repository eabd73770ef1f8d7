// Package relay holds one agent per node and the sidecars behind it; this test runs them.
package relay

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"secretagent/agent/config"
	"secretagent/examples/internal/example"
	"secretagent/upstream"
	"secretagent/upstream/kms"
)

// process is an agent in a process of its own.
type process struct {
	bin, config string
	log         *example.Buffer
	cmd         *exec.Cmd
}

func run(t testing.TB, bin, config string) *process {
	p := &process{bin: bin, config: config, log: &example.Buffer{}}
	p.start(t)
	t.Cleanup(func() {
		p.end(syscall.SIGTERM)
		if t.Failed() {
			t.Logf("log of %s:\n%s", config, p.log.String())
		}
	})
	return p
}

func (p *process) start(t testing.TB) {
	t.Helper()
	p.cmd = exec.Command(p.bin, "run", "--config", p.config)
	p.cmd.Stderr = p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(p.bin, "status", "--ready", "--wait", example.Patience.String(), "--config", p.config).CombinedOutput(); err != nil {
		t.Fatalf("%s is not ready: %v\n%s\n%s", p.config, err, out, p.log.String())
	}
}

// end sends a signal, waits, and returns the time that the process had on the processor.
func (p *process) end(sig syscall.Signal) time.Duration {
	_ = p.cmd.Process.Signal(sig)
	_ = p.cmd.Wait()
	if p.cmd.ProcessState == nil {
		return 0
	}
	return p.cmd.ProcessState.SystemTime() + p.cmd.ProcessState.UserTime()
}

func (p *process) put(t testing.TB, value string) {
	t.Helper()
	cmd := exec.Command(p.bin, "secret", "put", "shop/db", "--data-file", "-", "--config", p.config)
	cmd.Stdin = strings.NewReader(value)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("put: %v\n%s", err, out)
	}
}

// wants waits until the status of the agent says what.
func (p *process) wants(t testing.TB, what string) {
	t.Helper()
	eventually(t, what, func() bool {
		out, _ := exec.Command(p.bin, "status", "--config", p.config).CombinedOutput()
		return strings.Contains(strings.Join(strings.Fields(string(out)), " "), what)
	})
}

func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(example.Patience); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited for %s", what)
		}
	}
}

func wantFile(t testing.TB, path, want string) {
	t.Helper()
	eventually(t, want+" in "+path, func() bool {
		got, err := os.ReadFile(path)
		return err == nil && strings.Contains(string(got), want)
	})
}

// freePort returns an address that nobody has used a moment ago.
func freePort(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// place writes a configuration of the example into a folder of its own, changed so that it works
// on this machine, and returns where.
func place(t testing.TB, dir, text string, oldNew ...string) string {
	t.Helper()
	for i := 0; i < len(oldNew); i += 2 {
		if !strings.Contains(text, oldNew[i]) {
			t.Fatalf("%s is not in the configuration", oldNew[i])
		}
	}
	text = strings.NewReplacer(oldNew...).Replace(text) + "process: {noDump: false}\n"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "agent.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// cloud is an agent with a built-in backend that stands in for the cloud: where, and its files.
func cloud(t testing.TB, dir string) (address, path string) {
	address = freePort(t)
	return address, place(t, dir, `upstream:
  local:
    api:
      listen: `+address+`
      accessKeys: [{id: node, secretFile: ./secret, actions: ["*"], secrets: ["*"]}]
    seed: [{name: shop/db, data: '{"password":"first"}'}]
endpoint: {listen: off, socket: ./run/agent.sock}
`)
}

func TestANodeAndItsSidecar(t *testing.T) {
	bin := example.Build(t)
	dir, err := os.MkdirTemp("", "ex") // a short path: names of sockets are bounded
	example.Must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	cert, key := example.Certificate(t, 1)
	example.Must(t, os.MkdirAll(filepath.Join(dir, "tls"), 0o700))
	example.Write(t, filepath.Join(dir, "tls/tls.crt"), cert)
	example.Write(t, filepath.Join(dir, "tls/tls.key"), key)
	example.Write(t, filepath.Join(dir, "node-id"), "node\n")
	example.Write(t, filepath.Join(dir, "shop-id"), example.Read(t, "access-key-id"))

	address, path := cloud(t, filepath.Join(dir, "c"))
	service := run(t, bin, path)
	_, port, _ := net.SplitHostPort(freePort(t))
	nodeText := example.Read(t, "node.yaml")
	nodeChanges := []string{
		"host: kms-vpc.cn-hangzhou.aliyuncs.com", `host: "` + address + `", scheme: http`,
		"{type: ecs_ram_role}", "{type: access_key, accessKeyIdFile: ../node-id, accessKeySecretFile: ../c/secret}",
		"0.0.0.0:2026", "127.0.0.1:" + port, "/etc/secretagent/tls", dir + "/tls",
		"/var/lib/secretagent", dir + "/n", "/run/secretagent", dir + "/n/run",
	}
	node := run(t, bin, place(t, filepath.Join(dir, "n"), nodeText, nodeChanges...))
	sidecar := run(t, bin, place(t, filepath.Join(dir, "s"), example.Read(t, "sidecar.yaml"),
		`"node:2026"`, `"localhost:`+port+`"`, "/etc/secretagent/tls", dir+"/tls",
		"/etc/secretagent/access-key-id", dir+"/shop-id", "/etc/secretagent/keys/access-key-secret", dir+"/n/keys/shop/access-key-secret",
		"127.0.0.1:2025", freePort(t), "/run/secretagent", dir+"/s/run"))
	file := filepath.Join(dir, "s/run/files/app.env")
	wantFile(t, file, "first")
	sidecar.wants(t, "changes are told by localhost:"+port)

	// From the service over the node to the file of the sidecar, which would ask again in an hour.
	node.wants(t, "changes are told by "+address)
	service.put(t, `{"password":"second"}`)
	wantFile(t, file, "second")

	// The node is killed; what happens meanwhile is there when it is back.
	node.end(syscall.SIGKILL)
	sidecar.wants(t, "changes are NOT told by localhost:"+port)
	service.put(t, `{"password":"third"}`)
	node.start(t)
	wantFile(t, file, "third")
	sidecar.wants(t, "changes are told by localhost:"+port)

	// Rights that are taken away take the value from the sidecar.
	place(t, filepath.Join(dir, "n"), nodeText, append(nodeChanges, `"shop/*"`, `"other/*"`)...)
	example.Must(t, node.cmd.Process.Signal(syscall.SIGHUP))
	eventually(t, "a refusal", func() bool {
		out, _ := exec.Command(bin, "get", "shop/db", "--config", sidecar.config).CombinedOutput()
		return strings.Contains(string(out), "Forbidden.NoPermission")
	})
	for _, p := range []*process{service, node, sidecar} {
		if log := p.log.String(); strings.Contains(log, "second") || strings.Contains(log, "third") {
			t.Errorf("a value is in the log of %s", p.config)
		}
	}
}

// TestTheProjectFitsTheConfigurations holds what compose.yaml mounts against what the agents use.
func TestTheProjectFitsTheConfigurations(t *testing.T) {
	var p struct {
		Services map[string]struct {
			ReadOnly bool     `yaml:"read_only"`
			CapDrop  []string `yaml:"cap_drop"`
			Volumes  []string `yaml:"volumes"`
		} `yaml:"services"`
		Volumes map[string]any `yaml:"volumes"`
	}
	example.Must(t, yaml.Unmarshal([]byte(example.Read(t, "compose.yaml")), &p))
	for service, file := range map[string]string{"node": "node.yaml", "sidecar": "sidecar.yaml"} {
		s := p.Services[service]
		if !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) {
			t.Errorf("%s is not hardened", service)
		}
		cfg, err := config.Load(file)
		example.Must(t, err)
		paths := append(cfg.Files(), string(cfg.Endpoint.TokenFile))
		for _, path := range paths {
			if !strings.HasPrefix(path, "/") || strings.HasSuffix(path, ".yaml") || strings.Contains(path, "/examples/") {
				continue
			}
			if !slices.ContainsFunc(s.Volumes, func(v string) bool {
				target := strings.Split(v, ":")[1]
				return path == target || strings.HasPrefix(path, target+"/")
			}) {
				t.Errorf("%s: %s is not mounted", service, path)
			}
		}
	}
}

// BenchmarkPutToFileOfTheSecond is the time from a put at the first agent to the file of the second.
func BenchmarkPutToFileOfTheSecond(b *testing.B) {
	first, host, dir := startFirst(b)
	second := run(b, first.bin, place(b, filepath.Join(dir, "2"), behind(host)))
	second.wants(b, "changes are told by "+host)
	client := connect(b, host, dir)
	file := filepath.Join(dir, "2/rendered/file")
	var took []time.Duration
	for b.Loop() {
		value := fmt.Sprint("value-", time.Now().UnixNano())
		begun := time.Now()
		put(b, client, value)
		for example.Read(b, file) != value {
			if time.Since(begun) > example.Patience {
				b.Fatal("the file does not follow")
			}
			time.Sleep(100 * time.Microsecond)
		}
		took = append(took, time.Since(begun))
		time.Sleep(600 * time.Millisecond) // no burst: changes that come without a pause are collected
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "median-ms")
	b.ReportMetric(float64(took[len(took)*9/10].Microseconds())/1000, "p90-ms")
}

// BenchmarkFleetAtRest is what 100 second agents, in this process, cost the first, in its own, in ten
// seconds, and how long a put then takes to all their files.
func BenchmarkFleetAtRest(b *testing.B) {
	const agents, rest = 100, 10 * time.Second
	first, host, dir := startFirst(b)
	for i := range agents {
		example.Within(b, filepath.Join(dir, fmt.Sprint("f", i)), behind(host))
	}
	client := connect(b, host, dir)
	time.Sleep(2 * time.Second)
	for b.Loop() {
		before := cpu(b, first.cmd.Process.Pid)
		time.Sleep(rest)
		b.ReportMetric(100*float64(cpu(b, first.cmd.Process.Pid)-before)/float64(rest), "%-of-a-core")
		value := fmt.Sprint("value-", time.Now().UnixNano())
		begun := time.Now()
		put(b, client, value)
		for i := range agents {
			wantFile(b, filepath.Join(dir, fmt.Sprint("f", i), "rendered/file"), value)
		}
		b.ReportMetric(float64(time.Since(begun).Microseconds())/1000, "to-all-files-ms")
	}
}

// startFirst runs the first agent of a benchmark, and says where it answers.
func startFirst(b *testing.B) (first *process, host, dir string) {
	bin := example.Build(b)
	dir, err := os.MkdirTemp("", "ex")
	example.Must(b, err)
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	example.Write(b, filepath.Join(dir, "id"), "node\n")
	host, path := cloud(b, filepath.Join(dir, "1"))
	return run(b, bin, path), host, dir
}

// behind is the configuration of a second agent in a folder beside that of the first.
func behind(host string) string {
	return `upstream:
  alibaba:
    endpoints: [{region: local, host: "` + host + `", scheme: http}]
    credentials: {type: access_key, accessKeyIdFile: ../id, accessKeySecretFile: ../1/secret}
endpoint: {listen: off, socket: ./run/agent.sock, tokenFile: ./run/token}
templates: [{contents: '{{ secret "shop/db" }}', destination: ./rendered/file}]
`
}

func connect(b *testing.B, host, dir string) *kms.Client {
	client, err := kms.New(kms.Options{
		Endpoints:   []kms.Endpoint{{Region: "local", Host: host, Scheme: "http"}},
		Credentials: kms.StaticCredential("node", strings.TrimSpace(example.Read(b, filepath.Join(dir, "1/secret"))), ""),
	})
	example.Must(b, err)
	b.Cleanup(func() { _ = client.Close() })
	return client
}

func put(b *testing.B, client *kms.Client, value string) {
	b.Helper()
	_, err := client.PutSecretValue(b.Context(), upstream.PutSecretValueInput{
		SecretName: "shop/db", VersionID: upstream.VersionID(value), SecretData: upstream.NewSecretData([]byte(value)),
	})
	example.Must(b, err)
}

// cpu returns how long a process has been on the processor.
func cpu(b *testing.B, pid int) time.Duration {
	if runtime.GOOS != "linux" {
		b.Skip("there is no /proc")
	}
	_, fields, _ := strings.Cut(example.Read(b, fmt.Sprintf("/proc/%d/stat", pid)), ") ")
	var ticks [2]int
	_, err := fmt.Sscan(strings.Join(strings.Fields(fields)[11:13], " "), &ticks[0], &ticks[1])
	example.Must(b, err)
	return time.Duration(ticks[0]+ticks[1]) * 10 * time.Millisecond
}
