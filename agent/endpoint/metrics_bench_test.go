//go:build unix

package endpoint_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"secretagent/agent/endpoint"
)

// scrapeEvery is how often the measured server is scraped: fifteen times as often as Prometheus
// does it by default.
const scrapeEvery = time.Second

// BenchmarkMetrics compares lookups of a server whose lookups are timed into a histogram of
// Prometheus and which is scraped every second with those of one that nobody looks at. Servers
// take turns as in [BenchmarkEndpoint]:
//
//	rate/unseen   requests per second of the former, by those of the latter; 1 is the best
//	cpu/unseen    CPU time per request, likewise
//
// Both count; that costs what [BenchmarkHandler] shows.
func BenchmarkMetrics(b *testing.B) {
	for _, conns := range []int{1, 64} {
		b.Run(fmt.Sprintf("conns=%d", conns), func(b *testing.B) { benchMetrics(b, conns) })
	}
}

func benchMetrics(b *testing.B, conns int) {
	client := startLoad(b)
	lookup := []string{request("GET", "/v1/app/db-000000", "Host: 127.0.0.1:2025", "User-Agent: bench/1.0", "Accept: */*", tokenLine)}
	servers := map[string]net.Listener{}
	for _, name := range []string{"seen", "unseen"} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		servers[name] = ln
	}
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "seconds", Help: "As in the agent.", Buckets: prometheus.DefBuckets}, []string{"result"})
	registry := prometheus.NewRegistry()
	registry.MustRegister(seconds)
	seen := endpoint.Options{
		Observe: func(result string, took time.Duration) { seconds.WithLabelValues(result).Observe(took.Seconds()) },
		Metrics: func(w io.Writer) error {
			families, err := registry.Gather()
			_, _ = fmt.Fprintln(w, families)
			return err
		},
	}
	defer serveOurs(b, servers["seen"], []string{"app/db-000000"}, seen)()
	defer serveOurs(b, servers["unseen"], []string{"app/db-000000"}, endpoint.Options{})()
	defer scrapeRegularly(b, servers["seen"].Addr().String())()
	for name, ln := range servers {
		client.do(b, order{Target: name, Network: "tcp", Addr: ln.Addr().String(), Conns: conns})
		client.do(b, order{Target: name, Requests: lookup, For: benchWindow}) // warm
	}

	var rates, cpus []float64
	for b.Loop() {
		for round := range benchRounds {
			turn := []string{"seen", "unseen"}
			if round%2 == 1 {
				slices.Reverse(turn)
			}
			rate, cpu := map[string]float64{}, map[string]float64{}
			for _, name := range turn {
				before := cpuTime(b)
				r := client.do(b, order{Target: name, Requests: lookup, For: benchWindow})
				rate[name] = float64(r.Count) / r.Took.Seconds()
				cpu[name] = float64(cpuTime(b)-before) / float64(r.Count)
			}
			rates, cpus = append(rates, rate["seen"]/rate["unseen"]), append(cpus, cpu["seen"]/cpu["unseen"])
		}
	}
	b.ReportMetric(median(rates), "rate/unseen")
	b.ReportMetric(median(cpus), "cpu/unseen")
	b.ReportMetric(0, "ns/op") // an iteration is all rounds together: its time says nothing
}

// scrapeRegularly asks for /metrics until it is stopped.
func scrapeRegularly(b *testing.B, addr string) (stop func()) {
	ended, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		ticker := time.NewTicker(scrapeEvery)
		defer ticker.Stop()
		for {
			req, err := http.NewRequest(http.MethodGet, "http://"+addr+"/metrics", nil)
			if err != nil {
				b.Error(err)
				return
			}
			req.Header.Set("X-KMS-Token", token)
			if res, err := client.Do(req); err != nil {
				b.Error(err)
			} else {
				_, _ = io.Copy(io.Discard, res.Body)
				if _ = res.Body.Close(); res.StatusCode != http.StatusOK {
					b.Errorf("/metrics: %s", res.Status)
				}
			}
			select {
			case <-ticker.C:
			case <-ended:
				return
			}
		}
	}()
	return func() { close(ended); <-done }
}
