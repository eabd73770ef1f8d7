package kms

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"

	"secretagent/upstream"
)

const (
	// checkEvery is how often the source is asked whether its credential still stands. The
	// library renews within three minutes of the end, so a check a minute renews in time.
	checkEvery = time.Minute

	// trustedFor is how long a credential is used without a check, when nothing was asked for
	// a while. The library gave it out with at least three minutes to live.
	trustedFor = 2 * time.Minute

	// lookEvery is how often files are looked at for a change.
	lookEvery = 2 * time.Second

	// closePatience is how long Close waits at most.
	closePatience = 15 * time.Second

	// A source that fails is asked again after a pause that doubles, or up to half of it earlier.
	firstPause   = 500 * time.Millisecond
	longestPause = 5 * time.Second

	// Renewals that the service asks for are firstGap apart. The distance doubles when even a
	// credential younger than longestGap is refused: it is not its age.
	firstGap   = time.Second
	longestGap = time.Minute
)

// fetcher gives out the present credential of a source. It is called by one goroutine at a
// time, may block, and may panic.
type fetcher func() (Credential, error)

// CredentialSource is a [CredentialProvider] over a source that can be slow, change, fail and
// come back. It answers from memory; one goroutine at a time asks the source, in the
// background wherever a credential is at hand. It is safe for concurrent use.
type CredentialSource struct {
	kind   string
	open   func() (fetcher, error) // makes a fetcher that remembers nothing of earlier ones
	files  []string                // a change of any makes open run again
	stat   func(name string) (os.FileInfo, error)
	logger *slog.Logger

	running sync.WaitGroup // questions

	mu        sync.Mutex
	closed    bool
	fetch     fetcher   // nil: open one; used by the question alone
	asked     *question // nil: the source is not being asked
	looking   *question // nil: the files are not being looked at
	current   Credential
	have      bool
	renewedAt time.Time
	checkedAt time.Time
	lookedAt  time.Time
	seen      string // what files looked like when fetch was opened
	err       error  // of the last question
	pause     time.Duration
	retryAt   time.Time
	renewedOn time.Time     // when the service last asked for a renewal
	renewGap  time.Duration // to the next that is granted
}

// question is one that is put to the source and not answered yet.
type question struct {
	done  chan struct{}
	fresh bool // it began with a new fetcher
}

// NewCredentials returns a source. It asks for nothing yet, and files need not exist: until a
// credential appears, calls fail with [upstream.ErrNoCredentials]. Its error is that of
// [CredentialOptions.Validate]. The caller calls [CredentialSource.Close] in the end.
func NewCredentials(o CredentialOptions) (*CredentialSource, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o.Type = cmp.Or(o.Type, "default")
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	open, files := o.opener()
	return newCredentialSource(o.Type, open, files, o.Logger), nil
}

func newCredentialSource(kind string, open func() (fetcher, error), files []string, logger *slog.Logger) *CredentialSource {
	return &CredentialSource{kind: kind, open: open, files: files, stat: os.Stat, logger: logger}
}

// Close makes the source answer no more, and waits until nobody asks it. Its own timeouts bound
// that, except for a file on a disk that hangs, for which Close waits no longer than a while.
func (s *CredentialSource) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	idle := make(chan struct{})
	go func() {
		s.running.Wait()
		close(idle)
	}()
	select {
	case <-idle:
	case <-time.After(closePatience):
	}
	return nil
}

// Credential implements [CredentialProvider]. It blocks only while there is nothing to
// answer with yet, or after a long quiet time in which the credential may have run out.
func (s *CredentialSource) Credential(ctx context.Context) (Credential, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if look := s.lookLocked(now); !s.have {
		if err := s.waitLocked(ctx, look); err != nil {
			return Credential{}, err
		}
	}
	pausing := s.asked == nil && s.err != nil && now.Before(s.retryAt)
	switch age := now.Sub(s.checkedAt); {
	case pausing || s.have && age < checkEvery:
		// There is nothing to ask for yet.
	case !s.have, age >= trustedFor && s.err == nil:
		// A source that did not fail was only not asked for a while. When it does not answer
		// now, the service may still accept what we have.
		if err := s.waitLocked(ctx, s.askLocked(false)); err != nil {
			return Credential{}, err
		}
	default:
		s.askLocked(false) // in the background
	}
	return s.answerLocked()
}

func (s *CredentialSource) answerLocked() (Credential, error) {
	if !s.have {
		return Credential{}, s.err
	}
	return s.current, nil
}

