package credentials

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sethvargo/go-retry"

	"secretagent/upstream"
	"secretagent/upstream/slots"
)

// MaxConnections is how many connections are answered at the same time.
const MaxConnections = 128

// largest is how many bytes a credential may have, as systemd has it (CREDENTIAL_SIZE_MAX).
const largest = 1 << 20

const (
	writeTimeout = 10 * time.Second // for a reader to take what it has asked for
	retryFirst   = 250 * time.Millisecond
	retryLast    = 2 * time.Second
)

// Secrets is the cache as the server needs it.
type Secrets interface {
	// Lookup returns the value that ref names, held, fetched or stale.
	Lookup(ctx context.Context, ref upstream.SecretRef) (upstream.Answer, error)
}

// Options configures a [Server]. The zero value of every field is usable.
type Options struct {
	Units []Unit // who gets what; see [Server.Prepare]

	// MaxWait is how long a unit waits when no value is held and the upstream does not answer.
	// 0 means 30s.
	MaxWait time.Duration

	// Audit receives one JSON object per line about each answer, with one call each. Nil means none
	// is written.
	Audit io.Writer

	// Logger receives refusals and failures, never values. Nil discards.
	Logger *slog.Logger
}

// Validate returns every problem of the options as [upstream.OptionErrors].
func (o Options) Validate() error {
	var p upstream.OptionErrors
	if !slots.PeersKnown {
		p.Addf("socket", "", "must not be set: this system has no systemd")
	}
	checkUnits(&p, o.Units)
	return p.Err()
}

// Why nothing is given out.
var (
	errPeer       = errors.New("only root gets credentials, which systemd asks for")
	errAddress    = errors.New("the address of the client names no unit and credential")
	errUnit       = errors.New("no rule is for this unit")
	errCredential = errors.New("no rule is for this credential of the unit")
	errTooLarge   = errors.New("the value is larger than a credential may be")
)

// refusals are the labels of what the server itself refuses.
var refusals = map[error]string{errPeer: "peer", errAddress: "address", errUnit: "unit", errCredential: "credential", errTooLarge: "size"}

// Server gives credentials to systemd. Make one with [New].
type Server struct {
	secrets Secrets
	opts    Options
	log     *slog.Logger
	rules   atomic.Pointer[rules]
	root    uint32 // uid of who may ask

	places chan struct{} // has room for those that are answered at the same time
	base   context.Context
	stop   context.CancelFunc

	mu        sync.Mutex
	listeners map[net.Listener]struct{}
	conns     map[net.Conn]struct{}
	wg        sync.WaitGroup

	counts
}

// New returns a server that reads secrets. The error is [upstream.OptionErrors].
func New(secrets Secrets, opts Options) (*Server, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		secrets: secrets, opts: opts, log: opts.Logger,
		places: make(chan struct{}, MaxConnections), listeners: map[net.Listener]struct{}{}, conns: map[net.Conn]struct{}{},
	}
	set, err := s.Prepare(opts)
	if err != nil {
		return nil, err
	}
	set()
	s.base, s.stop = context.WithCancel(context.Background())
	return s, nil
}

// rules are what a reload replaces. They are immutable.
type rules struct {
	units   unitSet
	maxWait time.Duration
}

// Prepare checks the units of opts and returns what makes them, and MaxWait, count for connections
// that are made from then on. The error is [upstream.OptionErrors].
func (s *Server) Prepare(opts Options) (set func(), err error) {
	var p upstream.OptionErrors
	if checkUnits(&p, opts.Units); len(p) > 0 {
		return nil, p
	}
	next := &rules{newUnitSet(opts.Units), cmp.Or(opts.MaxWait, 30*time.Second)}
	return func() { s.rules.Store(next) }, nil
}

// Serve answers on a listener until that is closed, or the server shut down, which is no error. It
// closes the listener.
func (s *Server) Serve(ln net.Listener) error {
	if !s.add(ln) {
		return ln.Close()
	}
	defer s.remove(ln)
	for {
		select {
		case s.places <- struct{}{}:
		case <-s.base.Done():
			return nil
		}
		nc, err := ln.Accept()
		if err != nil {
			<-s.places
			if s.base.Err() != nil {
				return nil
			}
			return err
		}
		s.track(nc, true)
		go func() {
			defer s.wg.Done()
			defer func() { <-s.places }()
			defer s.track(nc, false)
			s.serve(nc)
		}()
	}
}

