package endpoint

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"secretagent/agent/listen"
	"secretagent/upstream"
)

const warmHeaders = "Host: 127.0.0.1:2025\r\nAccept: */*\r\nX-KMS-Token: 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\r\n\r\n"

func again(target string) string { return "GET " + target + " HTTP/1.1\r\n" + warmHeaders }

const (
	firstTrace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	otherTrace = "00-ffff651916cd43dd8448eb211c80319c-00000b7169203331-00"
)

// traced is a request with one more line.
func traced(target, line string) string {
	return strings.Replace(again(target), "\r\n\r\n", "\r\n"+line+"\r\n\r\n", 1)
}

// warmUps are what a connection may have been asked before.
var warmUps = []string{again("/v1/app/db?format=vault"), traced("/v1/app/db?format=vault", "traceparent: "+firstTrace), traced("/status/page.css", fromPage)}

// fromPage is what browsers say when our own page asks.
const fromPage = "Origin: http://127.0.0.1:2025"

// shelf is a cache of a few values; one of them makes it panic.
type shelf struct {
	Secrets
	held map[upstream.SecretName]upstream.Answer
}

func (s shelf) Peek(ref upstream.SecretRef) (upstream.Answer, bool) {
	if ref.SecretName == "panic" {
		panic("a defect")
	}
	a, ok := s.held[ref.SecretName]
	return a, ok && ref.VersionID == "" && a.Freshness == upstream.Hit
}

func (s shelf) Lookup(_ context.Context, ref upstream.SecretRef) (upstream.Answer, error) {
	if a, ok := s.held[ref.SecretName]; ok {
		return a, nil
	}
	return upstream.Answer{}, &upstream.Error{Err: upstream.ErrNotFound}
}

func (s shelf) RefreshNow(ctx context.Context, ref upstream.SecretRef) (upstream.Answer, error) {
	a, err := s.Lookup(ctx, ref)
	a.Freshness = upstream.Miss
	return a, err
}

func newShelf(t testing.TB, opts Options) *Server {
	t.Helper()
	held := map[upstream.SecretName]upstream.Answer{}
	for name, data := range map[upstream.SecretName]string{
		"app/db": `{"password":"first"}`, "other": "text", "big": strings.Repeat("0123456789abcdef", 4<<10), "stale": "old",
	} {
		a := upstream.Answer{Derived: new(upstream.Derived), FetchedAt: time.Now().Add(-time.Minute), Value: &upstream.SecretValue{SecretName: name, VersionID: "v1",
			VersionStages: []upstream.VersionStage{upstream.ACSCurrent}, SecretData: upstream.NewSecretData([]byte(data)), SecretDataType: upstream.DataTypeText}}
		if name == "stale" {
			a.Freshness, a.Reason = upstream.Stale, "ServiceUnavailableTemporary"
		}
		held[name] = a
	}
	token, err := NewToken([]byte(strings.Repeat("0123456789abcdef", 4)))
	if err != nil {
		t.Fatal(err)
	}
	opts.Callers = []Caller{{Name: "web", Tokens: []Token{token}, Secrets: []string{"app/*", "big", "stale", "panic", "missing"}}}
	s, err := New(shelf{held: held}, opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// script is a connection whose client sends each chunk in one piece and then leaves.
type script struct {
	loopConn
	chunks [][]byte
	sent   bytes.Buffer
}

func (c *script) Read(p []byte) (int, error) {
	if len(c.chunks) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.chunks[0])
	if c.chunks[0] = c.chunks[0][n:]; len(c.chunks[0]) == 0 {
		c.chunks = c.chunks[1:]
	}
	return n, nil
}

func (c *script) Write(p []byte) (int, error) { return c.sent.Write(p) }

// said is an answer without what differs from one request to the next.
type said struct {
	status int
	header string
	body   string
	last   bool // the connection ends with it
}

// converse returns what s answers to the chunks on a connection of their own.
func converse(t testing.TB, s *Server, chunks ...string) []said {
	t.Helper()
	client := &script{}
	for _, chunk := range chunks {
		if chunk != "" {
			client.chunks = append(client.chunks, []byte(chunk))
		}
	}
	c := &conn{Conn: client, srv: s}
	c.setNumber(s.numbers.Add(1), s.process)
	s.table.add(c, time.Now())
	s.wg.Add(1)
	s.serveConn(c)
	return answersIn(t, &client.sent)
}

// answersIn reads answers until there are no more.
func answersIn(t testing.TB, from io.Reader) []said {
	t.Helper()
	var answers []said
	for r := bufio.NewReader(from); ; {
		answer, err := http.ReadResponse(r, nil)
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			return answers
		} else if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		id := answer.Header.Get("X-Request-Id")
		answer.Header.Set("X-Request-Id", "ID")
		var header strings.Builder
		_ = answer.Header.Write(&header)
		answers = append(answers, said{answer.StatusCode, header.String(), strings.ReplaceAll(string(body), id, "ID"), answer.Close})
	}
}

