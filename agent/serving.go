package agent

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync/atomic"

	"secretagent/agent/config"
	"secretagent/agent/endpoint"
	"secretagent/agent/listen"
	"secretagent/upstream/kmsserver"
)

// endpointOptions turns the configuration into that of the endpoint, without what the agent
// adds.
func endpointOptions(cfg *config.Endpoint, callers []endpoint.Caller) endpoint.Options {
	format, _ := endpoint.ParseFormat(cfg.Format) // one of those that config allows
	return endpoint.Options{
		Callers:        callers,
		TokenHeaders:   cfg.Headers,
		PathPrefix:     cfg.PathPrefix,
		Format:         format,
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

// newEndpoint makes the endpoint.
func (a *Agent) newEndpoint(cfg *config.Endpoint, callers []endpoint.Caller) (*endpoint.Server, error) {
	opts := endpointOptions(cfg, callers)
	opts.Ready, opts.Status, opts.Metrics = a.readiness, a.status, a.metrics.write
	opts.Observe, opts.Audit, opts.Logger = a.metrics.observeLookup, a.audit, a.log.With("part", "endpoint")
	if a.backend.manager() != nil {
		opts.Versions = a.versions
	}
	srv, err := endpoint.New(a.cache, opts)
	return srv, inSection("endpoint", err)
}

// sectionAPI is where agent.yaml describes the KMS API of the built-in backend.
const sectionAPI = "upstream.local.api"

// openListener opens a listener that section of agent.yaml describes; part is whose it is in
// the log.
func openListener(section, part string, opts listen.Options, log *slog.Logger) (*listen.Listener, error) {
	ln, err := listen.Open(opts)
	if err != nil {
		return nil, inSection(section, err)
	}
	if t := ln.TLS(); t != nil {
		t.OnError(func(err error) {
			log.Error("the new certificate is unusable; the old one stays", "part", part, "err", err, "hint", hintCertificate)
		})
	}
	return ln, nil
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

// served is a listener of the endpoint.
type served struct {
	*listen.Listener
	retired atomic.Bool // closed on purpose, because the configuration changed
}

// serve answers on the listener until the server is shut down or the listener retired.
func (l *served) serve(srv *endpoint.Server) error {
	err := srv.Serve(l.Listener)
	if l.retired.Load() {
		return nil
	}
	return ignore(err, endpoint.ErrServerClosed)
}

// retire stops accepting. Connections that are open stay.
func (l *served) retire() error {
	l.retired.Store(true)
	return ignore(l.Close(), net.ErrClosed)
}

// listenEndpoint returns the endpoint's listeners. Those of open that are still wanted are
// kept, the others are opened; when that fails, only the new ones are closed.
func listenEndpoint(cfg *config.Endpoint, open []*served, log *slog.Logger) ([]*served, error) {
	if cfg.Listen == "" && cfg.Socket == "" {
		log.Warn("endpoint.listen is off and endpoint.socket is not set: applications get files only", "hint", "set one of them unless that is meant")
	}
	var listeners []*served
	for _, opts := range endpointListeners(cfg) {
		if at := slices.IndexFunc(open, func(ln *served) bool { return ln.Options() == opts }); at >= 0 {
			listeners = append(listeners, open[at])
			continue
		}
		ln, err := openListener("endpoint", "endpoint", opts, log)
		if err != nil {
			return nil, errors.Join(err, closeOthers(listeners, open, (*served).Close))
		}
		listeners = append(listeners, &served{Listener: ln})
	}
	return listeners, nil
}

// apiListener is a listener of the KMS API and who may call over it.
type apiListener struct {
	*listen.Listener
	access kmsserver.Access
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

// listenAPI opens the listeners of the built-in backend's KMS API.
func listenAPI(cfg *config.API, log *slog.Logger) (listeners []apiListener, err error) {
	for _, opts := range apiListeners(cfg) {
		ln, err := openListener(sectionAPI, "kms-api", opts, log)
		if err != nil {
			for _, open := range listeners {
				err = errors.Join(err, open.Close())
			}
			return nil, err
		}
		access := kmsserver.Signed
		if _, unix := opts.(listen.UnixOptions); unix {
			access = kmsserver.Trusted
		}
		listeners = append(listeners, apiListener{ln, access})
	}
	return listeners, nil
}

// What to do about a certificate that cannot be used, and about an audit log that fails.
const (
	hintCertificate = "put a matching pair of certificate and key in place"
	hintAudit       = "check space and permissions of endpoint.audit.file"
)

// openAudit opens the audit log; nil when none is configured.
func openAudit(cfg *config.Audit, stderr io.Writer, log *slog.Logger) (*endpoint.AuditLog, error) {
	if cfg == nil {
		return nil, nil
	}
	opts := endpoint.AuditOptions{
		Sample: cfg.Sample,
		OnError: func(err error) {
			log.Error("the audit log cannot be written; lines are lost", "part", "endpoint", "err", err, "hint", hintAudit)
		},
		OnRecovery: func(lost uint64) { log.Info("the audit log is written again", "part", "endpoint", "failures", lost) },
	}
	if cfg.File == "" {
		return endpoint.NewAuditLog(stderr, opts), nil
	}
	audit, err := endpoint.OpenAuditLog(string(cfg.File), opts)
	if err != nil {
		return nil, fmt.Errorf("endpoint.audit.file: %w", err)
	}
	return audit, nil
}
