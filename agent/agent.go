package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"secretagent/agent/child"
	"secretagent/agent/config"
	"secretagent/agent/credentials"
	"secretagent/agent/endpoint"
	"secretagent/agent/lines"
	"secretagent/agent/rotation"
	"secretagent/cache"
	"secretagent/render"
	"secretagent/upstream"
	"secretagent/upstream/keyfile"
	"secretagent/upstream/kmsserver"
)

// stopTimeout bounds how long requests that run at shutdown may take to finish.
const stopTimeout = 10 * time.Second

// errChildEnded takes the agent down after the supervised application ended well.
var errChildEnded = errors.New("the application has ended")

// Deps are what an [Agent] gets from outside its configuration.
type Deps struct {
	// Logger gets what happens, never a value. Nil discards.
	Logger *slog.Logger

	// Level is the level that Logger obeys, so that a reload can change it. Nil: it cannot.
	Level *slog.LevelVar

	// Version of the program, for metrics and status.
	Version string

	// LogLost returns how many lines of the log were lost, for metrics. Nil: none ever are.
	LogLost func() uint64

	// Stderr gets the audit log when it is configured to go there. Nil means os.Stderr.
	Stderr io.Writer
}

func (d Deps) withDefaults() Deps {
	if d.Logger == nil {
		d.Logger = slog.New(slog.DiscardHandler)
	}
	if d.Stderr == nil {
		d.Stderr = os.Stderr
	}
	return d
}

// Agent is a whole agent. Its methods are safe for concurrent use.
type Agent struct {
	deps  Deps
	log   *slog.Logger
	began time.Time

	live atomic.Pointer[live] // what a reload replaces

	backend     backend
	cache       *cache.Cache
	endpoint    *endpoint.Server
	credentials *credentials.Server
	monitor     *endpoint.Server
	api         *kmsserver.Server // nil: no KMS API
	audit       *lines.Writer     // nil: no audit log
	child       *child.Supervisor // nil: no application to supervise
	metrics     *metrics
	renders     renderCounts
	rotated     rotationCounts

	apiListeners []*listener

	notified atomic.Bool // systemd knows that the service is ready

	seen    string // fingerprint of the files when they had been read first
	reloads chan reloadRequest
	reload  reloadStatus

	undo    cleanups
	started atomic.Bool
}

// live is the part of an agent that a reload replaces, as one. It is immutable.
type live struct {
	cfg      *config.Config
	renderer *render.Renderer
	rotator  *rotation.Rotator
	sources  string // fingerprint of the template files that renderer has read
	callers  []endpoint.Caller
	scrapers []endpoint.Caller // who may see all metrics from other hosts
	serving  []*listener       // those of the endpoint, the credentials and the metrics
}

// config returns the configuration in force.
func (a *Agent) config() *config.Config { return a.live.Load().cfg }

// renderer returns the renderer at work.
func (a *Agent) renderer() *render.Renderer { return a.live.Load().renderer }

