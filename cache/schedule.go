package cache

import (
	"container/heap"
	"math/rand/v2"
	"sync"
	"time"
)

// schedule knows which entry is to be refreshed next. Its lock is taken inside that of a
// shard, never around it.
type schedule struct {
	mu   sync.Mutex
	heap dueHeap
	wake bell // the first due time moved forward
}

// set schedules e at due, wherever it stood before.
func (s *schedule) set(e *entry, due int64) { s.put(e, due, false) }

// setRetry is set for a refresh that an outage holds up.
func (s *schedule) setRetry(e *entry, due int64) { s.put(e, due, true) }

func (s *schedule) put(e *entry, due int64, retry bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.due, e.heldUp = due, retry
	if e.slot == 0 {
		heap.Push(&s.heap, e)
	} else {
		heap.Fix(&s.heap, int(e.slot)-1)
	}
	if s.heap[0] == e {
		s.wake.ring()
	}
}

// ensure schedules e at due unless it is scheduled.
func (s *schedule) ensure(e *entry, due int64) {
	s.mu.Lock()
	scheduled := e.slot != 0
	s.mu.Unlock()
	if !scheduled {
		s.set(e, due)
	}
}

func (s *schedule) remove(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.slot != 0 {
		heap.Remove(&s.heap, int(e.slot)-1)
	}
}

// next returns when the first entry is due.
func (s *schedule) next() (due int64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.heap) == 0 {
		return 0, false
	}
	return s.heap[0].due, true
}

// pop takes out the first entry that is due and says whether it was announced; nil when
// none is due.
func (s *schedule) pop(now int64) (e *entry, announced bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.heap) == 0 || s.heap[0].due > now {
		return nil, false
	}
	e = heap.Pop(&s.heap).(*entry)
	return e, e.due == urgent
}

// dueOf returns when e is due.
func (s *schedule) dueOf(e *entry) (due int64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return e.due, e.slot != 0
}

func (s *schedule) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.heap)
}

// spread moves what is overdue or held up to random moments within window from now, so that the
// end of an outage is neither late nor a stampede. What was announced stays urgent.
func (s *schedule) spread(now int64, window time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.heap {
		if (e.due <= now || e.heldUp) && e.due != urgent {
			e.due, e.heldUp = now+rand.Int64N(int64(window)), false
		}
	}
	heap.Init(&s.heap)
	s.wake.ring()
}

// dueHeap is a heap of entries by due time that tells each where it stands.
type dueHeap []*entry

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].due < h[j].due }

func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].slot, h[j].slot = int32(i+1), int32(j+1)
}

func (h *dueHeap) Push(x any) {
	e := x.(*entry)
	*h = append(*h, e)
	e.slot = int32(len(*h))
}

func (h *dueHeap) Pop() any {
	last := len(*h) - 1
	e := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	e.slot = 0
	return e
}
