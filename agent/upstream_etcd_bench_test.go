package agent_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"secretagent/agent"
	"secretagent/agent/config"
	"secretagent/upstream"
	"secretagent/upstream/kms"
	"secretagent/upstream/upstreamtest"
)

// memberOf is an agent on etcd with a file; the other secrets are held, too.
func memberOf(etcd *upstreamtest.Etcd, keyring, others string) string {
	return fmt.Sprintf(`
upstream:
  etcd: {endpoints: ["%s"], prefix: /bench/, keyring: %s, api: {socket: ./run/kms.sock}}
endpoint: {listen: off, socket: ./run/agent.sock, tokenFile: ./run/token}
secrets: [{name: app/db}%s]
templates: [{contents: '{{ secret "app/db" }}', destination: ./rendered/file}]
process: {noDump: false}
log: {level: warn}
`, etcd.URL, keyring, others)
}

// seedOfBench makes the secrets that agents of a benchmark hold, and the keyring.
func seedOfBench(b *testing.B, etcd *upstreamtest.Etcd, dir string, secrets int) (keyring string) {
	keyring = filepath.Join(dir, "keyring.json")
	_, err := agent.CreateKeyring(keyring)
	must(b, err)
	path := filepath.Join(dir, "seed.yaml")
	must(b, os.WriteFile(path, []byte(memberOf(etcd, keyring, "")), 0o600))
	cfg, err := config.Load(path)
	must(b, err)
	m, closeManager, err := agent.OpenManager(b.Context(), cfg, slog.New(slog.DiscardHandler), agent.ExistingFiles)
	must(b, err)
	defer closeManager()
	for i := range secrets {
		name := fmt.Sprint("app/", i)
		if i == 0 {
			name = "app/db"
		}
		_, err := m.CreateSecret(b.Context(), upstream.CreateSecretInput{
			SecretName: upstream.SecretName(name), VersionID: "v0", SecretData: upstream.NewSecretData([]byte("first")),
		})
		must(b, err)
	}
	return keyring
}

// process runs the program in dir.
func process(b *testing.B, program, dir, cfg string) *exec.Cmd {
	must(b, os.MkdirAll(dir, 0o700))
	path := filepath.Join(dir, "agent.yaml")
	must(b, os.WriteFile(path, []byte(cfg), 0o600))
	cmd := exec.Command(program, "run", "--config", path)
	cmd.Stderr = os.Stderr
	must(b, cmd.Start())
	b.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	out, err := exec.Command(program, "status", "--ready", "--wait", "1m", "--config", path).CombinedOutput()
	if err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	return cmd
}

// BenchmarkPutToFileOfAnother is the time from a put at one agent, over the socket of its API, to the file of another,
// with etcd and files in memory and on disk. Both agents are processes of their own.
func BenchmarkPutToFileOfAnother(b *testing.B) {
	program := filepath.Join(b.TempDir(), "secretagent")
	if out, err := exec.Command("go", "build", "-o", program, "secretagent").CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	for _, place := range []string{"memory", "disk"} {
		b.Run(place, func(b *testing.B) {
			dir := upstreamtest.InMemory(b)
			if place == "disk" {
				dir = b.TempDir()
			}
			etcd := upstreamtest.NewEtcd(b, nil, "--data-dir", filepath.Join(dir, "etcd"))
			cfg := memberOf(etcd, seedOfBench(b, etcd, dir, 1), "")
			one, two := filepath.Join(dir, "1"), filepath.Join(dir, "2")
			processes := []*exec.Cmd{process(b, program, one, cfg), process(b, program, two, cfg)}
			client, err := kms.New(kms.Options{Endpoints: []kms.Endpoint{{Socket: filepath.Join(one, "run/kms.sock")}}})
			must(b, err)
			defer client.Close()
			var written, took []time.Duration
			for b.Loop() {
				value := fmt.Sprint("v", time.Now().UnixNano())
				begun := time.Now()
				must(b, putValue(b.Context(), client, value))
				written = append(written, time.Since(begun))
				awaitFile(b, filepath.Join(two, "rendered/file"), value)
				took = append(took, time.Since(begun))
				time.Sleep(250 * time.Millisecond) // no burst: changes that come without a pause are collected
			}
			report(b, "put", written)
			report(b, "file", took)
			atRest(b, "agent", processes[1].Process.Pid)
		})
	}
}

