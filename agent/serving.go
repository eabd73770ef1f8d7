package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"secretagent/agent/config"
	"secretagent/agent/credentials"
	"secretagent/agent/endpoint"
	"secretagent/agent/lines"
	"secretagent/agent/listen"
	"secretagent/upstream"
	"secretagent/upstream/keyfile"
	"secretagent/upstream/kmsserver"
)

// endpointOptions turns the configuration into that of the endpoint, without what the agent
// adds.
func endpointOptions(cfg *config.Endpoint, callers []endpoint.Caller) endpoint.Options {
	return endpoint.Options{
		Callers:        callers,
		TokenHeaders:   cfg.Headers,
		PathPrefix:     cfg.PathPrefix,
		Format:         formatOf(cfg.Format),
		VaultMounts:    vaultMounts(cfg.VaultMounts),
		AllowedHosts:   cfg.AllowedHosts,
		MaxConnections: cfg.MaxConnections,
		MaxWaiters:     cfg.MaxWaiting,
		MaxHeaderBytes: int(cfg.MaxHeaderBytes),
		MaxBatch:       cfg.MaxBatch,
		MaxWait:        cfg.MaxWait,

		MaxRequestsPerConnection: cfg.MaxRequests,

		RequestTimeout: cfg.RequestTimeout,
		LookupTimeout:  cfg.LookupTimeout,
		IdleTimeout:    cfg.IdleTimeout,
		StatusPage:     cfg.StatusPage,
	}
}

// formatOf returns the format of a name that config allows; zero for none.
func formatOf(name string) endpoint.Format {
	f, _ := endpoint.ParseFormat(name)
	return f
}

func vaultMounts(configured []config.VaultMount) []endpoint.VaultMount {
	var mounts []endpoint.VaultMount
	for _, m := range configured {
		mounts = append(mounts, endpoint.VaultMount{Path: m.Name, Version: m.Version})
	}
	return mounts
}

// declared returns the names of the declared secrets.
func (a *Agent) declared() []upstream.SecretName {
	var names []upstream.SecretName
	for _, s := range a.config().Secrets {
		names = append(names, s.Name.SecretName)
	}
	return names
}

// newEndpoint makes the endpoint.
func (a *Agent) newEndpoint(cfg *config.Config, callers []endpoint.Caller) (*endpoint.Server, error) {
	opts := endpointOptions(&cfg.Endpoint, callers)
	opts.MaxBatchBytes = batchBytes()
	opts.MaxClients = maxClients(cfg, maxOpenFiles(), a.log)
	opts.Reload = a.Reload
	opts.Ready, opts.Status, opts.Metrics, opts.Declared = a.readiness, a.status, a.writeMetrics, a.declared
	opts.Observe, opts.Logger = a.metrics.observeLookup, a.log.With("part", "endpoint")
	if a.audit != nil {
		opts.Audit = endpoint.NewAuditLog(a.audit, cfg.Endpoint.Audit.Sample)
	}
	if a.backend.manager() != nil {
		opts.Versions = a.versions
	}
	srv, err := endpoint.New(a.cache, opts)
	return srv, inSection("endpoint", err)
}

func tlsFiles(cfg *config.TLS) listen.TLSFiles {
	if cfg == nil {
		return listen.TLSFiles{}
	}
	return listen.TLSFiles{CertFile: string(cfg.CertFile), KeyFile: string(cfg.KeyFile), ClientCAFile: string(cfg.ClientCAFile)}
}

// endpointListeners returns what the endpoint listens on: TCP first, then the unix socket.
func endpointListeners(cfg *config.Endpoint) []listen.Options {
	var list []listen.Options
	if cfg.Listen != "" {
		list = append(list, listen.TCPOptions{Address: cfg.Listen, AllowNonLoopback: cfg.AllowNonLoopback, TLS: tlsFiles(cfg.TLS)})
	}
	if cfg.Socket != "" {
		list = append(list, listen.UnixOptions{
			Path: string(cfg.Socket), FolderMode: 0o755,
			Mode: cfg.SocketMode.Perm(), User: string(cfg.SocketUser), Group: string(cfg.SocketGroup),
		})
	}
	return list
}

// sectionCredentials is where agent.yaml says which services get what.
const sectionCredentials = "endpoint.credentials"

// unitCredentialListeners returns what the credentials are given on.
func unitCredentialListeners(cfg *config.UnitCredentials) []listen.Options {
	if cfg == nil {
		return nil
	}
	return []listen.Options{listen.UnixOptions{Path: string(cfg.Socket), FolderMode: 0o755}}
}

// unitCredentialOptions turns the configuration into that of the credentials, without what the agent
// adds. Without a section nobody gets any.
func unitCredentialOptions(cfg *config.UnitCredentials) (opts credentials.Options) {
	if cfg == nil {
		return opts
	}
	opts.MaxWait = cfg.MaxWait
	for _, name := range slices.Sorted(maps.Keys(cfg.Units)) {
		unit := credentials.Unit{Name: name}
		for _, s := range cfg.Units[name] {
			unit.Secrets = append(unit.Secrets, credentials.Secret{Credential: s.Credential, Name: s.Secret})
		}
		opts.Units = append(opts.Units, unit)
	}
	return opts
}

