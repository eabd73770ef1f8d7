package agent

import (
	"cmp"
	"slices"
	"time"

	"secretagent/agent/child"
	"secretagent/agent/endpoint"
	"secretagent/cache"
	"secretagent/render"
	"secretagent/upstream"
	"secretagent/upstream/kms"
	"secretagent/upstream/kmsserver"
)

// maxStatusSecrets bounds how many secrets one status lists.
const maxStatusSecrets = 10_000

// hidden stands for a reason that may name secrets of others.
const hidden = "the log says why"

// Status is what GET /status and "secretagent status --output json" say about a running agent.
// It never holds a value or a token. Keys are only ever added. Times are RFC 3339, durations
// are seconds; what is unknown or does not apply is left out.
//
// A caller sees the secrets that it may read and the problems of these. Reasons that belong to
// a file, the application or a reload can name any secret: with endpoint.callers configured
// they are replaced by a hint at the log, unless the caller may read every secret that the
// agent knows of. Of the callers, and as who asked for a secret last, a caller sees itself
// alone, unless it is allowed every secret ("*").
type Status struct {
	Time          time.Time // of this status
	Version       string    // of the program
	StartedAt     time.Time
	UptimeSeconds float64
	Ready         bool               // as GET /ready says
	Problems      []endpoint.Problem // also those that do not stand against readiness

	Upstream       UpstreamStatus
	Secrets        []SecretStatus // declared, held, or refused lately; in order of their names
	SecretsOmitted int            `json:",omitzero"` // beyond 10000; declared ones come first
	Files          []FileStatus   // templates and sets, in order of the configuration
	Child          *ChildStatus   `json:",omitempty"` // of exec
	Callers        []CallerStatus // who may ask, in order of the configuration
	Listeners      []ListenerStatus
	Reload         *ReloadStatus `json:",omitempty"` // the last one
}

// UpstreamStatus says where secrets come from and how that goes: one of Local and Alibaba is
// there.
type UpstreamStatus struct {
	Kind    string         // local or alibaba
	Outage  string         `json:",omitzero"` // code of the failure while it as a whole is taken to be down
	Local   *LocalStatus   `json:",omitempty"`
	Alibaba *AlibabaStatus `json:",omitempty"`
}

// LocalStatus is what the built-in backend has done since the agent started.
type LocalStatus struct {
	Reads, Writes, Commits, Purged uint64
	WritesQueued, WritesQueueLimit int
}

// AlibabaStatus is the state of the client of Alibaba Cloud KMS.
type AlibabaStatus struct {
	Endpoint   string `json:",omitzero"` // the one that answered last
	Endpoints  []KMSEndpointStatus
	Credential CredentialStatus
	Breaker    BreakerStatus
	Budget     BudgetStatus
	InFlight   int       // attempts on their way
	CAExpires  time.Time `json:",omitzero"` // the first of the authorities in caFile
}

// KMSEndpointStatus is the health of one gateway.
type KMSEndpointStatus struct {
	Name          string
	Region        string    `json:",omitzero"`
	State         string    // ready, resting, or due: the next call probes it
	Failures      int       // in a row
	RestsUntil    time.Time `json:",omitzero"`
	LastSuccessAt time.Time `json:",omitzero"`
	LastFailure   string    `json:",omitzero"` // code
}

// CredentialStatus says what calls are signed with, without it.
type CredentialStatus struct {
	Type      string    // as configured
	Source    string    `json:",omitzero"` // what was used, such as default/oidc_role_arn
	RenewedAt time.Time `json:",omitzero"`
	CheckedAt time.Time `json:",omitzero"`
	Expires   time.Time `json:",omitzero"` // left out when it does not end, or when that is not known
	Error     string    `json:",omitzero"` // why the source gave nothing last time
}

// BreakerStatus is the state of the breaker: closed, open or half-open.
type BreakerStatus struct {
	State string
	Until time.Time `json:",omitzero"` // when an open breaker lets a probe through
}

// BudgetStatus is the call budget.
type BudgetStatus struct {
	CallsPerSecond    float64   // at present
	MaxCallsPerSecond float64   // as configured
	Calls             float64   // that may start at once; negative while some wait
	PausedUntil       time.Time `json:",omitzero"` // as the service asked
	Waiting           int       // attempts in line
	Waits             uint64    // attempts that had to wait, since the client was made
	WaitSeconds       float64   // all of them together
	Refused           uint64    // attempts whose turn would have come too late
}

