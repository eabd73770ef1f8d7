package kms

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"secretagent/upstream"
)

// pace is how often a source is bothered.
type pace struct {
	// check is how often the source is asked whether its credential still stands. The
	// library renews within three minutes of the end, so a check a minute renews in time.
	check time.Duration

	// trust is how long a credential is used without a check, when nothing was asked for a
	// while. The library gave it out with at least three minutes to live.
	trust time.Duration

	// look is how often files are looked at for a change.
	look time.Duration

	// A source that fails is asked again after a pause that doubles from pause to maxPause.
	pause, maxPause time.Duration

	// Renewals that the service asks for are renew apart. The distance doubles, up to
	// maxRenew, when even a credential younger than maxRenew is refused: it is not its age.
	renew, maxRenew time.Duration
}

var standardPace = pace{
	check: time.Minute, trust: 2 * time.Minute, look: 2 * time.Second,
	pause: 500 * time.Millisecond, maxPause: 5 * time.Second,
	renew: time.Second, maxRenew: time.Minute,
}

// CredentialOptions says where credentials come from.
type CredentialOptions struct {
	// Type is default (also when empty), access_key, sts, ram_role_arn, ecs_ram_role,
	// oidc_role_arn, credentials_uri or profile.
	Type string

	// A key in files, for access_key and sts, and as the identity that ram_role_arn starts
	// from. The id is not secret and may be given directly. Surrounding white space in a
	// file does not count. Files that change are read again.
	AccessKeyID         string
	AccessKeyIDFile     string
	AccessKeySecretFile string
	SecurityTokenFile   string // sts; optional for ram_role_arn

	// For ram_role_arn, which starts from the default chain when no key is given, and for
	// oidc_role_arn. What is empty comes from the variables ALIBABA_CLOUD_ROLE_ARN,
	// ALIBABA_CLOUD_OIDC_PROVIDER_ARN and ALIBABA_CLOUD_OIDC_TOKEN_FILE.
	RoleARN         string
	RoleSessionName string
	SessionDuration time.Duration // at least 15m; zero means 1h
	Policy          string
	ExternalID      string
	STSEndpoint     string // host; empty: sts.aliyuncs.com, or as the environment says
	OIDCProviderARN string
	OIDCTokenFile   string

	// For ecs_ram_role.
	RoleName      string // empty: asked from the metadata service
	DisableIMDSv1 bool   // refuse the metadata service when it does not know sessions

	// For credentials_uri; empty: ALIBABA_CLOUD_CREDENTIALS_URI.
	URI string

	// For profile: a profile of the aliyun CLI. Empty: the current one of
	// ~/.aliyun/config.json, or as ALIBABA_CLOUD_PROFILE and ALIBABA_CLOUD_CONFIG_FILE say.
	Profile     string
	ProfileFile string

	// Logger hears of renewals and of a source that fails or is back. Nil discards.
	Logger *slog.Logger
}

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
	logger *slog.Logger
	pace   pace

	closed  chan struct{}
	running sync.WaitGroup

	mu        sync.Mutex
	fetch     fetcher // nil: open one; used by the flight alone
	flight    *flight // nil: the source is not being asked
	current   Credential
	have      bool
	renewedAt time.Time
	checkedAt time.Time
	lookedAt  time.Time
	seen      string // what files looked like when fetch was opened
	err       error  // of the last flight
	pause     time.Duration
	retryAt   time.Time
	renewedOn time.Time     // when the service last asked for a renewal
	renewGap  time.Duration // to the next that is granted
}

// flight is one question to the source.
type flight struct {
	done  chan struct{}
	fresh bool // it began with a new fetcher
}