// Renew implements [CredentialProvider].
func (s *CredentialSource) Renew(ctx context.Context, refused Credential) (Credential, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	renewed := func() bool { return s.have && !s.current.same(refused) }
	if renewed() {
		return s.current, nil // another call was faster
	}
	now := time.Now()
	if s.asked == nil || !s.asked.fresh {
		if now.Sub(s.renewedOn) < s.renewGap {
			return refused, nil
		}
		// An older question may bring the refused credential once more.
		if err := s.waitLocked(ctx, s.asked); err != nil {
			return Credential{}, err
		}
		if renewed() {
			return s.current, nil
		}
		s.renewedOn = now
		if now.Sub(s.renewedAt) >= longestGap {
			s.renewGap = 0
		}
		s.renewGap = min(max(s.renewGap*2, firstGap), longestGap)
	}
	if err := s.waitLocked(ctx, s.askLocked(true)); err != nil {
		return Credential{}, err
	}
	return s.answerLocked()
}

// Status returns what may be shown.
func (s *CredentialSource) Status() CredentialStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := CredentialStatus{Type: s.kind, Source: s.current.Source, RenewedAt: s.renewedAt, CheckedAt: s.checkedAt, Expires: s.current.Expires}
	if s.err != nil {
		st.Error = s.err.Error()
	}
	return st
}

