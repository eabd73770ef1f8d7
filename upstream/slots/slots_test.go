package slots_test

import (
	"fmt"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"secretagent/upstream/slots"
)

// client is a connection of a table, and its other end.
type client struct {
	slots.Slot
	name string
	end  net.Conn
}

// gone reports whether the table has closed the connection.
func (c *client) gone() bool {
	_ = c.end.SetReadDeadline(time.Now())
	_, err := c.end.Read(make([]byte, 1))
	return err == io.EOF
}

// table is a table under test. Time passes only while everybody waits.
type table struct {
	*slots.Table
	t       *testing.T
	clients []*client
	notices []slots.Notice
}

func run(t *testing.T, limits slots.Limits, test func(t *table)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		tb := &table{t: t}
		tb.Table = slots.New(limits, func(n slots.Notice) { tb.notices = append(tb.notices, n) })
		test(tb)
		for _, c := range tb.clients {
			tb.Remove(&c.Slot)
		}
		if n := tb.Counts(); n.Open+n.Parked+n.Spare != 0 || len(tb.Owned()) != 0 {
			t.Errorf("after all have left: %+v, %v", n, tb.Owned())
		}
	})
}

// add lets a client in; without an owner it stays a stranger. last is its phase.
func (tb *table) add(owner, origin string, last slots.Phase) *client {
	tb.t.Helper()
	ours, theirs := net.Pipe()
	tb.t.Cleanup(func() { _ = ours.Close() })
	c := &client{name: fmt.Sprintf("%s@%s-%d", owner, origin, len(tb.clients)), end: ours}
	tb.clients = append(tb.clients, c)
	if !tb.Add(&c.Slot, theirs, origin) {
		tb.t.Fatalf("%s is not let in", c.name)
	}
	c.SetPhase(slots.Active)
	if owner != "" {
		tb.Claim(&c.Slot, owner)
	}
	c.SetPhase(last)
	return c
}

func (tb *table) sweep() {
	time.Sleep(time.Second)
	tb.Sweep(time.Now(), time.Minute, time.Hour)
}

// wantGone checks which of the clients are gone.
func (tb *table) wantGone(want ...*client) {
	tb.t.Helper()
	gone := map[*client]bool{}
	for _, c := range want {
		gone[c] = true
	}
	for _, c := range tb.clients {
		if c.gone() != gone[c] {
			tb.t.Errorf("%s: gone is %v", c.name, c.gone())
		}
	}
}

func TestWhoHasMostMakesRoom(t *testing.T) {
	run(t, slots.Limits{Open: 6, Total: 6}, func(tb *table) {
		tb.add("b", "1", slots.Idle)
		tb.add("b", "1", slots.Idle)
		first := tb.add("a", "1", slots.Idle)
		tb.add("a", "1", slots.Busy)
		stuck := tb.add("a", "1", slots.Active)
		tb.add("a", "1", slots.Idle)
		tb.sweep()
		tb.sweep()
		tb.add("c", "1", slots.Idle)
		tb.wantGone(stuck)
		tb.add("c", "1", slots.Idle)
		tb.wantGone(stuck, first)
		if len(tb.notices) != 1 || tb.notices[0] != (slots.Notice{Owner: "a", Origin: "1", Closed: 1}) {
			t.Errorf("told %+v", tb.notices)
		}
	})
}

func TestAnOwnersUsersShareAlike(t *testing.T) {
	run(t, slots.Limits{Open: 4, Total: 4}, func(tb *table) {
		tb.add("a", "uid=1", slots.Idle)
		busy := tb.add("a", "uid=2", slots.Busy)
		tb.add("a", "uid=2", slots.Busy)
		tb.add("a", "uid=2", slots.Busy)
		same := tb.add("a", "uid=2", slots.Idle)
		if !same.Spare() {
			t.Error("who has most gets more")
		}
		if c := tb.add("a", "uid=1", slots.Idle); c.Spare() {
			t.Error("who has less gets nothing")
		}
		tb.wantGone(busy)
	})
}

func TestStrangersGoFirst(t *testing.T) {
	run(t, slots.Limits{Open: 32, Total: 32}, func(tb *table) {
		for range 26 {
			tb.add("a", "1", slots.Idle)
		}
		tb.add("", "uid=1", slots.Fresh)
		crowd := tb.add("", "uid=2", slots.Fresh)
		next := tb.add("", "uid=2", slots.Active)
		for range 3 {
			tb.add("", "uid=2", slots.Fresh)
		}
		tb.add("b", "1", slots.Idle)
		tb.add("b", "1", slots.Idle)
		tb.wantGone(crowd, next)
	})
}

// TestANewcomerHasTime: strangers keep a few slots in front of an owner that has all others.
func TestANewcomerHasTime(t *testing.T) {
	run(t, slots.Limits{Open: 32, Total: 32}, func(tb *table) {
		for range 32 {
			tb.add("a", "1", slots.Active)
		}
		tb.sweep()
		tb.sweep()
		newcomer := tb.add("", "1", slots.Fresh)
		tb.add("", "1", slots.Fresh)
		tb.add("", "1", slots.Fresh)
		if newcomer.gone() {
			t.Error("it had no time to show whose it is")
		}
		tb.Claim(&newcomer.Slot, "b")
		for range 20 {
			tb.add("a", "1", slots.Idle)
		}
		if newcomer.gone() {
			t.Error("it lost its slot to an owner that has more")
		}
	})
}

func TestSparesMakeRoomForOthers(t *testing.T) {
	run(t, slots.Limits{Open: 2, Total: 2}, func(tb *table) {
		tb.add("a", "1", slots.Busy)
		tb.add("a", "1", slots.Busy)
		var spares []*client
		for range slots.Spares {
			spares = append(spares, tb.add("", "1", slots.Fresh))
		}
		tb.add("", "2", slots.Fresh)
		tb.wantGone(spares[0])
		if n := tb.Counts(); n.Open != 2 || n.Spare != slots.Spares {
			t.Errorf("%+v", n)
		}
	})
}

// TestWaitersStandInTheWay: where all connections have a bound together, a caller who has less
// takes the place of a waiter of one that has more.
func TestWaitersStandInTheWay(t *testing.T) {
	run(t, slots.Limits{Open: 4, Parked: 4, Total: 4}, func(tb *table) {
		var waiters []*client
		for range 4 {
			c := tb.add("a", "1", slots.Active)
			if !tb.Park(&c.Slot) {
				t.Fatal("not parked")
			}
			waiters = append(waiters, c)
		}
		if c := tb.add("a", "1", slots.Idle); !c.Spare() {
			t.Error("who has all gets more")
		}
		c := tb.add("b", "1", slots.Active)
		if c.Spare() {
			t.Error("who has nothing gets nothing")
		}
		tb.wantGone(waiters[0])
		tb.Unpark(&waiters[0].Slot)
		if n := tb.Counts(); n.Open != 1 || n.Parked != 3 {
			t.Errorf("%+v", n)
		}
	})
}

func TestLoopbackIsOneOrigin(t *testing.T) {
	for address, want := range map[string]string{"127.0.0.1:1": "loopback", "127.9.9.9:2": "loopback", "[::1]:3": "loopback", "10.0.0.7:4": "10.0.0.7", "[2001:db8::7:1]:5": "2001:db8::"} {
		a, err := net.ResolveTCPAddr("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if got := slots.Origin(a); got != want {
			t.Errorf("%s: %s", address, got)
		}
	}
}
