package etcd

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// valueOf returns the value that a version has in these tests, from which its id can be read.
func valueOf(id string) string { return fmt.Sprintf("%s:%x", id, sha256.Sum256([]byte(id))) }

// idOf undoes valueOf; empty for what is no such value.
func idOf(value string) string {
	id, _, _ := strings.Cut(value, ":")
	if value != valueOf(id) {
		return ""
	}
	return id
}

// history is what really happened, as etcd tells it: names of secrets and versions can be read there. Each version
// of these secrets becomes the current one when it is put, so that the order of the puts is that of their values.
type history struct {
	mu      sync.Mutex
	commits map[string][]commit       // :: secret → its versions in order
	places  map[string]map[string]int // :: secret → version id → place in commits
	again   int                       // versions that were there before
	rev     int64                     // told so far
	told    *sync.Cond
	gap     bool // something was compacted before it was told
}

func newHistory() *history {
	h := &history{commits: map[string][]commit{}, places: map[string]map[string]int{}}
	h.told = sync.NewCond(&h.mu)
	return h
}

type commit struct {
	id string
	at time.Time // when it was told
}

// follow reads everything that happens, until ctx ends.
func (h *history) follow(ctx context.Context, client *clientv3.Client) {
	for ctx.Err() == nil {
		for answer := range client.Watch(clientv3.WithRequireLeader(ctx), "", clientv3.WithPrefix(), clientv3.WithRev(h.revision()+1)) {
			h.tell(answer)
		}
	}
}

func (h *history) revision() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.rev
}

func (h *history) tell(answer clientv3.WatchResponse) {
	space := prefix + "values/"
	h.mu.Lock()
	defer h.mu.Unlock()
	if answer.CompactRevision != 0 {
		h.gap = true
	}
	for _, e := range answer.Events {
		h.rev = e.Kv.ModRevision
		name, id, ok := strings.Cut(strings.TrimPrefix(string(e.Kv.Key), space), "\x00")
		if !ok || !e.IsCreate() || !strings.HasPrefix(string(e.Kv.Key), space) {
			continue
		}
		if h.places[name] == nil {
			h.places[name] = map[string]int{}
		}
		if _, known := h.places[name][id]; known {
			h.again++
		}
		h.places[name][id] = len(h.commits[name])
		h.commits[name] = append(h.commits[name], commit{id, time.Now()})
	}
	h.told.Broadcast()
}

