// Package example runs the examples: it builds the program, copies the folder of an example
// to a temporary one, starts the agent there exactly as its agent.yaml says, and asks and
// changes it through the command line, as the reader of the example would.
package example

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"secretagent/agent"
	"secretagent/agent/config"
)

// Patience bounds every wait of an example's test. No machine is so busy that it needs more.
const Patience = 2 * time.Minute

// Build returns the path of the program, built from this module. It links the program once for
// the tests of all examples: go run keeps what it links, and has cp copy it.
func Build(t testing.TB) string {
	t.Helper()
	if testing.Short() {
		t.Skip("linking the program takes seconds")
	}
	if runtime.GOOS == "windows" {
		t.Skip("the examples are for unix")
	}
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("building the program needs the go tool")
	}
	bin := filepath.Join(t.TempDir(), "secretagent")
	cmd := exec.Command("go", "run", "-exec", "cp", "secretagent", bin)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go run: %v\n%s", err, out)
	}
	return bin
}

// Copy copies the files of the current folder, which is that of the example whose test calls
// it, to a new folder with a short path: names of unix sockets are limited to about 100 bytes.
func Copy(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ex")
	Must(t, err)
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	entries, err := os.ReadDir(".")
	Must(t, err)
	for _, e := range entries {
		if e.IsDir() || strings.HasSuffix(e.Name(), ".go") {
			continue
		}
		text, err := os.ReadFile(e.Name())
		Must(t, err)
		Must(t, os.WriteFile(filepath.Join(dir, e.Name()), text, 0o644))
	}
	return dir
}

// Agent is a running agent.
type Agent struct {
	Bin string // the program
	Dir string // where agent.yaml and everything it names lie

	log     Buffer
	secrets []string // what was stored, and must not be in the log
	cmd     *exec.Cmd
	ended   chan error
}

// Start starts an agent in a copy of the example, in which it makes the changes, and stops it
// when the test ends. It returns when the agent answers, which is not to say that it is ready.
// No stored value may have reached its log by the end of the test.
func Start(t *testing.T, changes ...func(dir string)) *Agent {
	t.Helper()
	a := &Agent{Bin: Build(t), Dir: Copy(t)}
	for _, change := range changes {
		change(a.Dir)
	}
	a.run(t)
	t.Cleanup(func() {
		_ = a.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case err := <-a.ended:
			if err != nil {
				t.Errorf("the agent ended with %v", err)
			}
		case <-time.After(Patience):
			_ = a.cmd.Process.Kill()
			t.Error("the agent did not end")
		}
		log := a.log.String()
		for _, secret := range a.secrets {
			if strings.Contains(log, secret) {
				t.Error("a value is in the log")
			}
		}
		if t.Failed() {
			t.Logf("log of the agent:\n%s", log)
		}
	})
	a.await(t, "--live")
	return a
}

// run starts the agent.
func (a *Agent) run(t *testing.T) {
	t.Helper()
	a.cmd = exec.Command(a.Bin, "run", "--config", "agent.yaml")
	a.cmd.Dir = a.Dir
	a.cmd.Stderr = &a.log
	Must(t, a.cmd.Start())
	cmd, ended := a.cmd, make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	a.ended = ended
}

// Kill ends the agent as a crash does, and starts another one in its place, which answers when
// Kill returns.
func (a *Agent) Kill(t *testing.T) {
	t.Helper()
	Must(t, a.cmd.Process.Kill())
	<-a.ended
	a.run(t)
	a.await(t, "--live")
}

// Ready waits until the agent holds every secret and has written every file.
func (a *Agent) Ready(t *testing.T) { t.Helper(); a.await(t, "--ready") }

// await waits until "secretagent status" is content.
func (a *Agent) await(t *testing.T, health string) {
	t.Helper()
	if out, err := a.command("status", health, "--wait", Patience.String(), "--config", "agent.yaml").CombinedOutput(); err != nil {
		t.Fatalf("secretagent status %s: %v\n%s", health, err, out)
	}
}

// Create stores a new secret.
func (a *Agent) Create(t *testing.T, name, value string) {
	t.Helper()
	a.store(t, "create", name, value)
}

// Put stores a new current value of a secret.
func (a *Agent) Put(t *testing.T, name, value string) { t.Helper(); a.store(t, "put", name, value) }

// store runs the command of the secret, which must succeed.
func (a *Agent) store(t *testing.T, verb, name, value string) {
	t.Helper()
	a.Secret(value)
	cmd := a.command("secret", verb, name, "--data-file", "-", "--config", "agent.yaml")
	cmd.Stdin = strings.NewReader(value)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("secretagent secret %s: %v\n%s", verb, err, out)
	}
}

// Secret names texts that must not be in the log of the agent.
func (a *Agent) Secret(values ...string) { a.secrets = append(a.secrets, values...) }

// Path returns the path of a file of the agent.
func (a *Agent) Path(elem ...string) string {
	return filepath.Join(append([]string{a.Dir}, elem...)...)
}

func (a *Agent) command(args ...string) *exec.Cmd {
	cmd := exec.Command(a.Bin, args...)
	cmd.Dir = a.Dir
	return cmd
}

// Within runs an agent with the configuration text, in this process and in the folder dir, which
// it makes. It runs until stop is called, or the test ends.
func Within(t testing.TB, dir, text string) (a *agent.Agent, stop func()) {
	t.Helper()
	Must(t, os.MkdirAll(dir, 0o700))
	path := filepath.Join(dir, "agent.yaml")
	Write(t, path, text)
	cfg, err := config.Load(path)
	Must(t, err)
	a, err = agent.New(t.Context(), cfg, agent.Deps{Version: "test"})
	Must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the agent in %s ended with: %v", dir, err)
		}
	})
	t.Cleanup(stop)
	return a, stop
}

// Eventually waits until done, or ends the test, which says what it waited for.
func Eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(Patience)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s", Patience, what)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Must ends the test on an error.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Certificate returns a new self-signed certificate for localhost and its key, as PEM.
func Certificate(t testing.TB, serial int64) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	Must(t, err)
	template := x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, &private.PublicKey, private)
	Must(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	Must(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
}

// Read returns the text of a file.
func Read(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	Must(t, err)
	return string(text)
}

// Write writes a file that only we may read.
func Write(t testing.TB, path, text string) {
	t.Helper()
	Must(t, os.WriteFile(path, []byte(text), 0o600))
}

// Tool skips the test where a program is not installed, and returns its path.
func Tool(t *testing.T, name string, also ...string) string {
	t.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, pattern := range also {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			return found[len(found)-1]
		}
	}
	t.Skipf("needs %s, which is not installed", name)
	return ""
}

// Output runs a command in dir and returns what it printed on both outputs, and its exit code.
func Output(t *testing.T, dir string, env []string, argv ...string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatalf("%s: %v", argv[0], err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// Buffer is a writer that may be read meanwhile. Its zero value is empty.
type Buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// String returns everything that was written.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
