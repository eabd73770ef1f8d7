package endpoint_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"secretagent/agent/endpoint"
	"secretagent/cache"
)

// arena is a server with the real cache, under attack. Attackers count what they get.
type arena struct {
	t        *testing.T
	r        *rig
	stop     chan struct{}
	unfolded chan struct{} // closed when the attack is in full swing

	mu      sync.Mutex
	answers map[string]int
}

func (a *arena) got(answer string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answers[answer]++
}

func (a *arena) over() bool {
	select {
	case <-a.stop:
		return true
	default:
		return false
	}
}

// open is a connection of an attacker, nil when there is none to be had.
func (a *arena) open() net.Conn {
	nc, err := net.DialTimeout("tcp", a.r.addr, patience)
	if err != nil {
		a.got("not connected")
		return nil
	}
	return nc
}

// ask sends raw on a connection of its own, counts the first answer and closes the connection.
func (a *arena) ask(raw string) { a.askFor(raw, 1) }

// askFor counts up to n answers.
func (a *arena) askFor(raw string, n int) {
	nc := a.open()
	if nc == nil {
		return
	}
	defer nc.Close()
	_, _ = io.WriteString(nc, raw)
	br := bufio.NewReader(nc)
	for i := range n {
		wait := patience
		if i > 0 { // there may be none
			wait = 50 * time.Millisecond
		}
		if !a.read(nc, br, wait) {
			return
		}
	}
}

// read counts one answer and reports whether more can come.
func (a *arena) read(nc net.Conn, br *bufio.Reader, wait time.Duration) bool {
	_ = nc.SetReadDeadline(time.Now().Add(wait))
	res, err := http.ReadResponse(br, nil)
	if err != nil {
		a.got("closed")
		return false
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		a.got("closed")
		return false
	}
	var e struct{ Code string }
	_ = json.Unmarshal(body, &e)
	a.got(strings.TrimSpace(fmt.Sprint(res.StatusCode, " ", e.Code)))
	return !res.Close
}

// newcomer asks on a new connection. It asks again when it has to make room before its first
// request is read, as all may who have shown no token yet.
func (a *arena) newcomer(target, header string) {
	a.t.Helper()
	eventually(a.t, "a newcomer is answered", func() bool {
		c := a.r.dial(a.t)
		defer c.nc.Close()
		_, _ = io.WriteString(c.nc, request("GET", target, hostLine, header))
		got, err := c.tryReceive("GET")
		if err == nil && got.status != http.StatusOK {
			a.t.Fatalf("a newcomer got %d %s", got.status, got.code)
		}
		return err == nil
	})
}

// flood makes n attackers repeat attack until the attack is over.
func (a *arena) flood(n int, attack func()) {
	var attackers, first sync.WaitGroup
	first.Add(n)
	for range n {
		attackers.Go(func() {
			attack()
			first.Done()
			for !a.over() {
				attack()
			}
		})
	}
	first.Wait()
	close(a.unfolded)
	attackers.Wait()
}

// floodOf makes attackers ask each of the requests in turn, and count up to n answers each.
func (a *arena) floodOf(requests []string, n int) {
	var turn atomic.Int64
	a.flood(4, func() { a.askFor(requests[int(turn.Add(1))%len(requests)], n) })
}

