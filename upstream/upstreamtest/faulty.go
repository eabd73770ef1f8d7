package upstreamtest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Fault is one way in which a network or a service misbehaves. The zero value is quiet:
// requests and answers pass as they are.
type Fault struct {
	name string
	act  func(f *Faulty, w http.ResponseWriter, r *http.Request) // nil: pass
}

// String returns the name of the fault.
func (f Fault) String() string {
	if f.name == "" {
		return "quiet"
	}
	return f.name
}

// Faults of a service that answers something else.
var (
	TooManyRequests = AnswerWith("429", http.StatusTooManyRequests, faultJSON("Rejected.Throttling", "The QPS upper limit is exceeded.", 429))
	InternalFailure = AnswerWith("500", http.StatusInternalServerError, faultJSON("InternalFailure", "Internal Failure", 500))
	Unavailable     = AnswerWith("503", http.StatusServiceUnavailable, faultJSON("ServiceUnavailableTemporary", "Service Unavailable Temporary.", 503))
	HTML            = AnswerWith("HTML", http.StatusOK, "<html><head><title>Sign in</title></head></html>")
	HalfJSON        = AnswerWith("half a JSON", http.StatusOK, `{"RequestId":"00000000-0000-0000-0000-000000000000","SecretName":"app/d`)
	Garbage         = Fault{"garbage", func(_ *Faulty, w http.ResponseWriter, _ *http.Request) {
		hangUpAfter(w, []byte("\x00\x01\x02 this is not HTTP \xff\r\n\r\n"))
	}}
)

// Faults of the network.
var (
	// Reset drops the connection before the request is passed on.
	Reset = Fault{"reset", func(_ *Faulty, w http.ResponseWriter, _ *http.Request) { reset(w) }}

	// BlackHole takes the request and stays silent until the fault changes or the client
	// gives up.
	BlackHole = Fault{"black hole", func(f *Faulty, _ http.ResponseWriter, r *http.Request) {
		f.hold(r, forever)
		hangUp()
	}}

	// LostAnswer passes the request on and drops the connection when the answer is there:
	// the work is done and nobody hears of it.
	LostAnswer = Fault{"lost answer", func(f *Faulty, w http.ResponseWriter, r *http.Request) {
		f.answer(r)
		reset(w)
	}}
)

// Delay passes the request on after d.
func Delay(d time.Duration) Fault {
	return Fault{"delay " + d.String(), func(f *Faulty, w http.ResponseWriter, r *http.Request) {
		if !f.hold(r, d) {
			hangUp()
		}
		f.pass(w, r)
	}}
}

// Truncate passes the first n bytes of the answer and closes the connection.
func Truncate(n int) Fault {
	return Fault{fmt.Sprintf("truncate after %d bytes", n), func(f *Faulty, w http.ResponseWriter, r *http.Request) {
		answer := f.answer(r)
		hangUpAfter(w, answer[:min(n, len(answer))])
	}}
}

// Slow passes the answer byte by byte, one in each interval, and closes the connection.
func Slow(interval time.Duration) Fault {
	return Fault{"a byte per " + interval.String(), func(f *Faulty, w http.ResponseWriter, r *http.Request) {
		answer, conn := f.answer(r), hijack(w)
		defer conn.Close()
		for i := range answer {
			if _, err := conn.Write(answer[i : i+1]); err != nil || !f.hold(r, interval) {
				return
			}
		}
	}}
}

// AnswerWith answers in place of the target. Headers are given as name, value, name, value.
func AnswerWith(name string, status int, body string, headers ...string) Fault {
	return Fault{name, func(_ *Faulty, w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json;charset=utf-8")
		for i := 0; i+1 < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}}
}

func faultJSON(code, message string, status int) string {
	return fmt.Sprintf(`{"HttpStatus":%d,"Code":%q,"Message":%q,"RequestId":"00000000-0000-0000-0000-000000000000","HostId":"faulty","Recommend":""}`, status, code, message)
}

// Faulty is an HTTP proxy on the loopback interface that misbehaves on command. It is safe
// for concurrent use.
type Faulty struct {
	target    string
	proxy     *httptest.Server
	transport *http.Transport // to the target
	ctx       context.Context // ends with the test

	connections, requests atomic.Int64

	mu      sync.Mutex
	running int // requests that have arrived and were not answered yet
	most    int // of them at once
	fault   Fault
	queue   []Fault       // of the next requests, before fault
	changed chan struct{} // closed when the fault changes
}

