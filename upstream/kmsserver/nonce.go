package kmsserver

import (
	"hash/maphash"
	"sync"
	"time"
)

// nonces remembers the nonces of one access key for as long as a replay could still pass
// the check of its timestamp.
//
// They lie in one set per minute of the request's own timestamp, so that forgetting is
// dropping whole sets. A nonce is kept as a seeded hash: a chance collision refuses one
// honest request in about 2^46, which its client repeats with a new nonce.
type nonces struct {
	limit int
	seed  maphash.Seed

	mu      sync.Mutex
	minutes map[int64]map[uint64]struct{} // minute of the timestamp → hashes
	total   int
}

func newNonces(limit int) *nonces {
	return &nonces{limit: limit, seed: maphash.MakeSeed(), minutes: map[int64]map[uint64]struct{}{}}
}

// claim takes a nonce for a request signed at stamp. It is called only after the signature
// was found to be right, so that only the holder of the key can fill the memory. When it is
// full the request is refused: forgetting a nonce early would let its request be replayed.
func (n *nonces) claim(nonce string, stamp, now time.Time) *fault {
	hash := maphash.String(n.seed, nonce)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.forgetLocked(now)
	for _, set := range n.minutes {
		if _, used := set[hash]; used {
			return errNonceUsed
		}
	}
	if n.total >= n.limit {
		return errNoncesFull
	}
	minute := stamp.Unix() / 60
	if n.minutes[minute] == nil {
		n.minutes[minute] = map[uint64]struct{}{}
	}
	n.minutes[minute][hash] = struct{}{}
	n.total++
	return nil
}

// forgetLocked drops what can no longer be replayed.
func (n *nonces) forgetLocked(now time.Time) {
	oldest := now.Add(-timeWindow).Unix() / 60
	for minute, set := range n.minutes {
		if minute < oldest {
			n.total -= len(set)
			delete(n.minutes, minute)
		}
	}
}

// forgotten reports whether nothing is remembered any more.
func (n *nonces) forgotten(now time.Time) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.forgetLocked(now)
	return n.total == 0
}
