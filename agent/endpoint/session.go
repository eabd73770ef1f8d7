package endpoint

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"maps"
	"sync"
	"time"
)

// How long links and sessions of the status page last, and how many a caller has at once.
const (
	linkLife    = time.Minute
	sessionIdle = 30 * time.Minute // without a request
	sessionLife = 12 * time.Hour   // in all

	maxLinks    = 4
	maxSessions = 8
)

// grant is the right of a caller to see its status, lent to a browser. It counts for as long
// as the caller has the token, or the rule for its peer, that it was made with.
type grant struct {
	caller string
	token  [sha256.Size]byte // digest of the token; zero for a caller known by its peer alone
	peer   peer              // who it was made for, where that is known
	began  time.Time
	used   time.Time
	link   bool // to be redeemed for a session; else it is one
}

// grantOf returns the grant of the caller that c has presented itself as with this request.
func grantOf(c *conn, now time.Time) grant {
	g := grant{caller: c.caller.Name, peer: c.peer, began: now, used: now}
	if c.token != nil {
		g.token = c.token.digest
	}
	return g
}

// holder returns the caller that g is of under set; nil when it has lost what g was made with.
func (g *grant) holder(set *callerSet, now time.Time) *caller {
	if g.token != ([sha256.Size]byte{}) {
		t := set.tokens[g.token]
		if t == nil || t.caller.Name != g.caller || t.expired(now) || t.caller.bound() && !t.caller.matchesPeer(g.peer) {
			return nil
		}
		return t.caller
	}
	for _, who := range set.byPeer {
		if who.Name == g.caller && who.matchesPeer(g.peer) {
			return who
		}
	}
	return nil
}

// over reports whether g counts no longer, whatever its caller has.
func (g *grant) over(now time.Time) bool {
	if g.link {
		return now.Sub(g.began) > linkLife
	}
	return now.Sub(g.used) > sessionIdle || now.Sub(g.began) > sessionLife
}

// sessions are the browsers that see the status page, and the links that let them in. They
// live in memory only: a restart ends them all. They are kept under the hash of the random text
// that stands for them, so that a look into the memory gives none away.
type sessions struct {
	mu     sync.Mutex
	grants map[[sha256.Size]byte]*grant
}

// add keeps g and returns the text that stands for it: 256 random bits. When the caller has as
// many of its kind as it may, the one that was used least recently goes.
func (s *sessions) add(g grant) string {
	limit := maxSessions
	if g.link {
		limit = maxLinks
	}
	var random [32]byte
	_, _ = rand.Read(random[:]) // never fails
	text := base64.RawURLEncoding.EncodeToString(random[:])
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.grants, func(_ [sha256.Size]byte, other *grant) bool { return other.over(g.used) })
	var oldest [sha256.Size]byte
	n := 0
	for id, other := range s.grants {
		if other.caller == g.caller && other.link == g.link {
			if n++; n == 1 || other.used.Before(s.grants[oldest].used) {
				oldest = id
			}
		}
	}
	if n >= limit {
		delete(s.grants, oldest)
	}
	if s.grants == nil {
		s.grants = map[[sha256.Size]byte]*grant{}
	}
	s.grants[sha256.Sum256([]byte(text))] = &g
	return text
}

// redeem returns the grant that code stands for, at most once; nil when there is none.
func (s *sessions) redeem(code []byte, now time.Time) *grant {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := sha256.Sum256(code)
	g := s.grants[id]
	if g == nil || !g.link {
		return nil
	}
	delete(s.grants, id)
	if g.over(now) {
		return nil
	}
	return g
}

// holder returns the caller whose session cookie stands for, and notes that it was used; nil
// when there is none, or no longer.
func (s *sessions) holder(cookie []byte, set *callerSet, now time.Time) *caller {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := sha256.Sum256(cookie)
	g := s.grants[id]
	if g == nil || g.link {
		return nil
	}
	who := g.holder(set, now)
	if who == nil || g.over(now) {
		delete(s.grants, id)
		return nil
	}
	g.used = now
	return who
}

// end forgets the session that cookie stands for.
func (s *sessions) end(cookie []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id := sha256.Sum256(cookie); s.grants[id] != nil && !s.grants[id].link {
		delete(s.grants, id)
	}
}

// keep forgets what callers have lost that are not in set, or whose token is not.
func (s *sessions) keep(set *callerSet, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.grants, func(_ [sha256.Size]byte, g *grant) bool { return g.holder(set, now) == nil })
}

// counts returns how many sessions and links there are, those that are over included until
// the next one is made.
func (s *sessions) counts() (open, links int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.grants {
		if g.link {
			links++
		}
	}
	return len(s.grants) - links, links
}
