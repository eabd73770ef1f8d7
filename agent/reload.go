package agent

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	"secretagent/agent/config"
	"secretagent/agent/rotation"
	"secretagent/render"
	"secretagent/upstream/keyfile"
)

// reloadRequest asks the running agent to read its configuration again.
type reloadRequest struct{ done chan<- error }

// reloadCounts is how the reloads so far went.
type reloadCounts struct {
	last              time.Time // zero: none yet
	err               error     // of the last one; nil: it succeeded
	succeeded, failed uint64
}

// reloadStatus keeps them.
type reloadStatus struct {
	mu     sync.Mutex
	counts reloadCounts
}

func (s *reloadStatus) get() reloadCounts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts
}

func (s *reloadStatus) note(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.last, s.counts.err = time.Now(), err
	if err != nil {
		s.counts.failed++
	} else {
		s.counts.succeeded++
	}
}

// Reload reads the configuration file again, and everything that it names, and changes the
// running agent to it: templates, hooks, rotations, declared secrets, limits of the cache, callers and
// tokens, what services of systemd get, log level, endpoints and credentials of the cloud,
// certificates, listeners and mounts of the endpoint, listener and token of the metrics. No lookup
// fails meanwhile.
//
// It is all or nothing. A file that is wrong, or that changes what only a restart can change,
// is an error that names the keys, and the agent goes on as it was. Only a caller whose token file
// is of no use, and an access key whose secret file is, are left out of that: they are shut out, and
// the rest applies. Reloads run one at a time;
// Reload blocks until this one is done or ctx ends, and fails when the agent does not run.
func (a *Agent) Reload(ctx context.Context) error {
	done := make(chan error, 1)
	select {
	case a.reloads <- reloadRequest{done}:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// serveReloads carries out reloads until ctx ends. What they start belongs to group.
func (a *Agent) serveReloads(ctx context.Context, group *errgroup.Group, heirs heirs) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case request := <-a.reloads:
			up := a.notified.Load() // otherwise the service is still starting
			if up {
				notify(a.log, daemon.SdNotifyReloading+"\n"+daemon.SdNotifyMonotonicUsec())
			}
			a.reopenAudit()
			a.reloadCertificates()
			err := a.reloadNow(ctx, group, heirs)
			a.reload.note(err)
			if err != nil {
				a.log.Error("the configuration was not reloaded; the agent goes on as it was", "err", err, "hint", "secretagent check shows every problem; some changes need a restart")
			} else {
				a.log.Info("configuration reloaded")
			}
			if up {
				notify(a.log, notifyReady)
			}
			request.done <- err
		}
	}
}

// reopenAudit lets go of an audit file that was rotated away, also when the configuration turns
// out to be wrong: what goes on to be written to the old file is lost when that is removed.
func (a *Agent) reopenAudit() {
	if a.audit == nil {
		return
	}
	if err := a.audit.Reopen(); err != nil {
		a.log.Error("the audit log cannot be reopened; the old file stays in use", "part", "endpoint", "err", err, "hint", hintAudit)
	}
}

// reloadCertificates reads the files of certificates and client authorities again, also when the
// configuration turns out to be wrong: a client that is trusted no more must not profit by that.
func (a *Agent) reloadCertificates() {
	for _, ln := range a.listeners() {
		if t := ln.TLS(); t != nil {
			if err := t.Reload(); err != nil {
				a.log.Error("the new certificate is unusable; the old one stays", "part", ln.part, "err", err, "hint", hintCertificate)
			}
		}
	}
}

