package agent

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os/user"
	"strconv"
	"sync/atomic"

	"secretagent/agent/config"
	"secretagent/agent/endpoint"
	"secretagent/upstream/kmsserver"
)

// endpointOptions turns the configuration into that of the endpoint.
func (a *Agent) endpointOptions(cfg *config.Endpoint, callers []endpoint.Caller) (endpoint.Options, error) {
	format, err := endpoint.ParseFormat(cfg.Format)
	if err != nil {
		return endpoint.Options{}, fmt.Errorf("endpoint.format: %w", err)
	}
	opts := endpoint.Options{
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
		Ready:          a.readiness,
		Status:         a.status,
		StatusPage:     cfg.StatusPage,
		Metrics:        a.metrics.write,
		Observe:        a.metrics.observeLookup,
		Audit:          a.audit,
		Logger:         a.log.With("part", "endpoint"),
	}
	if a.backend.manager() != nil {
		opts.Versions = a.versions
	}
	return opts, nil
}

// served is a listener of the endpoint.
type served struct {
	net.Listener
	identity any           // what it was opened for; an equal one need not be opened again
	tls      *endpoint.TLS // nil: plain, or a unix socket
	retired  atomic.Bool   // closed on purpose, because the configuration changed
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

// tcpIdentity and socketIdentity are what a listener is opened for.
type tcpIdentity struct {
	address          string
	allowNonLoopback bool
	tls              endpoint.TLSOptions
}

type socketIdentity struct {
	path        config.Path
	mode        config.FileMode
	user, group config.Account
}

// listenEndpoint returns the endpoint's listeners: TCP first, then the unix socket. Those of
// open that are still wanted are kept, the others are opened; when that fails, only the new
// ones are closed.
func listenEndpoint(cfg *config.Endpoint, open []*served, log *slog.Logger) (listeners []*served, err error) {
	if cfg.Listen == "" && cfg.Socket == "" {
		log.Warn("endpoint.listen is off and endpoint.socket is not set: applications get files only", "hint", "set one of them unless that is meant")
	}
	var opened []*served
	defer func() {
		if err != nil {
			for _, ln := range opened {
				err = errors.Join(err, ln.Close())
			}
			listeners = nil
		}
	}()
	add := func(identity any, listen func() (*served, error)) error {
		for _, ln := range open {
			if ln.identity == identity {
				listeners = append(listeners, ln)
				return nil
			}
		}
		ln, err := listen()
		if err != nil {
			return err
		}
		ln.identity = identity
		listeners, opened = append(listeners, ln), append(opened, ln)
		return nil
	}
	if cfg.Listen != "" {
		identity := tcpIdentity{address: cfg.Listen, allowNonLoopback: cfg.AllowNonLoopback}
		if cfg.TLS != nil {
			identity.tls = tlsOptions(cfg.TLS)
		}
		if err := add(identity, func() (*served, error) { return listenEndpointTCP(identity, log) }); err != nil {
			return listeners, err
		}
	}
	if cfg.Socket != "" {
		identity := socketIdentity{cfg.Socket, cfg.SocketMode, cfg.SocketUser, cfg.SocketGroup}
		if err := add(identity, func() (*served, error) { return listenEndpointSocket(cfg) }); err != nil {
			return listeners, err
		}
	}
	return listeners, nil
}

func listenEndpointTCP(identity tcpIdentity, log *slog.Logger) (_ *served, err error) {
	opts := endpoint.TCPOptions{Address: identity.address, AllowNonLoopback: identity.allowNonLoopback}
	if identity.tls != (endpoint.TLSOptions{}) {
		opts.TLS, err = endpoint.LoadTLS(identity.tls, func(err error) {
			log.Error("the new certificate is unusable; the old one stays", "part", "endpoint", "err", err, "hint", hintCertificate)
		})
		if err != nil {
			return nil, fmt.Errorf("endpoint.tls: %w", err)
		}
	}
	ln, err := endpoint.ListenTCP(opts)
	if err != nil {
		return nil, fmt.Errorf("endpoint.listen: %w", err)
	}
	return &served{Listener: ln, tls: opts.TLS}, nil
}

func tlsOptions(cfg *config.TLS) endpoint.TLSOptions {
	return endpoint.TLSOptions{CertFile: string(cfg.CertFile), KeyFile: string(cfg.KeyFile), ClientCAFile: string(cfg.ClientCAFile)}
}

func listenEndpointSocket(cfg *config.Endpoint) (*served, error) {
	owner, err := accountID(cfg.SocketUser, func(name string) (string, error) {
		u, err := user.Lookup(name)
		if err != nil {
			return "", err
		}
		return u.Uid, nil
	})
	if err != nil {
		return nil, fmt.Errorf("endpoint.socketUser: %w", err)
	}
	group, err := accountID(cfg.SocketGroup, func(name string) (string, error) {
		g, err := user.LookupGroup(name)
		if err != nil {
			return "", err
		}
		return g.Gid, nil
	})
	if err != nil {
		return nil, fmt.Errorf("endpoint.socketGroup: %w", err)
	}
	ln, err := endpoint.ListenUnix(endpoint.UnixOptions{Path: string(cfg.Socket), Mode: cfg.SocketMode.Perm(), Owner: owner, Group: group})
	if err != nil {
		return nil, fmt.Errorf("endpoint.socket: %w", err)
	}
	return &served{Listener: ln}, nil
}

// accountID returns the number of a user or group that is given by name or number; nil for
// none.
func accountID(account config.Account, lookup func(name string) (id string, err error)) (*int, error) {
	if account == "" {
		return nil, nil
	}
	id, err := strconv.Atoi(string(account))
	if err != nil {
		text, err := lookup(string(account))
		if err != nil {
			return nil, err
		}
		if id, err = strconv.Atoi(text); err != nil {
			return nil, fmt.Errorf("%s has no number on this operating system", account)
		}
	}
	return &id, nil
}

// apiListener is a listener of the KMS API and who may call over it.
type apiListener struct {
	net.Listener
	access kmsserver.Access
	tls    *endpoint.TLS // nil: plain, or a unix socket
}

// listenAPI opens the listeners of the built-in backend's KMS API: the unix socket first, then
// TCP.
func listenAPI(cfg *config.API) (listeners []apiListener, err error) {
	defer func() {
		if err == nil {
			return
		}
		for _, open := range listeners {
			err = errors.Join(err, open.Close())
		}
		listeners = nil
	}()
	if cfg.Socket != "" {
		ln, err := kmsserver.ListenUnix(string(cfg.Socket))
		if err != nil {
			return listeners, fmt.Errorf("upstream.local.api.socket: %w", err)
		}
		listeners = append(listeners, apiListener{Listener: ln, access: kmsserver.Trusted})
	}
	if cfg.Listen != "" {
		cert, tlsConfig, err := apiTLS(cfg.TLS)
		if err != nil {
			return listeners, fmt.Errorf("upstream.local.api.tls: %w", err)
		}
		ln, err := kmsserver.ListenTCP(cfg.Listen, tlsConfig)
		if err != nil {
			return listeners, fmt.Errorf("upstream.local.api.listen: %w", err)
		}
		listeners = append(listeners, apiListener{ln, kmsserver.Signed, cert})
	}
	return listeners, nil
}

func apiTLS(cfg *config.TLS) (*endpoint.TLS, *tls.Config, error) {
	if cfg == nil {
		return nil, nil, nil
	}
	t, err := endpoint.LoadTLS(tlsOptions(cfg), nil)
	if err != nil {
		return nil, nil, err
	}
	return t, t.Config(), nil
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