// New builds an agent and opens everything it needs, listeners included. It starts no
// goroutine that outlives an error: when New fails, nothing is left open. The caller runs the
// agent with [Agent.Run] or drops it with [Agent.Close]. It blocks for as long as it takes to open
// the database and write its seed; ctx can end that.
func New(ctx context.Context, cfg *config.Config, deps Deps) (_ *Agent, err error) {
	// One straight function on purpose: each step uses what the steps before it made, and
	// what needs undoing is registered as soon as it exists.
	deps = deps.withDefaults()
	a := &Agent{deps: deps, log: deps.Logger, began: time.Now(), metrics: newMetrics(deps.Version), reloads: make(chan reloadRequest)}
	now := &live{cfg: cfg}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.undo.run(a.log))
		}
	}()

	if err := hardenProcess(cfg.Process, a.log); err != nil {
		return nil, err
	}
	limitMemory(cfg, a.log)

	if a.backend, err = kindOf(&cfg.Upstream).open(ctx, a.log, a.metrics.observeCall); err != nil {
		return nil, err
	}
	a.undo.add("upstream", a.backend.Close)

	cacheOpts := cacheOptions(cfg, a.log)
	cacheOpts.Observe, cacheOpts.Wanted = a.observeFetch, a.watched
	if a.cache, err = cache.New(a.backend, cacheOpts); err != nil {
		return nil, ofCache(err)
	}
	a.undo.add("cache", a.cache.Close)

	if cfg.Exec != nil && len(cfg.Exec.Command) > 0 {
		if a.child, err = newSupervisor(a.cache, cfg, deps, nil, nil, a.metrics.observeChild); err != nil {
			return nil, err
		}
	}

	now.sources = fingerprint(templateFiles(cfg))
	if now.renderer, err = a.newRenderer(cfg); err != nil {
		return nil, err
	}

	if now.rotator, err = a.newRotator(cfg); err != nil {
		return nil, err
	}

	if a.audit, err = openAudit(cfg.Endpoint.Audit, deps.Stderr, a.log); err != nil {
		return nil, err
	}
	if a.audit != nil {
		a.undo.add("audit log", a.audit.Close)
	}
	if now.callers, err = loadCallers(&cfg.Endpoint, nil, a.log, keyfile.Kind.Load); err != nil {
		return nil, inSection("endpoint", err)
	}
	if a.endpoint, err = a.newEndpoint(cfg, now.callers); err != nil {
		return nil, err
	}
	if a.credentials, err = a.newCredentials(cfg); err != nil {
		return nil, err
	}
	if now.scrapers, err = loadScrapers(cfg, nil, a.log, keyfile.Kind.Load); err != nil {
		return nil, inSection(sectionMetrics, err)
	}
	if a.monitor, err = a.newMonitor(now.scrapers); err != nil {
		return nil, err
	}
	if now.serving, err = a.listenServing(cfg, nil); err != nil {
		return nil, err
	}
	a.live.Store(now) // closeServing looks there
	a.undo.add("listeners", a.closeServing)

	if err := a.openAPI(&cfg.Upstream); err != nil {
		return nil, err
	}
	// Nothing has been read yet that a notice could have made old, and all that a notice is passed on
	// to is there now: the backend on etcd tells from another goroutine at any moment.
	cancel := a.backend.OnChange(a.changed)
	a.undo.add("change notices", func() error { cancel(); return nil })
	noteToken(&cfg.Endpoint, a.log)
	a.noteShutOut(now.callers)
	a.seen = fingerprint(cfg.Files())
	a.metrics.registry.MustRegister(collector{a})
	return a, nil
}

// observeFetch hears of each call of the cache. What that finds to have changed is news to those who
// watch where the backend does not tell by itself.
func (a *Agent) observeFetch(f cache.Fetch) {
	a.metrics.observeFetch(f)
	if a.api != nil && a.backend.manager() == nil && f.News {
		a.api.Changed(f.Ref.SecretName)
	}
}

// watched reports whether agents behind this one wait for changes of the secret that nobody but
// this agent looks for.
func (a *Agent) watched(name upstream.SecretName) bool {
	return a.api != nil && a.backend.manager() == nil && a.api.Watched(name)
}

// changed passes on that a secret has changed: to the cache and, once that answers with nothing
// older, to those who watch.
func (a *Agent) changed(name upstream.SecretName) {
	a.cache.Invalidate(name)
	if a.api != nil {
		a.api.Changed(name)
	}
	if now := a.live.Load(); now != nil {
		now.rotator.Wake(name)
	}
}

// newRenderer prepares the renderer of cfg. It starts and writes nothing.
func (a *Agent) newRenderer(cfg *config.Config) (*render.Renderer, error) {
	opts := renderOptions(cfg, a.log)
	opts.Observe = a.renders.observe
	if a.child != nil {
		opts.Signal = a.child.Signal
	}
	return render.New(a.cache, opts)
}

// closeServing closes the listeners in use, those of an agent that was never run included.
func (a *Agent) closeServing() error {
	return closeOthers(a.live.Load().serving, nil, (*listener).close)
}