func sameAnswers(t testing.TB, request string, first, later []said) {
	t.Helper()
	if !slices.Equal(first, later) {
		t.Fatalf("%q: as the first request of a connection\n%+v\nas a later one\n%+v", request, first, later)
	}
}

// repeatable are requests whose answers must not depend on what the connection was asked before.
var repeatable = []string{
	again("/v1/app/db"), again("/v1/app%2Fdb"), again("/v1/app/db:ACSCurrent"), again("/v1/app/db?format=aws"), again("/v1/app/db?field=password"),
	again("/v1/app/db?field=none"), again("/secretsmanager/get?secretId=app/db"), again("/secretsmanager/batch?secretId=app/db"), again("/v1/big"), again("/v1/stale"),
	again("/v1/other"), again("/v1/missing"), again("/v1/panic"), again("/v1/app/db?refreshNow=true"), again("/v1/app/db?foo=1"), again("/v1/app/db?wait=1s"),
	again("/live"), again("/ready"), again("/nothing"), again("/v1/app/db#x"), again("/v1/app db"), again("/v1/app\tdb"), again("/v1/%zz"), again("http://evil.example/v1/app/db"), again("*"), again(""),
	again("/v1/app/db") + again("/v1/other"), again("/v1/app/db")[:40], again("/v1/app/db") + "GET ", "\r\n" + again("/v1/app/db"),
	strings.Replace(again("/v1/app/db"), "GET", "POST", 1), strings.Replace(again("/v1/app/db"), "GET", "get", 1), strings.Replace(again("/v1/app/db"), "1.1", "1.0", 1),
	strings.Replace(again("/v1/app/db"), "1.1\r", "1.1", 1), strings.ReplaceAll(again("/v1/app/db"), "\r", ""),
	strings.Replace(again("/v1/app/db"), "\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1) + again("/v1/app/db"),
	strings.Replace(again("/v1/app/db"), "\r\n\r\n", "\r\nContent-Length: 3\r\n\r\nabc", 1), strings.Replace(again("/v1/app/db"), "\r\n\r\n", "\r\nX-Forwarded-For: 1\r\n\r\n", 1),
	traced("/v1/app/db", "traceparent: "+firstTrace), traced("/v1/app/db", "traceparent: "+otherTrace), traced("/v1/app/db", "Traceparent: "+otherTrace), traced("/v1/app/db", "traceparent:"+otherTrace),
	traced("/v1/app/db", "traceparent: "+otherTrace[:54]+"g"), traced("/v1/app/db", "traceparent: "+otherTrace+"0"), traced("/v1/app/db", "traceparent: "+otherTrace[:53]+"\r\n"),
	traced("/v1/app/db", "traceparent: "+otherTrace[:20]+"\r\nVia: 1.1 a-b, 1.1 c-d, 1.1 e-f-g"), traced("/v1/app/db", "traceparent: "+otherTrace+"\r\n "+otherTrace), traced("/v1/app/db", "traceparent: "+otherTrace+"\r\ntraceparent: "+firstTrace),
	traced("/v1/app/db", "tracepareni: "+otherTrace), traced("/v1/missing", "traceparent: "+otherTrace), traced("/v1/app/db?wait=1s", "traceparent: "+otherTrace),
	traced("/v1/app/db", fromPage), traced("/status", fromPage), traced("/status/page.css", fromPage), again("/status/page.css"),
	strings.Replace(again("/v1/app/db"), "abcdef", "abcdee", 1), strings.Replace(again("/v1/app/db"), "\r\n\r\n", "\r\nIf-None-Match: *\r\n\r\n", 1),
}

// TestAnswersDoNotDependOnTheConnection compares answers of the short way with those of the
// long one.
func TestAnswersDoNotDependOnTheConnection(t *testing.T) {
	s := newShelf(t, Options{})
	for _, request := range repeatable {
		first := converse(t, s, request)
		for _, warm := range warmUps {
			sameAnswers(t, request, first, converse(t, s, warm, request)[1:])
			sameAnswers(t, request, first, converse(t, s, warm, warm, request)[2:])
			if n := len(request) / 2; n > 0 {
				sameAnswers(t, request+" in two pieces", first, converse(t, s, warm, request[:n], request[n:])[1:])
			}
		}
	}
}

// posted is a POST with a body, by the same client.
func posted(target, body string) string {
	request := strings.Replace(again(target), "GET", "POST", 1)
	return strings.Replace(request, "\r\n\r\n", "\r\nContent-Length: "+strconv.Itoa(len(body))+"\r\n\r\n", 1) + body
}

// TestAnswersDoNotDependOnPieces cuts what a client sends without waiting in two, everywhere.
func TestAnswersDoNotDependOnPieces(t *testing.T) {
	s := newShelf(t, Options{})
	hit := again("/v1/app/db")
	chunked := func(target, body string) string {
		return strings.Replace(posted(target, body), "Content-Length: "+strconv.Itoa(len(body)), "Transfer-Encoding: chunked", 1)
	}
	for _, sent := range []string{
		hit + hit + hit,
		hit + "\r\n" + hit,
		hit + again("/v1/big") + again("/v1/missing") + hit,
		hit + posted("/nothing", "x=1"),
		hit + posted("/nothing", hit),
		hit + chunked("/nothing", "0\r\n\r\n"),
		hit + chunked("/nothing", strconv.FormatInt(int64(len(hit)), 16)+"\r\n"+hit+"\r\n0\r\n\r\n"),
		hit + strings.Replace(posted("/v1/app/db", hit), "POST", "GET", 1),
		again("/v1/big") + posted("/nothing", hit),
	} {
		whole := converse(t, s, sent, hit)
		for cut := range len(sent) {
			sameAnswers(t, sent[:cut]+" | "+sent[cut:], whole, converse(t, s, sent[:cut], sent[cut:], hit))
		}
	}
}

// dialLoopback serves s on a socket until the test ends and returns how to connect to it.
func dialLoopback(t testing.TB, s *Server) (connect func(t testing.TB) *net.TCPConn) {
	t.Helper()
	ln, err := listen.Open(listen.TCPOptions{Address: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		<-done
	})
	return func(t testing.TB) *net.TCPConn {
		t.Helper()
		nc, err := net.DialTCP("tcp", nil, ln.Addr().(*net.TCPAddr))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = nc.Close() })
		_ = nc.SetDeadline(time.Now().Add(time.Minute))
		return nc
	}
}

