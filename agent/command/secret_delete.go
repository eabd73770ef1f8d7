package command

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"secretagent/upstream"
)

func (a *app) secretDeleteCommand() *cobra.Command {
	var (
		out        output
		window     int
		force, yes bool
	)
	cmd := &cobra.Command{
		Use: "delete NAME", SuggestFor: []string{"rm", "remove", "del"},
		Short: "Delete a secret, after a time in which it can be restored",
		Long: `Schedule the deletion of a secret with all its versions and print when it happens. From now on it
can be neither read nor written. Until then "secretagent secret restore" takes the deletion
back. With --force it is gone at once, and its ciphertext leaves the file of the built-in backend
within some seconds: at once where no agent runs, later where much is deleted from a large file.
What a backup, a snapshot or a copy-on-write disk keeps of that file stays.

A question is asked first; --yes answers it, and is needed where there is no terminal.`,
		Example: `  secretagent secret delete demo/db --window 7
  secretagent secret delete demo/db --force --yes`,
		Args: cobra.ExactArgs(1),
	}
	cmd.RunE = a.runOn(func(ctx context.Context, name upstream.SecretName, _ []string) error {
		switch {
		case force && cmd.Flags().Changed("window"):
			return usagef("--force and --window exclude each other")
		case window < 7 || window > 30:
			return usagef("--window must be from 7 to 30 days")
		}
		if !yes {
			question := fmt.Sprintf("delete %s? It can be restored for %d days", name, window)
			if force {
				question = fmt.Sprintf("delete %s at once? It cannot be restored", name)
			}
			if err := a.confirm(question, "--yes"); err != nil {
				return err
			}
		}
		in := upstream.DeleteSecretInput{SecretName: name, RecoveryWindowInDays: window}
		if force {
			in = upstream.DeleteSecretInput{SecretName: name, ForceDeleteWithoutRecovery: true}
		}
		at, err := managed(ctx, a, func(m upstream.Manager) (time.Time, error) { return m.DeleteSecret(ctx, in) })
		if err != nil {
			return err
		}
		text := ""
		if !force {
			text = wireTime(at) + "\n"
			a.printf("until %s it can be restored with: secretagent secret restore %s", wireTime(at), name)
		}
		return a.print(&out, struct {
			SecretName        upstream.SecretName
			PlannedDeleteTime string `json:",omitempty"`
		}{name, wireTime(at)}, text)
	})
	cmd.Flags().IntVar(&window, "window", 30, "`days` in which it can be restored, 7 to 30")
	cmd.Flags().BoolVar(&force, "force", false, "delete at once, without a way back")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return out.of(cmd)
}

func (a *app) secretRestoreCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "restore NAME",
		Short:   "Take the deletion of a secret back",
		Long:    `Take the scheduled deletion of a secret back. Its versions and labels are as they were.`,
		Example: `  secretagent secret restore demo/db`,
		Args:    cobra.ExactArgs(1),
		RunE: a.runOn(func(ctx context.Context, name upstream.SecretName, _ []string) error {
			err := a.withManager(ctx, func(m upstream.Manager) error { return m.RestoreSecret(ctx, name) })
			if errors.Is(err, upstream.ErrNotPendingDeletion) {
				err = withHint(err, "there is nothing to do: no deletion is scheduled")
			}
			return err
		}),
	}
}

func (a *app) secretTagCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "tag NAME KEY=VALUE...",
		Short:   "Set tags on a secret",
		Long:    `Set tags on a secret. A key that is there already gets the new value; other tags stay.`,
		Example: `  secretagent secret tag demo/db env=prod team=storage`,
		Args:    cobra.MinimumNArgs(2),
		RunE: a.runOn(func(ctx context.Context, name upstream.SecretName, args []string) error {
			tags, err := parsePairs("tag", args)
			if err != nil {
				return err
			}
			return a.withManager(ctx, func(m upstream.Manager) error {
				return m.TagResources(ctx, []upstream.SecretName{name}, tags)
			})
		}),
	}
}

func (a *app) secretUntagCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "untag NAME KEY...",
		Short: "Remove tags from a secret",
		Long:  `Remove tags from a secret by their keys, or all of them with --all.`,
		Example: `  secretagent secret untag demo/db team
  secretagent secret untag demo/db --all`,
		Args: cobra.MinimumNArgs(1),
		RunE: a.runOn(func(ctx context.Context, name upstream.SecretName, keys []string) error {
			if all == (len(keys) > 0) {
				return usagef("give the keys to remove, or --all")
			}
			return a.withManager(ctx, func(m upstream.Manager) error {
				return m.UntagResources(ctx, upstream.UntagResourcesInput{SecretNames: []upstream.SecretName{name}, TagKeys: keys, All: all})
			})
		}),
	}
	cmd.Flags().BoolVar(&all, "all", false, "remove all tags")
	return cmd
}
