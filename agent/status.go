package agent

import (
	"cmp"
	"os"
	"slices"
	"time"

	"secretagent/agent/child"
	"secretagent/agent/endpoint"
	"secretagent/cache"
	"secretagent/render"
	"secretagent/upstream"
	"secretagent/upstream/builtin/bolt"
	"secretagent/upstream/builtin/etcd"
	"secretagent/upstream/kms"
)

// maxStatusSecrets bounds how many secrets one status lists.
const maxStatusSecrets = 10_000

// Status is what GET /status and "secretagent status --output json" say about a running agent.
// It never holds a value or a token. Keys are only ever added. Times are RFC 3339, durations
// are seconds; what is unknown or does not apply is left out.
//
// A caller with the right status sees everything. Another one sees the secrets that it may read,
// the files that are made of these alone, and the problems of both. Reasons that belong to a file,
// the application or a reload can name any secret: they are replaced by a hint at the log. For a
// caller that may read every secret that the agent knows of, none of this is left out. Of the
// callers, and as who asked for a secret last, a caller without the right sees itself alone.
type Status struct {
	Time          time.Time // of this status
	Version       string    // of the program
	PID           int       `json:",omitzero"` // of the agent, on this host; as Host and Config for those who may see everything
	Host          string    `json:",omitzero"`
	Config        string    `json:",omitzero"` // path of the configuration
	StartedAt     time.Time
	UptimeSeconds float64
	Ready         bool               // as GET /ready says
	Problems      []endpoint.Problem // also those that do not stand against readiness

	Upstream       UpstreamStatus
	Secrets        []SecretStatus   // declared, held, or refused lately; in order of their names
	SecretsOmitted int              `json:",omitzero"` // beyond 10000; declared ones come first
	SecretsUnnamed int              `json:",omitzero"` // that only templates ask for which compute the name: it may be a secret
	Files          []FileStatus     // templates and sets, in order of the configuration
	Child          *ChildStatus     `json:",omitempty"` // of exec
	Rotations      []RotationStatus `json:",omitempty"` // of the secrets that the caller may read, in order of the configuration
	Callers        []CallerStatus   // who may ask, in order of the configuration
	TokenFrom      string           `json:",omitzero"` // the variable of the environment that the token comes from, and its file
	Listeners      []ListenerStatus
	Reload         *ReloadStatus `json:",omitempty"` // the last one
}

// UpstreamStatus says where secrets come from and how that goes: one of Local, Etcd and Alibaba
// is there.
type UpstreamStatus struct {
	Kind    string         // local, etcd or alibaba
	Outage  string         `json:",omitzero"` // code of the failure while it as a whole is taken to be down
	Cause   string         `json:",omitzero"` // the same in words
	Local   *LocalStatus   `json:",omitempty"`
	Etcd    *EtcdStatus    `json:",omitempty"`
	Alibaba *AlibabaStatus `json:",omitempty"`
}

// AlibabaStatus is the state of the client of Alibaba Cloud KMS.
type AlibabaStatus struct {
	kms.Status
	CAExpires time.Time `json:",omitzero"` // the first of the authorities in caFile
}

// Parts that describe themselves.
type (
	EtcdStatus   = etcd.Stats          // of the built-in backend on etcd, since the agent started
	LocalStatus  = bolt.Stats          // of the built-in backend, since the agent started
	FileStatus   = render.TargetStatus // of a rendered file, or of a set, whose path is a folder
	ChildStatus  = child.Status        // of the supervised application
	CallerStatus = endpoint.CallerStats
	HistoryEvent = cache.Event

	// SecretVersion names a version of a secret.
	SecretVersion = render.SecretVersion
)

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
	ServedUntil time.Time `json:",omitzero"` // unless the upstream answers before; there only while it does not
	NextRefresh time.Time `json:",omitzero"`
	Error       string    `json:",omitzero"` // code of the last call, if it failed
	Cause       string    `json:",omitzero"` // the same in words
	ErrorAt     time.Time `json:",omitzero"`
	Failures    int       // in a row
	Subscribers int       // waiting clients, files and the application
	AskedBy     string    `json:",omitzero"` // the caller that was given it last over HTTP
	AskedAt     time.Time `json:",omitzero"` // to about a second, since the agent started

	History        []HistoryEvent `json:",omitempty"` // since the start, oldest first; at most 48, and none while nothing is worth telling
	HistoryDropped int            `json:",omitzero"`  // older events that had to make room
}

