package endpoint

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"secretagent/upstream"
)

// minTokenLen keeps tokens out of reach of guessing and typing.
const minTokenLen = 16

// Caller is somebody who may ask, and for what.
//
// A caller with tokens is recognised by any of them. A caller with UIDs or GIDs must connect
// over the unix socket from a process whose user id or primary group id is listed; when it
// has tokens as well, both must hold, so that a stolen token is worth nothing to another user.
type Caller struct {
	Name    string   // 1 to 64 characters of [A-Za-z0-9_.-], unique; it appears in log and audit
	Tokens  []Token  // none: UIDs or GIDs alone decide
	UIDs    []uint32 // as the kernel reports them, see SO_PEERCRED
	GIDs    []uint32
	Secrets []string // which names it may read: '*' stands for any text, '/' included, '?' for one character
}

// Token is a caller's token as the server keeps it: only its hash.
type Token struct {
	digest   [sha256.Size]byte
	notAfter time.Time
}

// NewToken returns the token whose text is given. White space around it, as at the end of a
// file, is ignored. A token has at least 16 characters and no space or control character, so
// that it fits into a header.
func NewToken(text []byte) (Token, error) {
	trimmed := strings.TrimSpace(string(text))
	if len(trimmed) < minTokenLen {
		return Token{}, fmt.Errorf("endpoint: the token has %d characters, at least %d are needed; take 32 random bytes as hex", len(trimmed), minTokenLen)
	}
	for i := range len(trimmed) {
		if c := trimmed[i]; c <= ' ' || c > '~' {
			return Token{}, fmt.Errorf("endpoint: character %d of the token is not printable ASCII", i+1)
		}
	}
	return Token{digest: sha256.Sum256([]byte(trimmed))}, nil
}

// Until returns t as a token that is not valid after the given time.
func (t Token) Until(notAfter time.Time) Token {
	t.notAfter = notAfter
	return t
}

// DefaultCaller is whoever holds one of the tokens. It may read everything.
func DefaultCaller(tokens ...Token) Caller {
	return Caller{Name: "token-holder", Tokens: tokens, Secrets: []string{"*"}}
}

// WithOverlap returns next, where each caller also keeps, until the given time, the tokens
// that the caller of the same name had in previous. Applications that read a token file once
// thus keep working while they are moved to the new token. Tokens that were to end earlier
// still do, and those that have ended are dropped, so that nothing piles up.
func WithOverlap(previous, next []Caller, until time.Time) []Caller {
	next = slices.Clone(next)
	now := time.Now()
	for i := range next {
		for _, old := range previous {
			if old.Name != next[i].Name {
				continue
			}
			for _, t := range old.Tokens {
				if slices.ContainsFunc(next[i].Tokens, func(n Token) bool { return n.digest == t.digest }) {
					continue
				}
				if !t.notAfter.IsZero() && !t.notAfter.After(now) {
					continue
				}
				if t.notAfter.IsZero() || t.notAfter.After(until) {
					t.notAfter = until
				}
				next[i].Tokens = append(slices.Clip(next[i].Tokens), t)
			}
		}
	}
	return next
}

// SetCallers replaces who may ask, at once for every request that is not yet past the guard.
// Waiting clients pass the guard again when they are woken. The error names the caller and
// field at fault, and then nothing changes.
func (s *Server) SetCallers(callers []Caller) error {
	set, err := s.PrepareCallers(callers)
	if err != nil {
		return err
	}
	set()
	return nil
}

// PrepareCallers is the half of [Server.SetCallers] that can fail; set is the other one.
func (s *Server) PrepareCallers(callers []Caller) (set func(), err error) {
	next, err := newCallerSet(callers)
	if err != nil {
		return nil, fmt.Errorf("endpoint: %w", err)
	}
	return func() {
		s.adopt(next)
		s.callers.Store(next)
		s.sessions.keep(next, time.Now())
	}, nil
}

// caller is a checked Caller.
type caller struct {
	name       string
	account    *account
	uids, gids []uint32
	all        bool // may read everything
	globs      []string
}

// callerSet is immutable.
type callerSet struct {
	callers []*caller
	tokens  []callerToken // of all callers
	byPeer  []*caller     // recognised without a token
}

type callerToken struct {
	Token
	caller int
}

