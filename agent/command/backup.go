package command

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"secretagent/agent"
	"secretagent/agent/config"
	"secretagent/upstream"
)

func (a *app) backupCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "backup FILE",
		Short: "Save what the built-in backend holds, while it is in use",
		Long: `Save what the built-in backend, local or on etcd, holds at one moment into a file: every secret with
all its versions, labels, tags and times. Agents go on meanwhile. The running agent makes the
copy of its database; where none runs, it is made here. The file is read back before it appears
under its name. Its owner alone can read it, and one that is there is replaced with --force only.

The file is encrypted with the keys of the keyring, and does not contain them: without a copy of
the keyring, kept apart from it, nobody can read it. It is a database, which "restore" puts back.`,
		Example: `  secretagent backup /backup/secrets.db
  secretagent backup "/backup/secrets-$(date +%u).db" --force`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().BoolVar(&force, "force", false, "replace a file that is there")
	a.keyringFlag(cmd)
	cmd.RunE = a.run(func(ctx context.Context, args []string) error {
		cfg, err := a.loadBuiltin("backup")
		if err != nil {
			return err
		}
		count, done := a.counted("saving")
		made, err := agent.BackUp(ctx, cfg, a.logger(), args[0], force, count)
		done()
		if errors.Is(err, fs.ErrExist) {
			return usageError{withHint(fmt.Errorf("%s is there already", args[0]), "name another file, or replace it with --force")}
		}
		if err != nil {
			return asOwner(err)
		}
		a.printf("%s holds %s; the keyring is not in it: without a copy of %s, kept apart, nobody can read it", args[0], many(made.Secrets, "secret"), made.Keyring)
		return nil
	})
	return cmd
}

func (a *app) restoreCommand() *cobra.Command {
	var force, dryRun bool
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Put back what backup has saved",
		Long: `Make the built-in backend, local or on etcd, what a file of "backup" holds. All of the file is read
with the keyring of the configuration before anything is touched. What was saved is put back as
it was, times and planned deletions included.

A database must not be in use: stop the agent first, and be the user that it runs as. The copy is
read back before it takes the place of the database, with one rename; until then nothing has
changed. One that is there is replaced with --force only, and is kept beside it under another name.

On etcd agents may run, and follow at once. Without --force nothing may be there but what the file
has. With it every secret becomes what the file has, one by one and each as a whole; then those
are deleted that the file does not have, and everything is read back. A restore that was
interrupted has left each secret as it was or as it is in the file: repeat it to go on.

With --dry-run the file is read, and what would be done is told.`,
		Example: `  secretagent restore /backup/secrets.db --dry-run
  secretagent restore /backup/secrets.db`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().BoolVar(&force, "force", false, "replace what is there")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "read the file and say what would be done, and write nothing")
	a.keyringFlag(cmd)
	cmd.RunE = a.run(func(ctx context.Context, args []string) error {
		path := args[0]
		cfg, err := a.loadBuiltin("restore")
		if err != nil {
			return err
		}
		if _, err := os.Stat(path); err != nil {
			return usageError{err}
		}
		count, done := a.counted("restoring")
		result, err := agent.Restore(ctx, cfg, a.logger(), path, agent.RestoreOptions{Replace: force, DryRun: dryRun, Progress: count})
		done()
		switch {
		case errors.Is(err, upstream.ErrExists):
			return withHint(err, "restore into another place, or replace what is there with --force")
		case err != nil:
			return asOwner(err)
		}
		would := ""
		if dryRun {
			would = "would be "
		}
		if cfg.Upstream.Etcd != nil {
			a.printf("%s holds %s: %d %swritten, %d that it does not have %sdeleted", path, many(result.Secrets, "secret"), result.Written, would, result.Removed, would)
			return nil
		}
		a.printf("%s, which holds %s, %sput into %s", path, many(result.Secrets, "secret"), cmp.Or(would, "was "), cfg.Upstream.Local.Database)
		if result.Kept != "" {
			a.printf("the database that was there is kept as %s: remove it when it is not needed", result.Kept)
		}
		return nil
	})
	return cmd
}

// loadBuiltin returns a configuration with a built-in backend.
func (a *app) loadBuiltin(verb string) (*config.Config, error) {
	cfg, err := a.loadConfig()
	if err == nil && cfg.Upstream.Alibaba != nil {
		return nil, withHint(usagef("%s is for the built-in backend, upstream.local or upstream.etcd; upstream.alibaba keeps its secrets itself", verb),
			"secretagent copy --from this configuration --to one with a built-in backend takes them out")
	}
	return cfg, err
}

// asOwner says what to do about files that are for others.
func asOwner(err error) error {
	if errors.Is(err, upstream.ErrAccessDenied) || errors.Is(err, fs.ErrPermission) {
		return withHint(err, "ask as the user of the agent, or as root")
	}
	return err
}
