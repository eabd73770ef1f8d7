package command

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"secretagent/agent"
	"secretagent/agent/config"
)

func (a *app) renderCommand() *cobra.Command {
	var (
		once, dryRun, diff, allOrNothing, noHooks bool
		timeout                                   time.Duration
		out                                       output
	)
	cmd := &cobra.Command{
		Use:   "render [FILE…]",
		Short: "Render the files of the configuration once, then exit",
		Long: `Render all templates and sets of the configuration once, run the hooks of what changed, and exit:
for init containers and CI. No agent is needed: the values come from the running agent of the
built-in backend where there is one, else from the upstream itself.

It is all or nothing: a secret that is missing, a template that fails, a check that refuses new
content or a full disk leaves every file as it was, unless --all-or-nothing=false. Every file
that failed is listed, with the reason. Reads that fail for a passing reason are repeated until
--timeout; then the exit code is 5, whatever else failed. "secretagent run" keeps files current.

Where the built-in backend has no files yet it makes them, with their seed, as a start of the
agent does; --dry-run does not.

--dry-run publishes nothing and lists the files that would change, of those that are named, if any
are: destinations of templates, sets or files in these. --diff shows the lines, with values masked.
It writes nothing that a check could look at: no check and no hook runs.`,
		Example: `  secretagent render --once --timeout 1m
  secretagent render --once --dry-run --diff`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: a.complete(a.filePaths),
		RunE: a.run(func(ctx context.Context, files []string) error {
			switch {
			case len(files) > 0 && !dryRun:
				return withHint(usagef("%s: files are named to --dry-run only", files[0]), "without it all are rendered, or none")
			case !once:
				return withHint(usagef("--once=false: this verb does not stay"), "secretagent run keeps files current")
			case diff && !dryRun:
				return usagef("--diff belongs to --dry-run")
			case timeout <= 0:
				return usagef("--timeout must be positive")
			case out.json() && !dryRun:
				return usagef("--output belongs to --dry-run: without it nothing is printed")
			case dryRun && (!allOrNothing || noHooks):
				return usagef("--dry-run publishes nothing and runs no hook: leave --all-or-nothing and --no-hooks away")
			}
			cfg, err := a.loadConfig(agent.CheckFiles(noHooks))
			if err != nil {
				return err
			}
			if files, err = destinations(cfg, files); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			deps, flush := a.deps(cfg)
			defer flush()
			done := a.progress("rendering")
			defer done()
			if !dryRun {
				return agent.RenderOnce(ctx, cfg, deps, agent.RenderOptions{Partial: !allOrNothing, NoHooks: noHooks})
			}
			diffs, err := agent.RenderDiff(ctx, cfg, deps)
			done()
			if err != nil {
				return err
			}
			diffs = slices.DeleteFunc(diffs, func(d agent.FileDiff) bool { return !isOrHolds(files, d.Path) })
			var text strings.Builder
			for i := range diffs {
				d := &diffs[i]
				if d.Unchecked && !out.json() {
					a.printf("%s: its check did not run: --dry-run writes nothing that it could look at", d.Path)
				}
				if diff {
					text.WriteString(d.String())
				} else {
					text.WriteString(d.Path + "\n")
					d.Lines = nil
				}
			}
			return a.print(&out, map[string]any{"Files": append([]agent.FileDiff{}, diffs...)}, text.String())
		}),
	}
	a.logFlag(cmd)
	a.keyringFlag(cmd)
	f := cmd.Flags()
	f.BoolVar(&once, "once", true, "render once, then exit: what this verb always does")
	f.BoolVar(&dryRun, "dry-run", false, "publish nothing; list the files that would change")
	f.BoolVar(&diff, "diff", false, "with --dry-run: show the lines that would change, values masked")
	f.BoolVar(&allOrNothing, "all-or-nothing", true, "publish nothing when something could not be rendered")
	f.BoolVar(&noHooks, "no-hooks", false, "run no hooks and owe none")
	f.DurationVar(&timeout, "timeout", 30*time.Second, "longest wait for the upstream")
	return out.of(cmd)
}

// destinations returns absolute paths of files that are the configuration's, or folders that have one.
func destinations(cfg *config.Config, files []string) ([]string, error) {
	var known []string
	for i := range cfg.Templates {
		known = append(known, string(cfg.Templates[i].Destination))
	}
	for i := range cfg.Sets {
		for j := range cfg.Sets[i].Files {
			known = append(known, filepath.Join(string(cfg.Sets[i].Directory), cfg.Sets[i].Files[j].Name))
		}
	}
	var found []string
	for _, file := range files {
		path, err := filepath.Abs(file)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(known, func(k string) bool { return isOrHolds([]string{path}, k) }) {
			return nil, usagef("%s: the configuration renders nothing there", file)
		}
		found = append(found, path)
	}
	return found, nil
}

// isOrHolds reports whether path is one of files or below it; without files, whatever it is.
func isOrHolds(files []string, path string) bool {
	return len(files) == 0 || slices.ContainsFunc(files, func(f string) bool {
		return path == f || strings.HasPrefix(path, strings.TrimSuffix(f, string(filepath.Separator))+string(filepath.Separator))
	})
}