// newCredentials makes the server of the credentials.
func (a *Agent) newCredentials(cfg *config.Config) (*credentials.Server, error) {
	opts := unitCredentialOptions(cfg.Endpoint.Credentials)
	opts.Logger = a.log.With("part", partCredentials)
	if a.audit != nil {
		opts.Audit = a.audit
	}
	srv, err := credentials.New(a.cache, opts)
	return srv, inSection(sectionCredentials, err)
}

// apiListeners returns what the KMS API listens on: the unix socket first, then TCP.
func apiListeners(cfg *config.API) []listen.Options {
	var list []listen.Options
	if cfg.Socket != "" {
		list = append(list, listen.UnixOptions{Path: string(cfg.Socket)})
	}
	if cfg.Listen != "" {
		list = append(list, listen.TCPOptions{Address: cfg.Listen, AllowNonLoopback: true, TLS: tlsFiles(cfg.TLS)})
	}
	return list
}

// The parts of the agent that answer, as the log and the status call them.
const (
	partEndpoint    = "endpoint"
	partCredentials = "systemd"
	partAPI         = "kms-api"
	partMetrics     = "metrics"
)

// listener is where a part of the agent answers.
type listener struct {
	*listen.Listener
	part    string
	access  kmsserver.Access // for the KMS API: who may call over it
	retired atomic.Bool      // closed on purpose, because the configuration changed
}

// serve answers on a listener of [live.serving] until the server is shut down or the listener
// retired.
func (a *Agent) serve(l *listener) (err error) {
	switch l.part {
	case partCredentials:
		err = a.credentials.Serve(l.Listener)
	case partMetrics:
		err = ignore(a.monitor.Serve(l.Listener), endpoint.ErrServerClosed)
	default:
		err = ignore(a.endpoint.Serve(l.Listener), endpoint.ErrServerClosed)
	}
	if l.retired.Load() {
		return nil
	}
	return err
}

// close closes the listener unless its server already has.
func (l *listener) close() error { return ignore(l.Close(), net.ErrClosed) }

// retire stops accepting. Connections that are open stay, but for those that rest on the certificate
// of a client.
func (l *listener) retire() error {
	l.retired.Store(true)
	if t := l.TLS(); t != nil { // nobody reads its files from now on
		defer t.EndClients()
	}
	return l.close()
}

// announce tells the log where the part answers.
func (l *listener) announce(log *slog.Logger) {
	network, address := l.Addr().Network(), l.Addr().String()
	if l.part == partAPI {
		log.Info("serving the KMS API", "network", network, "address", address, "signed", l.signed())
	} else {
		log.Info("serving", "part", l.part, "network", network, "address", address)
	}
}

// signed reports whether calls of the KMS API need a signature.
func (l *listener) signed() bool { return l.part == partAPI && l.access == kmsserver.Signed }

// expiry returns when certificate and client authorities end; zero without.
func (l *listener) expiry() (own, clients time.Time) {
	if t := l.TLS(); t != nil {
		return t.Expiry()
	}
	return own, clients
}

// listenServing returns the listeners of the endpoint, the credentials and the metrics, in this
// order. Those of open that are still wanted are kept.
func (a *Agent) listenServing(cfg *config.Config, open []*listener) (listeners []*listener, err error) {
	e := &cfg.Endpoint
	if e.Listen == "" && e.Socket == "" && e.Credentials == nil {
		a.log.Warn("endpoint.listen is off and endpoint.socket is not set: applications get files only", "hint", "set one of them unless that is meant")
	}
	for _, p := range []struct {
		section, part string
		wanted        []listen.Options
		makeRoom      func() bool
	}{
		{"endpoint", partEndpoint, endpointListeners(e), a.endpoint.MakeRoom},
		{sectionCredentials, partCredentials, unitCredentialListeners(e.Credentials), a.endpoint.MakeRoom},
		{sectionMetrics, partMetrics, metricsListeners(&cfg.Metrics), a.monitor.MakeRoom},
	} {
		more, err := openListeners(p.section, p.part, p.wanted, open, p.makeRoom, a.log)
		if err != nil {
			return nil, errors.Join(err, closeOthers(listeners, open, (*listener).close))
		}
		listeners = append(listeners, more...)
	}
	return listeners, nil
}

// listenAPI opens the listeners of the KMS API, which section of agent.yaml describes.
func listenAPI(section string, cfg *config.API, makeRoom func() bool, log *slog.Logger) ([]*listener, error) {
	return openListeners(section, partAPI, apiListeners(cfg), nil, makeRoom, log)
}

