package endpoint

import (
	"crypto/sha256"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/slots"
)

// minTokenLen keeps tokens out of reach of guessing and typing.
const minTokenLen = 16

// Caller is an application that may ask, and for what.
//
// A caller with tokens is recognised by any of them. A caller with UIDs or GIDs must connect
// over the unix socket from a process whose user id or primary group id is listed; when it
// has tokens as well, both must hold, so that a stolen token is worth nothing to another user.
type Caller struct {
	Name    string   // 1 to 64 characters of [A-Za-z0-9_.-], unique; it appears in log and audit
	Tokens  []Token  // none: UIDs or GIDs alone decide
	UIDs    []uint32 // as the kernel reports them, see SO_PEERCRED
	GIDs    []uint32
	Secrets []string // which names and ARNs it may read, see [upstream.Permits]: '*' stands for any text, '/' included, '?' for one character

	// Format is the shape of answers to its requests that name none, where the path and headers of
	// the request do not call for another. Zero means [Options.Format].
	Format Format

	// List lets it see, by LIST of Vault, which of the declared secrets it may read.
	List bool

	// What it sees of what is not its own. Without Status, GET /status and /ready tell it of the
	// secrets that it may read, the files that are made of these alone, and itself; without
	// Metrics, GET /metrics does.
	Status, Metrics bool

	// ShutOut is why nobody is taken for this caller: neither its tokens nor its UIDs and GIDs
	// count, though it may have some for when it is let in again. It is still counted among the
	// callers. Empty: it may ask.
	ShutOut string
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

// DefaultCaller is everyone who holds one of the tokens. It may read and see everything.
func DefaultCaller(tokens ...Token) Caller {
	return Caller{Name: "token-holder", Tokens: tokens, Secrets: []string{"*"}, List: true, Status: true, Metrics: true}
}

// WithOverlap returns next, where each caller also keeps, until the given time, the tokens
// that the caller of the same name had in previous. Applications that read a token file once
// thus keep working while they are moved to the new token. Tokens that were to end earlier
// still do, and those that have ended are dropped, so that nothing piles up. A token that next
// gives to some caller is no other's from then on. A caller that next shuts out keeps its tokens
// as well, for what is left of that time once it is let in: a token file that is rewritten may be
// seen half way.
//
// A token that next gives to several callers tells nobody who asks: it stays with the caller that
// had it in previous, and the others are shut out, and keep none; without one, all of them are.
func WithOverlap(previous, next []Caller, until time.Time) []Caller {
	asGiven := next
	next = slices.Clone(next)
	given := map[[sha256.Size]byte][]int{} // digest → callers of next
	for i, c := range next {
		for _, t := range c.Tokens {
			given[t.digest] = append(given[t.digest], i)
		}
	}
	for digest, sharers := range given {
		shutOutSharers(previous, next, digest, sharers)
	}
	for i := range next {
		c := &next[i]
		for _, old := range previous {
			if old.Name != c.Name || c.ShutOut != asGiven[i].ShutOut { // or it shares its token
				continue
			}
			for _, t := range old.Tokens {
				if t.expiredNow() || given[t.digest] != nil {
					continue
				}
				if t.notAfter.IsZero() || t.notAfter.After(until) {
					t.notAfter = until
				}
				c.Tokens = append(slices.Clip(c.Tokens), t)
			}
		}
	}
	return next
}

// shutOutSharers shuts out the callers of next that share a token, but for the one that had it
// in previous.
func shutOutSharers(previous, next []Caller, digest [sha256.Size]byte, sharers []int) {
	for n, i := range sharers {
		c := &next[i]
		had := slices.ContainsFunc(previous, func(old Caller) bool {
			return old.Name == c.Name && slices.ContainsFunc(old.Tokens, func(t Token) bool { return t.digest == digest && t.configured() })
		})
		if len(sharers) > 1 && !had {
			other := next[sharers[(n+1)%len(sharers)]].Name
			c.Tokens, c.ShutOut = nil, fmt.Sprintf("its tokenFile holds the token of the caller %s: give every caller a token of its own", other)
		}
	}
}

// PrepareCallers checks callers and returns what replaces those who may ask by them: at once for
// every request that is not yet past the guard. Waiting clients pass the guard again when they
// are woken. The error names every problem with the callers.
func (s *Server) PrepareCallers(callers []Caller) (set func(), err error) {
	var problems upstream.OptionErrors
	if s.opts.checkCallers(&problems, callers); len(problems) > 0 {
		return nil, problems
	}
	next := newCallerSet(callers)
	return func() { s.setCallers(next) }, nil
}

func (s *Server) setCallers(set *callerSet) {
	s.adopt(set)
	s.callers.Store(set)
	s.sessions.keep(set, time.Now())
}

// caller is a checked Caller.
type caller struct {
	Caller
	account *account
	all     bool   // may read everything
	self    []byte // what its applications are told of their token, see vault.go
}

// callerSet is immutable.
type callerSet struct {
	callers []*caller
	tokens  map[[sha256.Size]byte]*callerToken // digest → token
	byPeer  []*caller                          // recognised without a token
}

type callerToken struct {
	Token
	caller *caller
}

func newCallerSet(callers []Caller) *callerSet {
	set := &callerSet{tokens: map[[sha256.Size]byte]*callerToken{}}
	for _, in := range callers {
		in.UIDs, in.GIDs, in.Secrets = slices.Clone(in.UIDs), slices.Clone(in.GIDs), slices.Clone(in.Secrets)
		c := &caller{Caller: in, all: slices.Contains(in.Secrets, "*"), self: vaultSelf(in.Name)}
		set.callers = append(set.callers, c)
		if in.ShutOut != "" {
			continue
		}
		for _, t := range in.Tokens {
			set.tokens[t.digest] = &callerToken{t, c}
		}
		// A token that was replaced by a rule for the peer must not keep that from counting.
		if !slices.ContainsFunc(in.Tokens, Token.configured) {
			set.byPeer = append(set.byPeer, c)
		}
	}
	return set
}

// checkCallers adds every problem with callers.
func (o *Options) checkCallers(p *upstream.OptionErrors, callers []Caller) {
	if len(callers) == 0 && !o.monitor {
		p.Addf("callers", "", "must not be empty: nobody could ask")
	}
	names := map[string]bool{}
	owners := map[[sha256.Size]byte]string{}
	for i, c := range callers {
		at := fmt.Sprintf("callers[%d]", i)
		if !callerName.MatchString(c.Name) {
			p.Addf(at+".name", c.Name, "must be 1 to 64 letters, digits, dots, dashes and underscores")
		} else if names[c.Name] {
			p.Addf(at+".name", c.Name, "is given to two callers: choose another")
		}
		names[c.Name] = true
		if c.bound() && !slots.PeersKnown {
			p.Addf(at, "", "must not have uids or gids: this system does not tell who is at the other end of a socket")
		}
		if c.ShutOut == "" && !slices.ContainsFunc(c.Tokens, Token.configured) && !c.bound() {
			p.Addf(at, "", "must have a tokenFile, uids or gids: nothing tells who it is")
		}
		for _, t := range c.Tokens {
			if owner, taken := owners[t.digest]; taken && owner != c.Name {
				p.Addf(at+".tokenFile", "", "holds the token of the caller %s: give every caller a token of its own", owner)
			}
			if t.digest == ([sha256.Size]byte{}) {
				p.Addf(at+".tokenFile", "", "holds no token")
			}
			owners[t.digest] = c.Name
		}
		if !c.Format.valid() {
			p.Addf(at+".format", strconv.Itoa(int(c.Format)), "must be one of %s", formatNames)
		}
		if len(c.Secrets) == 0 && !c.Status && !c.Metrics {
			p.Addf(at+".secrets", "", `must not be empty unless status or metrics is true; ["*"] allows everything`)
		}
		for j, g := range c.Secrets {
			// With the wildcards replaced by a letter it must be a name.
			if upstream.SecretName(strings.NewReplacer("*", "a", "?", "a").Replace(g)).Validate() != nil {
				p.Addf(fmt.Sprintf("%s.secrets[%d]", at, j), g, "must be a name or an ARN, with * for any text and ? for one character")
			}
		}
	}
}

var callerName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// authenticate finds the caller by its peer, or by the digest of its token: how long the search
// takes depends on the digest alone, which the client cannot choose.
func authenticate(c *conn, h *headers, set *callerSet) (*caller, *refusal) {
	if h.tokens == 0 {
		for _, who := range set.byPeer {
			if who.matchesPeer(c.peer) {
				return who, allowed
			}
		}
		return nil, tokenMissing
	}
	if h.ambiguous || len(h.token) == 0 {
		return nil, tokenInvalid
	}
	t := set.tokens[sha256.Sum256(h.token)]
	if t == nil || t.expiredNow() {
		return nil, tokenInvalid
	}
	if t.caller.bound() && !t.caller.matchesPeer(c.peer) {
		return nil, peerNotAllowed
	}
	c.token = t
	return t.caller, allowed
}

// configured reports whether the caller has the token for good, not only while it is replaced.
func (t Token) configured() bool { return t.notAfter.IsZero() }

// expired reports whether the token is past its time at now. Both are compared by the monotonic
// clock: setting the clock of the host neither cuts an overlap short nor prolongs it.
func (t *Token) expired(now time.Time) bool { return !t.notAfter.IsZero() && now.After(t.notAfter) }

// expiredNow is expired at this moment. Only a token that has an end costs a look at the clock.
func (t *Token) expiredNow() bool { return !t.notAfter.IsZero() && t.expired(time.Now()) }

// bound reports whether the caller is known by its user or group, if not by these alone.
func (c *Caller) bound() bool { return len(c.UIDs)+len(c.GIDs) > 0 }

func (c *caller) matchesPeer(p peer) bool {
	return p.known && (slices.Contains(c.UIDs, p.UID) || slices.Contains(c.GIDs, p.GID))
}

// sees reports whether the caller may see the state of the secret.
func (c *caller) sees(name upstream.SecretName) bool { return c.Status || c.may(name) }

// may reports whether the caller may read the secret.
func (c *caller) may(name upstream.SecretName) bool {
	return c.all || len(c.Secrets) > 0 && upstream.Permits(c.Secrets, name) // no pattern would permit any name
}