// add begins to serve a listener; false after the shutdown has begun. The server waits for it.
func (s *Server) add(ln net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.base.Err() != nil {
		return false
	}
	s.listeners[ln] = struct{}{}
	s.wg.Add(1)
	return true
}

// remove ends what add began.
func (s *Server) remove(ln net.Listener) {
	_ = ln.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, ln)
	s.wg.Done()
}

// track notes a connection, or that it has ended.
func (s *Server) track(nc net.Conn, open bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if open {
		s.wg.Add(1) // before its listener is done
		s.conns[nc] = struct{}{}
	} else {
		delete(s.conns, nc)
	}
}

// Shutdown stops listening and has units that wait fail. When ctx ends before all have their
// answer, it closes their connections and returns the error of ctx.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.stop()
	for ln := range s.listeners {
		_ = ln.Close()
	}
	s.mu.Unlock()
	ended := make(chan struct{})
	go func() { s.wg.Wait(); close(ended) }()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	for nc := range s.conns {
		_ = nc.Close()
	}
	s.mu.Unlock()
	<-ended
	return ctx.Err()
}

// question is what a client asks for.
type question struct {
	unit, credential string
	from             string // who asks, for log and audit
	ref              upstream.SecretRef
	id               string // of the request
}

// serve answers one connection and closes it.
func (s *Server) serve(nc net.Conn) {
	defer nc.Close()
	q := question{id: upstream.NewRequestID()}
	answer, err := s.answer(nc, &q)
	if err == nil {
		err = give(nc, answer.Value.SecretData.Reveal())
	}
	s.note(&q, answer, err)
	if err != nil {
		refuse(nc)
	}
}

// answer finds out who asks for what, and returns it.
func (s *Server) answer(nc net.Conn, q *question) (none upstream.Answer, err error) {
	peer, known := slots.PeerOf(nc)
	q.from = "unix"
	if known {
		q.from = peer.String()
	}
	if !known || peer.UID != s.root || peer.PID == 0 {
		return none, errPeer
	}
	if q.unit, q.credential, err = parseAddress(nc.RemoteAddr().String()); err != nil {
		return none, err
	}
	rules := s.rules.Load()
	if q.ref, err = rules.units.ref(q.unit, q.credential); err != nil {
		return none, err
	}
	ctx, cancel := context.WithTimeout(upstream.WithCause(s.base, upstream.Cause{RequestID: q.id}), rules.maxWait)
	defer cancel()
	waits := retry.WithJitterPercent(25, retry.WithCappedDuration(retryLast, retry.NewExponential(retryFirst)))
	var last error // says more than that the time is over
	answer, err := retry.DoValue(ctx, waits, func(ctx context.Context) (upstream.Answer, error) {
		answer, err := s.secrets.Lookup(ctx, q.ref)
		if err != nil && (last == nil || !upstream.IsContextError(err)) {
			last = err
		}
		if upstream.Outage(err) {
			err = retry.RetryableError(err)
		}
		return answer, err
	})
	if err != nil {
		return none, cmp.Or(last, err)
	}
	if answer.Value.SecretData.Len() > largest {
		return none, errTooLarge
	}
	return answer, nil
}

// address matches what systemd binds: a random number, the unit, and the credential.
var address = regexp.MustCompile(`^@[0-9a-f]{1,16}/unit/([^/]+)/([^/]+)$`)

// parseAddress returns the unit and the credential that a client asks for.
func parseAddress(from string) (unit, credential string, err error) {
	parts := address.FindStringSubmatch(from)
	if parts == nil || strings.ContainsAny(parts[1], "*?") || !unitName.MatchString(parts[1]) || !credentialName.MatchString(parts[2]) {
		return "", "", errAddress
	}
	return parts[1], parts[2], nil
}

// give writes a value.
func give(nc net.Conn, value []byte) error {
	_ = nc.SetWriteDeadline(time.Now().Add(writeTimeout))
	_, err := nc.Write(value)
	return err
}