// openListeners opens the listeners that section of agent.yaml describes, except those that are
// open already. When that fails, only the new ones are closed. makeRoom is called when there are
// too few descriptors to accept.
func openListeners(section, part string, wanted []listen.Options, open []*listener, makeRoom func() bool, log *slog.Logger) (listeners []*listener, err error) {
	for _, opts := range wanted {
		if at := slices.IndexFunc(open, func(ln *listener) bool { return ln.Options() == opts }); at >= 0 {
			listeners = append(listeners, open[at])
			continue
		}
		ln, err := listen.Open(opts)
		if err != nil {
			return nil, errors.Join(inSection(section, err), closeOthers(listeners, open, (*listener).close))
		}
		if t := ln.TLS(); t != nil {
			t.OnError(func(err error) {
				log.Error("the new certificate is unusable; the old one stays", "part", part, "err", err, "hint", hintCertificate)
			})
		}
		address := ln.Addr().String()
		ln.OnShortage(func(err error, retryIn time.Duration) {
			makeRoom()
			log.Warn("cannot accept connections", "part", part, "address", address, "err", err, "retry_in", retryIn,
				"hint", "raise the limit of open files (LimitNOFILE), or close what is leaking them")
		}, func(failures int) {
			log.Info("connections are accepted again", "part", part, "address", address, "failures", failures)
		})
		ln.OnPlainHTTP(func(from net.Addr) {
			log.Debug("a client spoke plain HTTP where TLS is configured", "part", part, "address", address, "from", from.String(), "hint", "use https:// there")
		})
		access := kmsserver.Signed
		if _, unix := opts.(listen.UnixOptions); unix {
			access = kmsserver.Trusted
		}
		listeners = append(listeners, &listener{Listener: ln, part: part, access: access})
	}
	return listeners, nil
}

// closeOthers calls do for every listener of list that is not in except.
func closeOthers(list, except []*listener, do func(*listener) error) error {
	var errs []error
	for _, ln := range list {
		if !slices.Contains(except, ln) {
			errs = append(errs, do(ln))
		}
	}
	return errors.Join(errs...)
}

// listeners returns those of the endpoint, the credentials and the metrics, and then those of the
// KMS API.
func (a *Agent) listeners() []*listener { return slices.Concat(a.live.Load().serving, a.apiListeners) }

// Addrs returns where the endpoint listens: TCP first, then the unix socket, then the one of the
// credentials, as far as they are configured.
func (a *Agent) Addrs() []net.Addr {
	return addrs(a.live.Load().serving, partEndpoint, partCredentials)
}

// MetricsAddrs returns where other hosts see the metrics, if that is configured.
func (a *Agent) MetricsAddrs() []net.Addr { return addrs(a.live.Load().serving, partMetrics) }

// APIAddrs returns where the KMS API of the built-in backend listens: the unix socket first,
// then TCP, as far as they are configured.
func (a *Agent) APIAddrs() []net.Addr { return addrs(a.apiListeners, partAPI) }

// addrs returns the addresses of those listeners that serve one of the parts.
func addrs(listeners []*listener, parts ...string) (list []net.Addr) {
	for _, ln := range listeners {
		if slices.Contains(parts, ln.part) {
			list = append(list, ln.Addr())
		}
	}
	return list
}

// stopServer lets the requests that run end, and tells the log when ctx ended first.
func stopServer(ctx context.Context, log *slog.Logger, part string, shutdown func(context.Context) error) {
	if err := shutdown(ctx); err != nil {
		log.Warn("requests were cut off", "part", part, "err", err, "hint", "clients have to ask again")
	}
}

// What to do about a certificate that cannot be used, and about an audit log that fails.
const (
	hintCertificate = "put a matching pair of certificate and key in place"
	hintAudit       = "check space and permissions of endpoint.audit.file"
)

// auditDelay is how long audit lines are collected, so that many are written together. A process
// that is killed loses those of that time.
const auditDelay = 100 * time.Millisecond

// auditLimit bounds what waits for a slow disk: the lines of a second or so at full load.
const auditLimit = 8 << 20

// openAudit opens what the audit log is written to; nil when none is configured.
func openAudit(cfg *config.Audit, stderr io.Writer, log *slog.Logger) (*lines.Writer, error) {
	if cfg == nil {
		return nil, nil
	}
	opts := lines.Options{
		Delay: auditDelay, Limit: auditLimit,
		OnLoss: func(err error) {
			log.Error("the audit log cannot be written; lines are lost", "part", "endpoint", "err", err, "hint", hintAudit)
		},
		OnRecovery: func(lost uint64) { log.Info("the audit log is written again", "part", "endpoint", "failures", lost) },
	}
	if cfg.File == "" {
		return lines.New(stderr, opts), nil
	}
	path := string(cfg.File)
	err := checkAuditFile(path)
	var audit *lines.Writer
	if err == nil {
		opts.Open = func(path string) (*os.File, error) { return keyfile.OpenLog(path, true) }
		audit, err = lines.Open(path, opts)
	}
	if err != nil {
		return nil, fmt.Errorf("endpoint.audit.file: %w", err)
	}
	return audit, nil
}
