package etcd

import (
	"sync"
	"time"
)

// newest is the highest revision that etcd has told of lately. Reads are linearizable, so that none may be answered
// with an older one; but etcd has had faults that let a member do that after it, or the leader, was stopped for a while.
//
// It is forgotten when nothing as high was told for a while: the revisions of a cluster that was restored begin with
// those of the copy.
type newest struct {
	mu  sync.Mutex
	rev int64
	at  time.Time
}

const newestLasts = 5 * time.Second

func (n *newest) get() int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	if time.Since(n.at) > newestLasts {
		return 0
	}
	return n.rev
}

func (n *newest) set(rev int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if rev >= n.rev || time.Since(n.at) > newestLasts {
		n.rev, n.at = rev, time.Now()
	}
}