// reloadNow works in two halves: everything that can fail, then the switch. What the first half
// does is undone when a later step of it fails; only files that it created because they were
// missing, tokens and secrets of access keys, stay.
func (a *Agent) reloadNow(ctx context.Context, group *errgroup.Group, heirs heirs) (err error) {
	old := a.live.Load()
	cfg, err := old.cfg.Source().Load(Check)
	if err != nil {
		return err
	}
	if err := onlyRestartChanges(old.cfg, cfg); err != nil {
		return err
	}
	var undo cleanups
	defer func() {
		if err != nil {
			err = errors.Join(err, undo.run(a.log))
		}
	}()
	next := &live{cfg: cfg, renderer: old.renderer, rotator: old.rotator, sources: fingerprint(templateFiles(cfg))}
	if err := a.prepareHeirs(old, next); err != nil {
		return err
	}
	if next.callers, err = loadCallers(&cfg.Endpoint, old.callers, a.log, keyfile.Kind.Load); err != nil {
		return inSection("endpoint", err)
	}
	if next.scrapers, err = loadScrapers(cfg, old.scrapers, a.log, keyfile.Kind.Load); err != nil {
		return inSection(sectionMetrics, err)
	}
	if next.serving, err = a.listenServing(cfg, old.serving); err != nil {
		return err
	}
	undo.add("new listeners", func() error { return closeOthers(next.serving, old.serving, (*listener).close) })

	setCallers, err := a.endpoint.PrepareCallers(next.callers)
	if err != nil {
		return err
	}
	setScrapers, err := a.monitor.PrepareCallers(next.scrapers)
	if err != nil {
		return inSection(sectionMetrics, err)
	}
	setMounts, err := a.endpoint.PrepareVaultMounts(vaultMounts(cfg.Endpoint.VaultMounts))
	if err != nil {
		return inSection("endpoint", err)
	}
	setUnits, err := a.credentials.Prepare(unitCredentialOptions(cfg.Endpoint.Credentials))
	if err != nil {
		return inSection(sectionCredentials, err)
	}
	setLimits, err := a.cache.PrepareLimits(cacheLimits(cfg))
	if err != nil {
		return ofCache(err)
	}
	setKeys := func() {}
	if a.api != nil {
		api, section := cfg.Upstream.API()
		if setKeys, err = a.api.PrepareAccessKeys(accessKeys(api.AccessKeys)); err != nil {
			return inSection(section, err)
		}
	}
	// Last, because not all of it can be taken back.
	setUpstream, err := a.backend.prepare(ctx, &cfg.Upstream)
	if err != nil {
		return err
	}

	setCallers()
	setScrapers()
	setMounts()
	setUnits()
	setLimits()
	setKeys()
	setUpstream()
	if a.api != nil {
		a.api.SetManager(a.backend.served(a.cache))
	}
	a.live.Store(next)
	a.noteShutOut(next.callers)
	if a.deps.Level != nil {
		a.deps.Level.Set(logLevel(cfg.Log.Level))
	}
	_ = closeOthers(next.serving, old.serving, func(ln *listener) error {
		group.Go(func() error { return a.serve(ln) })
		ln.announce(a.log)
		return nil
	})
	if err := closeOthers(old.serving, next.serving, (*listener).retire); err != nil {
		a.log.Warn("closing a listener failed", "err", err, "hint", "nothing: the new one is in use")
	}
	heirs.take(ctx, old, next)
	return nil
}

// heirs take the place of parts that run, as soon as these have stopped.
type heirs struct {
	renderers chan<- *render.Renderer
	rotators  chan<- *rotation.Rotator
}

// prepareHeirs makes the parts of next that cannot go on as they were in old.
func (a *Agent) prepareHeirs(old, next *live) (err error) {
	if next.sources != old.sources || !sameFiles(old.cfg, next.cfg) {
		if next.renderer, err = a.newRenderer(next.cfg); err != nil {
			return err
		}
		next.renderer.Continue(old.renderer)
	}
	if !sameRotations(old.cfg, next.cfg) {
		next.rotator, err = a.newRotator(next.cfg)
	}
	return err
}

// take lets what is new in next run.
func (h heirs) take(ctx context.Context, old, next *live) {
	if next.renderer != old.renderer {
		select {
		case h.renderers <- next.renderer:
		case <-ctx.Done():
		}
	}
	if next.rotator != old.rotator {
		select {
		case h.rotators <- next.rotator:
		case <-ctx.Done():
		}
	}
}

// sameFiles reports whether both configurations render the same, so that a renderer, and the
// hooks it is running, can be left alone.
func sameFiles(a, b *config.Config) bool {
	return reflect.DeepEqual(a.Templates, b.Templates) && reflect.DeepEqual(a.Sets, b.Sets) && a.Render == b.Render
}