// openAPI makes the KMS API and its listeners.
func (a *Agent) openAPI(cfg *config.Upstream) error {
	api, section := cfg.API()
	if api == nil || api.Socket == "" && api.Listen == "" {
		return nil
	}
	var err error
	a.api, err = kmsserver.New(a.backend.served(a.cache), kmsserver.Options{
		AccessKeys: accessKeys(api.AccessKeys), Watch: true, Operator: a.operate, Observe: a.metrics.observeRequest, Logger: a.log.With("part", "kms-api"),
	})
	if err != nil {
		return inSection(section, err)
	}
	a.apiListeners, err = listenAPI(section, api, a.endpoint.MakeRoom, a.log)
	for _, ln := range a.apiListeners {
		a.undo.add("listener "+ln.Addr().String(), ln.close)
	}
	return err
}

// Signal passes a signal on to the supervised application, if there is one that runs.
func (a *Agent) Signal(sig os.Signal) error {
	if a.child == nil {
		return nil
	}
	return ignore(a.child.Signal(sig), child.ErrNotRunning)
}

// Close drops an agent that was never run.
func (a *Agent) Close() error {
	if a.started.Swap(true) {
		return nil // Run takes everything down itself
	}
	return a.undo.run(a.log)
}

// Run serves until ctx ends or a part fails, takes everything down, and returns the failure;
// nil after ctx ended. It may be called once.
func (a *Agent) Run(ctx context.Context) (err error) {
	if a.started.Swap(true) {
		return errors.New("agent: Run was called twice")
	}
	defer func() { err = errors.Join(err, a.undo.run(a.log)) }()
	stopReaper, err := child.StartReaper(a.child, a.log.With("part", "exec"))
	if err != nil {
		return err
	}
	defer stopReaper()

	// The parts that answer others stop first, those that they need go on until then.
	inner, stopInner := context.WithCancel(context.WithoutCancel(ctx))
	defer stopInner()
	outer, outerCtx := errgroup.WithContext(ctx)
	base, baseCtx := errgroup.WithContext(inner)

	base.Go(func() error { return a.cache.Run(baseCtx) })
	base.Go(func() error { return a.backend.run(baseCtx) })
	outer.Go(func() error { // a base part that dies takes the outer ones with it
		select {
		case <-baseCtx.Done():
			return context.Cause(baseCtx)
		case <-outerCtx.Done():
			return nil
		}
	})
	now := a.live.Load()
	for _, ln := range now.serving {
		outer.Go(func() error { return a.serve(ln) })
	}
	for _, ln := range a.apiListeners {
		outer.Go(func() error { return ignore(a.api.Serve(ln.Listener, ln.access), kmsserver.ErrServerClosed) })
	}
	nextRenderer, nextRotator := make(chan *render.Renderer), make(chan *rotation.Rotator)
	outer.Go(func() error { return runRenderers(outerCtx, now.renderer, nextRenderer) })
	outer.Go(func() error { return a.runRotators(outerCtx, now.rotator, nextRotator) })
	outer.Go(func() error { return a.serveReloads(outerCtx, outer, heirs{nextRenderer, nextRotator}) })
	outer.Go(func() error { return a.watchFiles(outerCtx) })
	outer.Go(func() error { return a.watchdog(outerCtx) })
	outer.Go(func() error { return a.tellState(outerCtx) })
	if a.child != nil {
		outer.Go(func() error {
			err := a.child.Run(outerCtx)
			if err == nil || outerCtx.Err() != nil && errors.Is(err, context.Canceled) {
				return errChildEnded // the latter: before it was started
			}
			return err
		})
	}
	outer.Go(func() error { return a.start(outerCtx) })
	outer.Go(func() error {
		<-outerCtx.Done()
		a.log.Info("stopping")
		notify(a.log, notifyStopping)
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		var stopping sync.WaitGroup // a slow reader takes no time from the others
		defer stopping.Wait()
		stopping.Go(func() { stopServer(stopCtx, a.log, partCredentials, a.credentials.Shutdown) })
		stopping.Go(func() { stopServer(stopCtx, a.log, partMetrics, a.monitor.Shutdown) })
		stopServer(stopCtx, a.log, partEndpoint, a.endpoint.Shutdown)
		if a.api != nil {
			stopServer(stopCtx, a.log, partAPI, a.api.Shutdown)
		}
		return nil
	})

	err = ignore(outer.Wait(), errChildEnded)
	stopInner()
	return errors.Join(err, base.Wait())
}

