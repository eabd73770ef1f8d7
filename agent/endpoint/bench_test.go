//go:build unix

package endpoint_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"secretagent/agent/endpoint"
	"secretagent/agent/lines"
	"secretagent/cache"
	"secretagent/upstream"
)

// The benchmark of the endpoint, with every guard on, beside two servers in the same process:
// fasthttp answering a constant of the same size, which is the ceiling, and net/http with a
// map behind a mutex and json.Marshal per request, which is how such agents are usually
// written. A second process makes the load. Servers take turns in short windows, in an order
// that cancels drift, and ratios are medians over the rounds:
//
//	rate/ceiling   requests per second, by those of the ceiling; more is better
//	cpu/ceiling    CPU time of the server per request, by that of the ceiling; less is better
//	plain-rate, plain-cpu   the same two for the net/http server
//
// Run it on an otherwise idle machine:
//
//	go test -run '^$' -bench Endpoint ./agent/endpoint
const (
	benchRounds = 21
	benchWindow = 80 * time.Millisecond
)

func BenchmarkEndpoint(b *testing.B) {
	for _, network := range []string{"tcp", "unix"} {
		for _, conns := range []int{1, 8, 64, 512} {
			b.Run(fmt.Sprintf("%s/conns=%d", network, conns), func(b *testing.B) {
				runBench(b, network, conns, 1, endpoint.Options{})
			})
		}
	}
}

func BenchmarkEndpointManySecrets(b *testing.B) {
	runBench(b, "tcp", 64, 100_000, endpoint.Options{})
}

func BenchmarkEndpointAudited(b *testing.B) {
	log, err := lines.Open(filepath.Join(b.TempDir(), "audit.log"), lines.Options{Delay: 100 * time.Millisecond, Limit: 8 << 20})
	must(b, err)
	defer log.Close()
	runBench(b, "tcp", 64, 1, endpoint.Options{Audit: endpoint.NewAuditLog(log, 0)})
	b.ReportMetric(float64(log.Lost()), "lost")
}

// backend answers every name with 128 bytes of JSON.
type backend struct{}

func (backend) GetSecretValue(_ context.Context, ref upstream.SecretRef) (upstream.SecretValue, error) {
	return *benchValue(string(ref.SecretName)), nil
}

func benchValue(name string) *upstream.SecretValue {
	return value(name, "v1", fmt.Sprintf(`{"username":"app","password":"%x"}`, sha256.Sum256([]byte(name)))[:96]+`"}`, upstream.ACSCurrent)
}

func runBench(b *testing.B, network string, conns, secrets int, opts endpoint.Options) {
	client := startLoad(b)
	var requests []string
	names := make([]string, secrets)
	for i := range names {
		names[i] = fmt.Sprintf("app/db-%06d", i)
		if i%max(1, secrets/2000) == 0 { // enough to leave no cache line warm
			requests = append(requests, request("GET", "/v1/"+names[i], "Host: 127.0.0.1:2025", "User-Agent: bench/1.0", "Accept: */*", tokenLine))
		}
	}
	listen := func() net.Listener {
		addr := "127.0.0.1:0"
		if network == "unix" {
			addr = socketPath(b)
		}
		ln, err := net.Listen(network, addr)
		must(b, err)
		return ln
	}
	servers := map[string]net.Listener{"ceiling": listen(), "ours": listen(), "plain": listen()}
	body := upstream.GetSecretValueJSON(benchValue(names[0]))
	defer serveCeiling(b, servers["ceiling"], body)()
	defer serveOurs(b, servers["ours"], names, opts)()
	defer servePlain(b, servers["plain"], names)()
	for name, ln := range servers {
		client.do(b, order{Target: name, Network: network, Addr: ln.Addr().String(), Conns: conns})
		client.do(b, order{Target: name, Requests: requests, For: benchWindow}) // warm
	}

	ratios := map[string][]float64{}
	var rates []float64
	for b.Loop() {
		for round := range benchRounds {
			turn := []string{"ceiling", "ours", "plain"}
			if round%2 == 1 {
				slices.Reverse(turn)
			}
			rate, cpu := map[string]float64{}, map[string]float64{}
			for _, name := range turn {
				runtime.GC() // or the collection that the net/http server causes would run on in the next turn
				before := cpuTime(b)
				r := client.do(b, order{Target: name, Requests: requests, For: benchWindow})
				rate[name] = float64(r.Count) / r.Took.Seconds()
				cpu[name] = float64(cpuTime(b)-before) / float64(r.Count)
			}
			rates = append(rates, rate["ours"])
			for unit, ratio := range map[string]float64{
				"rate/ceiling": rate["ours"] / rate["ceiling"], "cpu/ceiling": cpu["ours"] / cpu["ceiling"],
				"plain-rate": rate["plain"] / rate["ceiling"], "plain-cpu": cpu["plain"] / cpu["ceiling"],
			} {
				ratios[unit] = append(ratios[unit], ratio)
			}
		}
	}
	for unit, values := range ratios {
		b.ReportMetric(median(values), unit)
	}
	b.ReportMetric(median(rates), "req/s")
	b.ReportMetric(0, "ns/op") // an iteration is all rounds together: its time says nothing
}