// catchUp waits until the history tells of all that was committed when it was called.
func (h *history) catchUp(t *testing.T, client *clientv3.Client) {
	t.Helper()
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		answer, err := client.Put(ctx, "marker", "")
		cancel()
		if err != nil {
			t.Logf("marker: %v", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		h.mu.Lock()
		for h.rev < answer.Header.Revision {
			h.told.Wait()
		}
		h.mu.Unlock()
		return
	}
}

func (h *history) last(secret string) commit {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.commits[secret][len(h.commits[secret])-1]
}

// view is what readers of one secret see in one way at one agent.
type view struct {
	agent, way, secret string
	sealed             bool // the cache of the agent

	newest   int  // place of the newest version that was seen and checked
	newestIn life // of the agent that it was seen in

	mu     sync.Mutex
	sights []sight
}

// sight is a version that was seen, from its first reading to the next version.
type sight struct {
	id         string
	at         time.Time // it was seen first
	life       life
	stale      bool      // it said so, at first
	begin, hit time.Time // of the last reading; and of the last one that was told to be fresh
}

func (v *view) see(id string, begin time.Time, life life, stale bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	n := len(v.sights)
	if n == 0 || v.sights[n-1].id != id || v.sights[n-1].life != life {
		v.sights = append(v.sights, sight{id: id, at: time.Now(), life: life, stale: stale})
		n++
	}
	s := &v.sights[n-1]
	s.begin = begin
	if !stale {
		s.hit = begin
	}
}

// now returns what was seen last, and since when.
func (v *view) now() (id string, since time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for i := len(v.sights) - 1; i >= 0; i-- {
		id, since = v.sights[i].id, v.sights[i].at
		if i == 0 || v.sights[i-1].id != id {
			break
		}
	}
	return id, since
}

// take returns what was seen, and keeps only the last of it.
func (v *view) take() (seen []sight) {
	v.mu.Lock()
	defer v.mu.Unlock()
	seen = slices.Clone(v.sights)
	if n := len(v.sights); n > 0 {
		v.sights = v.sights[n-1:]
		v.sights[0].hit = time.Time{}
	}
	return seen
}

// crashLoses is the time before a crash of which a sealed cache may know nothing. It is written at most every second.
const crashLoses = 3 * time.Second

// check holds what was seen against the history. Nothing older may be seen than before, except what a sealed cache
// has brought back after a crash, marked as stale. And what is told to be fresh has been replaced since no longer
// than the lifetime.
func (v *view) check(r *report, h *history, seen []sight) {
	h.mu.Lock()
	defer h.mu.Unlock()
	commits := h.commits[v.secret]
	for _, s := range seen {
		place, known := h.places[v.secret][s.id]
		switch {
		case !known:
			r.problem("%s, %s: version %q of %s is none that was committed", v.agent, v.way, s.id, v.secret)
			continue
		case place < v.newest && v.sealed && s.life != v.newestIn && s.stale && commits[place+1].at.After(s.life.after.Add(-crashLoses)):
			r.add("older, marked as stale, after a crash, "+v.way, 1)
		case place < v.newest:
			r.problem("%s, %s: version %s of %s was seen at %s, %d before %s (life %d, before %d, stale %t)", v.agent, v.way, s.id, v.secret,
				s.at.Format("15:04:05.000"), v.newest-place, commits[v.newest].id, s.life.number, v.newestIn.number, s.stale)
		default:
			v.newest, v.newestIn = place, s.life
		}
		if v.way == "endpoint" && !s.hit.IsZero() && place+1 < len(commits) {
			if late := s.hit.Sub(commits[place+1].at); late > ttl+time.Second {
				r.problem("%s, %s: version %s of %s was told to be fresh %v after it was replaced", v.agent, v.way, s.id, v.secret, late)
			}
		}
		r.add("versions seen, "+v.way, 1)
	}
}

// call is a version that was read or written by a call of the KMS API, which is linearizable: it sees all that was
// seen or acknowledged before it began.
type call struct {
	agent, secret, id string
	begin, end        time.Time
}

func (c call) String() string {
	const clock = "15:04:05.000"
	return fmt.Sprintf("%s (%s, %s to %s)", c.id, c.agent, c.begin.Format(clock), c.end.Format(clock))
}

func checkCalls(r *report, h *history, calls []call) {
	h.mu.Lock()
	defer h.mu.Unlock()
	begins := slices.Clone(calls)
	slices.SortFunc(begins, func(a, b call) int { return a.begin.Compare(b.begin) })
	slices.SortFunc(calls, func(a, b call) int { return a.end.Compare(b.end) })
	newest := map[string]call{}
	for _, c := range begins {
		places := h.places[c.secret]
		for len(calls) > 0 && calls[0].end.Before(c.begin) {
			if done := calls[0]; h.places[done.secret][done.id] >= h.places[done.secret][newest[done.secret].id] {
				newest[done.secret] = done
			}
			calls = calls[1:]
		}
		place, known := places[c.id]
		if before := newest[c.secret]; !known {
			r.problem("API: version %s of %s is none that was committed", c, c.secret)
		} else if behind := places[before.id] - place; behind > 0 {
			r.problem("API: of %s, %s was read, %d before %s", c.secret, c, behind, before)
		}
	}
	r.add("calls of the API in order", len(begins))
}

// report counts what happened.
type report struct {
	t      *testing.T
	mu     sync.Mutex
	counts map[string]int
	times  map[string][]time.Duration
}

func (r *report) add(what string, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts[what] += n
}

func (r *report) took(what string, d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.times[what] = append(r.times[what], max(d, 0))
}

func (r *report) problem(format string, args ...any) {
	r.add("PROBLEMS", 1)
	r.t.Errorf(time.Now().Format("15:04:05.000 ")+format, args...)
}

func (r *report) print() {
	r.mu.Lock()
	defer r.mu.Unlock()
	var lines []string
	for what, n := range r.counts {
		lines = append(lines, fmt.Sprintf("%-50s %8d", what, n))
	}
	for what, times := range r.times {
		slices.SortFunc(times, cmp.Compare)
		pick := func(part float64) time.Duration {
			return times[int(part*float64(len(times)-1))].Round(time.Millisecond)
		}
		lines = append(lines, fmt.Sprintf("%-50s %8d times, median %v, p90 %v, p99 %v, worst %v", what, len(times), pick(.5), pick(.9), pick(.99), pick(1)))
	}
	slices.Sort(lines)
	r.t.Log("\n" + strings.Join(lines, "\n"))
}