// TestAnswersDoNotDependOnTheSocket is the same over sockets, where requests are read in another
// way once a connection has lived for a while.
func TestAnswersDoNotDependOnTheSocket(t *testing.T) {
	s := newShelf(t, Options{})
	connect := dialLoopback(t, s)
	for i, request := range repeatable {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			t.Parallel()
			first := answersOf(t, func(nc *net.TCPConn) { send(t, nc, request) }, connect(t))
			later := answersOf(t, func(nc *net.TCPConn) {
				answer := make([]byte, 4096)
				for range 2 * longLived {
					send(t, nc, warmUps[i%len(warmUps)])
					if _, err := nc.Read(answer); err != nil {
						t.Fatal(err)
					}
				}
				send(t, nc, request)
			}, connect(t))
			sameAnswers(t, request, first, later)
		})
	}
}

func send(t testing.TB, nc net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(nc, text); err != nil {
		t.Fatal(err)
	}
}

// answersOf returns what is answered to what say says last, before the client closes its side.
func answersOf(t testing.TB, say func(*net.TCPConn), nc *net.TCPConn) []said {
	t.Helper()
	say(nc)
	if err := nc.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	return answersIn(t, nc)
}

func TestRepeatedHitsTakeTheShortWay(t *testing.T) {
	s := newShelf(t, Options{MaxRequestsPerConnection: 16_000_000})
	handled := 0
	s.http.Handler = func(ctx *fasthttp.RequestCtx) { handled++; s.handle(ctx) }
	hit, longWay := again("/v1/app/db"), again("/v1/missing")
	// The first request, and the one that is no hit.
	if got := converse(t, s, hit, hit, again("/v1/big"), hit, longWay, hit); len(got) != 6 || handled != 2 {
		t.Errorf("%d answers, %d of them the long way", len(got), handled)
	}
	if n := s.Stats(); n.Hits != 5 {
		t.Errorf("%d hits are counted", n.Hits)
	}
	handled = 0
	if got := converse(t, s, traced("/v1/app/db", "traceparent: "+firstTrace), traced("/v1/big", "traceparent: "+otherTrace), traced("/v1/app/db", "traceparent: "+firstTrace)); len(got) != 3 || handled != 1 {
		t.Errorf("%d traced answers, %d of them the long way", len(got), handled)
	}

	if raceEnabled {
		return // the race detector allocates
	}
	conversation := func(n int) float64 {
		return testing.AllocsPerRun(5, func() {
			c := &conn{Conn: &loopConn{request: []byte(hit), n: n}, srv: s}
			s.table.add(c, time.Now())
			s.wg.Add(1)
			s.serveConn(c)
		})
	}
	nc := dialLoopback(t, s)(t)
	request, answer := []byte(hit), make([]byte, 4096)
	if n := testing.AllocsPerRun(2000, func() {
		if _, err := nc.Write(request); err != nil {
			t.Fatal(err)
		}
		if n, err := nc.Read(answer); err != nil || n < 300 {
			t.Fatal(n, err)
		}
	}); n != 0 {
		t.Errorf("over a socket, a repeated request allocates %v times", n)
	}
	if few, many := conversation(10), conversation(10_000); many > few+10 {
		t.Errorf("10 requests allocate %v times, 10,000 %v times", few, many)
	}
}