func median(values []float64) float64 {
	values = slices.Clone(values)
	slices.Sort(values)
	return values[len(values)/2]
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func serveCeiling(b *testing.B, ln net.Listener, body []byte) (stop func()) {
	srv := &fasthttp.Server{Handler: func(ctx *fasthttp.RequestCtx) {
		ctx.SetContentType("application/json")
		ctx.SetBody(body)
	}}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(ln) }()
	return func() {
		_ = ln.Close()
		<-done
	}
}

func serveOurs(b *testing.B, ln net.Listener, names []string, opts endpoint.Options) (stop func()) {
	c, err := cache.New(backend{}, cache.Options{Limits: cache.Limits{MaxEntries: max(1000, 2*len(names)), MaxBytes: 1 << 30, TTL: time.Hour}})
	must(b, err)
	for _, name := range names {
		if _, err := c.Lookup(context.Background(), refOf(name, "ACSCurrent")); err != nil {
			b.Fatal(err)
		}
	}
	opts.Callers = []endpoint.Caller{endpoint.DefaultCaller(mustToken(b, token))}
	srv, err := endpoint.New(c, opts)
	must(b, err)
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(ln) }()
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := srv.Shutdown(ctx); err != nil {
			b.Error(err)
		}
		<-done
		if s := srv.Stats(); s.Hits == 0 || s.Misses > 0 || len(s.Refused) > 0 {
			b.Errorf("the benchmark measured something else: %+v", s)
		}
		_ = c.Close()
	}
}

func servePlain(b *testing.B, ln net.Listener, names []string) (stop func()) {
	var mu sync.Mutex
	values := map[string]*upstream.SecretValue{}
	for _, name := range names {
		values[name] = benchValue(name)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-KMS-Token") != token || r.Header.Get("X-Forwarded-For") != "" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		mu.Lock()
		v := values[strings.TrimPrefix(r.URL.Path, "/v1/")]
		mu.Unlock()
		body, err := json.Marshal(map[string]any{
			"SecretName": v.SecretName, "VersionId": v.VersionID, "SecretData": string(v.SecretData.Reveal()), "SecretDataType": v.SecretDataType,
			"SecretType": v.SecretType, "VersionStages": map[string]any{"VersionStage": v.VersionStages}, "CreateTime": upstream.WireTime(v.CreateTime), "RequestId": v.RequestID,
		})
		if err != nil {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(body)
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(ln) }()
	return func() {
		_ = srv.Close()
		<-done
	}
}

// loadClient is the process that makes the load.
type loadClient struct {
	in  *json.Encoder
	out *json.Decoder
}

func startLoad(b *testing.B) *loadClient {
	exe, err := os.Executable()
	must(b, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), loadEnv+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(b, err)
	out, err := cmd.StdoutPipe()
	must(b, err)
	must(b, cmd.Start())
	b.Cleanup(func() {
		_ = in.Close()
		_, _ = io.Copy(io.Discard, out)
		if err := cmd.Wait(); err != nil {
			b.Error(err)
		}
	})
	return &loadClient{json.NewEncoder(in), json.NewDecoder(out)}
}

func (c *loadClient) do(b *testing.B, o order) result {
	b.Helper()
	must(b, c.in.Encode(o))
	var r result
	must(b, c.out.Decode(&r))
	if r.Err != "" {
		b.Fatalf("%s: %s", o.Target, r.Err)
	}
	return r
}