// waitLocked waits for the end of q without the lock. A nil q has ended.
func (s *CredentialSource) waitLocked(ctx context.Context, q *question) error {
	if q == nil {
		return nil
	}
	s.mu.Unlock()
	defer s.mu.Lock()
	select {
	case <-q.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// askLocked joins the question that is not answered yet, or puts one. With fresh the fetcher
// is made anew and remembers nothing.
func (s *CredentialSource) askLocked(fresh bool) *question {
	if s.asked != nil {
		return s.asked
	}
	q := &question{done: make(chan struct{}), fresh: fresh || s.fetch == nil}
	if s.closed {
		s.err = sourceError(s.kind, "the source is closed", "")
		close(q.done)
		return q
	}
	s.asked = q
	fetch, seen := s.fetch, s.seen
	s.running.Go(func() {
		if q.fresh {
			fetch, seen = nil, s.look()
		}
		used, c, err := s.ask(fetch)
		s.mu.Lock()
		s.asked, s.seen = nil, seen
		tell := s.keepLocked(used, c, err)
		s.mu.Unlock()
		tell()
		close(q.done)
	})
	return q
}

// ask fetches, with a new fetcher when there is none. No panic and no foreign text gets out.
func (s *CredentialSource) ask(fetch fetcher) (used fetcher, c Credential, err error) {
	defer func() {
		if p := recover(); p != nil {
			// The library follows pointers into incomplete answers.
			used, c, err = nil, Credential{}, sourceError(s.kind, "the source gave an incomplete answer", "")
		}
	}()
	if fetch == nil {
		if fetch, err = s.open(); err != nil {
			return nil, Credential{}, explain(s.kind, err)
		}
	}
	if c, err = fetch(); err != nil {
		return nil, Credential{}, explain(s.kind, err)
	}
	if c.AccessKeyID == "" || c.AccessKeySecret.Len() == 0 {
		return nil, Credential{}, sourceError(s.kind, "the source gave an empty credential", "")
	}
	return fetch, c, nil
}

// keepLocked keeps what a question brought and returns what tells the log. A fetcher that failed
// is not used again: the default chain would for ever ask the last of its members.
func (s *CredentialSource) keepLocked(used fetcher, c Credential, err error) (tell func()) {
	now := time.Now()
	s.fetch = used
	tell = func() {}
	if err != nil {
		if s.err == nil {
			tell = func() {
				s.logger.Warn("no credentials", "source", s.kind, "err", err, "hint", "they are tried again; check upstream.alibaba.credentials")
			}
		}
		s.err = err
		s.pause = min(max(s.pause*2, firstPause), longestPause)
		s.retryAt = now.Add(s.pause - rand.N(s.pause/2)) // a thousand pods that start together ask apart
		return tell
	}
	if !s.have || !s.current.same(c) {
		s.renewedAt = now
		tell = func() { s.logger.Info("credentials renewed", "source", c.Source) }
	} else if s.err != nil {
		tell = func() { s.logger.Info("credentials are back", "source", c.Source) }
	}
	s.current, s.have, s.checkedAt, s.err, s.pause = c, true, now, nil, 0
	return tell
}

// lookLocked looks at the files, if that is due, and has the source asked when one of them is not
// what it was when the fetcher was made. That happens in the background: a disk can hang.
func (s *CredentialSource) lookLocked(now time.Time) *question {
	if s.looking != nil || s.closed || len(s.files) == 0 || now.Sub(s.lookedAt) < lookEvery {
		return s.looking
	}
	q := &question{done: make(chan struct{})}
	s.looking, s.lookedAt = q, now
	s.running.Go(func() {
		now := s.look()
		s.mu.Lock()
		defer s.mu.Unlock()
		defer close(q.done)
		s.looking = nil
		if now != s.seen {
			s.askLocked(true)
		}
	})
	return q
}

// look returns what tells one state of the files from another.
func (s *CredentialSource) look() string {
	var b strings.Builder
	for _, name := range s.files {
		if info, err := s.stat(name); err == nil {
			fmt.Fprintf(&b, "%s %d %d\n", name, info.Size(), info.ModTime().UnixNano())
		}
	}
	return b.String()
}

// sourceError says in our own words what is wrong with a source and what to do.
func sourceError(kind, what, fix string) *upstream.Error {
	message := "no credentials from " + kind + ": " + what
	if fix != "" {
		message += "; " + fix
	}
	return &upstream.Error{Err: upstream.ErrNoCredentials, Message: message}
}

// explain turns the error of a source into one of ours. The libraries quote configuration
// files and answers in theirs, so their text is looked at, for phrases and codes that are
// known, and never passed on.
func explain(kind string, err error) error {
	if known, ok := errors.AsType[*upstream.Error](err); ok {
		return known
	}
	if path, ok := errors.AsType[*os.PathError](err); ok {
		return sourceError(kind, path.Path+": "+path.Err.Error(), "check the path and its permissions")
	}
	if sts, ok := errors.AsType[*stsError](err); ok {
		return sts.explain(kind)
	}
	text := err.Error()
	if found := unanswered.FindStringSubmatch(text); found != nil {
		return sourceError(kind, found[2]+": "+overProxy(proxyFor(http.ProxyFromEnvironment, found[1]+found[2]), err)+plain(err), fixOf(kind))
	}
	for _, e := range explanations {
		if strings.Contains(text, e.phrase) {
			what := e.what
			if proxy := proxyFor(http.ProxyFromEnvironment, "http://"+metadataHost); proxy != "" && strings.HasPrefix(what, metadataService) {
				what += ", asked over the proxy " + proxy
			}
			return sourceError(kind, what, e.fix)
		}
	}
	if said := plain(err); said != failedSomehow {
		return sourceError(kind, said, fixOf(kind))
	}
	return sourceError(kind, "the source gave no usable answer", fixOf(kind))
}

// unanswered finds scheme and host in the text of an error of net/http, also where the library
// keeps nothing but the text. What a service has answered never stands before it.
var unanswered = regexp.MustCompile(`^(?:[A-Za-z ]+: )?(?:Get|Post|Put) "(https?://)(?:[^/@"\s]*@)?([A-Za-z0-9.:\[\]-]{1,255})[^"]*": `)

const (
	metadataHost    = "100.100.100.200"
	metadataService = "the metadata service " + metadataHost
)

// explanations are phrases of the libraries, the particular before the general.
var explanations = []struct{ phrase, what, fix string }{
	{"IMDS credentials is disabled", "ALIBABA_CLOUD_ECS_METADATA_DISABLED is set", "unset it or use another type"},
	{"the CLI profile is disabled", "ALIBABA_CLOUD_CLI_PROFILE_DISABLED is set", "unset it or use another type"},
	{"unable to get profile with", "there is no such profile", "check its name with `aliyun configure list`"},
	{"reading aliyun cli config", "the configuration of the CLI cannot be read", "run `aliyun configure` or name the file"},
	{"unmarshal aliyun cli config", "the configuration of the CLI is not valid JSON", "repair the file"},
	{"no any configured profiles", "the configuration of the CLI holds no profile", "run `aliyun configure`"},
	{"unsupported profile mode", "the profile has a mode that is not supported", "use another profile"},
	{"the RoleArn is empty", "the role ARN is missing", "set it, or ALIBABA_CLOUD_ROLE_ARN"},
	{"the OIDCProviderARN is empty", "the ARN of the OIDC provider is missing", "set it, or ALIBABA_CLOUD_OIDC_PROVIDER_ARN"},
	{"the OIDCTokenFilePath is empty", "the OIDC token file is not named", "set it, or ALIBABA_CLOUD_OIDC_TOKEN_FILE"},
	{"the access key id is empty", "the access key id is missing", ""},
	{"the access key secret is empty", "the access key secret is missing", ""},
	{"the url is empty", "the URI is missing", "set it, or ALIBABA_CLOUD_CREDENTIALS_URI"},
	{"session duration should be", "the session duration is too short", "give at least 15m"},
	{"httpStatus: 404", metadataService + " knows no such role", "attach a RAM role to the instance, or check its name"},
	{"get role name failed", metadataService + " does not tell the role", "attach a RAM role to the instance"},
}

// fixOf returns what to look at for a type, also where it is a member of the default chain.
func fixOf(kind string) string { return fixes[strings.TrimPrefix(kind, "default/")] }

// fixes are what to look at when all that is known is that a source does not answer.
var fixes = map[string]string{
	"ecs_ram_role":    "check that this is an ECS instance with a RAM role and that " + metadataHost + " can be reached",
	"ram_role_arn":    "check that the STS endpoint can be reached and the role exists",
	"oidc_role_arn":   "check that the STS endpoint can be reached and the role trusts the OIDC provider",
	"credentials_uri": "check that the URI answers 200 with AccessKeyId, AccessKeySecret, SecurityToken and Expiration",
	"profile":         "check the profile with `aliyun configure list`",
}