// runRenderers runs a renderer until ctx ends, and each that comes over next in place of the
// one before. A file is thus never written by two at the same time.
func runRenderers(ctx context.Context, r *render.Renderer, next <-chan *render.Renderer) error {
	for {
		runCtx, stop := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func(r *render.Renderer) { done <- r.Run(runCtx) }(r)
		select {
		case err := <-done:
			stop()
			return err
		case after := <-next:
			stop()
			if err := <-done; err != nil {
				return err
			}
			after.Continue(r)
			r = after
		}
	}
}

// onlyRestartChanges refuses a configuration that differs from the one in force in what is
// fixed when the agent starts. The error names every such key.
func onlyRestartChanges(old, next *config.Config) error {
	from, to := kindOf(&old.Upstream), kindOf(&next.Upstream)
	if from.name() != to.name() {
		return fmt.Errorf("upstream: changing between %s and %s needs a restart", from.name(), to.name())
	}
	type fixed struct {
		key       string
		old, next any
	}
	o, n := &old.Endpoint, &next.Endpoint
	keys := []fixed{
		{"cache.sealed", old.Cache.Sealed, next.Cache.Sealed},
		{"cache.forcedRefresh", old.Cache.Forced, next.Cache.Forced},
		{"endpoint.headers", o.Headers, n.Headers},
		{"endpoint.pathPrefix", o.PathPrefix, n.PathPrefix},
		{"endpoint.format", o.Format, n.Format},
		{"endpoint.statusPage", o.StatusPage, n.StatusPage},
		{"endpoint.allowedHosts", o.AllowedHosts, n.AllowedHosts},
		{"endpoint.maxConnections", o.MaxConnections, n.MaxConnections},
		{"endpoint.maxWaiting", o.MaxWaiting, n.MaxWaiting},
		{"endpoint.maxRequestsPerConnection", o.MaxRequests, n.MaxRequests},
		{"endpoint.maxHeaderBytes", o.MaxHeaderBytes, n.MaxHeaderBytes},
		{"endpoint.maxBatch", o.MaxBatch, n.MaxBatch},
		{"endpoint.maxWait", o.MaxWait, n.MaxWait},
		{"endpoint.requestTimeout", o.RequestTimeout, n.RequestTimeout},
		{"endpoint.lookupTimeout", o.LookupTimeout, n.LookupTimeout},
		{"endpoint.idleTimeout", o.IdleTimeout, n.IdleTimeout},
		{"endpoint.audit", o.Audit, n.Audit},
		{"exec", old.Exec, next.Exec},
		{"log.format", old.Log.Format, next.Log.Format},
		{"process", old.Process, next.Process},
	}
	if o.Listen == n.Listen && o.Listen != "" {
		keys = append(keys,
			fixed{"endpoint.tls, on the same address,", o.TLS, n.TLS},
			fixed{"endpoint.allowNonLoopback, on the same address,", o.AllowNonLoopback, n.AllowNonLoopback})
	}
	if o.Socket == n.Socket && o.Socket != "" {
		keys = append(keys,
			fixed{"endpoint.socketMode, on the same socket,", o.SocketMode, n.SocketMode},
			fixed{"endpoint.socketUser, on the same socket,", o.SocketUser, n.SocketUser},
			fixed{"endpoint.socketGroup, on the same socket,", o.SocketGroup, n.SocketGroup})
	}
	if m := &next.Metrics; m.Listen == old.Metrics.Listen && m.Listen != "" {
		keys = append(keys, fixed{"metrics.tls, on the same address,", old.Metrics.TLS, m.TLS})
	}
	now := to.fixed()
	for i, s := range from.fixed() {
		keys = append(keys, fixed{"upstream." + from.name() + "." + s.key, s.value, now[i].value})
	}
	var errs []error
	for _, k := range keys {
		if !reflect.DeepEqual(k.old, k.next) {
			errs = append(errs, fmt.Errorf("%s cannot change while the agent runs: restart it", k.key))
		}
	}
	return errors.Join(errs...)
}
