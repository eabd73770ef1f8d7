package etcd

import (
	"strings"

	lru "github.com/hashicorp/golang-lru/v2"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

const (
	keptKeys  = 1024     // in memory
	keptBytes = 16 << 10 // of the value of each, at most
)

// memory is what was last seen of keys, those of values excepted, which a write has no need of. Nothing in it
// need be so any more.
type memory struct {
	*lru.Cache[string, *mvccpb.KeyValue]
	without string // what the keys of values begin with
}

func newMemory(without string) memory {
	kept, _ := lru.New[string, *mvccpb.KeyValue](keptKeys) // the size is positive
	return memory{kept, without}
}

// see notes what was seen of a key; a value that is nil is gone.
func (m memory) see(key string, kv *mvccpb.KeyValue) {
	if strings.HasPrefix(key, m.without) {
		return
	}
	old, _ := m.Peek(key)
	switch {
	case kv.ModRevision <= old.GetModRevision():
	case kv.Value == nil || len(kv.Value) > keptBytes:
		m.Remove(key)
	default:
		m.Add(key, kv)
	}
}