// ListenerStatus is an address where the agent answers.
type ListenerStatus struct {
	Serves             string // endpoint, systemd (credentials for services), metrics or kms-api
	Network            string // tcp or unix
	Address            string // host:port or path
	TLS                bool
	CertificateExpires time.Time `json:",omitzero"`
	ClientCAExpires    time.Time `json:",omitzero"` // the first of the authorities that clients need
	Signed             bool      // calls of the KMS API need a signature
	Token              bool      `json:",omitzero"` // the metrics need a token
}

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
	files, ready := a.renderer().Status(), a.readiness()
	entries := a.cache.Entries() // last: what a reason names is among them
	reader := viewer
	reader.All = viewer.All || mayReadAll(may, entries, files)
	files = slices.DeleteFunc(files, func(f FileStatus) bool { return !seesFile(reader, f) }) // by all names, also those that are not shown
	entries, unnamed := namedOnly(entries, files, may)
	reason := func(text string) string {
		if !reader.All && text != "" {
			return endpoint.HiddenReason
		}
		return text
	}
	s := Status{
		Time: now, Version: a.deps.Version,
		StartedAt: a.began, UptimeSeconds: now.Sub(a.began).Seconds(),
		Upstream:  a.upstreamStatus(),
		Files:     files,
		Callers:   a.callerStatus(viewer),
		Listeners: a.listenerStatus(),
		Reload:    a.reloadStatus(reason),
		Rotations: a.rotationStatus(viewer, reason),

		SecretsUnnamed: unnamed,
	}
	ready = ready.For(reader)
	s.Ready, s.Problems = ready.Ready, ready.Problems
	s.Secrets, s.SecretsOmitted = secretStatus(entries, viewer)
	for i, f := range s.Files {
		s.Files[i].Error, s.Files[i].HookError = reason(f.Error), reason(f.HookError)
	}
	if reader.All {
		s.PID, s.Config = os.Getpid(), a.config().File()
		s.Host, _ = os.Hostname()
		s.TokenFrom = TokenSource(&a.config().Endpoint)
	}
	if a.child != nil {
		c := a.child.Status()
		c.Error = reason(c.Error)
		s.Child = &c
	}
	return s
}

// namedOnly takes the names out of entries and files that templates have computed and nobody else
// knows, and returns how many of these may is true for.
func namedOnly(entries []cache.EntryStatus, files []FileStatus, may func(upstream.SecretName) bool) (named []cache.EntryStatus, unnamed int) {
	known := map[upstream.SecretName]bool{}
	named = slices.DeleteFunc(entries, func(e cache.EntryStatus) bool {
		if e.Ref.Computed && may(e.Ref.SecretName) {
			unnamed++
		}
		known[e.Ref.SecretName] = known[e.Ref.SecretName] || !e.Ref.Computed
		return e.Ref.Computed
	})
	for i := range files {
		files[i].Versions = slices.DeleteFunc(files[i].Versions, func(v SecretVersion) bool { return v.Computed && !known[v.SecretName] })
	}
	return named, unnamed
}

// mayReadAll reports whether may is true for everything that a reason could name: files and the
// application subscribe to what they read, so that it is among the entries.
func mayReadAll(may func(upstream.SecretName) bool, entries []cache.EntryStatus, files []FileStatus) bool {
	others := func(name upstream.SecretName) bool { return !may(name) }
	return !slices.ContainsFunc(entries, func(e cache.EntryStatus) bool { return others(e.Ref.SecretName) }) &&
		!slices.ContainsFunc(files, func(f FileStatus) bool { return slices.ContainsFunc(secretsOf(f), others) })
}

// secretsOf returns what a file that was published is made of; none before that.
func secretsOf(f FileStatus) (names []upstream.SecretName) {
	for _, v := range f.Versions {
		names = append(names, v.SecretName)
	}
	return names
}

// seesFile reports whether v may know of a file: it is made of nothing but what v may see.
func seesFile(v endpoint.Viewer, f FileStatus) bool {
	secrets := secretsOf(f)
	return v.All || len(secrets) > 0 && v.MayAll(secrets)
}

// secretStatus returns what may be shown of entries, and how many of these are too many.
func secretStatus(entries []cache.EntryStatus, viewer endpoint.Viewer) (list []SecretStatus, omitted int) {
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
			ConfirmedAt: e.FetchedAt, AgeSeconds: e.Age.Seconds(), NextRefresh: e.NextRefresh,
			Error: e.LastError, Cause: e.LastCause, ErrorAt: e.LastErrorAt, Failures: e.Failures, Subscribers: e.Subscribers, AskedAt: e.AskedAt,
			History: e.History, HistoryDropped: e.HistoryDropped,
		}
		if viewer.All || e.AskedBy == viewer.Caller {
			s.AskedBy = e.AskedBy
		}
		if s.Fresh {
			s.FreshUntil = e.FreshUntil
		}
		if s.Held {
			s.ServedUntil = e.ServedUntil
		}
		list = append(list, s)
	}
	return list, omitted
}

func (a *Agent) upstreamStatus() UpstreamStatus {
	stats := a.cache.Stats()
	s := UpstreamStatus{Kind: kindOf(&a.config().Upstream).name(), Outage: stats.Outage, Cause: stats.OutageCause}
	a.backend.status(&s)
	return s
}

// callerStatus returns what viewer may know of the callers.
func (a *Agent) callerStatus(viewer endpoint.Viewer) []CallerStatus {
	return slices.DeleteFunc(a.endpoint.Callers(), func(c CallerStatus) bool { return !viewer.All && c.Name != viewer.Caller })
}

func (a *Agent) listenerStatus() []ListenerStatus {
	list := []ListenerStatus{}
	for _, ln := range a.listeners() {
		own, clients := ln.expiry()
		list = append(list, ListenerStatus{
			Serves: ln.part, Network: ln.Addr().Network(), Address: ln.Addr().String(), Signed: ln.signed(),
			TLS: ln.Secure(), CertificateExpires: own, ClientCAExpires: clients,
			Token: ln.part == partMetrics && len(a.live.Load().scrapers) > 0,
		})
	}
	return list
}

func (a *Agent) reloadStatus(reason func(string) string) *ReloadStatus {
	reloads := a.reload.get()
	if reloads.last.IsZero() {
		return nil
	}
	s := &ReloadStatus{At: reloads.last, Failed: reloads.err != nil}
	if reloads.err != nil {
		s.Error = reason(reloads.err.Error())
	}
	return s
}
