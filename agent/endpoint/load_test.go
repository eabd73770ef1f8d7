package endpoint_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// loadEnv makes the test binary a client that follows orders from its standard input. The
// benchmark runs it as a process of its own, so that the CPU time of its own process is that
// of the server.
const loadEnv = "SECRETAGENT_BENCH_LOAD"

// order tells the client what to do: open Conns connections to a target, or send requests on
// those that are open, each waiting for its answer before the next.
type order struct {
	Target   string // names a set of connections
	Network  string
	Addr     string
	Conns    int // open that many
	Requests []string
	For      time.Duration // or send for that long
}

// result is the client's answer to an order.
type result struct {
	Count int64
	Took  time.Duration
	Err   string
}

func loadMain(string) int {
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	open := map[string][]net.Conn{}
	for {
		var o order
		if err := in.Decode(&o); err != nil {
			if errors.Is(err, io.EOF) {
				return 0
			}
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		var r result
		if o.Conns > 0 {
			for range o.Conns {
				nc, err := net.Dial(o.Network, o.Addr)
				if err != nil {
					r.Err = err.Error()
					break
				}
				open[o.Target] = append(open[o.Target], nc)
			}
		} else {
			r = load(open[o.Target], o.Requests, o.For)
		}
		if err := out.Encode(r); err != nil {
			return 1
		}
	}
}

// load sends requests on every connection until the time is over.
func load(conns []net.Conn, requests []string, span time.Duration) result {
	raw := make([][]byte, len(requests))
	for i, r := range requests {
		raw[i] = []byte(r)
	}
	var stop atomic.Bool
	var total atomic.Int64
	var failure atomic.Value
	var wg sync.WaitGroup
	began := time.Now()
	timer := time.AfterFunc(span, func() { stop.Store(true) })
	defer timer.Stop()
	for i, nc := range conns {
		wg.Go(func() {
			buf := make([]byte, 64<<10)
			n := 0
			var err error
			for next := i * 7919; !stop.Load() && err == nil; next++ {
				if _, err = nc.Write(raw[next%len(raw)]); err == nil {
					err = readAnswer(nc, buf)
				}
				n++
			}
			total.Add(int64(n))
			if err != nil {
				failure.Store(err.Error())
			}
		})
	}
	wg.Wait()
	r := result{Count: total.Load(), Took: time.Since(began)}
	r.Err, _ = failure.Load().(string)
	return r
}

var lengthHeader = []byte("Content-Length: ")

// readAnswer reads one answer with status 200 and throws it away.
func readAnswer(nc net.Conn, buf []byte) error {
	have, want := 0, -1
	for want < 0 || have < want {
		n, err := nc.Read(buf[have:])
		if err != nil {
			return err
		}
		have += n
		if want >= 0 {
			continue
		}
		end := bytes.Index(buf[:have], []byte("\r\n\r\n"))
		if end < 0 {
			continue
		}
		at := bytes.Index(buf[:end], lengthHeader)
		if at < 0 || !bytes.HasPrefix(buf, []byte("HTTP/1.1 200")) {
			return fmt.Errorf("unexpected answer: %s", buf[:end])
		}
		digits, _, _ := bytes.Cut(buf[at+len(lengthHeader):end+2], []byte("\r"))
		length, err := strconv.Atoi(string(digits))
		if err != nil {
			return err
		}
		want = end + 4 + length
	}
	if have != want {
		return errors.New("more than was asked for")
	}
	return nil
}