// SecretStatus is what the agent knows about one secret, or one label or version of it.
type SecretStatus struct {
	Secret        string                  // as configuration and command line spell it: name or name:Label
	SecretName    upstream.SecretName     // the same in parts
	VersionStage  upstream.VersionStage   `json:",omitzero"`
	RequestedID   upstream.VersionID      `json:"RequestedVersionId,omitzero"` // of a lookup by version id
	VersionID     upstream.VersionID      `json:"VersionId,omitzero"`
	VersionStages []upstream.VersionStage `json:",omitempty"`

	Held        bool      // a value is there
	Fresh       bool      // and would be served without asking; otherwise it is stale or expired
	Declared    bool      // in the configuration
	ConfirmedAt time.Time `json:",omitzero"` // when the upstream said so last
	AgeSeconds  float64   `json:",omitzero"` // since then
	FreshUntil  time.Time `json:",omitzero"`
	NextRefresh time.Time `json:",omitzero"`
	Error       string    `json:",omitzero"` // code of the last call, if it failed
	ErrorAt     time.Time `json:",omitzero"`
	Failures    int       // in a row
	Subscribers int       // waiting clients, files and the application
	AskedBy     string    `json:",omitzero"` // the caller that was given it last over HTTP
	AskedAt     time.Time `json:",omitzero"` // to about a second, since the agent started

	History        []HistoryEvent `json:",omitempty"` // since the start, oldest first; at most 48, and none while nothing is worth telling
	HistoryDropped int            `json:",omitzero"`  // older events that had to make room
}

// FileStatus is the state of a rendered file, or of a set, whose path is a folder.
type FileStatus struct {
	Path       string
	Files      []string `json:",omitempty"` // of a set
	State      FileState
	Error      string          `json:",omitzero"`
	Failures   int             // in a row
	ChangedAt  time.Time       `json:",omitzero"` // by this process
	TriedAt    time.Time       `json:",omitzero"`
	NextTry    time.Time       `json:",omitzero"`
	Versions   []SecretVersion `json:",omitempty"` // what is published is made of these
	HookOwed   bool            // the hook has not succeeded since the last change
	HookFailed bool            // and its last run failed
	HookError  string          `json:",omitzero"`
}

// SecretVersion names a version of a secret.
type SecretVersion struct {
	SecretName upstream.SecretName
	VersionID  upstream.VersionID `json:"VersionId"`
}

// ChildStatus is the state of the supervised application.
type ChildStatus struct {
	Command   string      // the program, without arguments
	State     child.State // waiting, running or ended
	PID       int         `json:",omitzero"`
	StartedAt time.Time   `json:",omitzero"`
	Restarts  int         // because of changes
	Signals   int         // sent because of changes
	Outdated  bool        // it runs with other values than the current ones
	ChangedAt time.Time   `json:",omitzero"`
	Failing   bool
	Error     string    `json:",omitzero"` // the last one
	ErrorAt   time.Time `json:",omitzero"`
	ExitCode  int       `json:",omitzero"`
}

// CallerStatus is what one caller of the endpoint has done since the agent started.
type CallerStatus struct {
	Name          string    // of endpoint.callers; token-holder where none are configured
	LastSeen      time.Time `json:",omitzero"` // to about a second; left out: not yet
	Lookups       uint64    // values answered, and answers that a value is still the same
	Refusals      uint64
	Connections   int       // open, waiting ones included
	OldTokenUntil time.Time `json:",omitzero"` // when the token that it had before a reload ends
}

// ListenerStatus is an address where the agent answers.
type ListenerStatus struct {
	Serves             string // endpoint or kms-api
	Network            string // tcp or unix
	Address            string // host:port or path
	TLS                bool
	CertificateExpires time.Time `json:",omitzero"`
	ClientCAExpires    time.Time `json:",omitzero"` // the first of the authorities that clients need
	Signed             bool      // calls of the KMS API need a signature
}

// FileState is where a rendered file stands.
type FileState = render.State

// The states of a file that need a word; in the other one it is in order.
const (
	FilePending = render.Pending // not rendered yet
	FileFailed  = render.Failed  // the last attempt failed; what was published stays
	FileRemoved = render.Removed // deleted, because a secret it needs was deleted
)