// NewFaulty starts a quiet proxy in front of target, a host and port. It stops when the test
// ends.
func NewFaulty(tb testing.TB, target string) *Faulty {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	f := &Faulty{target: target, transport: &http.Transport{DisableCompression: true}, ctx: ctx, changed: make(chan struct{})}
	f.proxy = httptest.NewUnstartedServer(http.HandlerFunc(f.serve))
	f.proxy.Config.BaseContext = func(net.Listener) context.Context { return ctx }
	f.proxy.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			f.connections.Add(1)
		}
	}
	f.proxy.Start()
	tb.Cleanup(func() {
		cancel()
		f.proxy.Close()
		f.transport.CloseIdleConnections()
	})
	return f
}

// Addr returns the address of the proxy, a host and port.
func (f *Faulty) Addr() string { return strings.TrimPrefix(f.proxy.URL, "http://") }

// Set makes every request from now on meet the fault. Requests that an earlier delay holds
// go on at once; those in a black hole are dropped. Set(Fault{}) makes the proxy quiet.
func (f *Faulty) Set(fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault, f.queue = fault, nil
	close(f.changed)
	f.changed = make(chan struct{})
}

// Next makes the next requests meet these faults, one each, before the fault that is set.
func (f *Faulty) Next(faults ...Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.queue = append(f.queue, faults...)
}

// Connections returns how many connections were accepted.
func (f *Faulty) Connections() int { return int(f.connections.Load()) }

// Requests returns how many requests arrived.
func (f *Faulty) Requests() int { return int(f.requests.Load()) }

// AtOnce returns how many requests, at most, were there at the same time.
func (f *Faulty) AtOnce() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.most
}

// count counts a request in or out. A short answer leaves after that.
func (f *Faulty) count(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.running += n
	f.most = max(f.most, f.running)
}

// serve takes in a whole request and lets it meet its fault.
func (f *Faulty) serve(w http.ResponseWriter, r *http.Request) {
	f.count(1)
	defer f.count(-1)
	body, err := io.ReadAll(r.Body)
	if err != nil {
		hangUp()
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	f.mu.Lock()
	fault := f.fault
	if len(f.queue) > 0 {
		fault, f.queue = f.queue[0], f.queue[1:]
	}
	f.mu.Unlock()
	f.requests.Add(1)
	if fault.act == nil {
		f.pass(w, r)
	} else {
		fault.act(f, w, r)
	}
}

// pass sends the request on and the answer back.
func (f *Faulty) pass(w http.ResponseWriter, r *http.Request) {
	response := f.ask(r)
	defer response.Body.Close()
	maps.Copy(w.Header(), response.Header)
	w.WriteHeader(response.StatusCode)
	if _, err := io.Copy(w, response.Body); err != nil {
		hangUp()
	}
}

// answer sends the request on and returns the whole answer as it came over the wire.
func (f *Faulty) answer(r *http.Request) []byte {
	response := f.ask(r)
	defer response.Body.Close()
	answer, err := httputil.DumpResponse(response, true)
	if err != nil {
		hangUp()
	}
	return answer
}

// ask sends the request on, also when the client has left meanwhile.
func (f *Faulty) ask(r *http.Request) *http.Response {
	request := r.Clone(f.ctx)
	request.URL.Scheme, request.URL.Host = "http", f.target
	response, err := f.transport.RoundTrip(request)
	if err != nil {
		hangUp()
	}
	return response
}

// forever is longer than any test.
const forever = 1000 * time.Hour

// hold waits for d or until the fault changes. It returns false when the client left, or the
// test ended, before.
func (f *Faulty) hold(r *http.Request, d time.Duration) bool {
	f.mu.Lock()
	changed := f.changed
	f.mu.Unlock()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-changed:
		return true
	case <-r.Context().Done():
		return false
	}
}

// hangUp ends the request and closes its connection without an answer.
func hangUp() { panic(http.ErrAbortHandler) }

// hangUpAfter writes what may be no answer, or only a part of one, and closes the connection.
func hangUpAfter(w http.ResponseWriter, raw []byte) {
	conn := hijack(w)
	_, _ = conn.Write(raw)
	_ = conn.Close()
}

// reset closes the connection so that the client sees a reset, not an end.
func reset(w http.ResponseWriter) {
	conn := hijack(w)
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}

// hijack takes the connection of a request out of the hands of package http.
func hijack(w http.ResponseWriter) net.Conn {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		hangUp()
	}
	return conn
}
