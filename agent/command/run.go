package command

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"secretagent/agent"
)

func (a *app) runCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the agent",
		Long: `Run the agent in the foreground until SIGINT or SIGTERM: fetch the declared secrets, serve the
endpoint, render the templates, and keep all of it current. What happens is logged on
standard error, as log.level and log.format say. With exec.command it also runs that program,
passes signals on to it that the agent has no use for (SIGUSR1, SIGUSR2, SIGWINCH, SIGALRM, the
real-time signals but SIGRTMIN and such), ends as it ends, and exits with its code. SIGTSTP,
SIGTTIN and SIGTTOU stop neither then.

The configuration is read again on SIGHUP, and when it or a file that it names changes:
templates, hooks, declared secrets, limits, callers, tokens, log level, endpoints,
credentials, certificates and listeners change without a restart. A file that is wrong, or
changes what only a restart can change, leaves the agent as it was and says why in the log.

Without a configuration file of your own, agent.example.yaml in the current folder is used,
so that a fresh checkout runs.`,
		Example: `  secretagent run --config /etc/secretagent/agent.yaml`,
		Args:    cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			cfg, err := a.loadConfig(agent.Check)
			if err != nil {
				return err
			}
			deps, flush := a.deps(cfg)
			defer flush()
			deps.Logger.Info("starting", "version", a.Build.Version, "path", cfg.File())
			if cfg.Exec != nil && len(cfg.Exec.Command) > 0 {
				stayAwake()
			}
			ag, err := agent.New(ctx, cfg, deps)
			if err != nil && ctx.Err() != nil {
				deps.Logger.Info("stopped before it was ready", "err", err)
				return nil
			}
			if err != nil {
				return err
			}
			return a.childEnded(serve(ctx, ag))
		}),
	}
	a.logFlag(cmd)
	a.keyringFlag(cmd)
	return cmd
}

// hangup asks the agent to reload. On Windows it never arrives; a changed file reloads the agent
// all the same.
const hangup = syscall.SIGHUP

// serve runs ag, reloads it on SIGHUP, and passes on to its program what is meant for it. The
// agent logs what comes of a reload.
func serve(ctx context.Context, ag *agent.Agent) error {
	handling, stop := context.WithCancel(ctx)
	defer handleSignals(handling, append(passedOnByRun, hangup), func(sig os.Signal) {
		if sig == hangup {
			_ = ag.Reload(handling)
		} else {
			_ = ag.Signal(sig)
		}
	})()
	defer stop()
	return ag.Run(ctx)
}

// SignalContext returns a context that the first SIGINT or SIGTERM ends. Another one then ends the
// process at once, unless a command handles it.
func SignalContext(parent context.Context) context.Context {
	ctx, end := context.WithCancelCause(parent)
	arrived := make(chan os.Signal, 1)
	signal.Notify(arrived, os.Interrupt, terminate)
	go func() {
		select {
		case sig := <-arrived:
			number, _ := sig.(syscall.Signal)
			end(signalled{number})
		case <-ctx.Done():
		}
		signal.Stop(arrived)
	}()
	return ctx
}

// signalled is why a context has ended that a signal has ended.
type signalled struct{ syscall.Signal }

func (s signalled) Error() string { return s.String() + " signal received" }

// Is makes it a cancellation like any other.
func (s signalled) Is(target error) bool { return target == context.Canceled }

// handleSignals calls handle for each of the signals that arrives, until ctx ends, and ignores
// them after that. The returned function waits for the last call and ends the ignoring.
func handleSignals(ctx context.Context, signals []os.Signal, handle func(os.Signal)) (wait func()) {
	arrived := make(chan os.Signal, 16)
	signal.Notify(arrived, signals...)
	var handler sync.WaitGroup
	handler.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case sig := <-arrived:
				handle(sig)
			}
		}
	})
	return func() {
		signal.Stop(arrived)
		handler.Wait()
	}
}
