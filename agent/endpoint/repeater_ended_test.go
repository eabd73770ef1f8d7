//go:build unix

package endpoint

import (
	"net"
	"testing"
	"time"
)

// TestSweepLeavesTheLastAnswer lets the sweep find the end of the stream after the last request was
// read, and before its reader could say that it is at work.
func TestSweepLeavesTheLastAnswer(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err := net.DialTCP("tcp", nil, ln.Addr().(*net.TCPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	nc, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	s := newShelf(t, Options{})
	c := &conn{Conn: nc, srv: s}
	c.repeats = newRepeater(c)
	now := time.Now()
	s.table.add(c, now)
	s.table.trust(c)
	c.setPhase(idle)
	s.table.sweep(now, time.Minute, time.Minute)

	send(t, client, "x")
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if n, err := nc.Read(make([]byte, 10)); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	for began := time.Now(); !c.repeats.ended(); time.Sleep(time.Millisecond) {
		if time.Since(began) > 10*time.Second {
			t.Fatal("the end did not arrive")
		}
	}
	s.table.sweep(now, time.Minute, time.Minute)
	if _, err := nc.Write([]byte("answer")); err != nil {
		t.Errorf("the answer: %v", err)
	}
	if _, err := nc.Read(make([]byte, 10)); !isTimeout(err) {
		t.Errorf("reading goes on: %v", err)
	}
}
