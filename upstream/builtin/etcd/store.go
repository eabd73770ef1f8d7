package etcd

import (
	"cmp"
	"context"
	"log/slog"
	"net/url"
	"strings"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/builtin"
	"secretagent/upstream/keyfile"
)

// Options says which cluster a [Store] uses and what for. Endpoints, Prefix and Keyring are required.
type Options struct {
	builtin.Options // of the Keyring, which is never made here: all agents have the same

	// Endpoints are the URLs of the members, all of them https, or all http on a loopback address.
	Endpoints []string

	// Prefix begins the name of every key at etcd that is read or written, and ends with a slash.
	Prefix string

	// CAFile has the certificates, in PEM, that the members are verified with; empty: those of the
	// system. CertFile and KeyFile, both or none, are what the agent shows.
	CAFile, CertFile, KeyFile string

	// User and the file of its password, both or none.
	User, PasswordFile string

	// Timeout bounds each request; zero means 5 s.
	Timeout time.Duration

	// pulse is how often the watch must give a sign of life; zero means 5 s, or Timeout where that is less.
	pulse time.Duration
}

// Validate checks everything that [Open] checks, and returns [upstream.OptionErrors] with keys below
// upstream.etcd. It reads files, and asks nobody.
func (o Options) Validate() error {
	var problems upstream.OptionErrors
	if len(o.Endpoints) == 0 {
		problems.Addf("endpoints", "", "must be set: the URLs of the members of the cluster")
	}
	for _, e := range o.Endpoints {
		u, err := url.Parse(e)
		switch {
		case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || strings.Trim(u.Path, "/") != "" || u.User != nil || u.RawQuery != "":
			problems.Addf("endpoints", "", "each must be a URL such as https://etcd-0:2379")
		case u.Scheme == "http" && !loopback(u.Hostname()):
			problems.Addf("endpoints", e, "must be https: only a loopback address may do without TLS")
		case !strings.HasPrefix(o.Endpoints[0], u.Scheme+"://"):
			problems.Addf("endpoints", e, "must have the scheme of the first one")
		}
	}
	if o.Prefix == "" || !strings.HasSuffix(o.Prefix, "/") || strings.ContainsFunc(o.Prefix, func(r rune) bool { return r <= ' ' || r > '~' }) || len(o.Prefix) > 256 {
		problems.Addf("prefix", o.Prefix, "must have 1 to 256 printable ASCII characters and end with a slash, such as /secretagent/prod/")
	}
	for s := builtin.Records; s < builtin.Spaces; s++ {
		if strings.Contains(o.Prefix, "/"+s.String()+"/") {
			problems.Addf("prefix", o.Prefix, "must have no part %q: that is where the keys of a prefix above it are", s)
		}
	}
	if (o.CertFile == "") != (o.KeyFile == "") {
		problems.Addf("tls", "", "certFile and keyFile belong together: set both or none")
	}
	if (o.User == "") != (o.PasswordFile == "") {
		problems.Addf("user", o.User, "user and passwordFile belong together: set both or none")
	}
	if len(problems) == 0 {
		o.validateFiles(&problems)
	}
	problems.Add("", o.Options.Validate())
	return problems.Err()
}

func (o *Options) validateFiles(problems *upstream.OptionErrors) {
	if _, err := o.tls(); err != nil {
		problems.Add("", err)
	}
	if o.CertFile != "" {
		if _, err := o.certificate(); err != nil {
			problems.Add("", err)
		}
	}
	if o.PasswordFile != "" {
		if _, err := o.password(); err != nil {
			problems.Add("", err)
		}
	}
	if _, err := keyfile.ReadKeyring(o.Keyring, o.KeyringIsCredential); err != nil && o.Keyring != "" {
		problems.Add("keyring", err)
	}
}

func loopback(host string) bool {
	return host == "localhost" || host == "::1" || strings.HasPrefix(host, "127.")
}

// Store is a [builtin.Store] on a cluster. Make one with [Open]; all methods are safe for
// concurrent use.
type Store struct {
	*builtin.Store
	db *db
}

var _ upstream.Manager = (*Store)(nil)

// Open begins to follow what the cluster holds under the prefix. It does not wait for the cluster, which
// need not be there: calls report [upstream.ErrUnavailable] until it is. The caller closes the [Store].
func Open(opts Options) (*Store, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	opts.Timeout = cmp.Or(opts.Timeout, 5*time.Second)
	opts.pulse = cmp.Or(opts.pulse, min(5*time.Second, opts.Timeout))
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	db := newDB(opts)
	rules, err := builtin.Open(db, opts.Options)
	if err != nil {
		return nil, err
	}
	db.start()
	return &Store{rules, db}, nil
}

// ReadKeyring is that of [builtin.Store]; after commit, everything is read anew where something could not be.
func (s *Store) ReadKeyring(ctx context.Context) (commit func(), err error) {
	use, err := s.Store.ReadKeyring(ctx)
	if err != nil {
		return nil, err
	}
	return func() {
		use()
		if s.Unreadable() == 0 {
			return
		}
		select {
		case s.db.again <- struct{}{}:
		default: // it is about to
		}
	}, nil
}

// Stats is a snapshot of what a [Store] has done since it was opened, and of its watch.
type Stats struct {
	Writes    uint64 // write operations that were executed, refused ones included
	Commits   uint64 // transactions that have changed something
	Conflicts uint64 // transactions that others were faster than, and that were repeated
	Purged    uint64 // secrets that this agent has removed after their deletion window

	WatchUp      bool      // changes are told at once; otherwise they are found when values are refreshed
	WatchSince   time.Time // since when that is so
	WatchAlive   time.Time // when etcd gave the last sign of life on it, or the store was opened
	WatchCause   string    `json:",omitempty"` // why it is not up
	WatchBreaks  uint64    // times that it broke
	WatchResyncs uint64    // times that everything was read anew, the first one included

	Unreadable int // secrets that the keyring lacks the key of
	Keys       builtin.KeyState
}

// Stats returns counters for metrics and status.
func (s *Store) Stats() Stats {
	w := s.db.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	return Stats{
		Writes: s.db.writes.Load(), Commits: s.db.commits.Load(), Conflicts: s.db.conflicts.Load(), Purged: s.Purged(),
		WatchUp: w.up, WatchSince: w.since, WatchAlive: w.alive, WatchCause: w.cause, WatchBreaks: w.breaks, WatchResyncs: w.resyncs,
		Unreadable: s.Unreadable(), Keys: s.KeyState(),
	}
}
