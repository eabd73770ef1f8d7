package endpoint

import (
	"crypto/sha256"
	"testing"
	"time"

	"secretagent/upstream/slots"
)

// callersOf returns the callers a and b, recognised by token, and c, by user id.
func callersOf(t *testing.T, tokens ...string) *callerSet {
	t.Helper()
	var callers []Caller
	for i, text := range tokens {
		token, err := NewToken([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		callers = append(callers, Caller{Name: string(rune('a' + i)), Tokens: []Token{token}, Secrets: []string{"*"}})
	}
	if slots.PeersKnown {
		callers = append(callers, Caller{Name: "peer", UIDs: []uint32{1000}, Secrets: []string{"*"}})
	}
	return newCallerSet(callers)
}

const (
	tokenA = "token-of-a-0123456789"
	tokenB = "token-of-b-0123456789"
)

func grantFor(set *callerSet, token string, at time.Time) grant {
	found := set.tokens[sha256.Sum256([]byte(token))]
	return grant{caller: found.caller.Name, token: found.digest, began: at, used: at}
}

func linkFor(set *callerSet, token string, now time.Time) grant {
	g := grantFor(set, token, now)
	g.link = true
	return g
}

func TestLinkOpensOnceAndForAMinute(t *testing.T) {
	set, now := callersOf(t, tokenA, tokenB), time.Now()
	var s sessions
	code := s.add(linkFor(set, tokenA, now))
	if g := s.redeem([]byte(code+"x"), now); g != nil {
		t.Error("another code opens it")
	}
	g := s.redeem([]byte(code), now.Add(linkLife))
	if g == nil || g.holder(set, now).Name != "a" {
		t.Fatalf("the link gives %+v", g)
	}
	if s.redeem([]byte(code), now) != nil {
		t.Error("the link opens twice")
	}
	if s.redeem([]byte(s.add(linkFor(set, tokenA, now))), now.Add(linkLife+1)) != nil {
		t.Error("the link opens after a minute")
	}
}

func TestSessionEnds(t *testing.T) {
	set, began := callersOf(t, tokenA, tokenB), time.Now()
	for _, test := range []struct {
		name  string
		steps []time.Duration // uses after the beginning
		last  bool            // whether the last of them counts
	}{
		{"used at once", []time.Duration{0}, true},
		{"after half an hour", []time.Duration{sessionIdle}, true},
		{"a little later", []time.Duration{sessionIdle + 1}, false},
		{"used again and again", []time.Duration{sessionIdle, 2 * sessionIdle, 3 * sessionIdle}, true},
		{"once ended", []time.Duration{sessionIdle + 1, 0}, false},
	} {
		var s sessions
		cookie := s.add(grantFor(set, tokenA, began))
		who := (*caller)(nil)
		for _, step := range test.steps {
			who = s.holder([]byte(cookie), set, began.Add(step))
		}
		if (who != nil) != test.last {
			t.Errorf("%s: %v", test.name, who)
		}
	}
	var s sessions
	cookie := s.add(grantFor(set, tokenA, began))
	for at := time.Duration(0); at <= sessionLife; at += sessionIdle {
		if s.holder([]byte(cookie), set, began.Add(at)) == nil {
			t.Fatalf("ended after %v", at)
		}
	}
	if s.holder([]byte(cookie), set, began.Add(sessionLife+1)) != nil {
		t.Error("a session that is used all the time never ends")
	}
}

func TestSessionIsWorthWhatItsTokenIs(t *testing.T) {
	set, now := callersOf(t, tokenA, tokenB), time.Now()
	for name, next := range map[string]*callerSet{
		"another token":       callersOf(t, "another-token-of-a-01", tokenB),
		"of another caller":   callersOf(t, tokenB, tokenA),
		"no caller but peers": callersOf(t, "only-this-one-remains"),
	} {
		var s sessions
		cookie := s.add(grantFor(set, tokenA, now))
		if s.holder([]byte(cookie), set, now) == nil {
			t.Fatal("no session")
		}
		if s.holder([]byte(cookie), next, now) != nil {
			t.Errorf("%s: the session goes on", name)
		}
		if s.holder([]byte(cookie), set, now) != nil {
			t.Errorf("%s: it came back", name)
		}
	}

	// A token that is on its way out takes its session with it.
	old := callersOf(t, tokenA)
	old.tokens[sha256.Sum256([]byte(tokenA))].notAfter = now.Add(time.Minute)
	var s sessions
	cookie := s.add(grantFor(old, tokenA, now))
	if s.holder([]byte(cookie), old, now.Add(59*time.Second)) == nil || s.holder([]byte(cookie), old, now.Add(61*time.Second)) != nil {
		t.Error("the session does not end with the overlap")
	}

	s.add(grantFor(set, tokenA, now))
	s.add(linkFor(set, tokenA, now))
	s.keep(callersOf(t, "only-this-one-remains"), now)
	if open, links := s.counts(); open+links > 0 {
		t.Errorf("%d sessions and %d links of callers that are gone are kept", open, links)
	}
}

func TestSessionOfAPeer(t *testing.T) {
	if !slots.PeersKnown {
		t.Skip("this system does not tell who is at the other end of a socket")
	}
	set, now := callersOf(t, tokenA), time.Now()
	g := grant{caller: "peer", peer: peer{slots.Peer{UID: 1000}, true}, began: now, used: now}
	if who := g.holder(set, now); who == nil || who.Name != "peer" {
		t.Errorf("held by %v", who)
	}
	g.peer.UID = 1001
	if g.holder(set, now) != nil {
		t.Error("another user's")
	}
	g = grantFor(set, tokenA, now)
	set.callers[0].UIDs = []uint32{1000}
	if g.holder(set, now) != nil {
		t.Error("a token that is bound to a user counts without one")
	}
}

func TestSessionsAndLinksAreBounded(t *testing.T) {
	set, now := callersOf(t, tokenA, tokenB), time.Now()
	var s sessions
	other := s.add(grantFor(set, tokenB, now))
	otherLink := s.add(linkFor(set, tokenB, now))
	var cookies, codes []string
	for i := range 100 {
		at := now.Add(time.Duration(i) * time.Millisecond)
		cookies = append(cookies, s.add(grantFor(set, tokenA, at)))
		codes = append(codes, s.add(linkFor(set, tokenA, at)))
	}
	if open, links := s.counts(); open != maxSessions+1 || links != maxLinks+1 {
		t.Errorf("%d sessions, %d links", open, links)
	}
	for i, cookie := range cookies {
		if got, want := s.holder([]byte(cookie), set, now) != nil, i >= len(cookies)-maxSessions; got != want {
			t.Errorf("session %d: %v", i, got)
		}
	}
	if s.redeem([]byte(codes[len(codes)-maxLinks-1]), now) != nil || s.redeem([]byte(codes[len(codes)-maxLinks]), now) == nil {
		t.Error("not the newest links are kept")
	}
	if s.holder([]byte(other), set, now) == nil || s.redeem([]byte(otherLink), now) == nil {
		t.Error("one caller pushes out what another has")
	}
	seen := map[string]bool{}
	for _, text := range append(cookies, codes...) {
		if len(text) != 43 || seen[text] {
			t.Fatalf("%q is no new text of 256 bits", text)
		}
		seen[text] = true
	}
}

func TestCookieNamesOfNeighboursDiffer(t *testing.T) {
	for host, want := range map[string]string{
		"127.0.0.1:2025": "secretagent-2025", "localhost:2026": "secretagent-2026", "localhost": "secretagent",
		"[::1]:2025": "secretagent-2025", "[::1]": "secretagent",
	} {
		if got := string(cookieName([]byte(host))); got != want {
			t.Errorf("%s: %s, want %s", host, got, want)
		}
	}
}