// ReloadStatus is how the last reload of the configuration ended.
type ReloadStatus struct {
	At     time.Time
	Failed bool   // the agent goes on with what it had
	Error  string `json:",omitzero"`
}

// status describes the agent to a caller.
func (a *Agent) status(viewer endpoint.Viewer) any {
	may := viewer.May
	now := time.Now()
	entries := a.cache.Entries()
	files := a.renderer().Status()
	reason := func(text string) string { return text }
	if len(a.config().Endpoint.Callers) > 0 && !mayReadAll(may, entries, files) {
		reason = func(text string) string {
			if text == "" {
				return ""
			}
			return hidden
		}
	}
	s := Status{
		Time: now, Version: a.deps.Version,
		StartedAt: a.began, UptimeSeconds: now.Sub(a.began).Seconds(),
		Upstream:  a.upstreamStatus(),
		Files:     []FileStatus{},
		Problems:  []endpoint.Problem{},
		Callers:   a.callerStatus(viewer),
		Listeners: a.listenerStatus(),
		Reload:    a.reloadStatus(reason),
	}
	ready := a.readiness()
	s.Ready = ready.Ready
	for _, p := range ready.Problems {
		if p.SecretName == "" || may(p.SecretName) {
			s.Problems = append(s.Problems, p)
		}
	}
	s.Secrets, s.SecretsOmitted = secretStatus(entries, viewer, now)
	for _, f := range files {
		s.Files = append(s.Files, fileStatus(f, may, reason))
	}
	if a.child != nil {
		c := a.child.Status()
		s.Child = &ChildStatus{
			Command: c.Command, State: c.State, PID: c.PID, StartedAt: c.StartedAt, Restarts: c.Restarts, Signals: c.Signals,
			Outdated: c.Outdated, ChangedAt: c.ChangedAt, Failing: c.Failing, Error: reason(c.Error), ErrorAt: c.ErrorAt,
			ExitCode: c.ExitCode,
		}
	}
	return s
}

// mayReadAll reports whether may is true for everything that a reason could name: files and the
// application subscribe to what they read, so that it is among the entries.
func mayReadAll(may func(upstream.SecretName) bool, entries []cache.EntryStatus, files []render.TargetStatus) bool {
	for _, e := range entries {
		if !may(e.Ref.SecretName) {
			return false
		}
	}
	for _, f := range files {
		for _, v := range f.Versions {
			if !may(v.SecretName) {
				return false
			}
		}
	}
	return true
}

// secretStatus returns what may be shown of entries, and how many of these are too many.
func secretStatus(entries []cache.EntryStatus, viewer endpoint.Viewer, now time.Time) (list []SecretStatus, omitted int) {
	entries = slices.DeleteFunc(entries, func(e cache.EntryStatus) bool { return !viewer.May(e.Ref.SecretName) })
	if omitted = max(0, len(entries)-maxStatusSecrets); omitted > 0 {
		slices.SortStableFunc(entries, func(a, b cache.EntryStatus) int { // declared first
			return cmp.Compare(boolean(b.Pinned), boolean(a.Pinned))
		})
		entries = entries[:maxStatusSecrets]
		slices.SortStableFunc(entries, func(a, b cache.EntryStatus) int { return cmp.Compare(a.Ref.SecretName, b.Ref.SecretName) })
	}
	list = make([]SecretStatus, 0, len(entries))
	for _, e := range entries {
		s := SecretStatus{
			Secret: e.Ref.String(), SecretName: e.Ref.SecretName, VersionStage: e.Ref.VersionStage, RequestedID: e.Ref.VersionID,
			VersionID: e.VersionID, VersionStages: e.VersionStages,
			Held: e.VersionID != "", Fresh: e.Fresh && e.VersionID != "", Declared: e.Pinned,
			ConfirmedAt: e.FetchedAt, NextRefresh: e.NextRefresh,
			Error: e.LastError, ErrorAt: e.LastErrorAt, Failures: e.Failures, Subscribers: e.Subscribers, AskedAt: e.AskedAt,
			History: historyOf(e.History), HistoryDropped: e.HistoryDropped,
		}
		if viewer.All || e.AskedBy == viewer.Caller {
			s.AskedBy = e.AskedBy
		}
		if s.Fresh {
			s.FreshUntil = e.FreshUntil
		}
		if !e.FetchedAt.IsZero() {
			s.AgeSeconds = max(0, now.Sub(e.FetchedAt).Seconds())
		}
		list = append(list, s)
	}
	return list, omitted
}