// crowd opens n connections, sends raw on each, and keeps them open; then it adds drip to each
// of them, again and again, until the attack is over.
func (a *arena) crowd(n int, raw, drip string) {
	var conns []net.Conn
	defer func() {
		for _, nc := range conns {
			_ = nc.Close()
		}
	}()
	for range n {
		if nc := a.open(); nc != nil {
			_, _ = io.WriteString(nc, raw)
			conns = append(conns, nc)
		}
	}
	close(a.unfolded)
	for !a.over() {
		for _, nc := range conns {
			if drip != "" {
				_, _ = io.WriteString(nc, drip)
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestAttacksOfMany lets attackers do what they do while a client behaves. They have no token
// unless it says so; that of another caller is as good. Whatever they do, every request of the client, on a connection it has and
// on new ones, is answered, and /live too; and connections and what can reach the backend are
// bounded.
func TestAttacksOfMany(t *testing.T) {
	const slots = 200
	crowd, enough := 2000, 100
	if testing.Short() {
		crowd, enough = 400, 25
	}
	web := func(header ...string) string {
		return request("GET", "/v1/a", append([]string{hostLine}, header...)...)
	}
	mine := func(target string, header ...string) string {
		return request("GET", target, append([]string{hostLine, tokenLine}, header...)...)
	}
	other := strings.Repeat("fedcba9876543210", 4)
	otherLine := "X-KMS-Token: " + other
	wrong := "X-KMS-Token: " + strings.Repeat("f", 64)
	report := request("POST", "/secretsmanager/report?secretId=a", hostLine, tokenLine, "Content-Length: 0")
	type attack struct {
		name    string
		run     func(a *arena)
		calls   int64  // of the backend at most; what the client itself causes included
		answers string // every answer that the attackers get is one of these
	}
	attacks := []attack{
		{"slow headers", func(a *arena) { a.crowd(crowd/4, "GET /v1/a HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ", "x") }, 1, ""},
		{"slow bodies", func(a *arena) {
			a.crowd(crowd/4, request("POST", "/secretsmanager/report?secretId=a", hostLine, "Content-Length: 900"), "x")
		}, 1, ""},
		{"idle connections", func(a *arena) { a.crowd(crowd, "", "") }, 1, "not connected"},
		{"connections that come and go", func(a *arena) {
			a.flood(8, func() {
				if nc := a.open(); nc != nil {
					_ = nc.Close()
					a.got("opened")
				}
			})
		}, 1, "opened, not connected"},
		{"pipelined garbage", func(a *arena) { a.flood(8, func() { a.ask(strings.Repeat("\x00\xff garbage \r\n\r\n", 100)) }) }, 1, "400 MalformedRequest, closed"},
		{"huge headers", func(a *arena) { a.flood(8, func() { a.ask(web("X-Junk: " + strings.Repeat("a", 1<<20))) }) }, 1, "431 HeaderTooLarge, closed"},
		{"many headers", func(a *arena) {
			a.flood(8, func() { a.ask(web(strings.Repeat("X-Junk: a\r\n", 10_000) + "X-Last: a")) })
		}, 1, "431 HeaderTooLarge, closed"},
		{"huge URLs", func(a *arena) {
			a.flood(8, func() { a.ask(request("GET", "/v1/"+strings.Repeat("a", 1<<20), hostLine)) })
		}, 1, "431 HeaderTooLarge, closed"},
		{"large bodies", func(a *arena) {
			a.flood(8, func() {
				a.ask(request("POST", "/secretsmanager/report?secretId=a", hostLine, "Content-Length: 1048576") + strings.Repeat("x", 1<<20))
			})
		}, 1, "413 BodyTooLarge, closed"},
		{"no token", func(a *arena) { a.flood(8, func() { a.ask(web()) }) }, 1, "403 TokenMissing"},
		{"wrong tokens", func(a *arena) { a.flood(8, func() { a.ask(web(wrong)) }) }, 1, "403 TokenInvalid"},
		{"wrong tokens, pipelined", func(a *arena) { a.flood(8, func() { a.ask(strings.Repeat(web(wrong), 100)) }) }, 1, "403 TokenInvalid, closed"},
		{"another Host, with the token", func(a *arena) {
			a.flood(8, func() { a.ask(request("GET", "/v1/a", "Host: evil.example", tokenLine)) })
		}, 1, "403 HostNotAllowed"},
		{"X-Forwarded-For, with the token", func(a *arena) { a.flood(8, func() { a.ask(mine("/v1/a", "X-Forwarded-For: 127.0.0.1")) }) }, 1, "403 ForwardedRequest"},
		{"Origin, with the token", func(a *arena) { a.flood(8, func() { a.ask(mine("/v1/a", "Origin: http://localhost")) }) }, 1, "403 OriginNotAllowed"},
		{"smuggled requests", func(a *arena) {
			// One server cannot disagree with itself about where a request ends. What it must not
			// do is to serve the inner request where another, in front of it, could disagree.
			inner := mine("/v1/a")
			shapes := []string{
				request("POST", "/secretsmanager/report?secretId=a", hostLine, fmt.Sprint("Content-Length: ", len(inner)+5), "Transfer-Encoding: chunked") + "0\r\n\r\n" + inner,
				request("POST", "/secretsmanager/report?secretId=a", hostLine, "Transfer-Encoding: chunked", "Content-Length: 5") + "0\r\n\r\n" + inner,
				request("POST", "/secretsmanager/report?secretId=a", hostLine, "Transfer-Encoding: xchunked") + "5\r\n" + inner,
				request("POST", "/secretsmanager/report?secretId=a", hostLine, "Content-Length: 0", fmt.Sprint("Content-Length: ", len(inner))) + inner,
				request("POST", "/secretsmanager/report?secretId=a", hostLine, "Content-Length: 0, 5") + inner,
				request("GET", "/v1/a", hostLine, fmt.Sprint("Content-Length: ", len(inner))) + inner,
				request("GET", "/v1/a", hostLine, "Transfer-Encoding: chunked") + "0\r\n\r\n" + inner,
				request("GET", "/v1/a", hostLine, "Content-Length: +5") + inner,
				request("GET", "/v1/a", hostLine, "Content-Length: 0x5") + inner,
				request("GET", "/v1/a", hostLine, "Content-Length : 5") + inner,
				request("GET", "/v1/a", hostLine, "X-Nul: a\x00b") + inner,
				"GET /v1/a HTTP/1.1\r\n" + hostLine + "\r\nno colon\r\n\r\n" + inner,
				request("GET", "/v1/a", hostLine, tokenLine[:40]+"\r\n "+tokenLine[40:]),
				request("GET", "http://evil.example/v1/a", hostLine),
			}
			a.floodOf(shapes, 3)
		}, 1, "400 MalformedRequest, 403 TokenMissing, 403 TokenInvalid, closed"},
		{"encoded names, with the token", func(a *arena) {
			names := []string{"a%2f..%2fa", "..%2f..%2fa", "a%00", "a%0d%0aX: 1", "%2561", "a;x=y", "..;/a", "a%c0%af", "a%ff", "%"}
			for i, name := range names {
				names[i] = mine("/v1/" + strings.ReplaceAll(name, " ", "%20"))
			}
			a.floodOf(names, 1)
		}, 1 + 2, "400 InvalidParameter, 404 Forbidden.ResourceNotFound"},
		{"reports, with the token", func(a *arena) { a.flood(8, func() { a.ask(report) }) }, 1 + 1, "200"},
		{"refreshNow, with the token", func(a *arena) { a.flood(8, func() { a.ask(mine("/v1/a?refreshNow=1")) }) }, 1 + 20 + 10*30, "200, 429 Rejected.Throttling"},
		{"unknown names, with the token", func(a *arena) { a.flood(8, func() { a.ask(mine("/v1/missing")) }) }, 1 + 10, "404 Forbidden.ResourceNotFound"},
		{"half requests, with the token of another caller", func(a *arena) {
			a.crowd(4*slots+slots/8, request("GET", "/v1/a", hostLine, otherLine)+"GET /v1/a HTTP/1.1\r\nX-Slow: ", "x")
		}, 1, ""},
		{"half requests, with the token of another caller, and connections that come and go", func(a *arena) {
			var conns []net.Conn
			defer func() {
				for _, nc := range conns {
					_ = nc.Close()
				}
			}()
			for range slots {
				if nc := a.open(); nc != nil {
					_, _ = io.WriteString(nc, request("GET", "/v1/a", hostLine, otherLine)+"GET ")
					conns = append(conns, nc)
				}
			}
			a.flood(2, func() {
				if nc := a.open(); nc != nil {
					_ = nc.Close()
				}
			})
		}, 1, "not connected"},
		{"waiting clients, with the token", func(a *arena) {
			tag := a.r.get(a.t, "/v1/a").header.Get("Etag")
			a.crowd(crowd/2, mine("/v1/a?wait=1m", "If-None-Match: "+tag), "")
		}, 1 + 1, ""},
	}
	for _, attack := range attacks {
		t.Run(attack.name, func(t *testing.T) {
			b := &rotating{generation: 1, only: "a"}
			r, _ := startCachedWith(t, b, cache.Limits{TTL: time.Hour, NegativeTTL: time.Hour}, endpoint.Options{MaxConnections: slots, Callers: twoCallers(t, other)})
			a := &arena{t: t, r: r, stop: make(chan struct{}), unfolded: make(chan struct{}), answers: map[string]int{}}
			honest := r.dial(t)
			asked := 0
			lookup := func() {
				t.Helper()
				if got := honest.ask("/v1/a"); got.status != http.StatusOK {
					t.Fatalf("a client that behaves got %d %s", got.status, got.code)
				}
				asked++
			}
			lookup()
			before := b.calls.Load()
			var attackers sync.WaitGroup
			attackers.Go(func() { attack.run(a) })
			for unfolded := false; !unfolded || asked < enough; {
				lookup()
				select {
				case <-a.unfolded:
					unfolded = true
				default:
				}
				if unfolded && asked%25 == 0 { // somebody new, and the probe of an orchestrator
					a.newcomer("/v1/a", tokenLine)
					a.newcomer("/live", "Accept: */*")
				}
				if s := r.srv.Stats(); s.Connections > slots || s.Waiting > 4096 {
					t.Errorf("%d connections, %d waiting", s.Connections, s.Waiting)
				}
				time.Sleep(100 * time.Microsecond) // the attackers' turn
			}
			close(a.stop)
			attackers.Wait()
			lookup()
			if calls := b.calls.Load() - before + 1; calls > attack.calls {
				t.Errorf("%d calls of the backend, at most %d are allowed", calls, attack.calls)
			}
			for answer := range a.answers {
				if !slices.Contains(strings.Split(attack.answers, ", "), answer) {
					t.Errorf("an attacker got %q", answer)
				}
			}
			if s := r.srv.Stats(); s.Panics > 0 {
				t.Errorf("%d panics", s.Panics)
			}
		})
	}
}
