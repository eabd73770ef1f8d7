package command

import (
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"secretagent/agent"
	"secretagent/agent/config"
	"secretagent/upstream"
)

func (a *app) copyCommand() *cobra.Command {
	var (
		out      output
		from, to string
		opts     agent.CopyOptions
	)
	cmd := &cobra.Command{
		Use:   "copy [NAME...]",
		Short: "Copy secrets from another upstream, with versions, labels, tags and times",
		Long: `Copy secrets from the upstream of another configuration to that of this one, or of --to: from a
database to etcd, from the cloud to either, or back. Without names, all whose names begin with
--prefix. Each goes as a whole, with all versions, labels, tags and times, from memory to memory:
it is encrypted at both ends, with the keys of that end, and is in no file between.

What is the same already is left alone, so that a copy that was interrupted is repeated to go on.
What is another secret at the target is told, and replaced with --force only: then it becomes
what the source has, versions and labels included. Nothing else there is deleted or changed.

The running agent of the source is asked where it has the database open; one that runs on a
database which is the target has to be stopped. With etcd and the cloud, agents go on.

To the cloud go description, tags and the versions that have a label, such as ACSCurrent and
ACSPrevious. It sets times and keys itself, and never rewrites a version: one of the same id with
another value is an error. Secrets that wait for their deletion are left out there.

With --dry-run nothing is written.`,
		Example: `  secretagent copy --from old/agent.yaml --dry-run
  secretagent copy --from cloud.yaml --prefix app/
  secretagent copy --from local.yaml --to etcd.yaml demo/db demo/tls`,
	}
	cmd.Flags().StringVar(&from, "from", "", "configuration `file` whose upstream the secrets come from")
	cmd.Flags().StringVar(&to, "to", "", "configuration `file` whose upstream they go to (default that of --config)")
	for _, name := range []string{"from", "to"} {
		_ = cmd.RegisterFlagCompletionFunc(name, func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt
		})
	}
	cmd.Flags().StringVar(&opts.Prefix, "prefix", "", "`text` that the names of the secrets begin with, such as app/")
	cmd.Flags().BoolVar(&opts.Replace, "force", false, "replace what is another secret at the target")
	cmd.Flags().BoolVar(&opts.DryRun, "dry-run", false, "say what would be done, and write nothing")
	_ = cmd.MarkFlagRequired("from")
	cmd.ValidArgsFunction = cobra.NoFileCompletions // what the source has, nobody is asked for
	cmd.RunE = a.run(func(ctx context.Context, args []string) error {
		for _, arg := range args {
			name := upstream.SecretName(arg)
			if err := name.Validate(); err != nil {
				return usageError{err}
			}
			if !strings.HasPrefix(arg, opts.Prefix) {
				return usagef("%s: does not begin with --prefix %s", arg, opts.Prefix)
			}
			opts.Names = append(opts.Names, name)
		}
		source, err := config.Source{File: from}.Load()
		if err != nil {
			return err
		}
		if to != "" {
			a.configFlag = to // its agent is told, too
		}
		target, err := a.loadConfig()
		if err != nil {
			return err
		}
		opts.Written = func(ctx context.Context, name upstream.SecretName) { a.tellAgent(ctx, target, name) }
		var done func()
		opts.Progress, done = a.counted("copying")
		moved, err := agent.Copy(ctx, source, target, a.logger(), opts)
		done()
		return errors.Join(a.printMoved(&out, moved, opts.DryRun, err), asOwner(err))
	})
	return out.of(cmd)
}

// printMoved prints what a copy has done, and returns what it has left undone. Text has one line for each secret that is
// not as it was. failed is why the copy has come to no end.
func (a *app) printMoved(out *output, moved []agent.Moved, dryRun bool, failed error) error {
	counts := map[string]int{}
	t := newTable("NAME", "RESULT", "NOTE")
	for _, m := range moved {
		counts[m.Result]++
		result := m.Result
		if dryRun && (result == agent.MoveCopied || result == agent.MoveReplaced) {
			result = "would be " + result
		}
		if m.Result != agent.MoveUnchanged {
			t.add(plain, string(m.SecretName), result, m.Note)
		}
	}
	text := ""
	if len(moved) > counts[agent.MoveUnchanged] {
		text = t.text(false)
	}
	if failed == nil || len(moved) > 0 {
		if moved == nil {
			moved = []agent.Moved{}
		}
		if err := a.print(out, map[string]any{"DryRun": dryRun, "Secrets": moved}, text); err != nil {
			return err
		}
	}
	if failed != nil {
		if n := counts[agent.MoveCopied] + counts[agent.MoveReplaced]; n > 0 && !dryRun {
			a.printf("%s copied; repeat it to go on", many(n, "secret"))
		}
		return nil
	}
	if n := counts[agent.MoveUnchanged]; n > 0 {
		a.printf("%s the same already", many(n, "secret"))
	}
	if n := counts[agent.MoveDiffers]; n > 0 && !dryRun {
		return withHint(&upstream.Error{Message: many(n, "secret") + " left as it is at the target, which has another one of that name", Err: upstream.ErrExists},
			"replace them with --force")
	}
	return nil
}