// NewCredentials returns a source. It asks for nothing yet, and files need not exist: until a
// credential appears, calls fail with [upstream.ErrUnauthenticated]. An error names the
// option at fault. The caller calls [CredentialSource.Close] in the end.
func NewCredentials(o CredentialOptions) (*CredentialSource, error) {
	if o.Type == "" {
		o.Type = "default"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	open, files, err := newOpener(o)
	if err != nil {
		return nil, fmt.Errorf("credentials.%w", err)
	}
	return newCredentialSource(o.Type, open, files, o.Logger), nil
}

func newCredentialSource(kind string, open func() (fetcher, error), files []string, logger *slog.Logger) *CredentialSource {
	return &CredentialSource{kind: kind, open: open, files: files, logger: logger, pace: standardPace, closed: make(chan struct{})}
}

// Close waits until nobody asks the source any more, which its own timeouts bound, and makes
// it answer no more. It must be called once.
func (s *CredentialSource) Close() error {
	s.mu.Lock()
	close(s.closed)
	s.mu.Unlock()
	s.running.Wait()
	return nil
}

// Credential implements [CredentialProvider]. It blocks only while there is nothing to
// answer with yet, or after a long quiet time in which the credential may have run out.
func (s *CredentialSource) Credential(ctx context.Context) (Credential, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	changed := s.changedLocked(now)
	if !s.have {
		if s.err != nil && now.Before(s.retryAt) && !changed {
			return Credential{}, s.err
		}
		if err := s.waitLocked(ctx, s.askLocked(changed)); err != nil {
			return Credential{}, err
		}
		if !s.have {
			return Credential{}, s.err
		}
		return s.current, nil
	}
	age := now.Sub(s.checkedAt)
	if !changed && age < s.pace.check || s.err != nil && now.Before(s.retryAt) && !changed {
		return s.current, nil
	}
	f := s.askLocked(changed)
	if age >= s.pace.trust && s.err == nil {
		// The source has not failed, it was only not asked. When it does not answer now, the
		// service may still accept what we have.
		if err := s.waitLocked(ctx, f); err != nil {
			return Credential{}, err
		}
	}
	return s.current, nil
}

// Renew implements [CredentialProvider].
func (s *CredentialSource) Renew(ctx context.Context, refused Credential) (Credential, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.have && !s.current.same(refused) {
		return s.current, nil // somebody was faster
	}
	now := time.Now()
	if s.flight == nil || !s.flight.fresh {
		if now.Sub(s.renewedOn) < s.renewGap {
			return refused, nil
		}
		// An older flight may bring the refused credential once more.
		if err := s.waitLocked(ctx, s.flight); err != nil {
			return Credential{}, err
		}
		if s.have && !s.current.same(refused) {
			return s.current, nil
		}
		if s.renewedOn = now; now.Sub(s.renewedAt) < s.pace.maxRenew {
			s.renewGap = min(max(s.renewGap*2, s.pace.renew), s.pace.maxRenew)
		} else {
			s.renewGap = s.pace.renew
		}
	}
	if err := s.waitLocked(ctx, s.askLocked(true)); err != nil {
		return Credential{}, err
	}
	if !s.have {
		return Credential{}, s.err
	}
	return s.current, nil
}

// Status returns what may be shown.
func (s *CredentialSource) Status() CredentialStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := CredentialStatus{Type: s.kind, Source: s.current.Source, RenewedAt: s.renewedAt, CheckedAt: s.checkedAt, Expires: s.current.Expires}
	if s.err != nil {
		st.Err = s.err.Error()
	}
	return st
}

