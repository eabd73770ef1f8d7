package command

import (
	"context"

	"github.com/spf13/cobra"

	"secretagent/agent"
)

func (a *app) runCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Run the agent",
		Long: `Run the agent in the foreground until SIGINT or SIGTERM: fetch the declared secrets, serve the
endpoint, render the templates, and keep all of it current. What happens is logged on
standard error, as log.level and log.format say. With exec.command it also runs that program,
ends as it ends, and exits with its code.

Without a configuration file of your own, agent.example.yaml in the current folder is used,
so that a fresh checkout runs.`,
		Example: `  secretagent run --config /etc/secretagent/agent.yaml`,
		Args:    cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			cfg, err := a.loadConfig()
			if err != nil {
				return err
			}
			logger, _ := agent.NewLogger(cfg.Log, a.Stderr)
			logger.Info("starting", "version", a.Version, "config", cfg.File())
			ag, err := agent.New(ctx, cfg, agent.Deps{Logger: logger, Version: a.Version, Stderr: a.Stderr})
			if err != nil {
				return err
			}
			return a.childEnded(ag.Run(ctx))
		}),
	}
}