func fileStatus(f render.TargetStatus, may func(upstream.SecretName) bool, reason func(string) string) FileStatus {
	s := FileStatus{
		Path: f.Name, State: f.State, Error: reason(f.Error), Failures: f.Failures,
		ChangedAt: f.LastChange, TriedAt: f.LastTry, NextTry: f.NextTry,
		HookOwed: f.HookOwed, HookFailed: f.HookError != "", HookError: reason(f.HookError),
	}
	if len(f.Files) != 1 || f.Files[0] != f.Name {
		s.Files = f.Files
	}
	for _, v := range f.Versions {
		if may(v.SecretName) {
			s.Versions = append(s.Versions, SecretVersion(v))
		}
	}
	return s
}

func (a *Agent) upstreamStatus() UpstreamStatus {
	s := UpstreamStatus{Kind: kindOf(&a.config().Upstream).name(), Outage: a.cache.Stats().Outage}
	a.backend.status(&s)
	return s
}

func alibabaStatus(st kms.Status) *AlibabaStatus {
	s := &AlibabaStatus{
		Endpoint: st.Endpoint,
		Credential: CredentialStatus{
			Type: st.Credential.Type, Source: st.Credential.Source,
			RenewedAt: st.Credential.RenewedAt, CheckedAt: st.Credential.CheckedAt, Expires: st.Credential.Expires, Error: st.Credential.Err,
		},
		Breaker: BreakerStatus{State: st.Breaker.State, Until: st.Breaker.Until},
		Budget: BudgetStatus{
			CallsPerSecond: st.Budget.PerSecond, MaxCallsPerSecond: st.Budget.Max,
			Calls: st.Budget.Tokens, PausedUntil: st.Budget.PausedUntil,
			Waiting: st.Budget.Waiting, Waits: st.Budget.Waits, WaitSeconds: st.Budget.Waited.Seconds(), Refused: st.Budget.Refused,
		},
		InFlight: st.InFlight,
	}
	for _, e := range st.Endpoints {
		s.Endpoints = append(s.Endpoints, KMSEndpointStatus{
			Name: e.Name, Region: e.Region, State: e.State, Failures: e.Failures,
			RestsUntil: e.RestsUntil, LastSuccessAt: e.LastSuccess, LastFailure: e.LastFailure,
		})
	}
	return s
}

// callerStatus returns what viewer may know of the callers.
func (a *Agent) callerStatus(viewer endpoint.Viewer) []CallerStatus {
	list := []CallerStatus{}
	for _, c := range a.endpoint.Callers() {
		if viewer.All || c.Name == viewer.Caller {
			list = append(list, CallerStatus(c))
		}
	}
	return list
}

func (a *Agent) listenerStatus() []ListenerStatus {
	list := []ListenerStatus{}
	for _, ln := range a.live.Load().serving {
		own, clients := expiryOf(ln.TLS())
		list = append(list, ListenerStatus{
			Serves: "endpoint", Network: ln.Addr().Network(), Address: ln.Addr().String(),
			TLS: ln.Secure(), CertificateExpires: own, ClientCAExpires: clients,
		})
	}
	for _, ln := range a.apiListeners {
		own, clients := expiryOf(ln.TLS())
		list = append(list, ListenerStatus{
			Serves: "kms-api", Network: ln.Addr().Network(), Address: ln.Addr().String(), Signed: ln.access == kmsserver.Signed,
			TLS: ln.Secure(), CertificateExpires: own, ClientCAExpires: clients,
		})
	}
	return list
}

func (a *Agent) reloadStatus(reason func(string) string) *ReloadStatus {
	a.reload.mu.Lock()
	defer a.reload.mu.Unlock()
	if a.reload.last.IsZero() {
		return nil
	}
	s := &ReloadStatus{At: a.reload.last, Failed: a.reload.err != nil}
	if a.reload.err != nil {
		s.Error = reason(a.reload.err.Error())
	}
	return s
}
