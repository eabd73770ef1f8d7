package etcd

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/auth/credentials"
	"github.com/aliyun/alibaba-cloud-sdk-go/services/kms"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"secretagent/examples/internal/example"
	"secretagent/upstream/upstreamtest"
)

// machine is a host and the program that runs on it.
type machine struct {
	*host
	name string
	make func() *exec.Cmd
	log  example.Buffer

	mu   sync.Mutex
	cmd  *exec.Cmd
	runs int // times that it was started
	died time.Time
}

func (m *machine) run() {
	m.t.Helper()
	cmd := m.make()
	cmd.Stdout, cmd.Stderr = &m.log, &m.log
	example.Must(m.t, m.start(cmd))
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cmd = cmd
	m.runs++
}

// kill ends the program as a crash does.
func (m *machine) kill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cmd != nil {
		_ = m.cmd.Process.Kill()
		m.died = time.Now()
		_ = m.cmd.Wait()
		m.cmd = nil
	}
}

// keepLog ends the program with the test. With -artifacts, the log of one that has failed is kept.
func (m *machine) keepLog() {
	m.t.Cleanup(func() {
		m.kill()
		if m.t.Failed() {
			example.Write(m.t, filepath.Join(m.t.ArtifactDir(), m.name+".log"), m.log.String())
		}
	})
}

func (m *machine) signal(s os.Signal) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cmd != nil {
		_ = m.cmd.Process.Signal(s)
	}
}

// life is from one crash to the next.
type life struct {
	number int
	after  time.Time // the crash
}

func (m *machine) life() life {
	m.mu.Lock()
	defer m.mu.Unlock()
	return life{m.runs, m.died}
}

// member is a member of the cluster.
type member struct {
	*machine
	dir string
	id  uint64
}

// cluster is an etcd of three members, and a host with a client that nobody harms.
type cluster struct {
	t       *testing.T
	members []*member
	ca      string // path
	client  *clientv3.Client
	health  *http.Client
}

func newCluster(t *testing.T, n *network, dir string) *cluster {
	t.Helper()
	program := upstreamtest.EtcdProgram(t)
	c := &cluster{t: t, ca: filepath.Join(dir, "ca.crt")}
	key := filepath.Join(dir, "member.key")
	for i := range 3 {
		c.members = append(c.members, &member{machine: &machine{host: n.newHost(), name: fmt.Sprint("m", i)}, dir: filepath.Join(dir, fmt.Sprint("m", i))})
	}
	makeCertificate(t, c, key)
	for _, m := range c.members {
		m.make = func() *exec.Cmd {
			peer, url := m.peerURL(), "https://"+m.ip+":2379"
			state := "new"
			if m.life().number > 0 {
				state = "existing" // after it was emptied, too
			}
			return exec.Command(program, "--name", m.name, "--data-dir", m.dir, "--listen-client-urls", url, "--advertise-client-urls", url,
				"--cert-file", c.ca, "--key-file", key, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
				"--initial-cluster", c.initial(), "--initial-cluster-state", state, "--quota-backend-bytes", fmt.Sprint(quota),
				"--logger", "zap", "--log-level", "error")
		}
		m.run()
		m.keepLog()
	}
	own := n.newHost()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(example.Read(t, c.ca)))
	trust := &tls.Config{RootCAs: pool}
	c.health = &http.Client{Timeout: 500 * time.Millisecond, Transport: &http.Transport{DialContext: own.dial, TLSClientConfig: trust, DisableKeepAlives: true}}
	client, err := clientv3.New(clientv3.Config{
		Endpoints: c.urls(), TLS: trust, Logger: zap.NewNop(), DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: time.Second,
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return own.dial(ctx, "tcp", strings.TrimPrefix(address, "https://"))
		})},
	})
	example.Must(t, err)
	t.Cleanup(func() { _ = client.Close() })
	c.client = client
	example.Eventually(t, "a healthy cluster", c.healthy)
	answer, err := client.MemberList(t.Context())
	example.Must(t, err)
	for _, is := range answer.Members {
		c.members[slices.IndexFunc(c.members, func(m *member) bool { return m.name == is.Name })].id = is.ID
	}
	return c
}

// quota is small, so that it can be used up.
const quota = 64 << 20

func (m *member) peerURL() string { return "http://" + m.ip + ":2380" }

func (c *cluster) urls() (urls []string) {
	for _, m := range c.members {
		urls = append(urls, "https://"+m.ip+":2379")
	}
	return urls
}

func (c *cluster) initial() string {
	var peers []string
	for _, m := range c.members {
		peers = append(peers, m.name+"="+m.peerURL())
	}
	return strings.Join(peers, ",")
}

// healthy asks each member whether it gets an answer to a read that a majority has to agree to.
func (c *cluster) healthy() bool {
	for _, url := range c.urls() {
		answer, err := c.health.Get(url + "/health")
		if err != nil {
			return false
		}
		_ = answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			return false
		}
	}
	return true
}

// empty puts a new member, with no data, in the place of one. A majority must be there.
func (c *cluster) empty(m *member) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	m.kill()
	if _, err := c.client.MemberRemove(ctx, m.id); err != nil {
		c.t.Logf("%s is not replaced: %v", m.name, err)
		m.run()
		return
	}
	example.Must(c.t, os.RemoveAll(m.dir))
	for ctx.Err() == nil { // etcd refuses while it takes another member to be away
		if answer, err := c.client.MemberAdd(ctx, []string{m.peerURL()}); err == nil {
			m.id = answer.Member.ID
			m.run()
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	c.t.Errorf("%s could not be added again", m.name)
}

// makeCertificate writes the certificate of all members, which is its own authority.
func makeCertificate(t *testing.T, c *cluster, keyFile string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	example.Must(t, err)
	template := x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "etcd"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	for _, m := range c.members {
		template.IPAddresses = append(template.IPAddresses, net.ParseIP(m.ip))
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, &private.PublicKey, private)
	example.Must(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	example.Must(t, err)
	example.Write(t, c.ca, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	example.Write(t, keyFile, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})))
}