func TestTheShortWayEnds(t *testing.T) {
	s := newShelf(t, Options{MaxRequestsPerConnection: 3})
	got := converse(t, s, slices.Repeat([]string{again("/v1/app/db")}, 5)...)
	if len(got) != 3 || got[1].last || !got[2].last {
		t.Errorf("%d answers on a connection of 3", len(got))
	}
	s = newShelf(t, Options{})
	if err := s.SetCallers([]Caller{DefaultCaller(mustNewToken(t, 0))}); err != nil {
		t.Fatal(err)
	}
	if got := converse(t, s, again("/v1/app/db"), again("/v1/app/db")); len(got) != 1 || got[0].status != 403 {
		t.Errorf("another token: %d answers", len(got))
	}
}

func mustNewToken(t testing.TB, fill byte) Token {
	t.Helper()
	token, err := NewToken(bytes.Repeat([]byte{'a' + fill}, 64))
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// FuzzRepeatedRequest holds that a request is answered alike as the first one of its
// connection and after others, whole or in two pieces.
func FuzzRepeatedRequest(f *testing.F) {
	for i, request := range repeatable {
		f.Add(request, i)
	}
	s := newShelf(f, Options{})
	f.Fuzz(func(t *testing.T, request string, cut int) {
		if request == "" || len(request) > 2000 {
			return
		}
		cut = min(max(cut, 0), len(request))
		first := converse(t, s, request)
		for _, warm := range warmUps {
			sameAnswers(t, request, first, converse(t, s, warm, request)[1:])
			sameAnswers(t, request, first, converse(t, s, warm, request[:cut], request[cut:])[1:])
		}
	})
}
