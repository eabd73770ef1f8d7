package command

import (
	"context"
	"errors"
	"os"
	"syscall"

	"github.com/spf13/cobra"

	"secretagent/agent"
)

func (a *app) execCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "exec [-- PROGRAM ARGS...]",
		Short: "Run a program with secrets in its environment",
		Long: `Run a program with secrets in its environment, as exec in the configuration says, and end as it
ends: its exit code is that of this command. The program starts when all variables are
known. When a secret changes, it is restarted, signalled or left alone (exec.onChange).

Signals are passed on, except those that tell a process about itself and SIGRTMIN, which never
reach it. SIGTSTP, SIGTTIN and SIGTTOU stop neither, unless both have the terminal. SIGTERM asks
the program to end with exec.stopSignal and kills it after exec.grace; before the program has
started it ends the command with exit code 143, and SIGINT with 130.

The program inherits the environment of this command, as exec.pristine, allow and deny say, but
no credentials (ALIBABA_CLOUD_..., CREDENTIALS_DIRECTORY, a variable that is the token of the
endpoint) that exec.allow does not name. It runs as exec.user where root has started the command;
else it has the rights of the command and can read what that can.

No agent is needed: the values come from the running agent of the built-in backend where
there is one, else from the upstream itself.`,
		Example: `  secretagent exec -- /usr/local/bin/app --serve
  secretagent exec --config agent.yaml -- sh -c 'psql -h db'`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && cmd.ArgsLenAtDash() != 0 {
				return errors.New("write the program after --, so that its flags are not taken for ours")
			}
			return nil
		},
		RunE: a.run(func(ctx context.Context, args []string) error {
			cfg, err := a.loadConfig(agent.CheckExec(len(args) > 0))
			if err != nil {
				return err
			}
			if len(args) == 0 && (cfg.Exec == nil || len(cfg.Exec.Command) == 0) {
				return usagef("no program: write it after --, or set exec.command")
			}
			deps, flush := a.deps(cfg)
			defer flush()
			child, err := agent.NewChild(ctx, cfg, deps, args)
			if err == nil {
				err = runChild(ctx, child)
			} else if errors.Is(err, context.Canceled) {
				err = beforeStart(ctx)
			}
			return a.childEnded(err)
		}),
	}
	a.logFlag(cmd)
	a.keyringFlag(cmd)
	cmd.Flags().SetInterspersed(false)
	return cmd
}

// childEnded turns the end of a supervised program into our own: its exit code is ours. What it
// had to say when it exited it has said itself.
func (a *app) childEnded(err error) error {
	exit, ok := errors.AsType[*agent.ExitError](err)
	if !ok {
		return err
	}
	if exit.Killed || exit.Signal != nil {
		a.printf("%v", exit)
	}
	return exitCode(exit.Code)
}

// terminate asks a program to end.
const terminate = syscall.SIGTERM

// beforeStart returns how exec ends when ctx has ended before its program was started: as the
// signal that has ended ctx would have ended it.
func beforeStart(ctx context.Context) exitCode {
	by, ok := errors.AsType[signalled](context.Cause(ctx))
	if !ok {
		by.Signal = terminate
	}
	return exitCode(128 + int(by.Signal))
}

// runChild runs child and passes signals on to it. The context of the command line ends with
// SIGINT, which is the program's to judge, and so counts only until signals are handled here.
func runChild(early context.Context, child *agent.Child) error {
	if !child.SharesTerminal() {
		stayAwake()
	}
	ctx, stop := context.WithCancelCause(context.WithoutCancel(early))
	defer handleSignals(ctx, append(passedOn, terminate), func(sig os.Signal) {
		if sig == terminate {
			stop(signalled{terminate})
		} else if err := child.Signal(sig); err != nil && sig == os.Interrupt {
			stop(signalled{syscall.SIGINT}) // there is no program yet that could judge it
		}
	})()
	defer stop(nil)
	if early.Err() != nil {
		stop(context.Cause(early)) // the signal came while the child was prepared
	}
	err := child.Run(ctx)
	if errors.Is(err, context.Canceled) {
		return beforeStart(ctx)
	}
	return err
}