// agent is an agent on a machine of its own, and clients of it there.
type agent struct {
	*machine
	bin, dir string
	sealed   bool
	token    string
	endpoint *http.Client
	kms      *kms.Client
}

func newAgent(t *testing.T, n *network, c *cluster, bin, dir string, secrets []string, number int) *agent {
	t.Helper()
	a := &agent{machine: &machine{host: n.newHost(), name: fmt.Sprint("a", number)}, bin: bin, sealed: number%2 == 0}
	a.dir = filepath.Join(dir, a.name)
	example.Must(t, os.Mkdir(a.dir, 0o700))
	var b strings.Builder
	fmt.Fprintf(&b, `
upstream:
  etcd:
    endpoints: ["%s"]
    prefix: %s
    tls: {caFile: ../ca.crt}
    keyring: ../keyring.json
    maxVersions: %d
    api:
      socket: ./kms.sock
      listen: 127.0.0.1:2026
      accessKeys: [{id: chaos, secretFile: ./kms.secret, actions: ["*"], secrets: ["*"]}]
endpoint: {listen: off, socket: ./agent.sock, tokenFile: ./token}
cache: {ttl: %s, maxStale: 1h`, strings.Join(c.urls(), `", "`), prefix, maxVersions, ttl)
	if a.sealed {
		b.WriteString(", sealed: {path: ./cache/cache.db, keyring: ./keys/cache.json}")
	}
	b.WriteString("}\nrender: {stateDir: ./state}\nsecrets:\n")
	for _, s := range secrets {
		fmt.Fprintf(&b, "  - {name: %s}\n", s)
	}
	b.WriteString("templates:\n")
	for _, s := range secrets {
		fmt.Fprintf(&b, "  - {contents: '{{ secret %q }}', destination: ./files/%s}\n", s, s)
	}
	// A hook makes a copy, in one step.
	fmt.Fprintf(&b, "  - {contents: '{{ secret %q }}', destination: ./files/source, hook: {command: [sh, -c, 'cp %s/files/source %[2]s/files/new && mv %[2]s/files/new %[2]s/files/hooked']}}\n", secrets[0], a.dir)
	example.Write(t, filepath.Join(a.dir, "agent.yaml"), b.String())
	a.make = func() *exec.Cmd {
		cmd := exec.Command(bin, "run", "--config", "agent.yaml", "--log-level", "info")
		cmd.Dir = a.dir
		return cmd
	}
	a.run()
	a.keepLog()
	example.Eventually(t, "the files of "+a.name, func() bool {
		_, err := os.Stat(filepath.Join(a.dir, "kms.secret"))
		_, e := os.Stat(filepath.Join(a.dir, "token"))
		return err == nil && e == nil
	})
	a.token = strings.TrimSpace(example.Read(t, filepath.Join(a.dir, "token")))
	a.endpoint = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(a.dir, "agent.sock"))
		},
	}}
	config := sdk.NewConfig()
	config.Timeout = 12 * time.Second
	config.Transport = transport{&http.Transport{DialContext: a.dial, MaxIdleConnsPerHost: 8}}
	client, err := kms.NewClientWithOptions("cn-hangzhou", config, credentials.NewAccessKeyCredential("chaos", strings.TrimSpace(example.Read(t, filepath.Join(a.dir, "kms.secret")))))
	example.Must(t, err)
	client.Domain = "127.0.0.1:2026"
	t.Cleanup(client.Shutdown)
	a.kms = client
	return a
}

// transport keeps the SDK from changing the transport, which it does when it sees one of the standard library.
type transport struct{ http.RoundTripper }

// command runs a verb of the program on the agent's machine, and returns its exit code and what it printed.
func (a *agent) command(input string, args ...string) (int, string) {
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, a.bin, append(args, "--config", "agent.yaml")...)
	var out bytes.Buffer
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = a.dir, strings.NewReader(input), &out, &out
	if err := a.start(cmd); err != nil {
		return -1, err.Error()
	}
	_ = cmd.Wait()
	return cmd.ProcessState.ExitCode(), out.String()
}

// watchIsUp asks the agent.
func (a *agent) watchIsUp() bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	status, _, body := a.ask(ctx, "/status", "")
	var s struct {
		Upstream struct{ Etcd struct{ WatchUp bool } }
	}
	return status == http.StatusOK && json.Unmarshal(body, &s) == nil && s.Upstream.Etcd.WatchUp
}

// ask makes a request at the endpoint. The status is 0 where there is no answer.
func (a *agent) ask(ctx context.Context, path, etag string) (status int, header http.Header, body []byte) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost"+path, nil)
	if err != nil {
		panic(err)
	}
	r.Header.Set("X-KMS-Token", a.token)
	if etag != "" {
		r.Header.Set("If-None-Match", etag)
	}
	answer, err := a.endpoint.Do(r)
	if err != nil {
		return 0, nil, nil
	}
	defer answer.Body.Close()
	if body, err = io.ReadAll(answer.Body); err != nil {
		return 0, nil, nil
	}
	return answer.StatusCode, answer.Header, body
}

var (
	stop = func(m *machine) { m.signal(syscall.SIGSTOP) }
	cont = func(m *machine) { m.signal(syscall.SIGCONT) }
)
