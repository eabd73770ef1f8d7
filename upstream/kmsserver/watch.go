package kmsserver

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	cryptorand "crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"hash/maphash"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"secretagent/upstream"
)

// Bounds of watching.
const (
	maxChanges = 4096 // remembered, for watchers that come back
	maxTold    = 256  // in one answer; when there are more, it says that it missed some

	// watchPause is how long a watcher that was woken for nothing is left alone, so that changes it
	// may not see cost little.
	watchPause = 2 * time.Millisecond

	// watchRetry is what a watcher is told for whom there is no room.
	watchRetry = 30 * time.Second
)

// opGetSecretValue is the action whose right a watch needs.
const opGetSecretValue = "GetSecretValue"

// changes remembers which secrets have changed lately.
type changes struct {
	block cipher.Block // seals cursors; its key lives as long as the process
	seed  maphash.Seed
	began time.Time

	mu    sync.Mutex
	names [maxChanges]upstream.SecretName // :: number of a change % maxChanges → secret
	next  uint64                          // number of the next change
	first uint64                          // of those that are remembered
	bell  chan struct{}                   // closed when there is something to look at
}

func newChanges() *changes {
	var key [16]byte
	_, _ = cryptorand.Read(key[:]) // never fails
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err) // the key has a length of AES
	}
	return &changes{block: block, seed: maphash.MakeSeed(), began: time.Now(), bell: make(chan struct{})}
}

// note remembers a change and wakes the watchers. It never blocks.
func (c *changes) note(name upstream.SecretName) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.names[c.next%maxChanges] = name
	c.next++
	if name == upstream.AnySecret {
		c.first = c.next
	} else if c.next-c.first > maxChanges {
		c.first = c.next - maxChanges
	}
	c.ringLocked()
}

// ring wakes the watchers although no secret has changed.
func (c *changes) ring() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ringLocked()
}

func (c *changes) ringLocked() {
	close(c.bell)
	c.bell = make(chan struct{})
}

// since returns the secrets that have changed since the change number at which key may use, the
// number to go on from, and what rings when there is more. missed says that there are others.
func (c *changes) since(at uint64, key *accessKey) (names []upstream.SecretName, next uint64, missed bool, bell <-chan struct{}) {
	recent, next, missed, bell := c.from(at)
	for _, name := range recent {
		if !key.mayUse(name.Name()) || slices.Contains(names, name) {
			continue
		}
		if len(names) == maxTold {
			return nil, next, true, bell
		}
		names = append(names, name)
	}
	return names, next, missed, bell
}

// from returns a copy of what is remembered from the change number at on; the rest is as of since.
// Who looks through it holds up no writer, who is in note.
func (c *changes) from(at uint64) (recent []upstream.SecretName, next uint64, missed bool, bell <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at < c.first || at > c.next {
		return nil, c.next, true, c.bell
	}
	recent = make([]upstream.SecretName, 0, c.next-at)
	for n := at; n < c.next; n++ {
		recent = append(recent, c.names[n%maxChanges])
	}
	return recent, c.next, false, c.bell
}

// now returns the cursor of key for the changes to come.
func (c *changes) now(key *accessKey) string {
	c.mu.Lock()
	at := c.next
	c.mu.Unlock()
	return c.seal(at, key)
}

// seal returns the cursor of key at the change number at. To the client it is noise: it could
// count changes of secrets that it may not know of. Nor is it of use to another key, or to this
// one once its rights have changed.
func (c *changes) seal(at uint64, key *accessKey) string {
	var b [aes.BlockSize]byte
	binary.BigEndian.PutUint64(b[:8], at<<16|uint64(rand.Uint32()&0xffff))
	binary.BigEndian.PutUint64(b[8:], c.rights(key))
	c.block.Encrypt(b[:], b[:])
	return hex.EncodeToString(b[:])
}

// open returns what seal was given; false for a cursor of another process, key or other rights.
func (c *changes) open(cursor string, key *accessKey) (at uint64, ok bool) {
	b, err := hex.DecodeString(cursor)
	if err != nil || len(b) != aes.BlockSize {
		return 0, false
	}
	c.block.Decrypt(b, b)
	return binary.BigEndian.Uint64(b) >> 16, binary.BigEndian.Uint64(b[8:]) == c.rights(key)
}

