package cache

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// lookEvery is how old, by the monotonic clock, the last look at the other clocks may be
	// when a time is read. To go to sleep and to wake up takes a machine longer, and that time
	// the monotonic clock does count: whoever is first to read the time afterwards looks.
	lookEvery = time.Millisecond

	// watchEvery is how often [Cache.Run] looks although nobody asks for anything: its timers
	// stand still as long as the machine sleeps.
	watchEvery = 10 * time.Second

	// leastJump is what counts as a jump of the wall clock. Less is kept until it adds up.
	leastJump = time.Second

	// clockSkew is by how much the wall clock may be behind what it was told before that is
	// worth a word.
	clockSkew = time.Minute

	// longest bounds what is counted at once. The clock starts with as much, so that 0 comes
	// before everything.
	longest = 60 * 365 * 24 * time.Hour
)

// clock tells the cache's time: nanoseconds that never go back, and that go on while the machine
// sleeps. Ages and lifetimes are differences of them, so that no setting of the wall clock makes
// a value younger.
//
// It reads the monotonic clock alone, and adds what that has not counted. The machine has slept
// when the wall clock has moved on by more than the monotonic one; then, and now and then, the
// system is asked for how long, which costs more. A wall clock that moves ahead without that is
// believed as well, because the pause of a virtual machine looks like this, unless it was known
// to be behind and is merely put right.
type clock struct {
	epoch  time.Time
	looked atomic.Int64 // monotonic time since epoch
	ahead  atomic.Int64 // of the monotonic clock
	jumped bell         // time has passed that timers do not know of

	mu     sync.Mutex
	drift  time.Duration // of the wall clock against the monotonic one, since epoch
	asleep time.Duration // of this machine, since it was started
	behind time.Duration // the wall clock, against the newest time known
	doubt  time.Duration // counted because the wall clock was set ahead, since trust
}

func newClock() *clock {
	k := &clock{epoch: time.Now(), jumped: newBell(), asleep: suspended()}
	k.ahead.Store(int64(longest))
	return k
}

// now returns the time.
func (k *clock) now() int64 {
	now := int64(time.Since(k.epoch))
	if now-k.looked.Load() >= int64(lookEvery) {
		k.look(now, false)
	}
	return now + k.ahead.Load()
}

// look takes in what the other clocks say. It asks the system how long the machine slept when
// the wall clock has jumped, and when thorough is true.
func (k *clock) look(since int64, thorough bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !thorough && k.looked.Load() >= since {
		return // another was faster
	}
	now := time.Now()
	jump := now.Round(0).Sub(k.epoch.Round(0)) - now.Sub(k.epoch) - k.drift
	if jumped := jump.Abs() >= leastJump; jumped || thorough {
		slept := suspended() - k.asleep
		switch {
		case slept < leastJump:
			slept = 0
		case (slept - jump).Abs() < leastJump: // the readings are not of one moment
			slept = jump
		}
		if jumped || slept > 0 {
			k.drift += jump
			k.asleep += slept
			k.jump(slept, jump-slept)
		}
	}
	k.looked.Store(int64(now.Sub(k.epoch))) // last: until then others look as well, and wait
}

// jump counts time that the machine slept, and a change of the wall clock on top of that.
func (k *clock) jump(slept, set time.Duration) {
	if set < 0 {
		k.behind -= set
		set = 0
	}
	corrected := min(set, k.behind)
	k.behind -= corrected
	k.doubt += set - corrected
	k.advance(slept + set - corrected)
}

// advance counts time that timers do not know of.
func (k *clock) advance(d time.Duration) {
	if d > 0 {
		k.ahead.Add(int64(min(d, longest)))
		k.jumped.ring()
	}
}

// told says that t is not in the future. Values age by as much as the time known so far was
// behind it.
func (k *clock) told(t time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if d := time.Until(t.Round(0)) - k.behind; d > 0 {
		k.behind += d
		k.advance(d)
	}
}

// trust says that the wall clock is right. It returns by how much it was known to be behind, as
// skew does.
func (k *clock) trust() (was time.Duration) {
	was = k.skew()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.behind, k.doubt = 0, 0
	return was
}

// doubted returns how much of the time until now may be a wall clock that was set wrongly.
func (k *clock) doubted() time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	return min(k.doubt, longest)
}

// skew returns by how much the wall clock is known to be behind; 0 for little.
func (k *clock) skew() time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.behind < clockSkew {
		return 0
	}
	return k.behind
}

// wall returns a time of the cache by the wall clock, wrong as that may be, to about a second: the
// same one each time until the wall clock jumps.
func (k *clock) wall(at int64) time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.epoch.Round(0).Add(k.drift + time.Duration(at-k.ahead.Load()))
}

// known returns a time of the cache by the newest time known. The next run reads it.
func (k *clock) known(at int64) time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.epoch.Round(0).Add(k.drift + k.behind + time.Duration(at-k.ahead.Load()))
}

// of returns a time that known has returned, in this run or before.
func (k *clock) of(known time.Time) int64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	since := max(-longest, min(longest, known.Round(0).Sub(k.epoch.Round(0))))
	return k.ahead.Load() + int64(since-k.drift-k.behind)
}
