package upstreamtest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"
)

// Fault is one way in which a network or a service misbehaves. The zero value is quiet:
// requests and answers pass as they are.
type Fault struct {
	name string
	act  func(f *Faulty, p *passage) error // nil: pass
}

// String returns the name of the fault.
func (f Fault) String() string {
	if f.name == "" {
		return "quiet"
	}
	return f.name
}

// Faults of a service that answers something else. What is done to an answer needs plain HTTP;
// behind TLS the connection is reset instead.
var (
	TooManyRequests = AnswerWith("429", http.StatusTooManyRequests, faultJSON("Rejected.Throttling", "The QPS upper limit is exceeded.", 429))
	InternalFailure = AnswerWith("500", http.StatusInternalServerError, faultJSON("InternalFailure", "Internal Failure", 500))
	Unavailable     = AnswerWith("503", http.StatusServiceUnavailable, faultJSON("ServiceUnavailableTemporary", "Service Unavailable Temporary.", 503))
	HTML            = AnswerWith("HTML", http.StatusOK, "<html><head><title>Sign in</title></head></html>")
	HalfJSON        = AnswerWith("half a JSON", http.StatusOK, `{"RequestId":"00000000-0000-0000-0000-000000000000","SecretName":"app/d`)
	Garbage         = Fault{"garbage", func(_ *Faulty, p *passage) error {
		_, err := p.client.Write([]byte("\x00\x01\x02 this is not HTTP \xff\r\n\r\n"))
		return errors.Join(err, errHangUp)
	}}
)

// Faults of the network.
var (
	// Reset drops the connection before the request is passed on.
	Reset = Fault{"reset", func(_ *Faulty, p *passage) error { return p.reset() }}

	// BlackHole takes the request and stays silent until the fault changes or the client
	// gives up.
	BlackHole = Fault{"black hole", func(f *Faulty, p *passage) error { return f.hold(p, 0) }}

	// LostAnswer passes the request on and drops the connection when the answer is there:
	// the work is done and nobody hears of it.
	LostAnswer = Fault{"lost answer", func(f *Faulty, p *passage) error {
		if _, err := f.exchange(p); err != nil {
			return err
		}
		return p.reset()
	}}
)

// Delay passes the request on after d.
func Delay(d time.Duration) Fault {
	return Fault{"delay " + d.String(), func(f *Faulty, p *passage) error {
		if err := f.hold(p, d); err != nil {
			return err
		}
		return f.pass(p)
	}}
}

// Truncate passes the first n bytes of the answer and closes the connection.
func Truncate(n int) Fault {
	return Fault{fmt.Sprintf("truncate after %d bytes", n), func(f *Faulty, p *passage) error {
		answer, err := f.exchange(p)
		if err != nil {
			return err
		}
		_, err = p.client.Write(answer[:min(n, len(answer))])
		return errors.Join(err, errHangUp)
	}}
}

// Slow passes the answer byte by byte, one in each interval.
func Slow(interval time.Duration) Fault {
	return Fault{"a byte per " + interval.String(), func(f *Faulty, p *passage) error {
		answer, err := f.exchange(p)
		if err != nil {
			return err
		}
		for i := range answer {
			if _, err := p.client.Write(answer[i : i+1]); err != nil {
				return err
			}
			if err := f.hold(p, interval); err != nil {
				return err
			}
		}
		return nil
	}}
}

// AnswerWith answers in place of the target. Headers are given as name, value, name, value.
func AnswerWith(name string, status int, body string, headers ...string) Fault {
	return Fault{name, func(_ *Faulty, p *passage) error {
		if p.request == nil {
			return p.reset()
		}
		h := http.Header{"Content-Type": {"application/json;charset=utf-8"}}
		for i := 0; i+1 < len(headers); i += 2 {
			h.Set(headers[i], headers[i+1])
		}
		r := http.Response{StatusCode: status, ProtoMajor: 1, ProtoMinor: 1, Header: h, ContentLength: int64(len(body)), Body: io.NopCloser(bytes.NewReader([]byte(body)))}
		return r.Write(p.client)
	}}
}

func faultJSON(code, message string, status int) string {
	return fmt.Sprintf(`{"HttpStatus":%d,"Code":%q,"Message":%q,"RequestId":"00000000-0000-0000-0000-000000000000","HostId":"faulty","Recommend":""}`, status, code, message)
}

// Faulty is a proxy on the loopback interface that misbehaves on command. It understands
// HTTP/1.1 far enough to count requests and to answer in place of its target; a connection
// that begins with a TLS handshake is passed on as it is, and the fault of the moment in
// which it begins holds for all of it.
//
// It is safe for concurrent use.
type Faulty struct {
	tb     testing.TB
	target string
	ln     net.Listener
	ctx    context.Context
	wg     sync.WaitGroup

	mu          sync.Mutex
	fault       Fault
	queue       []Fault       // of the next requests, before fault
	changed     chan struct{} // closed when the fault changes
	connections int
	requests    int
	open        map[net.Conn]struct{}
}

// NewFaulty starts a quiet proxy in front of target, a host and port. It stops when the test
// ends.
func NewFaulty(tb testing.TB, target string) *Faulty {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatalf("faulty proxy: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	f := &Faulty{tb: tb, target: target, ln: ln, ctx: ctx, changed: make(chan struct{}), open: map[net.Conn]struct{}{}}
	f.wg.Go(f.accept)
	tb.Cleanup(func() {
		cancel()
		_ = ln.Close()
		f.mu.Lock()
		for c := range f.open {
			_ = c.Close()
		}
		f.mu.Unlock()
		f.wg.Wait()
	})
	return f
}

// Addr returns the address of the proxy, a host and port.
func (f *Faulty) Addr() string { return f.ln.Addr().String() }

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
func (f *Faulty) Connections() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.connections
}