// waitLocked waits for f without the lock. A nil f is done.
func (s *CredentialSource) waitLocked(ctx context.Context, f *flight) error {
	if f == nil {
		return nil
	}
	s.mu.Unlock()
	defer s.mu.Lock()
	select {
	case <-f.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// askLocked joins the flight that is on its way or starts one. With fresh the fetcher is made
// anew and remembers nothing.
func (s *CredentialSource) askLocked(fresh bool) *flight {
	if s.flight != nil {
		return s.flight
	}
	f := &flight{done: make(chan struct{}), fresh: fresh || s.fetch == nil}
	select {
	case <-s.closed:
		s.err = sourceError(s.kind, "the source is closed", "")
		close(f.done)
		return f
	default:
	}
	s.flight = f
	fetch := s.fetch
	if f.fresh {
		fetch = nil
		s.seen = s.look()
	}
	s.running.Go(func() {
		used, c, err := s.ask(fetch)
		s.mu.Lock()
		defer s.mu.Unlock()
		defer close(f.done)
		s.flight = nil
		s.landLocked(used, c, err)
	})
	return f
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

// landLocked keeps what a flight brought. A fetcher that failed is not used again: the
// default chain would for ever ask the last of its members.
func (s *CredentialSource) landLocked(used fetcher, c Credential, err error) {
	now := time.Now()
	s.fetch = used
	if err != nil {
		if s.err == nil {
			s.logger.Warn("no credentials", "source", s.kind, "err", err, "hint", "they are tried again; check upstream.alibaba.credentials")
		}
		s.err = err
		s.pause = min(max(s.pause*2, s.pace.pause), s.pace.maxPause)
		s.retryAt = now.Add(s.pause)
		return
	}
	if !s.have || !s.current.same(c) {
		s.renewedAt = now
		s.logger.Info("credentials renewed", "source", c.Source)
	} else if s.err != nil {
		s.logger.Info("credentials are back", "source", c.Source)
	}
	s.current, s.have, s.checkedAt, s.err, s.pause = c, true, now, nil, 0
}

// changedLocked reports whether a file is not what it was when the fetcher was made.
func (s *CredentialSource) changedLocked(now time.Time) bool {
	if len(s.files) == 0 || now.Sub(s.lookedAt) < s.pace.look {
		return false
	}
	s.lookedAt = now
	return s.look() != s.seen
}

// look returns what tells one state of the files from another.
func (s *CredentialSource) look() string {
	var b strings.Builder
	for _, name := range s.files {
		if info, err := os.Stat(name); err == nil {
			fmt.Fprintf(&b, "%s %d %d\n", name, info.Size(), info.ModTime().UnixNano())
		}
	}
	return b.String()
}

// sourceError says in our own words what is wrong with a source and what to do.
func sourceError(kind, what, fix string) error {
	message := "no credentials from " + kind + ": " + what
	if fix != "" {
		message += "; " + fix
	}
	return &upstream.Error{Err: upstream.ErrUnauthenticated, Message: message}
}

// explain turns the error of a source into one of ours. The libraries quote configuration
// files and answers in theirs, so their text is looked at, for phrases and codes that are
// known, and never passed on.
func explain(kind string, err error) error {
	var known *upstream.Error
	if errors.As(err, &known) {
		return known
	}
	var path *os.PathError
	if errors.As(err, &path) {
		return sourceError(kind, path.Path+": "+plain(path.Err), "check the path and its permissions")
	}
	text := err.Error()
	for _, e := range explanations {
		if strings.Contains(text, e.phrase) {
			return sourceError(kind, e.what, e.fix)
		}
	}
	if said := plain(err); said != "the connection failed" {
		return sourceError(kind, said, fixes[kind])
	}
	return sourceError(kind, "the source gave no usable answer", fixes[kind])
}

// explanations are phrases of the libraries and of STS, the particular before the general.
var explanations = []struct{ phrase, what, fix string }{
	{"unable to get credentials from any of the providers in the chain", "neither environment, OIDC, CLI profile, ini profile, ECS metadata nor credentials URI gave any",
		"set one of them up, or name one type in the configuration"},
	{"EntityNotExist.Role", "STS knows no such role", "check the role ARN"},
	{"AuthenticationFail.OIDCToken", "STS refuses the OIDC token", "check that the identity provider of the role trusts this cluster"},
	{"NoPermission", "STS does not allow this identity to assume the role", "grant sts:AssumeRole and check the trust policy of the role"},
	{"InvalidAccessKeyId", "STS does not know the access key", "check the key that the role is assumed with"},
	{"SignatureDoesNotMatch", "STS refuses the signature", "check the access key secret"},
	{"InvalidSecurityToken", "STS refuses the security token", "renew the token that the role is assumed with"},
	{"Throttling", "STS throttles", "many agents ask at once; it will be asked again"},
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
	{"httpStatus: 404", "the metadata service knows no such role", "attach a RAM role to the instance, or check its name"},
	{"get role name failed", "the metadata service does not tell the role", "attach a RAM role to the instance"},
}

// fixes are what to look at when all that is known is that a source does not answer.
var fixes = map[string]string{
	"ecs_ram_role":    "check that this is an ECS instance with a RAM role and that 100.100.100.200 can be reached",
	"ram_role_arn":    "check that the STS endpoint can be reached and the role exists",
	"oidc_role_arn":   "check that the STS endpoint can be reached and the role trusts the OIDC provider",
	"credentials_uri": "check that the URI answers 200 with AccessKeyId, AccessKeySecret, SecurityToken and Expiration",
	"profile":         "check the profile with `aliyun configure list`",
}