var zeros [64 << 10]byte

// refuse writes more than a credential may have: no answer would be an empty credential.
func refuse(nc net.Conn) {
	_ = nc.SetWriteDeadline(time.Now().Add(writeTimeout))
	for left := largest + 1; left > 0; {
		n, err := nc.Write(zeros[:min(left, len(zeros))])
		if err != nil {
			return // it has closed the connection, or does not read
		}
		left -= n
	}
}

// asker is what the status calls a unit that asked for a secret last.
func asker(unit string) string { return "unit " + unit }

// note counts an answer and tells log and audit of it.
func (s *Server) note(q *question, answer upstream.Answer, err error) {
	outcome := answer.Freshness.String()
	switch reason := refusalOf(err); {
	case err == nil:
		by := asker(q.unit)
		if answer.Derived != nil {
			answer.Derived.Asked(&by, time.Now().UnixNano())
		}
		s.given.add(outcome)
	case reason != "":
		outcome = reason
		s.refused.add(reason)
		s.log.Warn("a credential was refused: its unit fails", "caller", q.unit, "credential", q.credential, "from", q.from, "err", err,
			"hint", "endpoint.credentials.units says which unit gets which secret; units of user managers get none")
	default:
		outcome = upstream.Code(err)
		s.failed.add(outcome)
		s.log.Error("a credential could not be given: its unit fails", "caller", q.unit, "credential", q.credential, "secret", q.ref.String(), "request_id", q.id, "err", err,
			"hint", "see that the secret exists and the upstream answers, then start the unit again")
	}
	s.audit(q, answer, outcome)
}

// refusalOf returns the label of what the server itself refuses; empty for other errors.
func refusalOf(err error) string {
	for sentinel, label := range refusals {
		if errors.Is(err, sentinel) {
			return label
		}
	}
	return ""
}

// auditLine is a line of the audit log, which the endpoint writes too.
type auditLine struct {
	Time         string
	Caller       string `json:",omitzero"`
	From         string
	Operation    string
	Credential   string                `json:",omitzero"`
	SecretName   upstream.SecretName   `json:",omitzero"`
	VersionStage upstream.VersionStage `json:",omitzero"`
	VersionID    upstream.VersionID    `json:"VersionId,omitzero"`
	Outcome      string
	RequestID    string `json:"RequestId"`
}

func (s *Server) audit(q *question, answer upstream.Answer, outcome string) {
	if s.opts.Audit == nil {
		return
	}
	l := auditLine{
		Time: time.Now().UTC().Format("2006-01-02T15:04:05.000Z"), From: q.from, Operation: "LoadCredential", Credential: q.credential,
		SecretName: q.ref.SecretName, VersionStage: q.ref.VersionStage, Outcome: outcome, RequestID: q.id,
	}
	if q.unit != "" {
		l.Caller = asker(q.unit)
	}
	if answer.Value != nil {
		l.VersionID = answer.Value.VersionID
	}
	line, err := json.Marshal(l)
	if err != nil {
		panic(fmt.Sprintf("credentials: %v", err)) // of texts only
	}
	_, _ = s.opts.Audit.Write(append(line, '\n')) // what is lost is counted there
}

// Stats are what a server has done.
type Stats struct {
	Given   map[string]uint64 // by how the cache came by them: hit, miss or stale
	Refused map[string]uint64 // by the server itself: peer, address, unit, credential or size
	Failed  map[string]uint64 // by code
	Open    int               // connections
}

// Stats returns what the server has done.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	open := len(s.conns)
	s.mu.Unlock()
	return Stats{Given: s.given.get(), Refused: s.refused.get(), Failed: s.failed.get(), Open: open}
}

type counts struct{ given, refused, failed tally }

// tally counts by label.
type tally struct {
	mu sync.Mutex
	n  map[string]uint64
}

func (t *tally) add(label string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n == nil {
		t.n = map[string]uint64{}
	}
	t.n[label]++
}

func (t *tally) get() map[string]uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := make(map[string]uint64, len(t.n))
	for label, count := range t.n {
		n[label] = count
	}
	return n
}