// Requests returns how many requests arrived; behind TLS, how many connections.
func (f *Faulty) Requests() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.requests
}

// passage is one request, or one TLS connection, on its way through the proxy.
type passage struct {
	client  net.Conn
	reader  *bufio.Reader // of client
	request *http.Request // nil: TLS
	body    []byte
	target  net.Conn // nil until needed
	answers *bufio.Reader
}

// errHangUp ends a connection without being anybody's mistake.
var errHangUp = errors.New("hang up")

// reset closes the connection so that the client sees a reset, not an end.
func (p *passage) reset() error {
	if tcp, ok := p.client.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	return errHangUp
}

func (f *Faulty) accept() {
	for {
		c, err := f.ln.Accept()
		if err != nil {
			return
		}
		if f.track(c, true) {
			f.wg.Go(func() {
				defer f.untrack(c)
				f.serve(c)
			})
		}
	}
}

// track registers a connection to be closed at the end, or closes it when that has come.
func (f *Faulty) track(c net.Conn, accepted bool) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ctx.Err() != nil {
		_ = c.Close()
		return false
	}
	f.open[c] = struct{}{}
	if accepted {
		f.connections++
	}
	return true
}

func (f *Faulty) untrack(c net.Conn) {
	_ = c.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.open, c)
}

// serve passes the requests of one connection until either side or a fault ends it.
func (f *Faulty) serve(c net.Conn) {
	p := &passage{client: c, reader: bufio.NewReader(c)}
	defer func() {
		if p.target != nil {
			f.untrack(p.target)
		}
	}()
	for {
		first, err := p.reader.Peek(1)
		if err != nil {
			return
		}
		const handshake = 22 // the content type that opens a TLS connection
		if first[0] != handshake {
			if p.request, err = http.ReadRequest(p.reader); err != nil {
				return
			}
			if p.body, err = io.ReadAll(io.LimitReader(p.request.Body, 1<<20)); err != nil {
				return
			}
		}
		fault := f.arrived()
		act := fault.act
		if act == nil {
			act = (*Faulty).pass
		}
		if act(f, p) != nil || p.request == nil {
			return
		}
	}
}

// arrived counts a request and returns the fault that it meets.
func (f *Faulty) arrived() Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests++
	if len(f.queue) > 0 {
		fault := f.queue[0]
		f.queue = f.queue[1:]
		return fault
	}
	return f.fault
}

// pass sends the request on and the answer back.
func (f *Faulty) pass(p *passage) error {
	if p.request == nil {
		return f.tunnel(p)
	}
	answer, err := f.exchange(p)
	if err != nil {
		return err
	}
	_, err = p.client.Write(answer)
	return err
}

// exchange sends the request on and returns the whole answer. Behind TLS nobody can tell what
// an answer is: the connection is reset.
func (f *Faulty) exchange(p *passage) ([]byte, error) {
	if p.request == nil {
		return nil, p.reset()
	}
	if err := f.dial(p); err != nil {
		return nil, err
	}
	p.request.Body = io.NopCloser(bytes.NewReader(p.body))
	p.request.ContentLength, p.request.TransferEncoding = int64(len(p.body)), nil
	if err := p.request.Write(p.target); err != nil {
		return nil, err
	}
	response, err := http.ReadResponse(p.answers, p.request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	response.Body, response.ContentLength, response.TransferEncoding = io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil
	response.Header.Set("Content-Length", strconv.Itoa(len(body)))
	var answer bytes.Buffer
	err = response.Write(&answer)
	return answer.Bytes(), err
}

// dial opens the connection to the target, once.
func (f *Faulty) dial(p *passage) error {
	if p.target != nil {
		return nil
	}
	target, err := net.DialTimeout("tcp", f.target, time.Minute)
	if err != nil {
		return err
	}
	if !f.track(target, false) {
		return net.ErrClosed
	}
	p.target, p.answers = target, bufio.NewReader(target)
	return nil
}

// tunnel passes bytes in both directions until either side ends.
func (f *Faulty) tunnel(p *passage) error {
	if err := f.dial(p); err != nil {
		return err
	}
	target := p.target
	back := make(chan struct{})
	f.wg.Go(func() {
		defer close(back)
		_, _ = io.Copy(p.client, target)
		_ = p.client.Close()
	})
	_, _ = io.Copy(target, p.reader)
	_ = target.Close()
	<-back
	return errHangUp
}

// hold waits for d, or for ever when d is 0, and ends early when the client leaves, the fault
// changes (it then returns nil) or the test ends.
func (f *Faulty) hold(p *passage, d time.Duration) error {
	f.mu.Lock()
	changed := f.changed
	f.mu.Unlock()
	var over <-chan time.Time
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		over = t.C
	}
	// A client that gives up closes its side; only reading tells.
	_ = p.client.SetReadDeadline(time.Time{})
	left := make(chan error, 1)
	f.wg.Go(func() {
		_, err := p.reader.Peek(p.reader.Buffered() + 1)
		left <- err
	})
	err := errHangUp
	select {
	case <-over:
		err = nil
	case <-changed:
		if d > 0 {
			err = nil
		}
	case <-left:
		return err
	case <-f.ctx.Done():
	}
	// The reader goes back to serve: end the peek without losing what it has read.
	_ = p.client.SetReadDeadline(time.Now())
	<-left
	_ = p.client.SetReadDeadline(time.Time{})
	return err
}