func newCallerSet(callers []Caller) (*callerSet, error) {
	if len(callers) == 0 {
		return nil, errors.New("callers: at least one is needed")
	}
	set := &callerSet{}
	var errs []error
	names := map[string]bool{}
	digests := map[[sha256.Size]byte]string{}
	for i, in := range callers {
		field := fmt.Sprintf("callers[%d]", i)
		if !callerName(in.Name) {
			errs = append(errs, fmt.Errorf("%s.name: %q: must be 1 to 64 of A-Z a-z 0-9 _ . -", field, in.Name))
		} else {
			field = fmt.Sprintf("caller %q", in.Name)
		}
		if names[in.Name] {
			errs = append(errs, fmt.Errorf("%s: the name is taken twice", field))
		}
		names[in.Name] = true
		c := &caller{name: in.Name, uids: slices.Clone(in.UIDs), gids: slices.Clone(in.GIDs), globs: slices.Clone(in.Secrets)}
		bound := len(c.uids)+len(c.gids) > 0
		if bound && !peersKnown {
			errs = append(errs, fmt.Errorf("%s.uids, gids: this system does not tell who is at the other end of a socket; use a token", field))
		}
		if len(in.Tokens) == 0 && !bound {
			errs = append(errs, fmt.Errorf("%s: needs a token, uids or gids", field))
		}
		if len(c.globs) == 0 {
			errs = append(errs, fmt.Errorf("%s.secrets: says for no secret that it may be read; use \"*\" for all", field))
		}
		for _, g := range c.globs {
			if err := checkGlob(g); err != nil {
				errs = append(errs, fmt.Errorf("%s.secrets: %q: %w", field, g, err))
			}
			c.all = c.all || g == "*"
		}
		for _, t := range in.Tokens {
			if t.digest == ([sha256.Size]byte{}) {
				errs = append(errs, fmt.Errorf("%s: a token is empty; make it with NewToken", field))
				continue
			}
			if other, taken := digests[t.digest]; taken && other != in.Name {
				errs = append(errs, fmt.Errorf("%s: has the same token as caller %q", field, other))
			}
			digests[t.digest] = in.Name
			set.tokens = append(set.tokens, callerToken{t, i})
		}
		if len(in.Tokens) == 0 {
			set.byPeer = append(set.byPeer, c)
		}
		set.callers = append(set.callers, c)
	}
	return set, errors.Join(errs...)
}

func callerName(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && strings.IndexByte("_.-", c) < 0 {
			return false
		}
	}
	return true
}

func checkGlob(g string) error {
	if g == "" {
		return errors.New("must not be empty")
	}
	// With the wildcards replaced by a letter it must be a name.
	if err := upstream.SecretName(strings.NewReplacer("*", "a", "?", "a").Replace(g)).Validate(); err != nil {
		return errors.New("must be a secret name in which '*' and '?' may stand for other characters")
	}
	return nil
}

// find returns the entry of a token. Every token of every caller is compared, in constant time
// and without an early exit, so that timing tells nothing about them.
func (set *callerSet) find(token []byte) *callerToken {
	digest := sha256.Sum256(token)
	found := -1
	for i := range set.tokens {
		found = subtle.ConstantTimeSelect(subtle.ConstantTimeCompare(digest[:], set.tokens[i].digest[:]), i, found)
	}
	if found < 0 {
		return nil
	}
	return &set.tokens[found]
}

// authenticate finds the caller. A token that this connection has presented before is
// recognised by comparing it with itself, which tells its owner nothing new.
func authenticate(c *conn, h *seen, set *callerSet) (*caller, refusal) {
	m := &c.memory
	if m.callers != set { // nothing that was learned under other callers counts
		m.callers, m.found, m.who = set, nil, nil
	}
	if h.tokens == 0 {
		for _, who := range set.byPeer {
			if who.matchesPeer(c.peer) {
				m.found, m.who = nil, nil
				return who, allowed
			}
		}
		return nil, tokenMissing
	}
	if h.ambiguous || len(h.token) == 0 {
		return nil, tokenInvalid
	}
	if m.found == nil || !bytes.Equal(m.token, h.token) {
		t := set.find(h.token)
		if t == nil {
			return nil, tokenInvalid
		}
		m.token, m.found, m.who = append(m.token[:0], h.token...), t, nil
	}
	if m.found.expiredNow() {
		return nil, tokenInvalid
	}
	who := set.callers[m.found.caller]
	if len(who.uids)+len(who.gids) > 0 && !who.matchesPeer(c.peer) {
		return nil, peerNotAllowed
	}
	return who, allowed
}

// expired reports whether the token is past its time at now. Both are compared by the monotonic
// clock: setting the clock of the host neither cuts an overlap short nor prolongs it.
func (t *Token) expired(now time.Time) bool { return !t.notAfter.IsZero() && now.After(t.notAfter) }

// expiredNow is expired for the hit path: only a token that has an end costs a look at the clock.
func (t *Token) expiredNow() bool { return !t.notAfter.IsZero() && t.expired(time.Now()) }

func (c *caller) matchesPeer(p peer) bool {
	return p.known && (slices.Contains(c.uids, p.uid) || slices.Contains(c.gids, p.gid))
}

// may reports whether the caller may read the secret.
func (c *caller) may(name upstream.SecretName) bool {
	if c.all {
		return true
	}
	for _, g := range c.globs {
		if glob(g, string(name)) {
			return true
		}
	}
	return false
}

// glob reports whether name matches pattern. It runs in time proportional to the product of
// their lengths at worst.
func glob(pattern, name string) bool {
	p, n := 0, 0
	star, mark := -1, 0
	for n < len(name) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, n
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == name[n]):
			p++
			n++
		case star >= 0: // let the last star take one more
			mark++
			p, n = star+1, mark
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}