// start fetches what is declared while the agent already serves.
func (a *Agent) start(ctx context.Context) error {
	for _, ln := range a.listeners() {
		ln.announce(a.log)
	}
	if err := a.cache.Warm(ctx); err != nil && ctx.Err() == nil {
		// The cache goes on trying; /ready and this line say what is missing.
		a.log.Warn("declared secrets are missing", "err", err, "hint", "they are tried again; secretagent status and /ready show what is missing")
	}
	return nil
}

// readiness says which declared secrets and rendered files are missing.
func (a *Agent) readiness() endpoint.Readiness {
	var problems []endpoint.Problem
	for _, m := range a.cache.Missing() {
		problems = append(problems, endpoint.Problem{
			Subject: "secret " + m.Ref.String(), Secrets: []upstream.SecretName{m.Ref.SecretName}, Reason: m.Err.Error(),
		})
	}
	r := a.renderer()
	if _, reasons := r.Ready(); len(reasons) > 0 {
		files := map[string]FileStatus{}
		for _, f := range r.Status() {
			files[f.Path] = f
		}
		for _, reason := range reasons {
			path, reason, _ := strings.Cut(reason, ": ")
			secrets := secretsOf(files[path])
			problems = append(problems, endpoint.Problem{
				Subject: "file " + path, Secrets: secrets, Private: len(secrets) == 0, Reason: reason, NamesAny: true, Printed: files[path].Printed,
			})
		}
	}
	ready := len(problems) == 0
	if behind := a.cache.Stats().ClockBehind; behind > 0 {
		problems = append(problems, endpoint.Problem{
			Subject: "clock", Reason: fmt.Sprintf("ClockSkew: it is %s behind the newest time that the sealed cache or the upstream has told; the age of values counts from that", behind.Round(time.Second)),
		})
	}
	problems = append(problems, a.backend.problems()...)
	for _, c := range a.live.Load().callers {
		if c.ShutOut != "" {
			// One application must not be able to take the agent out of service.
			problems = append(problems, endpoint.Problem{Subject: "caller " + c.Name + ", shut out", Reason: c.ShutOut, Private: true})
		}
	}
	for id, reason := range a.keysShutOut() {
		problems = append(problems, endpoint.Problem{Subject: "access key " + id + ", shut out", Reason: reason, Private: true})
	}
	if err := a.reload.get().err; err != nil {
		// What is in force still works, so that the agent stays in service.
		problems = append(problems, endpoint.Problem{Subject: "configuration, not reloaded", Reason: err.Error(), NamesAny: true})
	}
	return endpoint.Readiness{Ready: ready, Problems: problems}
}

// cleanups are named steps that undo what was opened, last first.
type cleanups []cleanup

type cleanup struct {
	name string
	undo func() error
}

func (c *cleanups) add(name string, undo func() error) { *c = append(*c, cleanup{name, undo}) }

// run undoes everything once and joins what went wrong, each with its name.
func (c *cleanups) run(log *slog.Logger) error {
	var errs []error
	for i := len(*c) - 1; i >= 0; i-- {
		step := (*c)[i]
		if err := step.undo(); err != nil {
			log.Error("closing failed", "part", step.name, "err", err, "hint", "check the disk")
			errs = append(errs, fmt.Errorf("close %s: %w", step.name, err))
		}
	}
	*c = nil
	return errors.Join(errs...)
}

// ignore returns err unless it is target.
func ignore(err, target error) error {
	if errors.Is(err, target) {
		return nil
	}
	return err
}