// within runs an agent in this process.
func within(b *testing.B, dir, text string) {
	must(b, os.MkdirAll(dir, 0o700))
	path := filepath.Join(dir, "agent.yaml")
	must(b, os.WriteFile(path, []byte(text), 0o600))
	cfg, err := config.Load(path)
	must(b, err)
	a, err := agent.New(b.Context(), cfg, agent.Deps{Version: "test"})
	must(b, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		must(b, <-done)
	})
}

// BenchmarkFleetOnEtcd is how long a change takes to the files of 100 agents, in this process, that hold ten each of
// 1,000 secrets, and what etcd and they cost at rest.
func BenchmarkFleetOnEtcd(b *testing.B) {
	const agents, secrets = 100, 1000
	dir := upstreamtest.InMemory(b)
	etcd := upstreamtest.NewEtcd(b, nil)
	keyring := seedOfBench(b, etcd, dir, secrets)
	files := make([]string, agents)
	for i := range agents {
		var others strings.Builder
		for n := range 9 {
			fmt.Fprintf(&others, ", {name: app/%d}", 1+(9*i+n)%(secrets-1))
		}
		place := filepath.Join(dir, fmt.Sprint(i))
		within(b, place, memberOf(etcd, keyring, others.String()))
		files[i] = filepath.Join(place, "rendered/file")
		awaitFile(b, files[i], "first")
	}
	client, err := kms.New(kms.Options{Endpoints: []kms.Endpoint{{Socket: filepath.Join(dir, "0/run/kms.sock")}}})
	must(b, err)
	defer client.Close()
	time.Sleep(2 * time.Second)
	var took []time.Duration
	for b.Loop() {
		value := fmt.Sprint("v", time.Now().UnixNano())
		begun := time.Now()
		must(b, putValue(b.Context(), client, value))
		for _, file := range files {
			awaitFile(b, file, value)
		}
		took = append(took, time.Since(begun))
		time.Sleep(time.Second)
	}
	report(b, "last-file", took)
	atRest(b, "etcd", etcd.Pid())
	atRest(b, "100-agents", os.Getpid())
}

func putValue(ctx context.Context, m upstream.Manager, value string) error {
	_, err := m.PutSecretValue(ctx, upstream.PutSecretValueInput{
		SecretName: "app/db", VersionID: upstream.VersionID(value), SecretData: upstream.NewSecretData([]byte(value)),
	})
	return err
}

func awaitFile(b *testing.B, path, want string) {
	b.Helper()
	for begun := time.Now(); ; time.Sleep(100 * time.Microsecond) {
		if got, _ := os.ReadFile(path); string(got) == want {
			return
		}
		if time.Since(begun) > time.Minute {
			b.Fatal("the file does not follow: ", path)
		}
	}
}

func report(b *testing.B, what string, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, what+"-median-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, what+"-p99-ms")
}

// atRest reports what a process costs while nobody asks for anything, for as long as SECRETAGENT_REST says, such as 60s.
func atRest(b *testing.B, what string, pid int) {
	rest, err := time.ParseDuration(os.Getenv("SECRETAGENT_REST"))
	if err != nil {
		return
	}
	before := processor(b, pid)
	time.Sleep(rest)
	b.ReportMetric(100*float64(processor(b, pid)-before)/float64(rest), what+"-%-of-a-core")
}

// processor returns how long a process has been on the processor.
func processor(b *testing.B, pid int) time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Skip("there is no /proc")
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}