// rights returns a number for what key may read, another one after it has not watched for too long.
func (c *changes) rights(key *accessKey) uint64 {
	var h maphash.Hash
	h.SetSeed(c.seed)
	if key != nil { // else it was removed while it waited
		for _, list := range [][]string{{key.ID}, key.Actions, key.Secrets} {
			for _, text := range list {
				_, _ = h.WriteString(text)
				_ = h.WriteByte(0)
			}
			_ = h.WriteByte(1)
		}
		_, _ = h.Write(binary.BigEndian.AppendUint64(nil, key.polls.lapses.Load()))
	}
	return h.Sum64()
}

// Changed tells those who watch that a secret has changed; [upstream.AnySecret]: any may have. It
// must be called after a reader sees the change. It never blocks.
func (s *Server) Changed(name upstream.SecretName) {
	if s.changes != nil {
		s.changes.note(name)
	}
}

// watches notes that key watches now. When it had stopped, [Server.Watched] has said so, and nobody
// may have looked for changes of what its clients hold: their cursors are worth nothing any more.
func (s *Server) watches(key *accessKey) {
	now := int64(time.Since(s.changes.began)) + 1
	if last := key.polls.last.Swap(now); last != 0 && now-last > int64(s.limits.WatchedFor) {
		key.polls.lapses.Add(1)
	}
}

// Watched reports whether somebody who may read the secret watches, or did a moment ago: who
// makes the server has to find out by itself whether the secret has changed.
func (s *Server) Watched(name upstream.SecretName) bool {
	if s.changes == nil || name.Account() != "" {
		return false
	}
	since := int64(time.Since(s.changes.began)) - int64(s.limits.WatchedFor)
	for _, key := range s.keys.Load().byID {
		if last := key.polls.last.Load(); last != 0 && last > since && key.mayCall(opGetSecretValue) && key.mayUse(name) {
			return true
		}
	}
	return false
}

// watch is the action that waits for changes. The connection waits as one that is parked.
func (s *Server) watch(client *conn) action {
	table := s.conns.tables[Signed]
	return func(c *call) perform {
		cursor, wait := c.params["Cursor"], s.limits.WatchTime
		if text := c.params["WaitSeconds"]; text != "" {
			seconds, err := strconv.ParseUint(text, 10, 16)
			if err != nil {
				c.invalid("WaitSeconds", "it is not a number of seconds")
			}
			wait = min(wait, time.Duration(seconds)*time.Second)
		}
		return func(ctx context.Context) (any, error) {
			s.watches(c.key)
			at, known := s.changes.open(cursor, c.key)
			if !known {
				return upstream.WatchAnswer{Cursor: s.changes.now(c.key), Missed: true, RequestID: c.requestID}, nil
			}
			if !table.Park(&client.Slot) {
				return nil, errTooManyWatchers
			}
			defer table.Unpark(&client.Slot)
			ctx, cancel := context.WithTimeout(ctx, wait)
			defer cancel()
			answer := s.changesFor(ctx, c.key, at)
			answer.RequestID = c.requestID
			return answer, nil
		}
	}
}

// changesFor waits until there is something to tell a watcher, or ctx or the server ends.
func (s *Server) changesFor(ctx context.Context, key *accessKey, at uint64) upstream.WatchAnswer {
	for woken := false; ; woken = true {
		names, next, missed, bell := s.changes.since(at, key)
		if now, same := s.inForce(key); !same { // another may have the key by now: it is told nothing but to ask again
			return upstream.WatchAnswer{Cursor: s.changes.now(now), Missed: true}
		}
		at = next
		if missed || len(names) > 0 {
			return upstream.WatchAnswer{Cursor: s.changes.seal(at, key), Changed: names, Missed: missed}
		}
		if woken {
			time.Sleep(watchPause)
		}
		select {
		case <-bell:
			continue
		case <-ctx.Done():
		case <-s.conns.done:
		}
		return upstream.WatchAnswer{Cursor: s.changes.seal(at, key)}
	}
}

// inForce returns the key that has the id of key now, nil for none, and whether it is the same as
// when its request was signed.
func (s *Server) inForce(key *accessKey) (now *accessKey, same bool) {
	now = s.keys.Load().byID[key.ID]
	return now, now != nil && now.Secret.Equal(key.Secret) && now.SecurityToken.Equal(key.SecurityToken) &&
		slices.Equal(now.Actions, key.Actions) && slices.Equal(now.Secrets, key.Secrets)
}
