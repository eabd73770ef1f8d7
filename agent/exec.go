package agent

import (
	"cmp"
	"context"
	"errors"
	"os"

	"golang.org/x/sync/errgroup"

	"secretagent/agent/child"
	"secretagent/agent/config"
	"secretagent/cache"
	"secretagent/upstream"
	"secretagent/upstream/kmsserver"
)

// ExitError says that a supervised application ended other than with exit code 0.
type ExitError = child.ExitError

// Child is an application with secrets in its environment, without the rest of the agent: no
// endpoint and no files. It reads the upstream itself, or through the agent that already runs
// on the same built-in backend. Where it opens that backend itself it also serves its socket,
// so that commands can change what the application has.
type Child struct {
	supervisor *child.Supervisor
	cache      *cache.Cache
	own        backend           // opened by this process; nil: it is not
	api        *kmsserver.Server // nil: not served by this process
	socket     *listener
	undo       cleanups
	deps       Deps
}

// NewChild prepares cfg.Exec, with command in place of its own when that is not empty. The
// caller runs it with [Child.Run].
func NewChild(ctx context.Context, cfg *config.Config, deps Deps, command []string) (_ *Child, err error) {
	c := &Child{deps: deps.withDefaults()}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.undo.run(c.deps.Logger))
		}
	}()
	if err := hardenProcess(cfg.Process, c.deps.Logger); err != nil {
		return nil, err
	}
	limitMemory(cfg, c.deps.Logger)
	manager, closeManager, err := OpenManager(ctx, cfg, c.deps.Logger, StartFiles)
	if err != nil {
		return nil, err
	}
	c.undo.add("upstream", closeManager)
	if c.cache, err = newCommandCache(manager, cfg, c.deps.Logger); err != nil {
		return nil, err
	}
	c.undo.add("cache", c.cache.Close)
	if own, ok := manager.(backend); ok { // opened by this process, not by an agent that runs
		c.own = own
		cancel := own.OnChange(c.cache.Invalidate)
		c.undo.add("change notices", func() error { cancel(); return nil })
		if err := c.openSocket(own.manager(), &cfg.Upstream); err != nil {
			return nil, err
		}
	}
	c.supervisor, err = newSupervisor(c.cache, cfg, c.deps, command, os.Stdin, nil)
	return c, err
}

// openSocket makes the KMS API of a backend that this process has opened, for commands.
func (c *Child) openSocket(own upstream.Manager, cfg *config.Upstream) error {
	api, section := cfg.API()
	if api.Socket == "" {
		return nil
	}
	listeners, err := listenAPI(section, &config.API{Socket: api.Socket}, func() bool { return false }, c.deps.Logger)
	if err != nil {
		return err
	}
	c.socket = listeners[0]
	c.undo.add("socket", c.socket.close)
	c.api, err = kmsserver.New(own, kmsserver.Options{Logger: c.deps.Logger.With("part", "kms-api")})
	return err
}

// newSupervisor prepares the application of cfg. It shares our standard output
// and error; stdin and observe may be nil.
func newSupervisor(source child.Source, cfg *config.Config, deps Deps, command []string, stdin *os.File, observe func(child.Event)) (*child.Supervisor, error) {
	opts := childOptions(cfg, deps.Logger)
	if len(command) > 0 {
		opts.Command = command
	}
	opts.Stdin, opts.Stdout, opts.Stderr = stdin, os.Stdout, os.Stderr
	opts.Observe = observe
	supervisor, err := child.New(source, opts)
	if err != nil {
		return nil, inSection("exec", err)
	}
	return supervisor, nil
}

// Signal passes a signal on to the application; see [child.Supervisor.Signal].
func (c *Child) Signal(sig os.Signal) error { return c.supervisor.Signal(sig) }

// SharesTerminal reports whether the application is in our process group, and the terminal stops
// and continues both.
func (c *Child) SharesTerminal() bool { return c.supervisor.SharesTerminal() }

// Run runs the application until it ends: nil after exit code 0, an [*ExitError] after
// another end. When ctx ends the application is asked to, and also when a part fails that it
// needs; then the error is that of the part. What fails after ctx has ended or the application
// has is joined to its end.
func (c *Child) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, c.undo.run(c.deps.Logger)) }()
	stopReaper, err := child.StartReaper(c.supervisor, c.deps.Logger.With("part", "exec"))
	if err != nil {
		return err
	}
	defer stopReaper()

	// What the application needs goes on until it has ended.
	inner, stopInner := context.WithCancel(context.WithoutCancel(ctx))
	defer stopInner()
	base, baseCtx := errgroup.WithContext(inner)
	base.Go(func() error { return c.cache.Run(baseCtx) })
	if c.own != nil {
		base.Go(func() error { return c.own.run(baseCtx) })
	}
	if c.api != nil {
		base.Go(func() error {
			return ignore(c.api.Serve(c.socket.Listener, kmsserver.Trusted), kmsserver.ErrServerClosed)
		})
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	defer context.AfterFunc(baseCtx, func() { stop(errPartFailed) })()
	err = c.supervisor.Run(ctx)
	partFailed := context.Cause(ctx) == errPartFailed // and nothing else has stopped the application before
	if c.api != nil {
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		stopServer(stopCtx, c.deps.Logger, partAPI, c.api.Shutdown)
	}
	stopInner()
	failed := base.Wait()
	if partFailed || failed == nil {
		return cmp.Or(failed, err)
	}
	c.deps.Logger.Error("a part of exec failed while it was stopped", "err", failed, "hint", "the exit code is that of the application")
	return errors.Join(err, failed)
}

// errPartFailed is why an application is stopped that needs a part which has failed.
var errPartFailed = errors.New("a part failed")
